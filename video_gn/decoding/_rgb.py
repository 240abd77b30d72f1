"""Writes decoded frames as RGB, turned as the metadata asks."""

from __future__ import annotations

import logging

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from video_gn.decoding._base import scaled_size

_logger = logging.getLogger(__name__)

# How frames are scaled down. CPU time of a 32 x 2 training clip (short side 256 to 320) and of ten test clips (256),
# scaled to 320 while decoding, as a share of that at full size; H.264, two videos enlarged to each size:
# from 480: 0.92 to 1.00 and 0.95 to 0.98; from 720: 0.87 to 0.89 and 0.79; from 1080: 0.77 to 0.81 and 0.68 to 0.75.
# From 720 BICUBIC saves nothing (0.97 to 1.00) and BILINEAR less; test clips are at 45.9 dB from those of full size,
# with BICUBIC at 46.5, with BILINEAR at 44.7.
_SCALING = Interpolation.AREA


class RgbConverter:
    """Writes decoded frames as RGB into an array, rotated as the metadata asks, all of the first one's size.

    Unscaled 8-bit 4:2:0 takes FFmpeg's fast path, which decord takes too. Otherwise chroma is interpolated, by BICUBIC
    as decord does. A short side above `short_side_px` is scaled down in the same pass.
    """

    def __init__(self, first: VideoFrame, path: str, short_side_px: int | None = None) -> None:
        self._height, self._width = scaled_size(first.height, first.width, short_side_px)
        self._is_scaled = (self._height, self._width) != (first.height, first.width)
        # FFmpeg gives the angle counterclockwise, numpy turns counterclockwise.
        turns, rest = divmod(first.rotation, 90)
        if rest:
            _logger.warning("%s: asks to be rotated by %d degrees, which is not done", path, first.rotation)
            turns = 0
        self._turns = turns % 4
        self._reformatter = VideoReformatter()

    @property
    def rotation_degrees(self) -> int:
        """The rotation, clockwise."""
        return -90 * self._turns % 360

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of written frames."""
        return (self._width, self._height) if self._turns % 2 else (self._height, self._width)

    def write(self, frame: VideoFrame, out_HWC: np.ndarray) -> None:
        """Convert one frame into `out_HWC`, uint8 (H, W, 3).

        Raises:
            av.error.FFmpegError: if FFmpeg cannot convert it.
        """
        # One reformatter for all frames: a new one for each costs as much as the conversion itself.
        rgb = self._reformatter.reformat(
            frame,
            width=self._width,
            height=self._height,
            format="rgb24",
            interpolation=_SCALING if self._is_scaled else Interpolation.BICUBIC,
            threads=1,
        )
        plane = rgb.planes[0]
        lines = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        pixels = lines[: self._height, : 3 * self._width].reshape(self._height, self._width, 3)
        out_HWC[...] = np.rot90(pixels, self._turns) if self._turns else pixels
