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
from video_gn.data.crops import check_clip, check_rng, check_size

_BINS = 31
# How far an operation goes at the highest magnitude, in the paper's table: a slope, a part of the
# side, degrees, a factor's distance from 1.
_SHEAR, _TRANSLATE, _DEGREES, _FACTOR = 0.3, 150 / 331, 30.0, 0.9


@dataclass(frozen=True)
class RandAugmentParams:
    """What one draw of `RandAugment` does.

    Args:
        height: px, of the frames that it was drawn for.
        width: px, of the frames that it was drawn for.
        operations: (name, value) in order; the value is a slope, pixels, degrees, a change of factor, bits
            or a threshold, and 0 for an operation that has none.
    """

    height: int
    width: int
    operations: tuple[tuple[str, float], ...]


# Name: (value at the lowest and at the highest magnitude, for frames of a height and width; signed).
_SPACE: dict[str, tuple[Callable[[int, int], tuple[float, float]] | None, bool]] = {
    "Identity": (None, False),
    "ShearX": (lambda height, width: (0.0, _SHEAR), True),
    "ShearY": (lambda height, width: (0.0, _SHEAR), True),
    "TranslateX": (lambda height, width: (0.0, _TRANSLATE * width), True),
    "TranslateY": (lambda height, width: (0.0, _TRANSLATE * height), True),
    "Rotate": (lambda height, width: (0.0, _DEGREES), True),
    "Brightness": (lambda height, width: (0.0, _FACTOR), True),
    "Color": (lambda height, width: (0.0, _FACTOR), True),
    "Contrast": (lambda height, width: (0.0, _FACTOR), True),
    "Sharpness": (lambda height, width: (0.0, _FACTOR), True),
    "Posterize": (lambda height, width: (8.0, 4.0), False),
    "Solarize": (lambda height, width: (1.0, 0.0), False),
    "AutoContrast": (None, False),
    "Equalize": (None, False),
}
OPERATIONS = tuple(_SPACE)


def _value(name: str, level: float, height: int, width: int) -> float:
    bounds, _ = _SPACE[name]
    if bounds is None:
        return 0.0
    low, high = bounds(height, width)
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

    Raises:
        ValueError: for a number out of its range or an unknown interpolation.
        TypeError: for a count or level that is not an integer.
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
        check_rng(rng)
        height, width = check_integer("height", height), check_integer("width", width)
        operations = []
        for _ in range(self.num_ops):
            name = OPERATIONS[int(rng.integers(len(OPERATIONS)))]
            level = self.magnitude + self.magnitude_std * float(rng.standard_normal())
            is_negative = bool(rng.random() < 0.5) and _SPACE[name][1]
            value = _value(name, min(max(level, 0.0), _BINS - 1.0), height, width)
            operations.append((name, -value if is_negative else value))
        return RandAugmentParams(height, width, tuple(operations))

    def apply(self, frames_TCHW: torch.Tensor, params: RandAugmentParams) -> torch.Tensor:
        """Apply the operations to all frames alike: uint8 (T, 3, H, W) -> the same; the input is not written to.

        The memory order is T, H, W, C if the input has it.

        Raises:
            TypeError: for frames that are not uint8.
            ValueError: for frames of another shape or size.
        """
        check_clip(frames_TCHW)
        check_size(tuple(frames_TCHW.shape[2:]), (params.height, params.width))
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
