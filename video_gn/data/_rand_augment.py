"""RandAugment on uint8 clips: a few operations of one magnitude, the same for all frames.

Shape letters: T frames, C channels, H, W.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

from video_gn.checks import check_integer
from video_gn.data import _pixels

_BINS = 31
# Name: (value at the lowest and at the highest magnitude, whether its sign is drawn); None for one without a value.
_SPACE: dict[str, tuple[float, float, bool] | None] = {
    "Identity": None,
    "ShearX": (0.0, 0.3, True),  # a slope
    "ShearY": (0.0, 0.3, True),
    "TranslateX": (0.0, 150 / 331, True),  # a part of the frame's side
    "TranslateY": (0.0, 150 / 331, True),
    "Rotate": (0.0, 30.0, True),  # degrees
    "Brightness": (0.0, 0.9, True),  # a factor's distance from 1
    "Color": (0.0, 0.9, True),
    "Contrast": (0.0, 0.9, True),
    "Sharpness": (0.0, 0.9, True),
    "Posterize": (8.0, 4.0, False),  # bits
    "Solarize": (1.0, 0.0, False),  # a threshold
    "AutoContrast": None,
    "Equalize": None,
}
OPERATIONS = tuple(_SPACE)


@dataclass(frozen=True)
class RandAugmentParams:
    """One draw of `RandAugment`.

    `operations` are (name, value) in order; a translation's value is in px, a threshold's in levels, and 0 stands for
    an operation without a value.
    """

    operations: tuple[tuple[str, float], ...]


def _value(name: str, level: float, height: int, width: int) -> float:
    space = _SPACE[name]
    if space is None:
        return 0.0
    low, high, _ = space
    high *= {"TranslateX": width, "TranslateY": height}.get(name, 1)
    below = min(int(level), _BINS - 2)
    # The bins in float32, as torchvision has them: pixels are cut off to whole numbers from there.
    steps = torch.linspace(low, high, _BINS)[below : below + 2].tolist()
    value = steps[0] + (level - below) * (steps[1] - steps[0])
    if name in ("TranslateX", "TranslateY"):
        return float(int(value))
    if name == "Posterize":
        return float(round(value))
    return 255 * value if name == "Solarize" else value


@dataclass(frozen=True)
class RandAugment:
    """A few random operations, one after the other, the same for all frames.

    A draw takes three numbers for each operation from the generator, whatever comes out.

    Args:
        num_ops: operations one after the other; each is one of `OPERATIONS`, with replacement.
        magnitude: in [0, 30], 30 the strongest.
        magnitude_std: the magnitude is drawn for each operation from a normal distribution of this
            standard deviation and cut off at 0 and 30; 0 takes `magnitude` itself.
        interpolation: interpolation of shears, translations and rotations.
        fill_level: in [0, 255], of pixels that come in from outside.

    Source: torchvision's RandAugment for operations and magnitudes (31 bins); timm for `magnitude_std`.
    """

    num_ops: int = 2
    magnitude: float = 9.0
    magnitude_std: float = 0.0
    interpolation: Literal["nearest", "bilinear"] = "nearest"
    fill_level: int = 0

    def __post_init__(self) -> None:
        check_integer("num_ops", self.num_ops)
        if not 0 <= self.magnitude <= _BINS - 1:
            raise ValueError(f"magnitude must be in [0, {_BINS - 1}], got {self.magnitude!r}")
        if not 0 <= self.magnitude_std < math.inf:
            raise ValueError(f"magnitude_std must be 0 or above and finite, got {self.magnitude_std!r}")
        if self.interpolation not in ("nearest", "bilinear"):
            raise ValueError(f"interpolation must be one of 'nearest', 'bilinear', got {self.interpolation!r}")
        if check_integer("fill_level", self.fill_level, least=0) > 255:
            raise ValueError(f"fill_level must be in [0, 255], got {self.fill_level!r}")

    def draw(self, rng: np.random.Generator, height: int, width: int) -> RandAugmentParams:
        """Draw for frames of a size, px: for each operation its name, a magnitude and a sign."""
        operations = []
        for _ in range(self.num_ops):
            name = OPERATIONS[int(rng.integers(len(OPERATIONS)))]
            level = self.magnitude + self.magnitude_std * float(rng.standard_normal())
            is_negative, space = rng.random() < 0.5, _SPACE[name]
            value = _value(name, min(max(level, 0.0), _BINS - 1.0), height, width)
            operations.append((name, -value if is_negative and space and space[2] else value))
        return RandAugmentParams(tuple(operations))

    def apply(self, frames_TCHW: torch.Tensor, params: RandAugmentParams) -> torch.Tensor:
        """Apply the operations to all frames alike: uint8 (T, 3, H, W) -> the same; the input is not written to.

        The memory order is T, H, W, C if the input has it.
        """
        waiting: list[_pixels.Change] = []  # consecutive changes of single frames go over each frame together
        for name, value in params.operations:
            if name in _FRAME_WISE:
                waiting.append(_FRAME_WISE[name](value))
            elif name != "Identity":
                frames_TCHW = self._whole(_pixels.change_frames(frames_TCHW, waiting), name, value)
                waiting = []
        return _pixels.change_frames(frames_TCHW, waiting)

    def _whole(self, frames_TCHW: torch.Tensor, name: str, value: float) -> torch.Tensor:
        if name == "Posterize":
            return F.posterize(frames_TCHW, bits=int(value))
        if name == "Solarize":
            return _pixels.solarize(frames_TCHW, value)
        return _pixels.move_by_affine(
            frames_TCHW, self.fill_level, bilinear=self.interpolation == "bilinear", **_AFFINE[name](value)
        )


_FRAME_WISE: dict[str, Callable[[float], _pixels.Change]] = {
    "Brightness": lambda value: partial(_pixels.brightness, factor=1 + value),
    "Color": lambda value: partial(_pixels.saturation, factor=1 + value),
    "Contrast": lambda value: partial(_pixels.contrast, factor=1 + value),
    "Sharpness": lambda value: partial(_pixels.sharpness, factor=1 + value),
    "AutoContrast": lambda value: _pixels.autocontrast,
    "Equalize": lambda value: _pixels.equalize,
}
_AFFINE: dict[str, Callable[[float], dict[str, object]]] = {
    # The magnitude is the slope, torchvision wants its angle; sheared about the first pixel.
    "ShearX": lambda value: {"shear": [math.degrees(math.atan(value)), 0.0], "center": [0, 0]},
    "ShearY": lambda value: {"shear": [0.0, math.degrees(math.atan(value))], "center": [0, 0]},
    "TranslateX": lambda value: {"translate": [int(value), 0]},
    "TranslateY": lambda value: {"translate": [0, int(value)]},
    # `affine` turns clockwise, `rotate`, which the magnitude is for, counterclockwise.
    "Rotate": lambda value: {"angle": -value},
}
