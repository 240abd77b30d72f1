"""Scaling inside the decoder: the same in training and tests, off by default, kept by checkpoints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from media import decode_in_order, read_numbers, write_numbered_video
from PIL import Image

from video_gn.data import dataset as dataset_module
from video_gn.data.configs import AugmentConfig, LoaderConfig, ViewsConfig
from video_gn.data.crops import TestCrops
from video_gn.data.datamodule import VideoDataModule
from video_gn.data.dataset import ClipConfig, EvalDataset
from video_gn.decoding import choose_backend, open_video
from video_gn.decoding._base import scaled_size
from video_gn.evaluation.predictor import Predictor
from video_gn.lists.records import VideoRecord
from video_gn.models import i3d
from video_gn.weights.about import KEY, NET_PREFIX


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_numbered_video(tmp_path_factory.mktemp("wide") / "video.mp4", 30, size=(160, 128))


def module(path, **changes):
    settings = {
        "clip": ClipConfig(num_frames=4, stride=2, decode_short_side_px=64),
        "augment": AugmentConfig(short_side_px=(56, 64), crop_px=48),
        "views": ViewsConfig(num_clips=2, short_side_px=60),
        "batch_size": 2,
    }
    return VideoDataModule(str(path), **{**settings, **changes})


@pytest.mark.parametrize(
    ("size", "short", "want"),
    [
        ((720, 1280), 320, (320, 568)),  # 568.9, floored to an even number
        ((1280, 720), 320, (568, 320)),
        ((480, 638), 320, (320, 424)),  # 425.3
        ((256, 340), 320, (256, 340)),  # never up
        ((320, 427), 320, (320, 427)),
        ((720, 1280), None, (720, 1280)),
    ],
)
def test_sizes(size, short, want):
    assert scaled_size(*size, short) == want


@pytest.mark.parametrize("rotation", [0, 90])
def test_frames_come_out_scaled_and_are_the_right_ones(tmp_path, rotation):
    path = write_numbered_video(tmp_path / "video.mp4", 12, size=(160, 128), rotation=rotation)
    with open_video(path, short_side_px=64) as reader:
        assert (reader.info.height, reader.info.width, reader.info.num_frames) == (64, 80, 12)
        frames = reader.frames_at([11, 0, 5, 5]).numpy()
        assert read_numbers(frames) == [11, 0, 5, 5]
    # Against another library's scaling of the decoded frame. A kernel differs, and colors are scaled before they
    # become RGB: 3 of 255 levels in the mean, on noise.
    want = np.asarray(Image.fromarray(decode_in_order(path)[5]).resize((80, 64), Image.Resampling.BICUBIC))
    assert np.abs(frames[2].astype(float) - want).mean() < 3


@pytest.mark.parametrize("short", [None, 128, 320])
def test_what_is_not_larger_is_not_touched(video, short):
    with open_video(video, short_side_px=short) as reader, open_video(video) as plain:
        torch.testing.assert_close(reader.frames_at([3, 8]), plain.frames_at([3, 8]), rtol=0, atol=0)


@pytest.mark.parametrize("val", ["center", "random"])
@pytest.mark.parametrize(("short", "want"), [(64, (64, 80)), (None, (128, 160))])
def test_training_validation_and_test_read_alike(tmp_path, video, monkeypatch, val, short, want):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(3):
            (tmp_path / label / f"{number}.mp4").symlink_to(video)
    seen = []

    def watch(path, **options):
        reader = open_video(path, **options)
        seen.append((reader.info.height, reader.info.width))
        return reader

    monkeypatch.setattr(dataset_module, "open_video", watch)
    views = ViewsConfig(num_clips=2, short_side_px=60, val=val)
    data = module(tmp_path, clip=ClipConfig(4, 2, decode_short_side_px=short), views=views, loader=LoaderConfig(0))
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        seen.clear()
        batch = next(iter(loader))
        assert batch.frames_NKTCHW.shape[-2:] == (48, 48) and not batch.failures
        assert set(seen) == {want}


def test_scaled_clips_look_like_those_of_full_size(tmp_path):
    # What is left of the difference is the softness of two kernels, on pictures with noise.
    path = write_numbered_video(tmp_path / "video.mp4", 20, size=(256, 192))
    crops = TestCrops("center", short_side_px=64, crop_px=64)
    record = VideoRecord(str(path), 0)
    full, scaled = (
        EvalDataset([record], clip=ClipConfig(4, 2, decode_short_side_px=px), crops=crops, num_clips=2)[0].frames_VTCHW
        for px in (None, 96)
    )
    assert full.shape == scaled.shape
    for one, other in zip(full.flatten(0, 1), scaled.flatten(0, 1), strict=True):
        assert (one.float() - other.float()).abs().mean() < 4


def test_a_checkpoint_keeps_it_and_leaves_out_what_is_off(video):
    assert ClipConfig(8, 2).describe() == {"num_frames": 8, "stride": 2, "target_fps": None, "past_end": "loop"}
    described = module(video).describe()["clip"]
    assert described["decode_short_side_px"] == 64
    assert ClipConfig(**described) == module(video).clip


def test_inference_scales_as_the_checkpoint_says(tmp_path, video):
    net = i3d(depth=50, width=4, layout="slowfast", norm="group", num_groups=2, num_classes=3)
    for name, px in (("on.ckpt", 64), ("off.ckpt", None)):
        data = module(video, clip=ClipConfig(4, 2, decode_short_side_px=px))
        about = {"version": "0", "net": dict(net.arguments), "mean": [0.45] * 3, "std": [0.225] * 3}
        about |= {k: v for k, v in data.describe().items() if k != "classes"}
        state = {f"{NET_PREFIX}{k}": v for k, v in net.state_dict().items()}
        torch.save({KEY: about, "state_dict": state}, tmp_path / name)
        predictor = Predictor.from_checkpoint(str(tmp_path / name), device="cpu")
        assert predictor.clip.decode_short_side_px == px
        assert predictor.predict(video, top_k=1)["top"][0]["score"] > 0


def test_errors(video):
    for px in (0, -2, 63):
        with pytest.raises(ValueError, match=rf"short_side_px must be even and above 0, got {px}"):
            open_video(video, short_side_px=px)
        with pytest.raises(ValueError, match=rf"clip.decode_short_side_px must be even and above 0, got {px}"):
            module(video, clip=ClipConfig(4, 2, decode_short_side_px=px))
    for backend in ("decord", "torchcodec"):
        match = rf"backend must be one of \['auto', 'pyav'\] to scale frames while decoding, got '{backend}'"
        with pytest.raises(ValueError, match=match):
            open_video(video, backend, short_side_px=64)
        with pytest.raises(ValueError, match=match):
            module(video, backend=backend)
        with pytest.raises(ValueError, match=match):
            EvalDataset([], clip=ClipConfig(4, 2, decode_short_side_px=64), crops=TestCrops("full"), backend=backend)
        assert choose_backend(backend) == backend
    for changes, match in (
        (
            {"augment": AugmentConfig(short_side_px=(56, 66), crop_px=48)},
            r"at least augment.short_side_px \(66\), got 64",
        ),
        ({"augment": AugmentConfig(crop="resized", crop_px=66)}, r"at least augment.crop_px \(66\), got 64"),
        ({"views": ViewsConfig(short_side_px=72)}, r"at least views.short_side_px \(72\), got 64"),
    ):
        with pytest.raises(ValueError, match=rf"clip.decode_short_side_px must be {match}"):
            module(video, **changes)
