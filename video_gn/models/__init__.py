"""The networks: `i3d` with every knob, and named models with literal numbers."""

from video_gn.models.norms import NORMS, is_norm, make_norm
from video_gn.models.resnet3d import I3D, LAYOUTS, i3d, min_clip
from video_gn.models.zoo import i3d_r50_bn, i3d_r50_gn, i3d_r101_gn

__all__ = [
    "I3D",
    "LAYOUTS",
    "NORMS",
    "i3d",
    "i3d_r50_bn",
    "i3d_r50_gn",
    "i3d_r101_gn",
    "is_norm",
    "make_norm",
    "min_clip",
]
