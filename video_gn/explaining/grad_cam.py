"""Grad-CAM on a network's last map, and heat on whole frames from its coarse cells.

Shape letters: N views, C channels, t, h, w cells of the map, H, W pixels of a frame, n places.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from video_gn.data.crops import TestCrops
from video_gn.models import Window
from video_gn.models.tables import LastMap


def grad_cam(head: nn.Module, features_NCthw: torch.Tensor, label: int) -> torch.Tensor:
    """Maps of where a class is seen: (N, t, h, w), at least 0.

    A channel's weight is the gradient of the class's logit, averaged over the map's cells; a map is the ReLU of the
    weighted sum of channels. The logit is the one before the softmax, as in the source, and on a frame larger than the
    head's window its mean over positions. The map is the one that the head averages: X3D's head has a convolution
    before that.

    Where a linear layer follows the average, this is the class activation map of Zhou et al. 2016 (arXiv:1512.04150),
    for any size of frame. X3D has a layer without bias, ReLU and the linear layer there. In both, the sum of the
    cells before the ReLU is the logit without the classifier's bias for each position alone: nothing is approximated.

    Args:
        head: Layer from the last map to logits (N, positions, classes), in eval mode.
        features_NCthw: Last map, which needs no gradient: only the head is differentiated.
        label: Number of the class.

    Source: Selvaraju et al. 2017 (arXiv:1610.02391), Eq. 1 and 2.
    """
    averaged: list[torch.Tensor] = []

    def keep(_: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        averaged.append(inputs[0].detach().requires_grad_())
        return averaged[0]

    window = next((module for module in head.modules() if isinstance(module, Window)), head)
    handle = window.register_forward_pre_hook(keep)
    try:
        with torch.enable_grad():
            logit = head(features_NCthw.detach()).mean(1)[:, label].sum()  # a view's depends on its own map alone
    finally:
        handle.remove()
    (gradient_NCthw,) = torch.autograd.grad(logit, averaged)
    weights_NC = gradient_NCthw.mean((2, 3, 4))
    return torch.einsum("nc,ncthw->nthw", weights_NC, averaged[0].detach()).relu()


def interpolation(places: np.ndarray, num_cells: int) -> np.ndarray:
    """Linear interpolation between the middles of cells, as a matrix (n, num_cells).

    Args:
        places: (n,), in cells from the middle of the first one. Beyond the outer middles their value stays.
        num_cells: Number of cells in a row.
    """
    places = np.clip(places, 0, num_cells - 1)
    return np.maximum(0.0, 1.0 - np.abs(places[:, None] - np.arange(num_cells))).astype(np.float32)


class CellPlaces:
    """Where the cells of the last map lie in a clip's frames and on the frames of its video.

    Args:
        last_map: Those of the network's last map in a clip.
        crops: Crops of each clip.
        height: Height of the frames that were cropped, px.
        width: Their width, px.
    """

    def __init__(self, last_map: LastMap, crops: TestCrops, *, height: int, width: int) -> None:
        self.stride, self.first = last_map
        self.resized, self.boxes = crops.boxes(height, width)

    def in_frames(self, frames: Sequence[int] | np.ndarray, num_cells: int) -> np.ndarray:
        """Weights (n, t) of the cells at a clip's frames, counted from its first one."""
        return interpolation((np.asarray(frames) - self.first[0]) / self.stride[0], num_cells)

    def middles(self, num_cells: int) -> np.ndarray:
        """Frames (t,) of a clip in the middles of the cells."""
        return self.first[0] + self.stride[0] * np.arange(num_cells)

    def on_frame(self, maps_Phw: np.ndarray, height: int, width: int) -> np.ndarray:
        """Heat on a frame of the video at any size, float32 (H, W), from a map for each of its crops.

        Where crops overlap it is their mean, and NaN outside of all. Pixels lie on the resized frame as resizing puts
        them, by their middles.
        """
        sum_HW, number_HW = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
        for map_hw, (top, left, bottom, right) in zip(maps_Phw, self.boxes, strict=True):
            rows, weights_Hh = self._axis(1, height, (top, bottom), map_hw.shape[0])
            columns, weights_Ww = self._axis(2, width, (left, right), map_hw.shape[1])
            sum_HW[rows, columns] += weights_Hh @ (map_hw @ weights_Ww.T).astype(np.float32)
            number_HW[rows, columns] += 1
        return np.divide(sum_HW, number_HW, out=np.full_like(sum_HW, np.nan), where=number_HW > 0)

    def _axis(self, axis: int, size: int, crop: tuple[int, int], num_cells: int) -> tuple[slice, np.ndarray]:
        """Pixels of a frame that a crop shows along an axis, and the weights of the cells at each."""
        first, end = crop
        places = (np.arange(size) + 0.5) * self.resized[axis - 1] / size - 0.5 - first
        inside = np.flatnonzero((places >= -0.5) & (places < end - first - 0.5))
        weights = interpolation((places[inside] - self.first[axis]) / self.stride[axis], num_cells)
        return slice(inside[0], inside[-1] + 1), weights
