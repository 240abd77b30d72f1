"""The networks: `i3d` with every knob, named models with literal numbers, and networks of pytorchvideo's hub.

torch is imported with the first name that needs it: `video_gn.models.tables` alone needs none.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from video_gn.models.tables import BATCH_FAMILY, DEPTHS, HUB_NETWORKS, I3D_NETWORK, LAYOUTS, OWN_NETWORK

if TYPE_CHECKING:
    from video_gn.models._batch_norms import BatchRenorm, checkpoint_contexts, recomputing
    from video_gn.models._bfloat16 import check_bfloat16_cpu, visit_maps, warn_of_slow_bfloat16
    from video_gn.models._convert_norms import convert_norms
    from video_gn.models._inference import for_inference, map_views, views_at_a_time
    from video_gn.models.hub_nets import NETWORKS, HubNet, build_network, r2plus1d_r50, slow_r50, x3d_s
    from video_gn.models.norms import NORMS, check_norm_training, has_statistics, is_norm, make_norm
    from video_gn.models.resnet3d import I3D, Window, i3d, min_clip
    from video_gn.models.video_net import OwnNet, VideoNet, find_network, search_here
    from video_gn.models.zoo import i3d_r50_bn, i3d_r50_gn, i3d_r101_gn

_HOMES = {
    "_batch_norms": ("BatchRenorm", "checkpoint_contexts", "recomputing"),
    "_bfloat16": ("check_bfloat16_cpu", "visit_maps", "warn_of_slow_bfloat16"),
    "_convert_norms": ("convert_norms",),
    "_inference": ("for_inference", "map_views", "views_at_a_time"),
    "hub_nets": ("NETWORKS", "HubNet", "build_network", "r2plus1d_r50", "slow_r50", "x3d_s"),
    "norms": ("NORMS", "check_norm_training", "has_statistics", "is_norm", "make_norm"),
    "resnet3d": ("I3D", "Window", "i3d", "min_clip"),
    "video_net": ("OwnNet", "VideoNet", "find_network", "search_here"),
    "zoo": ("i3d_r50_bn", "i3d_r50_gn", "i3d_r101_gn"),
}

__all__ = [
    "BATCH_FAMILY",
    "DEPTHS",
    "HUB_NETWORKS",
    "I3D",
    "I3D_NETWORK",
    "LAYOUTS",
    "NETWORKS",
    "NORMS",
    "OWN_NETWORK",
    "BatchRenorm",
    "HubNet",
    "OwnNet",
    "VideoNet",
    "Window",
    "build_network",
    "check_bfloat16_cpu",
    "check_norm_training",
    "checkpoint_contexts",
    "convert_norms",
    "find_network",
    "for_inference",
    "has_statistics",
    "i3d",
    "i3d_r50_bn",
    "i3d_r50_gn",
    "i3d_r101_gn",
    "is_norm",
    "make_norm",
    "map_views",
    "min_clip",
    "r2plus1d_r50",
    "recomputing",
    "search_here",
    "slow_r50",
    "views_at_a_time",
    "visit_maps",
    "warn_of_slow_bfloat16",
    "x3d_s",
]


def __getattr__(name: str) -> Any:
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
