"""Random boxes of clips: resized to a crop, or erased.

Shape letters: T frames, C channels, H, W.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

from video_gn.checks import check_integer
from video_gn.data.crops import between, check_frames, check_probability, resize, uniform

# Boxes tried before giving up, in torchvision's RandomResizedCrop and RandomErasing.
_TRIES = 10


@dataclass(frozen=True)
class ResizedCropParams:
    """One draw of `RandomResizedCrop`, the same for every frame of a clip; lengths in px."""

    top: int  # first row and column of the box
    left: int
    box_height: int
    box_width: int
    crop_px: int  # side of the square that the box is resized to
    flip: bool  # left to right


@dataclass(frozen=True)
class RandomResizedCrop:
    """A box of random area, aspect ratio and place, resized to a square, and a random flip.

    Takes the place of `TrainTransform`. A draw takes 23 numbers from the generator whatever the size.

    Args:
        crop_px: px, side of the result.
        scale: closed range of the box's part of the frame's area, in (0, 1].
        ratio: range of width / height, log-uniform.
        flip: probability of a horizontal flip; 0 if a class has a direction.

    Source: torchvision's RandomResizedCrop: up to ten boxes are drawn until one fits, else the largest
        one in the middle whose ratio is allowed.
    """

    crop_px: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __post_init__(self) -> None:
        check_integer("crop_px", self.crop_px)
        object.__setattr__(self, "scale", _check_bounds("scale", self.scale, highest=1))
        object.__setattr__(self, "ratio", _check_bounds("ratio", self.ratio))
        check_probability("flip", self.flip)

    def draw(self, rng: np.random.Generator, height: int, width: int) -> ResizedCropParams:
        """Draw for frames of a size, px: ten areas and ratios, then the place, then the flip; see `TrainTransform`."""
        # A box of ratio width / height is one of height / width, lying on its side.
        box = _draw_box(rng, width, height, scale=self.scale, ratio=self.ratio, whole=True)
        place = self._middle(height, width) if box is None else (box[1], box[0], box[3], box[2])
        return ResizedCropParams(*place, self.crop_px, flip=bool(rng.random() < self.flip))

    def _middle(self, height: int, width: int) -> tuple[int, int, int, int]:
        low, high = self.ratio
        # At least a pixel, for pictures hundreds of times longer than wide.
        h = min(height, max(1, round(width / low)))
        w = min(width, max(1, round(height * high)))
        return (height - h) // 2, (width - w) // 2, h, w

    def apply(self, frames_THWC: torch.Tensor, params: ResizedCropParams) -> torch.Tensor:
        """Transform frames: uint8 (T, H, W, 3) -> (T, 3, crop_px, crop_px), memory order T, H, W, C."""
        check_frames(frames_THWC)
        box_THWC = frames_THWC.narrow(1, params.top, params.box_height).narrow(2, params.left, params.box_width)
        # Without gaps between the rows: torch resizes such a picture in the order T, H, W, C.
        out_THWC = resize(box_THWC.contiguous(), params.crop_px, params.crop_px)
        return (out_THWC.flip(2) if params.flip else out_THWC).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class ErasingParams:
    """One draw of `RandomErasing`: a box of all frames, and the seed of the noise that fills it; lengths in px."""

    top: int
    left: int
    box_height: int  # 0 without a box
    box_width: int
    noise_seed: int


@dataclass(frozen=True)
class RandomErasing:
    """One box, the same in all frames, filled with noise or with the mean color.

    The noise is one picture, the same in all frames, so that nothing moves in the box. (SlowFast draws
    new noise for each frame.) After normalization it is standard normal, as in the sources, except what
    lies outside [0, 255] in uint8. (torchvision's transform takes no generator, and writes standard normal noise into
    uint8 as it is: levels 0 to 3, and 253 to 255 below 0.)

    Args:
        probability: probability for each clip.
        scale: closed range of the box's part of the frame's area, in (0, 1].
        ratio: range of height / width, log-uniform.
        value: "random" for noise in each pixel and channel, "mean" for the mean color.
        mean: color of the middle, of pixels in [0, 1]: as the network's input is normalized.
        std: standard deviation of the noise, of pixels in [0, 1].

    Source: torchvision's RandomErasing for the box (up to ten are drawn until one is smaller than the
        frame in both directions, else none); timm's mode "pixel" and SlowFast's cube for the noise.
    """

    probability: float = 0.0
    scale: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)
    value: Literal["random", "mean"] = "random"
    mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
    std: tuple[float, float, float] = (0.225, 0.225, 0.225)

    def __post_init__(self) -> None:
        check_probability("probability", self.probability)
        object.__setattr__(self, "scale", _check_bounds("scale", self.scale, highest=1))
        object.__setattr__(self, "ratio", _check_bounds("ratio", self.ratio))
        if self.value not in ("random", "mean"):
            raise ValueError(f"value must be one of 'random', 'mean', got {self.value!r}")
        for name in ("mean", "std"):
            values = tuple(getattr(self, name))
            if len(values) != 3 or not all(0 <= v <= 1 for v in values):
                raise ValueError(f"{name} must be three numbers in [0, 1], got {values!r}")
            object.__setattr__(self, name, values)

    def draw(self, rng: np.random.Generator, height: int, width: int) -> ErasingParams:
        """Draw for frames of a size, px: whether to erase, ten areas and ratios, the place, and the noise's seed."""
        is_on = rng.random() < self.probability
        box = _draw_box(rng, height, width, scale=self.scale, ratio=self.ratio, whole=False)
        if box is None or not is_on:
            box = (0, 0, 0, 0)
        return ErasingParams(*box, noise_seed=int(rng.integers(2**63)))

    def apply(self, frames_TCHW: torch.Tensor, params: ErasingParams) -> torch.Tensor:
        """Fill the box in all frames: uint8 (T, 3, H, W) -> the same; the input is not written to."""
        if params.box_height == 0:
            return frames_TCHW
        size = (params.box_height, params.box_width, 3)
        noise = np.zeros(size, dtype=np.float32)
        if self.value == "random":
            noise = np.random.default_rng(params.noise_seed).standard_normal(size, dtype=np.float32)
        levels = (noise * np.array(self.std, dtype=np.float32) + np.array(self.mean, dtype=np.float32)) * 255
        box_CHW = torch.from_numpy(levels.round().clip(0, 255).astype(np.uint8)).permute(2, 0, 1)
        out_THWC = frames_TCHW.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
        out_TCHW = out_THWC.permute(0, 3, 1, 2)
        return F.erase(out_TCHW, params.top, params.left, params.box_height, params.box_width, box_CHW, inplace=True)


