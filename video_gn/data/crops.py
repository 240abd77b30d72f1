"""Resize, crop and flip on uint8 clips, with an explicit random generator.

Shape letters: P crops of a clip, T frames, H, W, C channels; h, w after the transform.

Frames come as a decoder gives them, (T, H, W, C), and leave as a (T, C, h, w) view in the memory order
T, H, W, C: resizing in that order takes less than half the time, and a network in channels_last_3d
needs it. A result may be a view into a larger picture, with gaps between its rows; its first copy is the one into a
batch. A clip may come in parts. `apply` raises TypeError for frames that are not uint8, and ValueError for frames of
another shape.

Resizing is bilinear with antialiasing and rounds to uint8. The peers resize with OpenCV's INTER_LINEAR,
which does not antialias: pixels differ if a picture shrinks. On a CPU without AVX2 torchvision
computes in float32 instead of integers, and pixels may differ by a level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

from video_gn.checks import check_integer


def resized_size(height: int, width: int, short_side_px: int) -> tuple[int, int]:
    """(height, width) of a picture once its short side has a given length; all in px, at least 1.

    (short_side_px, floor(width * short_side_px / height)) unless it is higher than wide. The floor is exact.

    Raises:
        ValueError: for a length below 1.
        TypeError: for a length that is not an integer.
    Source: Non-local Neural Networks' ScaleTransform and SlowFast's transform.py floor as well, in
        float32 and float64.
    """
    height, width = check_integer("height", height), check_integer("width", width)
    short_side_px = check_integer("short_side_px", short_side_px)
    if height <= width:
        return short_side_px, width * short_side_px // height
    return height * short_side_px // width, short_side_px


@dataclass(frozen=True)
class CropParams:
    """One draw of `TrainTransform`, the same for every frame of a clip; lengths in px."""

    resized_height: int
    resized_width: int
    top: int  # first row and column of the crop in the resized frame
    left: int
    crop_px: int  # side of the square crop
    flip: bool  # left to right


@dataclass(frozen=True)
class TrainTransform:
    """Random short side, random square crop, random flip: the same for all frames of a clip.

    A draw takes four numbers in [0, 1) from the generator whatever the size, so that two videos of
    different sizes are flipped alike under one seed.

    Args:
        short_side_px: px, closed range of the uniform integer that the short side is resized to.
        crop_px: px, at most the lower end of `short_side_px`.
        flip: probability of a horizontal flip; 0 if a class has a direction.

    Raises:
        ValueError: for a range that is empty, a crop that does not fit, or a probability outside [0, 1].
        TypeError: for a length that is not an integer.
    Source: Non-local Neural Networks (section 4.1 and ScaleTransform in its code). SlowFast draws 1/size
        uniformly, and its crops leave out the last row and column.
    """

    short_side_px: tuple[int, int] = (256, 320)
    crop_px: int = 224
    flip: float = 0.5

    def __post_init__(self) -> None:
        if len(self.short_side_px) != 2:
            raise ValueError(f"short_side_px must be two lengths, lowest and highest, got {self.short_side_px!r}")
        low, high = (check_integer("short_side_px", value) for value in self.short_side_px)
        if low > high:
            raise ValueError(f"short_side_px must be a range (lowest, highest), got {self.short_side_px!r}")
        _check_crop(self.crop_px, low)
        check_probability("flip", self.flip)
        object.__setattr__(self, "short_side_px", (low, high))  # a config gives a list

    def draw(self, rng: np.random.Generator, height: int, width: int) -> CropParams:
        """Draw for frames of a size, px: the short side, top, left and flip."""
        u_short, u_top, u_left, u_flip = rng.random(4).tolist()
        low, high = self.short_side_px
        resized_height, resized_width = resized_size(height, width, low + uniform(u_short, high - low))
        return CropParams(
            resized_height=resized_height,
            resized_width=resized_width,
            top=uniform(u_top, resized_height - self.crop_px),
            left=uniform(u_left, resized_width - self.crop_px),
            crop_px=self.crop_px,
            flip=u_flip < self.flip,
        )

    def apply(self, frames_THWC: torch.Tensor, params: CropParams) -> torch.Tensor:
        """Transform frames: uint8 (T, H, W, 3) -> (T, 3, crop_px, crop_px), memory order T, H, W, C."""
        check_frames(frames_THWC)
        bottom, right = params.top + params.crop_px, params.left + params.crop_px
        resized_THWC = resize(frames_THWC, params.resized_height, params.resized_width, bottom=bottom, right=right)
        crop_THWC = resized_THWC[:, params.top :, params.left :]
        if params.flip:
            crop_THWC = crop_THWC.flip(2)  # torch has no negative strides: this one copies
        return crop_THWC.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class TestCrops:
    """The fixed crops of a test clip: short side to `short_side_px`, then one or three squares, or all.

    With d = long side - crop_px, along the longer side (the width of a square picture):

    | crops | number | first pixel |
    |---|---|---|
    | "center" | 1 | d // 2 |
    | "three" | 3: left, center, right; or top, center, bottom | 0, d // 2, 2 * (d // 2) |
    | "full" | 1: the whole frame | 0 |

    Along the shorter side crops start at (short_side_px - crop_px) // 2. Where d is odd, the third crop
    ends one pixel before the edge, as in the sources.

    Args:
        crops: see the table.
        short_side_px: px.
        crop_px: px, at most `short_side_px`; "full" does not use it.

    Raises:
        ValueError: for an unknown mode, a length below 1, or a crop that does not fit.
        TypeError: for a length that is not an integer.
    Source: ClipTransformFlex in the code of Non-local Neural Networks with 256 and 256 (with a crop
        below the short side it moves along the height of any picture; its "full" cuts pictures wider
        than 1.6 to 1); mmaction2's ThreeCrop has the same places in the order left, right, center.
        SlowFast's lie at 0, ceil(d / 2) and d.
    """

    __test__: ClassVar[bool] = False  # not a test of pytest's

    crops: str = "center"
    short_side_px: int = 256
    crop_px: int = 224

    def __post_init__(self) -> None:
        if self.crops not in _NUM_CROPS:
            raise ValueError(f"crops must be one of {sorted(_NUM_CROPS)}, got {self.crops!r}")
        short_side_px = check_integer("short_side_px", self.short_side_px)
        if self.crops != "full":
            _check_crop(self.crop_px, short_side_px)

    @property
    def num_crops(self) -> int:
        """Crops of each clip."""
        return _NUM_CROPS[self.crops]

    def boxes(self, height: int, width: int) -> tuple[tuple[int, int], tuple[tuple[int, int, int, int], ...]]:
        """(height, width) of resized frames, and each crop's (top, left, bottom, right) in them, px.

        Bottom and right are excluded; `height` and `width` are those of frames before resizing.
        """
        height, width = resized_size(height, width, self.short_side_px)
        if self.crops == "full":
            return (height, width), ((0, 0, height, width),)
        size = self.crop_px
        step = (max(height, width) - size) // 2
        first = (self.short_side_px - size) // 2
        starts = (step,) if self.crops == "center" else (0, step, 2 * step)
        corners = [(start, first) if height > width else (first, start) for start in starts]
        return (height, width), tuple((top, left, top + size, left + size) for top, left in corners)

    def apply(self, frames_THWC: torch.Tensor) -> torch.Tensor:
        """Crop frames of any size: uint8 (T, H, W, 3) -> (P, T, 3, h, w), memory order P, T, H, W, C.

        h and w are `crop_px`, or in "full" the resized frame's. Three crops overlap in memory: do not write to them.
        """
        check_frames(frames_THWC)
        (height, width), boxes = self.boxes(frames_THWC.shape[1], frames_THWC.shape[2])
        if self.crops == "full":
            return resize(frames_THWC, height, width).permute(0, 3, 1, 2)[None]
        size = self.crop_px
        long, short = (1, 2) if height > width else (2, 1)
        first, last = boxes[0], boxes[-1]
        strip_THWC = resize(frames_THWC, height, width, bottom=last[2], right=last[3])
        strip_THWC = strip_THWC.narrow(short, first[short - 1], size)
        # Evenly spaced places are one more stride in memory: no crop is copied.
        first_THWC = strip_THWC.narrow(long, first[long - 1], size)
        step = (last[long - 1] - first[long - 1]) // max(1, len(boxes) - 1)
        stride = step * strip_THWC.stride(long)
        crops_PTHWC = first_THWC.as_strided(
            (len(boxes), *first_THWC.shape), (stride, *first_THWC.stride()), first_THWC.storage_offset()
        )
        return crops_PTHWC.permute(0, 1, 4, 2, 3)


_NUM_CROPS = {"center": 1, "three": 3, "full": 1}


def resize(
    frames_THWC: torch.Tensor, height: int, width: int, *, bottom: int | None = None, right: int | None = None
) -> torch.Tensor:
    """Resize frames, but compute only the pixels above `bottom` and left of `right`; None for all.

    Pixels equal those of the whole resized frame, as found for every usual size of videos and crops. (torch chooses the
    bits of its weights by the largest one. If only a few pixels are computed, that may be another one, and in one
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
        # With explicit scales torch takes its input for the beginning of a larger picture.
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


# On other CPUs torchvision resizes floating point numbers, which is faster there.
_RESIZES_INTEGERS = ("AVX2", "AVX512")


def _rows_for(end: int, size: int, resized: int) -> tuple[int, int]:
    """How many of `size` rows the first `end` of `resized` rows need, and how many resized rows to ask for."""
    if size == resized:
        return end, end
    scale = size / resized
    rows = min(size, math.ceil(end * scale + max(scale, 1.0)))
    if rows == end:  # torch would take this for the same size, and copy
        return (rows + 1, end) if rows < size else (rows, end + 1)
    return rows, end


def between(u: float, bounds: tuple[float, float]) -> float:
    """A number in [0, 1) to one between two bounds, uniformly."""
    return bounds[0] + u * (bounds[1] - bounds[0])


def uniform(u: float, last: int) -> int:
    """A number in [0, 1) to an integer in [0, last], uniformly."""
    # min: the product of a number just below 1 may round up to the next integer.
    return min(math.floor(u * (last + 1)), last)


# ---- checks --------------------------------------------------------------------------------------


def check_probability(name: str, value: float) -> None:
    """Raise ValueError, naming the setting, for what is outside [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value!r}")


def check_frames(frames_THWC: torch.Tensor) -> None:
    """Raise TypeError for frames that are not uint8, and ValueError for those that are not (T, H, W, 3)."""
    if frames_THWC.dtype != torch.uint8:
        raise TypeError(f"frames must be torch.uint8, got {frames_THWC.dtype}. Normalize on the device, not before.")
    if frames_THWC.ndim != 4 or frames_THWC.shape[3] != 3 or 0 in frames_THWC.shape:
        raise ValueError(f"frames must be of shape (T, H, W, 3), none of it 0, got {tuple(frames_THWC.shape)}")


def _check_crop(crop_px: int, short_side_px: int) -> None:
    if check_integer("crop_px", crop_px) > short_side_px:
        raise ValueError(f"crop_px must be at most the short side of {short_side_px}, got {crop_px!r}")
