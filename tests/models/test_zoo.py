"""The named networks are what they say."""

from types import ModuleType

import torch

from video_gn import models
from video_gn.models import i3d_r50_bn, i3d_r50_gn, i3d_r101_gn, is_norm

COMMON = {
    "layout": "nonlocal",
    "num_classes": 400,
    "width": 64,
    "channels_per_group": None,
    "dropout": 0.5,
    "in_channels": 3,
    "zero_init_last_norm": True,
    "norm_eps": 1e-5,
    "norm_momentum": 0.1,
    "norm_options": None,
    "drop_path": 0.0,
    "nonlocal_blocks": None,
}


def test_named_networks():
    with torch.device("meta"):
        nets = {builder.__name__: builder() for builder in (i3d_r50_bn, i3d_r50_gn, i3d_r101_gn)}
        other = i3d_r50_gn(10, dropout=0.0)
    assert {name: net.arguments for name, net in nets.items()} == {
        "i3d_r50_bn": {"depth": 50, "norm": "batch", "num_groups": None, **COMMON},
        "i3d_r50_gn": {"depth": 50, "norm": "group", "num_groups": 32, **COMMON},
        "i3d_r101_gn": {"depth": 101, "norm": "group", "num_groups": 32, **COMMON},
    }
    assert {type(m).__name__ for m in nets["i3d_r50_bn"].modules() if is_norm(m)} == {"BatchNorm3d"}
    assert {m.num_groups for m in nets["i3d_r50_gn"].modules() if is_norm(m)} == {32}
    assert other.arguments == nets["i3d_r50_gn"].arguments | {"num_classes": 10, "dropout": 0.0}
    # 17 more blocks of res4 and their 51 norms.
    assert sum(is_norm(m) for m in nets["i3d_r101_gn"].modules()) == 53 + 51


def test_no_public_name_is_hidden_by_a_module_of_the_same_name():
    names = {name: getattr(models, name) for name in models.__all__}  # imports every module
    assert not {name for name in names if isinstance(getattr(models, name), ModuleType)}
