"""Reads frames that are in memory already, by index, as if they were a video file's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, SupportsFloat

import numpy as np

from video_gn.decoding._base import VideoReader, check_indices, scaled_size

if TYPE_CHECKING:
    import torch

PATH = "<frames>"  # in results and errors


class MemoryReader(VideoReader):
    """Frames in memory, shown at a constant rate. See `video_gn.decoding.VideoReader`.

    Args:
        frames_THWC: uint8 (T, H, W, 3), an array or a tensor. They are RGB: OpenCV's are BGR, which no check can tell;
            give `frames[..., ::-1]` of them. They are not copied, but for a GPU's.
        fps: Frames per second.
        short_side_px: Size that a longer short side is scaled down to, as in a frame folder; None scales nothing.

    Raises:
        TypeError: for frames that are not uint8.
        ValueError: for another shape, no frame, or a rate that is not above 0.
    """

    def __init__(self, frames_THWC: Any, fps: float | None, *, short_side_px: int | None = None) -> None:
        super().__init__(PATH)
        rate = _check_fps(fps)
        self._frames = as_pixels(frames_THWC, "frames", "(T, H, W, 3)")
        num_frames, height, width = self._frames.shape[:3]
        self._describe_frames(num_frames, rate, *scaled_size(height, width, short_side_px))

    def frames_at(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Copies of frames; see `VideoReader.frames_at`."""
        import torch
        from PIL import Image

        self._check_usable()
        frames = self._frames[check_indices(indices, num_frames=self._info.num_frames, path=self.path)]
        size = (self._info.width, self._info.height)
        if size != (frames.shape[2], frames.shape[1]):
            pictures = map(Image.fromarray, np.ascontiguousarray(frames))
            frames = np.stack([np.asarray(p.resize(size, Image.Resampling.BILINEAR)) for p in pictures])
        return torch.from_numpy(np.ascontiguousarray(frames))


def each_frame(frames: Iterable[Any], fps: float | None, *, short_side_px: int | None = None) -> Iterator[MemoryReader]:
    """Readers of single frames (H, W, 3), as an iterator gives them; arguments and errors as `MemoryReader`."""
    _check_fps(fps)
    first: tuple[int, ...] = ()
    for number, frame in enumerate(frames):
        pixels_HWC = as_pixels(frame, f"frame {number}", "(H, W, 3)")
        first = first or pixels_HWC.shape
        if pixels_HWC.shape != first:
            raise ValueError(f"frames must be of one size, got {first} and, as frame {number}, {pixels_HWC.shape}.")
        yield MemoryReader(pixels_HWC[None], fps, short_side_px=short_side_px)
    if not first:
        raise ValueError("frames must be at least one, got none. Has the iterator been read before?")


def _check_fps(fps: float | None) -> float:
    if not (isinstance(fps, SupportsFloat) and 0 < float(fps) < math.inf):
        raise ValueError(f"fps must be above 0 for frames in memory, got {fps!r}. Give their rate, as in fps=25.")
    return float(fps)


def as_pixels(value: Any, name: str, shape: str) -> np.ndarray:
    """What a caller gives as frames, or as one frame, as an array; `shape` is "(T, H, W, 3)" or "(H, W, 3)".

    Raises:
        TypeError: for what is not uint8.
        ValueError: for another shape.
    """
    is_tensor = hasattr(value, "cpu")  # without an import of torch
    array: Any = value.cpu() if is_tensor else np.asarray(value)
    dtype = str(array.dtype).removeprefix("torch.")
    if dtype != "uint8":
        raise TypeError(
            f"{name} must be uint8, got {dtype}. Numbers from 0 to 1 become it by (255 * x).round() and a cast."
        )
    if array.ndim != shape.count(",") + 1 or array.shape[-1] != 3 or 0 in array.shape:
        raise ValueError(
            f"{name} must be of shape {shape}, none of it 0, got {tuple(array.shape)}. Put the colors (RGB) last."
        )
    pixels: np.ndarray = array.numpy() if is_tensor else array
    return pixels
