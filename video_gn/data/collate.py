"""Samples to a batch, in shared memory where a worker makes it.

Shape letters: N videos, V views, T frames, C channels, H, W.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from video_gn.clips import ClipBatch
from video_gn.data.dataset import Sample


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
        return ClipBatch(frames, empty, empty, torch.zeros((0, 0), dtype=torch.int64), failures)
    clips = [s.frames_VTCHW for s in read if s.frames_VTCHW is not None]
    shapes = {tuple(c.shape) for c in clips}
    if len(shapes) > 1:
        raise ValueError(f"the clips of a batch must have one shape, got {sorted(shapes)}. Use one video per batch.")
    num_views, num_frames, channels, height, width = clips[0].shape
    out_NVTHWC = _empty_batch((len(clips), num_views, num_frames, height, width, channels))
    for row, clip in zip(out_NVTHWC, clips, strict=True):
        row.copy_(clip.permute(0, 1, 3, 4, 2))
    return ClipBatch(
        out_NVTHWC.permute(0, 1, 2, 5, 3, 4),
        torch.tensor([s.label for s in read], dtype=torch.int64),
        torch.tensor([s.video_id for s in read], dtype=torch.int64),
        torch.arange(num_views).repeat(len(read), 1),
        failures,
        tuple(s.note for s in read if s.note is not None),
    )


def _empty_batch(shape: tuple[int, ...]) -> torch.Tensor:
    """An uninitialized uint8 tensor, in shared memory inside a worker, so that sending it copies nothing."""
    if torch.utils.data.get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(int(np.prod(shape)))
    return torch.empty(0, dtype=torch.uint8).set_(storage).resize_(shape)
