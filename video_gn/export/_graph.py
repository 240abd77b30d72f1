"""The network as it is exported: from frames as a decoder gives them to scores and features, of any number and size.

Shape letters: N clips, T frames, H, W, C, D channels or features, P positions of the head's window, Y classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as shapes
from torch.nn import functional as F

from video_gn.models import I3D, LAYOUTS, VideoNet, Window, for_inference

# Larger than every head's window: of what is a single cell here, the tracer would make the size fixed.
_EXAMPLE = (2, 32, 320, 352, 3)


class ExportedNet(nn.Module):
    """The inference copy of a network, with its normalization of pixels, without branches on a clip's size.

    Args:
        net: Network.
        mean: Mean of pixels in [0, 1], RGB.
        std: Standard deviation of pixels in [0, 1], RGB.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, net: VideoNet, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        *blocks, self.head = for_inference(net).blocks
        self.body = nn.Sequential(*blocks)
        for name, module in list(self.head.named_modules()):
            if isinstance(module, Window):
                self.head.set_submodule(name, AnyWindow(module.size_THW))
        if isinstance(self.head.pool, nn.Sequential):  # X3D's: a convolution before the window, and one after it
            after: Any = self.head.pool[2]
            self.head.pool[2] = nn.Sequential(PositionLinear(after.conv), after.activation)
        mean_C, std_C = torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32)
        self.register_buffer("scale", (1 / (255 * std_C)).view(1, -1, 1, 1, 1))
        self.register_buffer("shift", (-mean_C / std_C).view(1, -1, 1, 1, 1))

    def forward(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Softmax scores (N, Y) and features (N, C) of uint8 frames (N, T, H, W, 3), RGB; both as the network's."""
        x_NCTHW = frames.permute(0, 4, 1, 2, 3).to(torch.float32) * self.scale + self.shift
        pooled_NPC = _by_position(self.head.pool(self.body(x_NCTHW)))
        return self.head.proj(pooled_NPC).softmax(-1).mean(1), pooled_NPC.mean(1)


class AnyWindow(Window):
    """`Window` without branches on the map's size.

    The mean of the window that begins at each cell, without cells beyond the map; then of these the windows that lie on
    the map, or the first one if the map is smaller.
    """

    def forward(self, x_NCTHW: torch.Tensor) -> torch.Tensor:
        """(N, C, T', H', W') with a cell for each position."""
        whole = [axis for axis, side in enumerate(self.size_THW, start=2) if side is None]
        if whole:
            x_NCTHW = x_NCTHW.mean(whole, keepdim=True)
        size = [side or 1 for side in self.size_THW]
        t, h, w = (side - 1 for side in size)

        def sums(map_NCTHW: torch.Tensor) -> torch.Tensor:
            return F.avg_pool3d(F.pad(map_NCTHW, (0, w, 0, h, 0, t)), size, stride=1)

        if len(whole) < 3:
            x_NCTHW = sums(x_NCTHW) / sums(torch.ones_like(x_NCTHW[:1, :1]))
        for axis, side in enumerate(self.size_THW, start=2):
            if side is not None:
                starts = torch.arange(torch.sym_max(x_NCTHW.shape[axis] - side, 0) + 1)
                x_NCTHW = x_NCTHW.index_select(axis, starts)
        return x_NCTHW


class PositionLinear(nn.Module):
    """A convolution of 1x1x1 without a bias as a linear layer: as one, it would need more than one position."""

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__()
        self.weight_DC = nn.Parameter(conv.weight.flatten(1))

    def forward(self, x_NCTHW: torch.Tensor) -> torch.Tensor:
        """(N, D, P)."""
        return F.linear(_by_position(x_NCTHW), self.weight_DC).transpose(1, 2)


def _by_position(x_NCTHW: torch.Tensor) -> torch.Tensor:
    """(N, P, C); contiguous, since products of others have branches on the number of positions."""
    return x_NCTHW.flatten(2).transpose(1, 2).clone(memory_format=torch.contiguous_format)


def trace(net: VideoNet, *, mean: Sequence[float], std: Sequence[float]) -> ExportedProgram:
    """The graph, whose batch, time, height and width are free from the network's smallest clip on."""
    min_frames = LAYOUTS[net.layout].min_frames if isinstance(net, I3D) else 1
    sizes = {1: Dim("time", min=min_frames), 2: Dim("height", min=32), 3: Dim("width", min=32)}
    frames = torch.zeros(_EXAMPLE, dtype=torch.uint8)
    exported = ExportedNet(net, mean=mean, std=std).eval()
    # Otherwise a size that is 1 for some clips, such as that of the last map in time, may be 1 for none.
    with torch.no_grad(), shapes.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        return torch.export.export(exported, (frames,), dynamic_shapes=({0: Dim("batch", min=1), **sizes},))
