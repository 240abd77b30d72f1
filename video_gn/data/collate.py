"""Samples to a batch, in shared memory where a worker makes it.

Shape letters: N videos, V views, T frames, C channels, H, W.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.data import get_worker_info

from video_gn.clips import ClipBatch
from video_gn.data.dataset import Sample
from video_gn.data.layout import empty_frames


def collate(samples: Sequence[Sample]) -> ClipBatch:
    """Put samples into a batch; those without frames leave their failures alone.

    Args:
        samples: whose frames, where there are any, have one shape (V, T, 3, H, W).

    Returns:
        frames in memory order N,V,T,H,W,C.

    Raises:
        ValueError: for frames of different sizes.
    """
    read = [s for s in samples if s.frames_VTCHW is not None]
    failures = tuple(f for s in samples for f in s.failures)
    if not read:
        empty = torch.zeros(0, dtype=torch.int64)
        frames = torch.zeros((0, 0, 1, 3, 1, 1), dtype=torch.uint8)
        return ClipBatch(frames, empty, empty, failures)
    clips = [s.frames_VTCHW for s in read if s.frames_VTCHW is not None]
    shapes = {tuple(c.shape) for c in clips}
    if len(shapes) > 1:
        raise ValueError(f"the clips of a batch must have one shape, got {sorted(shapes)}. Use one video per batch.")
    num_views, num_frames, channels, height, width = clips[0].shape
    first_VTHWC = clips[0].permute(0, 1, 3, 4, 2)
    if len(clips) == 1 and first_VTHWC.is_contiguous() and (get_worker_info() is None or first_VTHWC.is_shared()):
        out_NVTHWC = first_VTHWC[None]  # ten views of a test video are 48 MB
    else:
        out_NVTHWC = empty_frames((len(clips), num_views, num_frames, height, width, channels))
        for row, clip in zip(out_NVTHWC, clips, strict=True):
            row.copy_(clip.permute(0, 1, 3, 4, 2))
    return ClipBatch(
        out_NVTHWC.permute(0, 1, 2, 5, 3, 4),
        torch.tensor([s.label for s in read], dtype=torch.int64),
        torch.tensor([s.video_id for s in read], dtype=torch.int64),
        failures,
        tuple(s.note for s in read if s.note is not None),
    )
