"""Reads frames in order as they were decoded, without conversion to RGB, to encode a copy of a video from them."""

from __future__ import annotations

from collections.abc import Generator
from fractions import Fraction

import av
import numpy as np
from av.video.frame import VideoFrame

from video_gn.decoding._pyav import PyAVReader, UntrustedError
from video_gn.decoding._rgb import RgbConverter, turn
from video_gn.decoding.frame_folders import FolderError, FramesReader
from video_gn.errors import DecodeError, FrameCountError

__all__ = ["RawFolder", "RawReader", "RawVideo", "RgbConverter", "StartOverError", "open_raw", "turn"]


class StartOverError(Exception):
    """The reader has corrected the number or the times of its frames while reading: choose the frames again."""


class RawVideo(PyAVReader):
    """A video file; besides `frames`, see `video_gn.decoding.VideoReader`."""

    @property
    def time_base(self) -> Fraction | None:
        """Seconds of a unit of the file's times; None where its frames have none."""
        return self.table.time_base if self.table.has_times else None

    @property
    def first_time(self) -> int:
        """The file's own time of the first frame, in units of `time_base`; 0 where its frames have none."""
        return self._first_time

    def rgb(self, frame: VideoFrame) -> np.ndarray:
        """A frame as `frames_at` gives it: uint8 (H, W, 3), RGB, turned as the metadata asks."""
        height, width = self._converter.size
        out_HWC = np.empty((height, width, 3), np.uint8)
        self._converter.write(frame, out_HWC)
        return out_HWC

    def frames(self, first: int, stop: int) -> Generator[VideoFrame, None, None]:
        """Frames [first, stop), in order.

        Raises:
            StartOverError: if the number or the times of the frames turn out to be wrong.
            DecodeError: if they cannot be decoded.
        """
        skips_none = np.zeros(len(self._index_of_row), dtype=bool)
        for index in range(first, stop):
            try:
                frame = self._converter.as_progressive(self._next_frame(index, skips_none))
            except UntrustedError as error:
                self._distrust(str(error))
                raise StartOverError from error
            except FrameCountError as error:
                raise StartOverError from error
            except av.error.FFmpegError as error:
                raise DecodeError(self.path, f"decoding failed ({error.strerror})") from error
            yield frame


class RawFolder(FramesReader):
    """A frame folder; as `RawVideo`."""

    doubt: str | None = None
    time_base: Fraction | None = None
    first_time = 0

    def rgb(self, frame: VideoFrame) -> np.ndarray:
        """A frame's pixels, uint8 (H, W, 3), RGB."""
        return frame.to_ndarray(format="rgb24")

    def frames(self, first: int, stop: int) -> Generator[VideoFrame, None, None]:
        """Frames [first, stop), in order.

        Raises:
            DecodeError: if a picture cannot be read.
        """
        for index in range(first, stop):
            yield VideoFrame.from_ndarray(self.frames_at([index])[0].numpy(), format="rgb24")


RawReader = RawVideo | RawFolder


def open_raw(path: str) -> RawReader:
    """Open a video or a frame folder; use it in a `with` statement.

    Raises:
        DecodeError: see `video_gn.decoding.open_video`.
    """
    try:
        return RawVideo(path)
    except FolderError:
        return RawFolder(path)
