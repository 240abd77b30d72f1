"""Writes decoded frames as RGB, turned as the metadata asks."""

from __future__ import annotations

import functools
import logging
import math
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import SideDataContainer, Type
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from video_gn.decoding._base import scaled_size
from video_gn.errors import DecodeError

_logger = logging.getLogger(__name__)

# How frames are scaled down. CPU time of a 32 x 2 training clip (short side 256 to 320) and of ten test clips (256),
# scaled to 320 while decoding, as a share of that at full size; H.264, two videos enlarged to each size:
# from 480: 0.92 to 1.00 and 0.95 to 0.98; from 720: 0.87 to 0.89 and 0.79; from 1080: 0.77 to 0.81 and 0.68 to 0.75.
# From 720 BICUBIC saves nothing (0.97 to 1.00) and BILINEAR less; test clips are at 45.9 dB from those of full size,
# with BICUBIC at 46.5, with BILINEAR at 44.7.
_SCALING = Interpolation.AREA
# FFmpeg 8 reads the bytes of these in the wrong order, unless it converts them to little endian first.
_BIG_ENDIAN = frozenset({"rgb565be", "rgb555be", "bgr565be", "bgr555be"})
# Names of FFmpeg's for the matrices of ITU-T H.273 that it does not convert.
_MATRICES = {8: "ycgco", 10: "bt2020c", 11: "smpte2085", 12: "chroma-derived-nc", 13: "chroma-derived-c", 14: "ictcp"}


def orientation_of(frame: VideoFrame) -> tuple[int, bool]:
    """How the frame's display matrix asks to show it.

    Returns:
        (degrees, is_mirrored): degrees clockwise, [0, 360), by which to turn it, after mirroring it left to right.
        (0, False) without a matrix.

    Source: the turns and flips that FFmpeg's command line inserts (fftools/ffmpeg_filter.c).
    """
    # `frame.side_data` would make a cycle, which holds the frame until the garbage collector runs.
    read: Any = SideDataContainer
    try:
        side_data = read(frame)
    except ValueError:
        # PyAV 18 gives nothing at all if there is a kind that it has no name for, such as JPEG's EXIF; now it has one.
        # To be removed when the package requires a PyAV that names EXIF.
        kinds: Any = Type
        kinds._missing_ = classmethod(lambda cls, value: cls.SEI_UNREGISTERED)
        side_data = read(frame)
    if "DISPLAYMATRIX" not in side_data:
        return 0, False
    # A pixel at (x, y) is shown at (a x + c y, b x + d y); y points down.
    a, b, _, c, d = np.frombuffer(bytes(side_data["DISPLAYMATRIX"]), np.int32)[:5].tolist()
    if not (a or c) or not (b or d):
        return 0, False
    degrees = round(math.degrees(math.atan2(b / math.hypot(b, d), a / math.hypot(a, c))))
    is_mirrored = a * d < b * c
    return (degrees + 180 * is_mirrored) % 360, is_mirrored


@functools.cache
def _converts(pix_fmt: str, matrix: int) -> bool:
    """Whether FFmpeg converts the pixel format and colour matrix to RGB: asked with a tiny picture."""
    tiny = VideoFrame(16, 16, pix_fmt)
    tiny.colorspace = matrix
    try:
        tiny.reformat(format="rgb24")
    except av.error.FFmpegError:
        return False
    return True


def turn(pixels: np.ndarray, rotation_degrees: int, is_mirrored: bool) -> np.ndarray:
    """A view of (H, W, ...), mirrored left to right if so asked, then turned clockwise by a multiple of 90 degrees."""
    return np.rot90(pixels[:, ::-1] if is_mirrored else pixels, -rotation_degrees // 90)


class RgbConverter:
    """Writes decoded frames as RGB into an array, turned as the metadata asks, all of the first one's size.

    Unscaled 8-bit 4:2:0 takes FFmpeg's fast path, which decord takes too. Otherwise chroma is interpolated, by BICUBIC
    as decord does. A short side above `short_side_px` is scaled down in the same pass.

    Raises:
        DecodeError: if FFmpeg cannot convert such frames.
    """

    def __init__(self, first: VideoFrame, path: str, short_side_px: int | None = None) -> None:
        matrix = int(first.colorspace)
        if not _converts(first.format.name, matrix):
            colours = f"{first.format.name}, colour matrix {_MATRICES.get(matrix, matrix)}"
            raise DecodeError(
                path,
                f"FFmpeg cannot convert it to RGB ({colours}). Encode it anew, as yuv420p in bt709; if only the label "
                "is wrong, ffmpeg's bitstream filter h264_metadata (matrix_coefficients) corrects it",
            )
        self._height, self._width = scaled_size(first.height, first.width, short_side_px)
        self._is_scaled = (self._height, self._width) != (first.height, first.width)
        self.rotation_degrees, self.is_mirrored = orientation_of(first)
        if self.rotation_degrees % 90:
            _logger.warning("%s: asks to be rotated by %d degrees, which is not done", path, self.rotation_degrees)
            self.rotation_degrees, self.is_mirrored = 0, False
        self._is_turned = self.is_mirrored or self.rotation_degrees != 0
        self._reformatter = VideoReformatter()
        self._graphs: dict[tuple[int, int, str], Graph] = {}

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of written frames."""
        return (self._width, self._height) if self.rotation_degrees % 180 else (self._height, self._width)

    def as_progressive(self, frame: VideoFrame) -> VideoFrame:
        """The frame without the flag that it is interlaced.

        FFmpeg's converter treats the fields of flagged frames each by itself, up to 45 levels off from what the ffmpeg
        command, decord and torchcodec give.
        """
        if not frame.interlaced_frame:
            return frame
        kind = (frame.width, frame.height, frame.format.name)
        if kind not in self._graphs:
            graph = self._graphs[kind] = Graph()
            graph.threads = 1
            source = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1)
            )
            graph.link_nodes(source, graph.add("setfield", "prog"), graph.add("buffersink")).configure()
        graph = self._graphs[kind]
        graph.vpush(frame)
        return graph.vpull()

    def write(self, frame: VideoFrame, out_HWC: np.ndarray) -> None:
        """Convert one frame into `out_HWC`, uint8 (H, W, 3).

        Raises:
            av.error.FFmpegError: if FFmpeg cannot convert it.
        """
        frame = self.as_progressive(frame)
        if frame.format.name in _BIG_ENDIAN:
            frame = self._reformatter.reformat(frame, format=frame.format.name[:-2] + "le")
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
        out_HWC[...] = turn(pixels, self.rotation_degrees, self.is_mirrored) if self._is_turned else pixels
