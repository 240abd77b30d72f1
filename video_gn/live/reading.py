"""The thread that reads a live source, decodes all of it, and connects again after it was lost."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from itertools import chain, islice, pairwise

import av
import numpy as np
import torch
from av.container import InputContainer
from av.format import Flags
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from video_gn.data.crops import TestCrops
from video_gn.data.dataset import ClipConfig
from video_gn.decoding.opening import describe
from video_gn.decoding.raw import RgbConverter
from video_gn.errors import DecodeError
from video_gn.live.source import Source
from video_gn.live.window import Newest

FIRST_DELAY_SECONDS = 1.0
MAX_DELAY_SECONDS = 30.0
# A stream's rate is the median of so many frames' distances.
_MEASURED_FRAMES = 9
# What FFmpeg says of a rate is taken if it agrees with these: it has seen more frames, and their times may be rounded.
_RATE_TOLERANCE = 0.1


class Reader(threading.Thread):
    """Reads a source into `newest` until it ends or `stop` is set.

    Args:
        source: Source.
        newest: Gets frames and events.
        clip: The network's clips; `target_fps` is the rate that the stride counts in, else the stream's own is.
        crops: The network's crops.
        limit: Seconds without a frame after which the source has stalled.
    """

    def __init__(self, source: Source, newest: Newest, *, clip: ClipConfig, crops: TestCrops, limit: float) -> None:
        super().__init__(name="video_gn: reading of a live source", daemon=True)
        self.stop = threading.Event()
        self._source, self._newest, self._clip, self._crops, self._limit = source, newest, clip, crops, limit
        self._size: tuple[int, int] | None = None
        self._converter: RgbConverter | None = None
        self._num_connections = 0

    def run(self) -> None:
        """See `threading.Thread`; an error is raised where `newest` is read."""
        try:
            self._read_again_and_again()
        except BaseException as error:  # noqa: BLE001
            self._newest.finish(error)
        else:
            self._newest.finish()

    def _read_again_and_again(self) -> None:
        delay = FIRST_DELAY_SECONDS
        while not self.stop.is_set():
            before = self._newest.frames_read
            event, reason = "lost", "the source ended"
            try:
                self._read_once()
            except _StalledError:
                event, reason = "stalled", f"no frame for {self._limit:g} seconds"
            except DecodeError as error:
                if not self._num_connections or not self._source.reconnects:
                    raise
                reason = error.reason
            if not self._source.reconnects or self.stop.is_set():
                return
            if self._newest.frames_read > before:
                delay = FIRST_DELAY_SECONDS
            self._newest.tell(event, is_cut=True, reason=reason, retry_seconds=delay)
            self.stop.wait(delay)
            delay = min(2 * delay, MAX_DELAY_SECONDS)

    def _read_once(self) -> None:
        """Read from opening to end."""
        container, stream = self._source.open(
            self._limit,
            is_over=self.stop.is_set,
            on_stall=lambda: self._newest.tell("stalled", reason=f"no data for {self._limit:g} seconds"),
        )
        try:
            frames = self._timed(container, stream)
            head = list(islice(frames, _MEASURED_FRAMES))
            if not head:
                raise DecodeError(self._source.name, "ended before its first picture")
            first = head[0][0]
            self._num_connections += 1
            self._size, self._converter = (first.width, first.height), None
            self._newest.tell(
                "connected" if self._num_connections == 1 else "reconnected",
                width=first.width,
                height=first.height,
                codec=stream.codec_context.codec.canonical_name,
                container=container.format.name,
            )
            self._newest.start(_rate_of(head, stream), self._clip.target_fps)
            for frame, seconds, received in chain(head, frames):
                self._add(frame, seconds, received)
        finally:
            container.close()

    def _timed(self, container: InputContainer, stream: VideoStream) -> Iterator[tuple[VideoFrame, float, float]]:
        """Frames, their seconds on the stream's clock, and when their packets came, by time.monotonic.

        Without times of its own, as in MJPEG, a stream's clock is that of this machine.

        Raises:
            DecodeError: the source broke off.
            _StalledError: it sent no frame for too long.
        """
        has_times = not Flags(container.format.flags) & Flags.no_timestamps
        began = last = time.monotonic()
        for packet in self._packets(container, stream):
            now = time.monotonic()
            packet.opaque, is_damaged = now, packet.is_corrupt
            try:
                frames = stream.codec_context.decode(packet)
            except av.error.FFmpegError:
                frames, is_damaged = [], True
            self._newest.frames_damaged += is_damaged or any(frame.is_corrupt for frame in frames)
            for frame in frames:
                last = now
                received = frame.opaque if isinstance(frame.opaque, float) else now
                ticks = frame.dts if frame.pts is None else frame.pts
                if not has_times:
                    yield frame, received - began, received
                elif ticks is not None and frame.time_base is not None:
                    yield frame, float(ticks * frame.time_base), received
            if now - last > self._limit:
                raise _StalledError
            if self.stop.is_set():
                return

    def _packets(self, container: InputContainer, stream: VideoStream) -> Iterator[av.Packet]:
        stream.codec_context.copy_opaque = True
        is_whole = True
        while True:
            try:
                for packet in container.demux(stream):
                    is_whole = True
                    yield packet
                return
            except av.error.ExitError:
                raise _StalledError from None
            except av.error.FFmpegError as error:
                # Damage is passed over, but not for ever.
                if not isinstance(error, av.error.InvalidDataError) or not is_whole:
                    reason = f"broke off ({describe(error)})" if self._num_connections else self._source.explain(error)
                    raise DecodeError(self._source.name, reason) from None
                is_whole = False
                self._newest.frames_damaged += 1

    def _add(self, frame: VideoFrame, seconds: float, received: float) -> None:
        size = frame.width, frame.height
        if size != self._size:
            self._size, self._converter = size, None
            self._newest.tell("size_changed", width=frame.width, height=frame.height)

        def crop() -> torch.Tensor:
            if self._converter is None:
                self._converter = RgbConverter(frame, self._source.name, self._clip.decode_short_side_px)
            height, width = self._converter.size
            pixels_HWC = np.empty((height, width, 3), np.uint8)
            self._converter.write(frame, pixels_HWC)
            crops_PTCHW = self._crops.apply(torch.from_numpy(pixels_HWC)[None])
            return crops_PTCHW[:, 0].permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)

        try:
            self._newest.add(seconds, received, crop)
        except av.error.FFmpegError as error:
            raise DecodeError(self._source.name, f"its pictures cannot be read ({describe(error)})") from None


class _StalledError(Exception):
    """No frame in time."""


def _rate_of(head: list[tuple[VideoFrame, float, float]], stream: VideoStream) -> float:
    """Frames a second, measured at the first frames; 25 for a single one."""
    gaps = [b[1] - a[1] for a, b in pairwise(head) if b[1] > a[1]]
    said = float(stream.average_rate or 0)
    if not gaps:
        return said or 25.0
    measured = 1 / statistics.median(gaps)
    return said if abs(said / measured - 1) < _RATE_TOLERANCE else measured
