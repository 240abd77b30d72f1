"""What the draws of augmentation share: ranges, boxes, checks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from video_gn.data.crops import _check_frames, _uniform

# Boxes tried before giving up, in torchvision's RandomResizedCrop and RandomErasing.
_TRIES = 10


def between(u: float, bounds: tuple[float, float]) -> float:
    """A number in [0, 1) to one between two bounds, uniformly."""
    return bounds[0] + u * (bounds[1] - bounds[0])


@dataclass(frozen=True)
class BoxDraw:
    """Numbers in [0, 1) for ten boxes' areas and ratios, and for the place of the one that fits.

    Their count does not depend on the frame's size, nor on how many boxes are tried.
    """

    tries: tuple[tuple[float, float], ...]
    place: tuple[float, float]

    @classmethod
    def of(cls, rng: np.random.Generator) -> BoxDraw:
        """Take 22 numbers from a generator."""
        tries = tuple((float(a), float(b)) for a, b in rng.random((_TRIES, 2)))
        first, second = rng.random(2).tolist()
        return cls(tries, (first, second))

    def find(
        self,
        height: int,
        width: int,
        *,
        scale: tuple[float, float],
        ratio: tuple[float, float],
        whole: bool,
    ) -> tuple[int, int, int, int] | None:
        """The first box that fits into a frame, None where none does.

        Args:
            height: px, of the frame.
            width: px, of the frame.
            scale: range of the box's part of the frame's area.
            ratio: range of the box's height / width, log-uniform.
            whole: a box may be as high or as wide as the frame.

        Returns:
            (top, left, height, width), px.
        """
        logs = (math.log(ratio[0]), math.log(ratio[1]))
        for u_area, u_ratio in self.tries:
            area, r = height * width * between(u_area, scale), math.exp(between(u_ratio, logs))
            h, w = round(math.sqrt(area * r)), round(math.sqrt(area / r))
            if 0 < h < height + whole and 0 < w < width + whole:
                return _uniform(self.place[0], height - h), _uniform(self.place[1], width - w), h, w
        return None


def check_range(name: str, bounds: Sequence[float], *, highest: float = math.inf) -> tuple[float, float]:
    """Two ascending numbers above 0, as a tuple; a config gives a list.

    Raises:
        ValueError: naming the setting.
    """
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] <= highest or not bounds[1] < math.inf:
        limit = "" if highest == math.inf else f" and at most {highest}"
        raise ValueError(f"{name} must be two ascending numbers above 0{limit}, got {bounds!r}")
    return float(bounds[0]), float(bounds[1])


def check_probability(name: str, value: float) -> None:
    """Raise ValueError, naming the setting, for what is outside [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value!r}")


def check_rng(rng: np.random.Generator) -> None:
    """Raise TypeError for what is no numpy Generator."""
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng must be a numpy Generator, got {rng!r}. Use numpy.random.default_rng(seed).")


def check_size(size: tuple[int, ...], drawn: tuple[int, int]) -> None:
    """Raise ValueError where frames have not the size that was drawn for."""
    if size != drawn:
        raise ValueError(f"frames must be of size {drawn} as drawn, got {size}. Draw again.")


def check_clip(frames_TCHW: torch.Tensor) -> torch.Tensor:
    """The frames themselves.

    Raises:
        TypeError: for frames that are not uint8.
        ValueError: for frames that are not (T, 3, H, W).
    """
    if frames_TCHW.ndim != 4 or frames_TCHW.shape[1] != 3:
        raise ValueError(f"frames must be of shape (T, 3, H, W), got {tuple(frames_TCHW.shape)}")
    _check_frames(frames_TCHW.permute(0, 2, 3, 1))
    return frames_TCHW
