"""The smallest data module and configs, and comparison to the bit."""

from pathlib import Path

import torch
import yaml

from video_gn.data.configs import AugmentConfig, LoaderConfig, ViewsConfig
from video_gn.data.datamodule import VideoDataModule
from video_gn.data.dataset import ClipConfig
from video_gn.models import i3d
from video_gn.training.module import VideoClassifier
from video_gn.training.optimizer import OptimizerConfig
from video_gn.training.schedule import ScheduleConfig

ROOT = Path(__file__).resolve().parents[2]

# What a checkpoint says of itself, beside its network.
ABOUT = {
    "version": "0",
    "mean": [0.1, 0.2, 0.3],
    "std": [0.4, 0.5, 0.6],
    "classes": ["a", "b", "ç, d"],
    "clip": {"num_frames": 8, "stride": 2, "target_fps": None, "past_end": "loop"},
    "views": {"num_clips": 2, "spacing": "nonlocal", "crops": "center", "short_side_px": 32, "crop_px": 32},
}


def data_module(videos, **changes):
    """Clips of 8 frames of 32 px, flipped at random, in batches of 4, read in this process."""
    return VideoDataModule(
        str(videos),
        **{
            "clip": ClipConfig(num_frames=8, stride=2),
            "augment": AugmentConfig(short_side_px=(32, 36), crop_px=32, flip=0.5),
            "views": ViewsConfig(num_clips=1, short_side_px=32),
            "loader": LoaderConfig(num_workers=0),
            "batch_size": 4,
            **changes,
        },
    )


def still_module(norm, *, dtype=torch.float64, frozen_stages=0, activation_checkpointing=False):
    """Dropout off, a learning rate that changes nothing, the last norms' scales at 1: at 0 no branch has a gradient."""
    torch.manual_seed(0)
    groups = {"num_groups": 2} if norm == "group" else {}
    net = i3d(50, norm=norm, width=4, num_classes=5, dropout=0.0, zero_init_last_norm=False, **groups)
    with torch.no_grad():
        net.classifier.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    return VideoClassifier(
        net,
        optimizer=OptimizerConfig(lr=1e-30, reference_batch_size=None, weight_decay=0.0, frozen_stages=frozen_stages),
        schedule=ScheduleConfig("constant"),
        activation_checkpointing=activation_checkpointing,
    ).to(dtype)


def assert_same(one, other):
    """Tensors, containers and numbers, all the way down; a NaN is a NaN."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other or (one != one and other != other)


def write_small_configs(here):
    """Write all of `configs/` into a directory, for a minute's work on a CPU."""
    for path in (ROOT / "configs").rglob("*.yaml"):
        config = yaml.safe_load(path.read_text())
        target = here / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        _shrink_study(config) if path.parent.name == "study" else _shrink(config)
        target.write_text(yaml.safe_dump(config))


def _shrink_study(config):
    config.update(settings={"trainer.max_epochs": 1}, seeds={0: {}}, batch_sizes=[4])
    config["norms"].pop("LN", None)  # a cell costs two processes


def _shrink(config):
    config["trainer"].update(max_epochs=1, max_steps=-1, accelerator="cpu", devices=1)
    config["model"]["schedule"] = {"name": "constant"}  # the file's would end after this one epoch
    config["model"]["net"]["init_args"].update(width=4)
    if config["model"]["net"]["init_args"].get("num_groups"):
        config["model"]["net"]["init_args"].update(num_groups=2)
        config["model"]["weights_options"] = {"norm_mismatch": "reinit"}  # timm's 32 groups need 32 channels
    config["data"].update(batch_size=4, loader={"num_workers": 0})
    config["data"]["clip"].update(num_frames=8)
    config["data"]["augment"].update(short_side_px=[32, 36], crop_px=32)
    config["data"]["views"].update(num_clips=2, short_side_px=32, crop_px=32)
