"""Augmentation, balance and mixing as a run uses them."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from runs import TINY, run
from torch.nn import functional as F

from video_gn.data.augment import RandomResizedCrop
from video_gn.data.configs import AugmentConfig
from video_gn.data.crops import TrainTransform
from video_gn.data.samplers import TrainSampler, epoch_order
from video_gn.training.mixing import Mixing

EVERYTHING = [
    "--data.augment.crop=resized",
    "--data.augment.rand_ops=2",
    "--data.augment.brightness=0.4",
    "--data.augment.hue=0.1",
    "--data.augment.grey=0.3",
    "--data.augment.erase=0.5",
    "--data.balance=class",
    "--model.mixing.mixup_alpha=0.8",
    "--model.mixing.cutmix_alpha=1",
    "--model.mixing.label_smoothing=0.1",
]


def test_everything_is_off_by_default():
    built = AugmentConfig((32, 36), 32, 0.0).build()
    assert built.crop == TrainTransform((32, 36), 32, 0.0)
    assert (built.rand_augment, built.color, built.grey, built.erasing) == (None,) * 4
    assert not Mixing().has_soft_targets


def test_settings_reach_their_parts():
    built = AugmentConfig(
        crop="resized", crop_px=32, scale=(0.5, 1), rand_ops=3, rand_magnitude=7, contrast=0.2, grey=0.1, erase=0.3
    ).build()
    assert built.crop == RandomResizedCrop(32, (0.5, 1), flip=0.5)
    assert (built.rand_augment.num_ops, built.rand_augment.magnitude) == (3, 7)
    assert (built.color.contrast, built.color.hue, built.color.probability) == (0.2, 0.0, 1.0)
    assert (built.grey.probability, built.erasing.probability) == (0.1, 0.3)
    with pytest.raises(ValueError, match="augment.crop must be short_side or resized"):
        AugmentConfig(crop="center").build()


def test_a_balanced_epoch_gives_each_clip_its_own_key():
    order = partial(epoch_order, labels=np.array([0] * 9 + [1]))
    keys = list(TrainSampler(10, batch_size=2, seed=0, order=order))
    assert len(keys) == len(set(keys)) == 10
    assert sum(record == 9 for _, record in keys) == 5
    halves = [list(TrainSampler(10, batch_size=1, seed=0, rank=r, world_size=2, order=order)) for r in (0, 1)]
    assert [k for pair in zip(*halves, strict=True) for k in pair] == keys
    rest = TrainSampler(10, batch_size=2, seed=0, start_batch=3, order=order)
    assert list(rest) == keys[6:]


def test_the_loss_is_that_of_the_mixed_batch(monkeypatch):
    from types import SimpleNamespace

    from video_gn.clips import ClipBatch
    from video_gn.evaluation.scores import normalize_clips
    from video_gn.models import i3d
    from video_gn.training.module import VideoClassifier

    mixing = Mixing(mixup_alpha=0.8, label_smoothing=0.1)
    net = i3d(50, width=4, num_groups=2, num_classes=6, dropout=0.0, zero_init_last_norm=False)
    module = VideoClassifier(net, mixing=mixing).train()
    module.log = lambda *args, **kwargs: None
    module._trainer = None
    module.optimizers = lambda: SimpleNamespace(param_groups=[{"lr": 0.1}])
    monkeypatch.setattr(module, "_seed_and_batches", lambda batch_idx: (3, 40 + batch_idx))
    frames = torch.randint(0, 256, (4, 1, 8, 40, 40, 3), dtype=torch.uint8).permute(0, 1, 2, 5, 3, 4)
    b = ClipBatch(frames, torch.arange(4), torch.arange(4))
    loss = module.training_step(b, 2)
    x = normalize_clips(b.frames_NKTCHW.flatten(0, 1), module.mean, module.std)
    mixed, targets = mixing.mix(x, b.labels, 6, seed=3, step=42, rank=0)
    torch.testing.assert_close(targets.sum(1), torch.ones(4))
    assert not torch.equal(mixed, x)
    torch.testing.assert_close(loss, F.cross_entropy(module.net(mixed), targets))


def test_a_run_with_everything_on_resumes_bit_for_bit(tiny_videos, tmp_path):
    words = ["fit", *TINY, f"--data.train={tiny_videos}", *EVERYTHING, "--trainer.limit_val_batches=1"]
    one = [*words, f"--run_dir={tmp_path / 'one'}", "--trainer.max_epochs=2"]
    status, printed = run(one, tmp_path)
    assert status == 0, printed
    two = [*words, f"--run_dir={tmp_path / 'two'}"]
    status, printed = run([*two, "--trainer.max_epochs=-1", "--trainer.max_steps=9"], tmp_path)
    assert status == 0, printed
    status, printed = run([*two, "--trainer.max_epochs=2", "--ckpt_path=last"], tmp_path)
    assert status == 0, printed
    states = [
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("one", "two")
    ]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_show_writes_a_picture(tiny_videos, tmp_path):
    from PIL import Image

    config = tmp_path / "c.yaml"
    config.write_text(
        json.dumps(
            {
                "model": {"net": {"class_path": "video_gn.models.i3d", "init_args": {"width": 4, "num_groups": 2}}},
                "data": {
                    "train": str(tiny_videos),
                    "clip": {"num_frames": 8},
                    "augment": {"short_side_px": [32, 36], "crop_px": 32},
                    "views": {"num_clips": 3, "short_side_px": 32},
                },
            }
        )
    )
    words = ["data", "show", "c.yaml", "--output=sheet.png", "--num_train=2", "--num_test=1", "--data.augment.erase=1"]
    status, printed = run(words, tmp_path)
    assert status == 0, printed
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.format == "PNG"
        assert picture.height > 5 * 32
    status, printed = run([*words, "--data.augment.ersae=1"], tmp_path)
    assert status == 2
    assert "ersae" in printed


def test_repeats_are_clips_of_one_decoding(tiny_videos, monkeypatch):
    from video_gn.data import dataset as module
    from video_gn.data.dataset import ClipConfig, TrainDataset
    from video_gn.lists.read import read_manifest

    records = read_manifest(tiny_videos).records
    opened = []
    real = module.open_video
    monkeypatch.setattr(module, "open_video", lambda path, **o: opened.append(path) or real(path, **o))

    def sample(repeats):
        settings = {"clip": ClipConfig(6, 2), "transform": TrainTransform((32, 40), 32, 0.5), "seed": 3}
        return TrainDataset(records, **settings, repeats=repeats)[(1, 4)]

    one, three = sample(1), sample(3)
    assert len(opened) == 2
    assert three.frames_VTCHW.shape == (3, 6, 3, 32, 32)
    assert torch.equal(three.frames_VTCHW[0], one.frames_VTCHW[0]), "the first is the one without repeats"
    assert not torch.equal(three.frames_VTCHW[1], three.frames_VTCHW[0])
    assert not torch.equal(three.frames_VTCHW[2], three.frames_VTCHW[1])


def test_a_batch_of_repeats_counts_clips(tiny_videos, tmp_path):
    words = ["fit", *TINY, f"--data.train={tiny_videos}", "--trainer.limit_val_batches=1", "--trainer.max_epochs=1"]
    status, printed = run([*words, "--data.augment.repeats=2", f"--run_dir={tmp_path / 'run'}"], tmp_path)
    assert status == 0, printed
    assert "global batch 4 = 1 process(es) x 4 clips" in printed
    assert "12 steps, 12 an epoch" in printed, "24 videos, two of them in a batch of four clips"
    status, printed = run([*words, "--data.augment.repeats=3", f"--run_dir={tmp_path / 'b'}"], tmp_path)
    assert status == 2
    assert "augment.repeats must divide batch_size (4), got 3" in printed
