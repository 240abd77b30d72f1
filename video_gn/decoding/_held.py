"""Base of the decord and torchcodec readers: compared with PyAV's reading, and refused where they may differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
from av.video.frame import VideoFrame

from video_gn.decoding._base import VideoReader, check_indices, empty_frames
from video_gn.decoding._decoder import PacketDecoder
from video_gn.decoding._pyav import PyAVReader
from video_gn.errors import DecodeError


class HeldReader(VideoReader):
    """A reader of another library, whose frames are PyAV's frames or an error."""

    NAME: ClassVar[str]
    # Pixel formats that the library converts to RGB as PyAV does.
    SAME_PIXELS: ClassVar[frozenset[str]]

    def __init__(self, path: str, library: Any, *, num_threads: int) -> None:
        super().__init__(path)
        self._library = library
        self._num_threads = num_threads
        self._reader: Any = None
        self._fingerprints: list[int] | None = None  # of all frames, once the file is known to be undamaged
        with PyAVReader(path) as reader:
            self._info, self._seconds, self._table = reader.info, reader.frame_seconds, reader.table
            self._refuse_what_is_wrong(reader)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        super().close()
        self._reader = None

    def frames_at(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Decode frames; see `VideoReader.frames_at`.

        The first call also decodes the file once with PyAV, to know that it is not damaged.
        """
        self._check_usable()
        checked = check_indices(indices, num_frames=self._info.num_frames, path=self.path)
        empty_frames(self.path, len(checked), self._info.height, self._info.width)  # an error if they do not fit
        self._check_undamaged()
        wanted, places = np.unique(checked, return_inverse=True)
        frames = self._get(wanted)
        if np.array_equal(wanted, checked):
            return frames.contiguous()
        return frames[torch.from_numpy(places).to(frames.device)]

    def _get(self, wanted: np.ndarray) -> torch.Tensor:
        """Different frames, ascending, proven to be those that PyAV gives, or an error."""
        raise NotImplementedError

    def _fingerprint(self, frame: VideoFrame) -> int:
        """What `_get` may compare a frame with: of one that PyAV decodes, in their order, before the first `_get`."""
        return 0

    def _refuse(self, reason: str, error: Exception | None = None) -> NoReturn:
        raise DecodeError(self.path, f"{self.NAME} cannot be relied on here: {reason}. Use backend='pyav'.") from error

    def _refuse_what_is_wrong(self, reader: PyAVReader) -> None:
        table = reader.table
        if table.doubt or not table.has_times:
            self._refuse(table.doubt or "its frames have no times of their own")
        if not table.is_shown.all():
            self._refuse("packets of it show no frame")
        if not table.is_closed[table.is_key].all():
            self._refuse("it starts at key frames that cannot be decoded by themselves")
        if reader.info.is_mirrored:
            self._refuse("it does not mirror frames, as this file asks")
        if reader.pix_fmt not in self.SAME_PIXELS:
            self._refuse(f"it may convert {reader.pix_fmt} to other colours")

    def _refuse_wrong(self, wanted: np.ndarray, is_right: np.ndarray) -> None:
        if not is_right.all():
            self._refuse(f"it gives another frame for frame {int(wanted[np.argmin(is_right)])}")

    def _refuse_count(self, num_frames: int) -> None:
        if num_frames != self.info.num_frames:
            self._refuse(f"it counts {num_frames} frames where there are {self.info.num_frames}")

    def _refuse_shape(self, frames: np.ndarray | torch.Tensor, num_frames: int) -> None:
        shape = (num_frames, self.info.height, self.info.width, 3)
        if tuple(frames.shape) != shape:
            self._refuse(f"it gives frames of shape {tuple(frames.shape)} where {shape} is right")

    def _check_undamaged(self) -> None:
        """Decode the whole file with PyAV, once: nothing less shows damage, which these libraries do not report."""
        if self._fingerprints is not None:
            return
        decoder = PacketDecoder(self.path, num_threads=self._num_threads)
        try:
            decoder.reopen()
            sizes: set[tuple[int, int]] = set()
            fingerprints: list[int] = []
            while not decoder.is_at_end:
                for frame in decoder.feed():
                    sizes.add((frame.width, frame.height))
                    fingerprints.append(self._fingerprint(frame))
                if decoder.is_damaged:
                    self._refuse("packets of it are damaged")
            if decoder.num_decoded != self.info.num_frames:
                self._refuse(f"only {decoder.num_decoded} of {self.info.num_frames} frames decode")
            if len(sizes) > 1:
                self._refuse("its frames change their size")
        finally:
            decoder.close()
        self._fingerprints = fingerprints