def _draw_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    whole: bool,
) -> tuple[int, int, int, int] | None:
    """(top, left, height, width) of the first of ten boxes that fits into a frame, px; None if none fits.

    `scale` is the range of the box's part of the frame's area, `ratio` of its height / width, log-uniform. With
    `whole`, a box may be as high or as wide as the frame. It takes 22 numbers from the generator, whatever the frame's
    size and however many boxes are tried.
    """
    tries, place = rng.random((_TRIES, 2)).tolist(), rng.random(2).tolist()
    logs = (math.log(ratio[0]), math.log(ratio[1]))
    for u_area, u_ratio in tries:
        area, r = height * width * between(u_area, scale), math.exp(between(u_ratio, logs))
        h, w = round(math.sqrt(area * r)), round(math.sqrt(area / r))
        if 0 < h < height + whole and 0 < w < width + whole:
            return uniform(place[0], height - h), uniform(place[1], width - w), h, w
    return None


def _check_bounds(name: str, bounds: Sequence[float], *, highest: float = math.inf) -> tuple[float, float]:
    """Two ascending numbers above 0, as a tuple; a config gives a list."""
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] <= highest or not bounds[1] < math.inf:
        limit = "" if highest == math.inf else f" and at most {highest}"
        raise ValueError(f"{name} must be two ascending numbers above 0{limit}, got {bounds!r}")
    return float(bounds[0]), float(bounds[1])
