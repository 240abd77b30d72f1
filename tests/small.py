"""The smallest data module, and comparison to the bit."""

import torch

from video_gn.data.configs import AugmentConfig, LoaderConfig, ViewsConfig
from video_gn.data.datamodule import VideoDataModule
from video_gn.data.dataset import ClipConfig

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
