"""Resize, crop and flip on uint8 clips, with an explicit random generator.

Shape letters: P crops of a clip, T frames, H, W, C channels; h, w after the transform.

Frames come as a decoder gives them, (T, H, W, C), and leave as a (T, C, h, w) view in the memory order
T, H, W, C: resizing in that order takes less than half the time, and a network in channels_last_3d
wants no other. A result may be a view into a larger picture, with gaps between its rows; copying it
into a batch is the first copy that it needs.

Resizing is bilinear with antialiasing and rounds to uint8. The peers resize with OpenCV's INTER_LINEAR,
which does not antialias: pixels differ where a picture shrinks. On a CPU without AVX2 torchvision
computes in float32 instead of integers, and pixels may differ by a level.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F


def resized_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Size of a picture once its short side has a given length; the long side is floored.

    Args:
        height: px, at least 1.
        width: px, at least 1.
        short_side: px, at least 1.

    Returns:
        (height, width), px: (short_side, floor(width * short_side / height)) where it is not higher
        than wide. The floor is exact.

    Raises:
        ValueError: for a length below 1.
        TypeError: for a length that is no integer.
    Source: Non-local Neural Networks' ScaleTransform and SlowFast's transform.py floor as well, in
        float32 and float64.
    """
    height, width, short_side = (
        _length(name, value) for name, value in (("height", height), ("width", width), ("short_side", short_side))
    )
    if height <= width:
        return short_side, width * short_side // height
    return height * short_side // width, short_side


@dataclass(frozen=True)
class CropParams:
    """What one draw of `TrainTransform` does to every frame of a clip.

    Args:
        height: px, of the frames that it was drawn for.
        width: px, of the frames that it was drawn for.
        resized_height: px.
        resized_width: px.
        top: px, first row of the crop in the resized frame.
        left: px, first column of the crop in the resized frame.
        crop_size: px, side of the square crop.
        flip: mirror the crop left to right.
    """

    height: int
    width: int
    resized_height: int
    resized_width: int
    top: int
    left: int
    crop_size: int
    flip: bool


