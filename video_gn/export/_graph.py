"""The network as it is exported: from frames as a decoder gives them to scores and features, of any number and size.

Shape letters: N clips, T frames, H, W, C channels or features, P positions of the head's window, Y classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as shapes
from torch.nn import functional as F

from video_gn.models import I3D, LAYOUTS, for_inference

# With 8 frames the temporal pools would leave a single one, for which the tracer would make the length fixed.
_EXAMPLE = (2, 32, 64, 80, 3)


class ExportedNet(nn.Module):
    """The inference copy of a network, with its normalization of pixels, without branches on a clip's size.

    Args:
        net: Network.
        mean: Mean of pixels in [0, 1], RGB.
        std: Standard deviation of pixels in [0, 1], RGB.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, net: I3D, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        *blocks, self.head = for_inference(net).blocks
        self.body = nn.Sequential(*blocks)
        mean_C, std_C = torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32)
        self.register_buffer("scale", (1 / (255 * std_C)).view(1, -1, 1, 1, 1))
        self.register_buffer("shift", (-mean_C / std_C).view(1, -1, 1, 1, 1))

    def forward(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Softmax scores (N, Y) and features (N, C) of uint8 frames (N, T, H, W, 3), RGB; both as `I3D` gives them."""
        x_NCTHW = frames.permute(0, 4, 1, 2, 3).to(torch.float32) * self.scale + self.shift
        x_NCHW = self.body(x_NCTHW).mean(2)
        if self.head.window_px is None:
            features_NC = x_NCHW.mean((2, 3))
            return self.head.proj(features_NC).softmax(-1), features_NC
        features_NPC, weights_P = _windows(x_NCHW, self.head.window_px)
        scores_NPY = self.head.proj(features_NPC).softmax(-1)
        return (scores_NPY * weights_P[:, None]).sum(1), (features_NPC * weights_P[:, None]).sum(1)


def _windows(x_NCHW: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Means over windows of a map of any size, (N, P, C), one from each cell on, and the weight of each, (P,).

    Windows that begin so late that they would leave the map have weight 0. On a map smaller than the window only the
    first one counts, and it is the whole map:

        size 3, map of 5: weights 1/3 1/3 1/3 0 0
        size 3, map of 2: weights 1 0
    """

    def sums(map_NCHW: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(F.pad(map_NCHW, (0, size - 1, 0, size - 1)), size, stride=1)

    def weights(length: int) -> torch.Tensor:
        start = torch.arange(length)
        counts = ((start + size <= length) | (start == 0)).to(x_NCHW.dtype)
        return counts / counts.sum()

    means_NCHW = sums(x_NCHW) / sums(torch.ones_like(x_NCHW[:1, :1]))  # cells of the padding do not count
    weights_HW = weights(x_NCHW.shape[2])[:, None] * weights(x_NCHW.shape[3])
    return means_NCHW.flatten(2).transpose(1, 2), weights_HW.flatten()


def trace(net: I3D, *, mean: Sequence[float], std: Sequence[float]) -> ExportedProgram:
    """The graph, whose batch, time, height and width are free from the layout's smallest clip on."""
    layout = LAYOUTS[net.layout]
    sizes = {1: Dim("time", min=layout.min_frames), 2: Dim("height", min=32), 3: Dim("width", min=32)}
    frames = torch.zeros(_EXAMPLE, dtype=torch.uint8)
    exported = ExportedNet(net, mean=mean, std=std).eval()
    # Otherwise a size that is 1 for some clips, such as that of the last map in time, may be 1 for none.
    with torch.no_grad(), shapes.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        return torch.export.export(exported, (frames,), dynamic_shapes=({0: Dim("batch", min=1), **sizes},))
