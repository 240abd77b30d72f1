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
