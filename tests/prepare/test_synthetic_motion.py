"""A network learns the synthetic motions, and cannot when the order of frames, or all but one, is taken away."""

import logging

import av
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from video_gn.models import i3d
from video_gn.prepare.synthetic import CLASSES, synthesize

# Three small trainings; on a busy machine they take minutes each.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

NUM_TRAIN, NUM_VAL = 80, 40  # videos of a class
NUM_FRAMES, CLIP_FRAMES, STRIDE = 48, 16, 2
SIZE_PX = 48
BATCH_SIZE, NUM_STEPS, WARMUP_STEPS, LR = 16, 900, 50, 0.03


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """uint8 (class, video, frame, H, W, 3) of training and validation."""
    out = tmp_path_factory.mktemp("motion") / "videos"
    synthesize(
        out,
        num_train_per_class=NUM_TRAIN,
        num_val_per_class=NUM_VAL,
        num_frames=NUM_FRAMES,
        size_px=(SIZE_PX, SIZE_PX),
    )
    return {split: np.stack([read_class(out / split / name) for name in CLASSES]) for split in ("train", "val")}


def read_class(directory):
    videos = []
    for path in sorted(directory.iterdir()):
        with av.open(str(path)) as container:
            videos.append(np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]))
    return np.stack(videos)


def ordered(indices, rng):
    return indices


def shuffled(indices, rng):
    return rng.permutation(indices)


def single(indices, rng):
    """One frame, held still."""
    return np.full_like(indices, rng.choice(indices))


def draw_clip(video, change, rng):
    """A clip from anywhere in time and in space: the frame is a torus, so rolling it makes another scene."""
    start = rng.integers(NUM_FRAMES - (CLIP_FRAMES - 1) * STRIDE)
    clip = video[change(start + STRIDE * np.arange(CLIP_FRAMES), rng)]
    return np.roll(clip, rng.integers(SIZE_PX, size=2), axis=(1, 2))


def to_input(clips):
    x_NTHWC = torch.from_numpy(np.stack(clips)).float()
    x_NCTHW = ((x_NTHWC / 255 - 0.45) / 0.225).permute(0, 4, 1, 2, 3)
    return x_NCTHW.contiguous(memory_format=torch.channels_last_3d)


def train_and_test(videos, change, *, num_clips):
    """Top-1 on the validation videos, mean score of random clips, of a net that was trained on such clips."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    net = i3d(50, layout="nonlocal", norm="group", num_groups=4, width=16, num_classes=len(CLASSES), dropout=0.0)
    net = net.to(memory_format=torch.channels_last_3d).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=0.9, nesterov=True, weight_decay=1e-4)
    losses = []
    for step in range(NUM_STEPS):
        lr = LR * min(1, (step + 1) / WARMUP_STEPS) * (1 + np.cos(np.pi * step / NUM_STEPS)) / 2
        for group in optimizer.param_groups:
            group["lr"] = lr
        labels = rng.integers(len(CLASSES), size=BATCH_SIZE)
        clips = [draw_clip(videos["train"][label, rng.integers(NUM_TRAIN)], change, rng) for label in labels]
        loss = F.cross_entropy(net(to_input(clips)), torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all()
    net.eval()
    right = 0
    with torch.no_grad():
        for label, of_class in enumerate(videos["val"]):
            scores = sum(net(to_input([draw_clip(v, change, rng) for v in of_class])) for _ in range(num_clips))
            right += int((scores.argmax(1) == label).sum())
    top1 = right / (len(CLASSES) * NUM_VAL)
    logging.getLogger(__name__).info("%s: loss %.3f, top-1 %.3f", change.__name__, np.mean(losses[-50:]), top1)
    return top1


def test_a_net_learns_the_motions(videos):
    top1 = train_and_test(videos, ordered, num_clips=5)
    assert top1 >= 0.8


def test_without_their_order_frames_tell_at_most_the_pair(videos):
    # The best that can be had is 0.5. Of 320 videos 0.55 is 1.8 standard deviations above it.
    top1 = train_and_test(videos, shuffled, num_clips=5)
    assert top1 <= 0.55


def test_a_frame_tells_nothing(videos):
    # One clip of each video: several single frames together would again be shuffled frames.
    # Chance is 0.125; with 320 videos a standard deviation is 0.0185, and 0.2 is 4 of them above.
    top1 = train_and_test(videos, single, num_clips=1)
    assert top1 <= 0.2
