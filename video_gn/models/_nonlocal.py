"""Non-local blocks: each position of a map adds what it finds at all others, in space and time.

Shape letters: N batch, C channels, T frames, H, W, G groups of frames, P positions of the map, K of the pooled map.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class NonlocalBlock(nn.Module):
    """x + norm(conv_out(y)), where y at each position is a weighted sum of g over the pooled map.

    The weights are those of the products of theta (at the position) and phi (on the pooled map): their softmax, or
    the products divided by their number. Parameters have the names of pytorchvideo's `create_nonlocal`.

    Args:
        channels: C of the map; theta, phi and g have half as many.
        norm: Norm of C channels. With a scale of 0 the block is the identity.
        weighting: "softmax" (embedded Gaussian) or "dot_product".
        as_mmaction: phi and g are pooled after their convolutions instead of before, the products are not divided by
            the root of their number of channels, and the last convolution has no bias.
        frames: Frames in a row that look at each other alone; they must divide T. None for all.

    Source: Wang et al. 2018 (arXiv:1711.07971), Eq. 1, 4 and 6; pooling and scale as video-nonlocal-net's
        nonlocal_helper.py and SlowFast's, or mmaction2's configs of I3D with mmcv's NonLocal3d.
    """

    def __init__(
        self, channels: int, norm: nn.Module, *, weighting: str, as_mmaction: bool, frames: int | None = None
    ) -> None:
        super().__init__()
        inner = channels // 2
        self.conv_theta = nn.Conv3d(channels, inner, 1)
        self.conv_phi = nn.Conv3d(channels, inner, 1)
        self.conv_g = nn.Conv3d(channels, inner, 1)
        self.conv_out = nn.Conv3d(inner, channels, 1, bias=not as_mmaction)
        self.norm = norm
        self.pool = nn.MaxPool3d((1, 2, 2))
        self.weighting = weighting
        self.as_mmaction = as_mmaction
        self.frames = frames

    def forward(self, x_NCTHW: torch.Tensor) -> torch.Tensor:
        """A map of the same shape; height and width must be at least 2."""
        theta_NCTHW = self.conv_theta(x_NCTHW)
        if self.as_mmaction:
            phi_NCTHW, g_NCTHW = self.pool(self.conv_phi(x_NCTHW)), self.pool(self.conv_g(x_NCTHW))
        else:
            pooled_NCTHW = self.pool(x_NCTHW)
            phi_NCTHW, g_NCTHW = self.conv_phi(pooled_NCTHW), self.conv_g(pooled_NCTHW)
        # (N, 1, P, C), or (N, G, P / G, C) for G groups of frames: they are the heads of attention.
        groups = 1 if self.frames is None else x_NCTHW.shape[2] // self.frames
        theta_NGPC, phi_NGKC, g_NGKC = (
            map_.flatten(2).unflatten(2, (groups, -1)).permute(0, 2, 3, 1) for map_ in (theta_NCTHW, phi_NCTHW, g_NCTHW)
        )
        if self.weighting == "softmax":
            # The kernels of attention never hold all P x K weights.
            scale = 1.0 if self.as_mmaction else theta_NGPC.shape[-1] ** -0.5
            y_NGPC = F.scaled_dot_product_attention(theta_NGPC, phi_NGKC, g_NGKC, scale=scale)
        else:
            # (theta phi') g = theta (phi' g): C x C numbers instead of P x K.
            y_NGPC = theta_NGPC @ ((phi_NGKC / phi_NGKC.shape[2]).transpose(2, 3) @ g_NGKC)
        y_NCTHW = y_NGPC.flatten(1, 2).transpose(1, 2).reshape(theta_NCTHW.shape)
        added_NCTHW: torch.Tensor = self.norm(self.conv_out(y_NCTHW))
        return x_NCTHW + added_NCTHW
