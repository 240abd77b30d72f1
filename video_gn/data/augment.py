"""Color jitter and greyscale, and the whole augmentation of training clips; each part is off by default.

Shape letters: T frames, C channels, H, W; h, w after the crop.

As in `crops`, each part is drawn from a numpy Generator and then applied to uint8 frames, to all of
them alike: a video that stands still stays still. Frames keep the memory order T, H, W, C. What depends
on a frame's pixels (contrast, autocontrast, equalize) depends on that frame alone, as in the sources, so
that a clip may come in parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

from video_gn.data import _pixels
from video_gn.data._rand_augment import RandAugment, RandAugmentParams
from video_gn.data.boxes import ErasingParams, RandomErasing, RandomResizedCrop, ResizedCropParams
from video_gn.data.crops import CropParams, TrainTransform, between, check_probability


@dataclass(frozen=True)
class ColorJitterParams:
    """What one draw of `ColorJitter` does: (name, factor) in the order in which they are applied."""

    changes: tuple[tuple[str, float], ...]


# Not torchvision's functions: all four on 32 frames of 256 x 320 take 87 ms here, theirs 244 ms frame by frame and
# 311 ms on the clip (one core; brightness alone 15, 9 and 13 ms, hue alone 77, 200 and 237 ms).
_COLOR: dict[str, Callable[[float], _pixels.Change]] = {
    "brightness": lambda factor: partial(_pixels.brightness, factor=factor),
    "contrast": lambda factor: partial(_pixels.contrast, factor=factor),
    "saturation": lambda factor: partial(_pixels.saturation, factor=factor),
    "hue": lambda turn: partial(_pixels.hue, turn=turn),
}


@dataclass(frozen=True)
class ColorJitter:
    """Random brightness, contrast, saturation and hue, in random order.

    A draw takes five numbers and a permutation from the generator, whatever is on.

    Args:
        brightness: the factor is uniform in [max(0, 1 - brightness), 1 + brightness]; 0 is off.
        contrast: the same.
        saturation: the same.
        hue: turns of the color circle, uniform in [-hue, hue]; at most 0.5; 0 is off.
        probability: probability that a clip is changed at all.

    Source: torchvision's ColorJitter.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        for name in _COLOR:
            value = getattr(self, name)
            if name == "hue" and not 0 <= value <= 0.5:
                raise ValueError(f"hue must be in [0, 0.5], in turns of the color circle, got {value!r}")
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be 0 (off) or above and finite, got {value!r}")
        check_probability("probability", self.probability)

    def draw(self, rng: np.random.Generator) -> ColorJitterParams:
        """Draw factors and their order."""
        u, order = rng.random(5).tolist(), rng.permutation(len(_COLOR)).tolist()
        if not u[-1] < self.probability:
            return ColorJitterParams(())
        factors = {}
        for name, u_factor in zip(_COLOR, u, strict=False):
            strength = getattr(self, name)
            middle = 0.0 if name == "hue" else 1.0
            low = -strength if name == "hue" else max(0.0, 1 - strength)
            if strength > 0:
                factors[name] = between(u_factor, (low, middle + strength))
        names = [name for name in (list(_COLOR)[i] for i in order) if name in factors]
        return ColorJitterParams(tuple((name, factors[name]) for name in names))

    def apply(self, frames_TCHW: torch.Tensor, params: ColorJitterParams) -> torch.Tensor:
        """Change the colors of all frames alike: uint8 (T, 3, H, W) -> the same, memory order T, H, W, C."""
        return _pixels.change_frames(frames_TCHW, [_COLOR[name](factor) for name, factor in params.changes])


@dataclass(frozen=True)
class RandomGreyscale:
    """All channels to the luma, with a probability for each clip in [0, 1]. Source: torchvision's RandomGrayscale."""

    probability: float = 0.0

    def __post_init__(self) -> None:
        check_probability("probability", self.probability)

    def draw(self, rng: np.random.Generator) -> bool:
        """Whether this clip becomes grey; one number."""
        return bool(rng.random() < self.probability)

    def apply(self, frames_TCHW: torch.Tensor, params: bool) -> torch.Tensor:
        """Take the colors out: uint8 (T, 3, H, W) -> the same, memory order T, H, W, C."""
        if not params:
            return frames_TCHW
        luma_THW1 = F.rgb_to_grayscale(frames_TCHW).permute(0, 2, 3, 1)
        return luma_THW1.expand(-1, -1, -1, 3).contiguous().permute(0, 3, 1, 2)


# ---- all together ------------------------------------------------------------------------------


@dataclass(frozen=True)
class AugmentParams:
    """What one draw of `Augmentation` does: the parameters of each part, None for one that is off."""

    crop: CropParams | ResizedCropParams
    rand_augment: RandAugmentParams | None = None
    color: ColorJitterParams | None = None
    grey: bool | None = None
    erasing: ErasingParams | None = None


@dataclass(frozen=True)
class Augmentation:
    """A crop, then RandAugment, color jitter, greyscale and erasing, those that are on.

    It replaces `TrainTransform`. With all parts off it gives what its crop alone gives, bit for bit. Each part
    has its own generator, so that turning one on or off does not change what the others draw. A part that is None is
    off.
    """

    crop: TrainTransform | RandomResizedCrop
    rand_augment: RandAugment | None = None
    color: ColorJitter | None = None
    grey: RandomGreyscale | None = None
    erasing: RandomErasing | None = None

    @property
    def crop_px(self) -> int:
        """px, side of the square result."""
        return self.crop.crop_px

    def draw(self, rng: np.random.Generator, height: int, width: int) -> AugmentParams:
        """Draw for frames of a size, px; see `TrainTransform`."""
        crop, size = self.crop.draw(rng, height, width), self.crop_px
        r1, r2, r3, r4 = (np.random.default_rng(seed) for seed in rng.integers(2**63, size=4).tolist())
        return AugmentParams(
            crop,
            self.rand_augment.draw(r1, size, size) if self.rand_augment else None,
            self.color.draw(r2) if self.color else None,
            self.grey.draw(r3) if self.grey else None,
            self.erasing.draw(r4, size, size) if self.erasing else None,
        )

    def apply(self, frames_THWC: torch.Tensor, params: AugmentParams) -> torch.Tensor:
        """Transform frames: uint8 (T, H, W, 3) -> (T, 3, h, w), memory order T, H, W, C."""
        frames = frames_THWC
        for name in ("crop", "rand_augment", "color", "grey", "erasing"):
            part: Any = getattr(self, name)  # each takes its own parameters
            if part is not None:
                frames = part.apply(frames, getattr(params, name))
        return frames
