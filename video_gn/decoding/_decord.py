"""The decord back end (the package `decord2`), compared with PyAV's reading.

decord takes the largest of several video streams, does not know edit lists, packed B-frames or open GOPs,
and patches damaged pictures silently. Files where that matters are refused here before decord opens them.

It seeks to a key frame and counts from there, without a look at the times; where the container seeks to another place
(MPEG-TS, MPEG-PS, FLV, AVI, ASF and MXF do for some frames), it gives another frame and does not notice. Its own times
come from the packets, not from the frames that it gave, and prove nothing. So each frame that it gives is compared, all
pixels of it, with the frame that PyAV decoded.
"""

from __future__ import annotations

import importlib
import io
from pathlib import Path

import av
import numpy as np
import torch
from av.video.frame import VideoFrame

from video_gn.decoding._held import HeldReader
from video_gn.decoding._pyav import PyAVReader
from video_gn.decoding._rgb import RgbConverter
from video_gn.decoding.libraries import import_decord
from video_gn.decoding.tar_members import is_member, read_member

# decord takes some 32 bytes for each frame of the header, and ends the process where there is no such memory.
_MAX_HEADER_FRAMES = 1_000_000


class DecordReader(HeldReader):
    """Reads frames of a video with decord. See `video_gn.decoding.VideoReader` and `open_video`.

    Raises:
        DecodeError: for a file that cannot be opened, or that decord would read wrongly.
        ImportError: if decord is not installed.
    """

    NAME = "decord"
    # Equal to the bit (all of FFmpeg's fast path).
    SAME_PIXELS = frozenset({"yuv420p"})

    def __init__(self, path: str, *, num_threads: int = 1) -> None:
        super().__init__(path, import_decord(), num_threads=num_threads)
        self._errors: tuple[type[Exception], ...] = (
            self._library.DECORDError,
            importlib.import_module("decord._ffi.base").DECORDLimitReachedError,
            RuntimeError,
            AssertionError,  # decord asserts that a video has frames
        )
        self._library.logging.set_level(self._library.logging.QUIET)
        try:
            # The tolerance is as near to "no invented frame" as decord accepts.
            # An absolute path keeps FFmpeg from taking "a:b.mp4" for a protocol.
            source = io.BytesIO(read_member(path)) if is_member(path) else str(Path(path).absolute())
            self._reader = self._library.VideoReader(source, num_threads=num_threads, fault_tol=1e-9)
        except self._errors as error:
            self._refuse(f"it cannot open the file ({_last_line(error)})", error)
        self._refuse_count(len(self._reader))
        self._converter: RgbConverter | None = None

    def _get(self, wanted: np.ndarray) -> torch.Tensor:
        try:
            batch = self._reader.get_batch(wanted.tolist())
        except self._errors as error:
            self._refuse(f"it fails ({_last_line(error)})", error)
        # With decord.bridge.set_bridge elsewhere in the program, this is a tensor of another library.
        frames = batch.asnumpy() if hasattr(batch, "asnumpy") else np.asarray(batch)
        self._refuse_shape(frames, len(wanted))
        assert self._fingerprints is not None
        right = [_hash(frame) == self._fingerprints[i] for frame, i in zip(frames, wanted, strict=True)]
        self._refuse_wrong(wanted, np.array(right))
        return torch.from_numpy(frames)

    def _fingerprint(self, frame: VideoFrame) -> int:
        if self._converter is None:
            self._converter = RgbConverter(frame, self.path)
            self._rgb = np.empty((*self._converter.size, 3), dtype=np.uint8)
        try:
            self._converter.write(frame, self._rgb)
        except av.error.FFmpegError as error:
            self._refuse("FFmpeg cannot convert a frame of it to RGB", error)
        return _hash(self._rgb)

    def _refuse_what_is_wrong(self, reader: PyAVReader) -> None:
        super()._refuse_what_is_wrong(reader)
        if self._table.num_video_streams > 1:
            self._refuse(f"the file has {self._table.num_video_streams} video streams, and it takes the largest")
        if self._table.header_frames > max(_MAX_HEADER_FRAMES, 100 * self._table.num_frames):
            self._refuse(f"it makes room for the {self._table.header_frames} frames that the file's header claims")


def _hash(frame_HWC: np.ndarray) -> int:
    """64 bits that only this process can compare; the fastest hash of Python's own."""
    return hash(frame_HWC.tobytes())


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