@dataclass(frozen=True)
class TrainTransform:
    """Random short side, random square crop, random flip: the same for all frames of a clip.

    A draw takes four numbers in [0, 1) from the generator whatever the size, so that two videos of
    different sizes are flipped alike under one seed.

    Args:
        short_side: px, closed range of the uniform integer that the short side is resized to.
        crop_size: px, at most the lower end of `short_side`.
        flip: probability of a horizontal flip; 0 where a class has a direction.

    Raises:
        ValueError: for a range that is empty, a crop that does not fit, or a probability outside [0, 1].
        TypeError: for a length that is no integer.
    Source: Non-local Neural Networks (section 4.1 and ScaleTransform in its code). SlowFast draws 1/size
        uniformly, and its crops leave out the last row and column.
    """

    short_side: tuple[int, int] = (256, 320)
    crop_size: int = 224
    flip: float = 0.5

    def __post_init__(self) -> None:
        if len(self.short_side) != 2:
            raise ValueError(f"short_side must be two lengths, lowest and highest, got {self.short_side!r}")
        low, high = (_length("short_side", value) for value in self.short_side)
        if low > high:
            raise ValueError(f"short_side must be a range (lowest, highest), got {self.short_side!r}")
        _check_crop(self.crop_size, low)
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip must be in [0, 1], got {self.flip!r}")
        object.__setattr__(self, "short_side", (low, high))  # a config gives a list

    def draw(self, rng: np.random.Generator, height: int, width: int) -> CropParams:
        """Draw what to do with a video; nothing has to be decoded for it.

        Args:
            rng: gives four numbers, in the order short side, top, left, flip.
            height: px, of the video's frames.
            width: px, of the video's frames.

        Raises:
            ValueError: for a length below 1.
            TypeError: for a length that is no integer, or an `rng` that is no numpy Generator.
        """
        if not isinstance(rng, np.random.Generator):
            raise TypeError(f"rng must be a numpy Generator, got {rng!r}. Use numpy.random.default_rng(seed).")
        u_short, u_top, u_left, u_flip = rng.random(4).tolist()
        low, high = self.short_side
        resized_height, resized_width = resized_size(height, width, low + _uniform(u_short, high - low))
        return CropParams(
            height=int(height),
            width=int(width),
            resized_height=resized_height,
            resized_width=resized_width,
            top=_uniform(u_top, resized_height - self.crop_size),
            left=_uniform(u_left, resized_width - self.crop_size),
            crop_size=self.crop_size,
            flip=u_flip < self.flip,
        )

    def apply(self, frames_THWC: torch.Tensor, params: CropParams) -> torch.Tensor:
        """Transform frames; a clip may come in parts, each with the same `params`.

        Args:
            frames_THWC: uint8, of the size that `params` was drawn for.
            params: from `draw`.

        Returns:
            uint8 (T, C, crop_size, crop_size), memory order T, H, W, C.

        Raises:
            TypeError: for frames that are not uint8.
            ValueError: for frames of another shape or size.
        """
        _check_frames(frames_THWC)
        size = tuple(frames_THWC.shape[1:3])
        if size != (params.height, params.width):
            raise ValueError(
                f"frames must be of size {(params.height, params.width)} as drawn, got {size}. Draw again."
            )
        bottom, right = params.top + params.crop_size, params.left + params.crop_size
        crop_THWC = _resize(frames_THWC, params.resized_height, params.resized_width, bottom=bottom, right=right)[
            :, params.top :, params.left :
        ]
        if params.flip:
            crop_THWC = crop_THWC.flip(2)  # torch has no negative strides: this one copies
        return crop_THWC.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class TestCrops:
    """The fixed crops of a test clip: short side to `short_side`, then one or three squares, or all.

    With d = long side - crop_size, along the longer side (the width of a square picture):

    | mode | crops | first pixel |
    |---|---|---|
    | "center" | 1 | d // 2 |
    | "three" | 3: left, center, right; or top, center, bottom | 0, d // 2, 2 * (d // 2) |
    | "full" | 1: the whole frame | 0 |

    Along the shorter side crops start at (short_side - crop_size) // 2. Where d is odd, the third crop
    ends one pixel before the edge, as in the sources.

    Args:
        mode: see the table.
        short_side: px.
        crop_size: px, at most `short_side`; "full" does not use it.

    Raises:
        ValueError: for an unknown mode, a length below 1, or a crop that does not fit.
        TypeError: for a length that is no integer.
    Source: ClipTransformFlex in the code of Non-local Neural Networks with 256 and 256 (with a crop
        below the short side it moves along the height of any picture; its "full" cuts pictures wider
        than 1.6 to 1); mmaction2's ThreeCrop has the same places in the order left, right, center.
        SlowFast's lie at 0, ceil(d / 2) and d.
    """

    __test__: ClassVar[bool] = False  # no test, whatever its name looks like

    mode: str = "center"
    short_side: int = 256
    crop_size: int = 224

    def __post_init__(self) -> None:
        if self.mode not in _NUM_CROPS:
            raise ValueError(f"mode must be one of {sorted(_NUM_CROPS)}, got {self.mode!r}")
        short_side = _length("short_side", self.short_side)
        if self.mode != "full":
            _check_crop(self.crop_size, short_side)

    @property
    def num_crops(self) -> int:
        """Crops of each clip."""
        return _NUM_CROPS[self.mode]

    def apply(self, frames_THWC: torch.Tensor) -> torch.Tensor:
        """Crop frames; a clip may come in parts.

        Args:
            frames_THWC: uint8, of any size.

        Returns:
            uint8 (P, T, C, h, w), memory order P, T, H, W, C; three crops overlap in memory, so that
            writing to the result is not allowed. h and w are `crop_size`, or in "full" the resized frame's.

        Raises:
            TypeError: for frames that are not uint8.
            ValueError: for frames of another shape.
        """
        _check_frames(frames_THWC)
        height, width = resized_size(frames_THWC.shape[1], frames_THWC.shape[2], self.short_side)
        if self.mode == "full":
            return _resize(frames_THWC, height, width).permute(0, 3, 1, 2)[None]
        size = self.crop_size
        long, short = (1, 2) if height > width else (2, 1)
        step = (max(height, width) - size) // 2
        starts = (step,) if self.mode == "center" else (0, step, 2 * step)
        first = (self.short_side - size) // 2
        ends = {short: first + size, long: starts[-1] + size}
        strip_THWC = _resize(frames_THWC, height, width, bottom=ends[1], right=ends[2]).narrow(short, first, size)
        # Evenly spaced places are one more stride in memory: no crop is copied.
        first_THWC = strip_THWC.narrow(long, starts[0], size)
        stride = step * strip_THWC.stride(long)
        crops_PTHWC = first_THWC.as_strided(
            (len(starts), *first_THWC.shape), (stride, *first_THWC.stride()), first_THWC.storage_offset()
        )
        return crops_PTHWC.permute(0, 1, 4, 2, 3)


