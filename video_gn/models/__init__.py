"""The networks: `i3d` with every knob, and named models with literal numbers."""

from video_gn.models.batch_norms import checkpoint_contexts, recomputing
from video_gn.models.convert_norms import convert_norms
from video_gn.models.norms import NORMS, check_norm_training, has_statistics, is_norm, make_norm
from video_gn.models.resnet3d import I3D, LAYOUTS, i3d, min_clip
from video_gn.models.zoo import i3d_r50_bn, i3d_r50_gn, i3d_r101_gn

__all__ = [
    "I3D",
    "LAYOUTS",
    "NORMS",
    "check_norm_training",
    "checkpoint_contexts",
    "convert_norms",
    "has_statistics",
    "i3d",
    "i3d_r50_bn",
    "i3d_r50_gn",
    "i3d_r101_gn",
    "is_norm",
    "make_norm",
    "min_clip",
    "recomputing",
]
