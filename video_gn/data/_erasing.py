"""Random erasing of one box through all frames of a clip.

Shape letters: T frames, C channels, H, W.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

from video_gn.data._draws import BoxDraw, check_clip, check_probability, check_range, check_rng, check_size
from video_gn.data.crops import _length


@dataclass(frozen=True)
class ErasingParams:
    """A box of all frames and what fills it; a height of 0 is no box.

    Args:
        height: px, of the frames that it was drawn for.
        width: px, of the frames that it was drawn for.
        top: px, first row of the box.
        left: px, first column of the box.
        box_height: px.
        box_width: px.
        noise_seed: of the noise that fills it.
    """

    height: int
    width: int
    top: int
    left: int
    box_height: int
    box_width: int
    noise_seed: int


@dataclass(frozen=True)
class RandomErasing:
    """One box, the same in all frames, filled with noise or with the mean color.

    The noise is one picture, the same in all frames, so that nothing moves in the box. (SlowFast draws
    it anew for each frame.) After normalization it is standard normal, as in the sources, but for what
    lies outside [0, 255] in uint8.

    Args:
        probability: of a clip.
        scale: closed range of the box's part of the frame's area, in (0, 1].
        ratio: range of height / width, log-uniform.
        value: "random" for noise in each pixel and channel, "mean" for the mean color.
        mean: color of the middle, of pixels in [0, 1]: as the network's input is normalized.
        std: of the noise, of pixels in [0, 1].

    Raises:
        ValueError: for an empty range, a number out of its own, or an unknown value.
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
        object.__setattr__(self, "scale", check_range("scale", self.scale, highest=1))
        object.__setattr__(self, "ratio", check_range("ratio", self.ratio))
        if self.value not in ("random", "mean"):
            raise ValueError(f"value must be one of 'random', 'mean', got {self.value!r}")
        for name in ("mean", "std"):
            values = tuple(getattr(self, name))
            if len(values) != 3 or not all(0 <= v <= 1 for v in values):
                raise ValueError(f"{name} must be three numbers in [0, 1], got {values!r}")
            object.__setattr__(self, name, values)

    def draw(self, rng: np.random.Generator, height: int, width: int) -> ErasingParams:
        """Draw a box; 24 numbers whatever comes out.

        Args:
            rng: gives whether, ten areas and ratios, the place, and the noise's seed.
            height: px, of the frames.
            width: px, of the frames.

        Raises:
            ValueError: for a length below 1.
            TypeError: for a length that is no integer, or an `rng` that is no numpy Generator.
        """
        check_rng(rng)
        height, width = _length("height", height), _length("width", width)
        u = rng.random()
        boxes = BoxDraw.of(rng)
        seed = int(rng.integers(2**63))
        box = boxes.find(height, width, scale=self.scale, ratio=self.ratio, whole=False)
        if box is None or not u < self.probability:
            box = (0, 0, 0, 0)
        return ErasingParams(height, width, *box, noise_seed=seed)

    def apply(self, frames_TCHW: torch.Tensor, params: ErasingParams) -> torch.Tensor:
        """Fill the box in all frames; the input is not written to.

        Args:
            frames_TCHW: uint8 (T, 3, H, W) of the size that `params` was drawn for.
            params: from `draw`.

        Raises:
            TypeError: for frames that are not uint8.
            ValueError: for frames of another shape or size.
        """
        check_clip(frames_TCHW)
        check_size(tuple(frames_TCHW.shape[2:]), (params.height, params.width))
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