_NUM_CROPS = {"center": 1, "three": 3, "full": 1}


def _resize(
    frames_THWC: torch.Tensor, height: int, width: int, *, bottom: int | None = None, right: int | None = None
) -> torch.Tensor:
    """Resize frames, and compute what lies above `bottom` and left of `right` alone; None is all of it.

    Pixels are those of the whole frame: found so for every usual size of videos and crops. (torch chooses the bits of
    its weights by the largest one. Where what is computed is a few pixels wide, that may be another one, and in one
    of some hundred such cases a pixel is a level off.)
    """
    full = tuple(frames_THWC.shape[1:3])
    bottom, right = min(bottom or height, height), min(right or width, width)
    if full == (height, width):
        return frames_THWC[:, :bottom, :right]
    frames_TCHW = frames_THWC.permute(0, 3, 1, 2)
    if torch.backends.cpu.get_cpu_capability() not in _RESIZES_INTEGERS or frames_THWC.device.type != "cpu":
        resized_TCHW = F.resize(
            frames_TCHW, [height, width], interpolation=F.InterpolationMode.BILINEAR, antialias=True
        )
    else:
        # With explicit scales torch takes what it is given for the beginning of a larger picture.
        rows, wanted_rows = _rows_for(bottom, full[0], height)
        columns, wanted_columns = _rows_for(right, full[1], width)
        resized_TCHW = torch.ops.aten._upsample_bilinear2d_aa(
            frames_TCHW[:, :, :rows, :columns],
            [wanted_rows, wanted_columns],
            False,
            height / full[0],
            width / full[1],
        )
    return resized_TCHW.permute(0, 2, 3, 1).contiguous()[:, :bottom, :right]


# Elsewhere torchvision resizes floating point numbers, which is quicker there.
_RESIZES_INTEGERS = ("AVX2", "AVX512")


def _rows_for(end: int, size: int, resized: int) -> tuple[int, int]:
    """How many of `size` rows the first `end` of `resized` ones come from, and how many of those to ask for."""
    if size == resized:
        return end, end
    scale = size / resized
    rows = min(size, math.ceil(end * scale + max(scale, 1.0)))
    if rows == end:  # which torch takes for the same size, and copies
        return (rows + 1, end) if rows < size else (rows, end + 1)
    return rows, end


def _uniform(u: float, last: int) -> int:
    """A number in [0, 1) to an integer in [0, last], uniformly."""
    # min: the product of a number just below 1 may round up to the next integer.
    return min(math.floor(u * (last + 1)), last)


def _check_frames(frames_THWC: torch.Tensor) -> None:
    if frames_THWC.dtype != torch.uint8:
        raise TypeError(f"frames must be torch.uint8, got {frames_THWC.dtype}. Normalize on the device, not before.")
    if frames_THWC.ndim != 4 or frames_THWC.shape[3] != 3 or 0 in frames_THWC.shape:
        raise ValueError(f"frames must be of shape (T, H, W, 3), none of it 0, got {tuple(frames_THWC.shape)}")


def _check_crop(crop_size: int, short_side: int) -> None:
    if _length("crop_size", crop_size) > short_side:
        raise ValueError(f"crop_size must be at most the short side of {short_side}, got {crop_size!r}")


def _length(name: str, value: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {value!r}")
    return number
