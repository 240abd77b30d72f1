"""Kernels of our own, each beside a plain reference of the same signature."""

from video_gn.ops.group_norm import GroupNorm, group_norm, group_norm_reference

__all__ = ["GroupNorm", "group_norm", "group_norm_reference"]
