"""Turns uint8 clips into softmax scores on the network's device; training, test and inference share it.

Shape letters: N clips, K views of a video, T frames, C channels, H, W, Y classes.
"""

from __future__ import annotations

import torch
from torch import nn

from video_gn.errors import CheckpointError
from video_gn.models import map_views


def normalize_clips(frames_NTCHW: torch.Tensor, mean_C: torch.Tensor, std_C: torch.Tensor) -> torch.Tensor:
    """Turn uint8 frames, in any memory order, into the network's input, on their own device.

    `mean_C` and `std_C` are mean and standard deviation of pixels in [0, 1].

    Returns:
        (N, C, T, H, W) in channels_last_3d and the mean's dtype, float32 as a rule.
    """
    x_NCTHW = frames_NTCHW.transpose(1, 2)
    # One multiply-add on the bytes' values: (x / 255 - mean) / std.
    scale = (1.0 / (255.0 * std_C)).view(1, -1, 1, 1, 1)
    shift = (-mean_C / std_C).view(1, -1, 1, 1, 1)
    x_NCTHW = x_NCTHW.to(mean_C.dtype, memory_format=torch.channels_last_3d)
    return x_NCTHW.mul_(scale).add_(shift)


def score_views(
    net: nn.Module, frames_KTCHW: torch.Tensor, *, mean_C: torch.Tensor, std_C: torch.Tensor, views_per_forward: int
) -> torch.Tensor:
    """Softmax scores of one video's views: `net`'s results, in eval mode, as `map_views` collects them.

    Mean and std are as in `normalize_clips`.
    """
    # `forward` itself: a compiled call is for training's shapes alone.
    return map_views(
        lambda chunk: net.forward(normalize_clips(chunk, mean_C, std_C)),
        frames_KTCHW,
        views_per_forward=views_per_forward,
    )


def check_scores(scores: torch.Tensor, *, video: str, checkpoint: object) -> None:
    """Raise CheckpointError, naming video and checkpoint (None without one), for scores that are not finite."""
    if not bool(scores.isfinite().all()):
        raise CheckpointError(
            f"{checkpoint or 'the network'}: its scores of {video} are not finite (NaN or infinite). Its training has "
            "diverged, or its mean and std do not fit. Take another checkpoint."
        )
