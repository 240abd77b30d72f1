"""Feeds a file's packets to FFmpeg's decoder, from the start or from a row of its packet table."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, pairwise

import av
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame

from video_gn.decoding.opening import file_state, late, limit_of, open_stream
from video_gn.decoding.probe import PacketTable, header_fps, packets_of, read_table
from video_gn.errors import DecodeError

# Packets after a seek that the table does not have.
_MAX_STRANGE = 3
# How far back to look for a packet that a seek has passed, generously.
_ROWS_BACK = 32
_NO_TIME = int(np.iinfo(np.int64).min)


class PacketDecoder:
    """The open file, the decoder, and the row of the packet that comes next; errors as `open_stream`, `read_table`."""

    def __init__(self, path: str, *, num_threads: int = 1) -> None:
        self.path = path
        self.num_threads = num_threads
        self.num_decoded = 0
        # Rows before the first frame of a file that begins in the middle: they need what is not there.
        self.num_lead = 0
        self._packets: Iterator[Packet] = iter(())
        self._skips = False
        self._last: list[VideoFrame] = []
        self._fruitless_seconds = 0.0
        self._state = file_state(path)
        self._container, self._stream = open_stream(path, num_threads=num_threads)
        try:
            self.codec = self._stream.codec_context.codec.canonical_name
            self.table: PacketTable = read_table(path, self._container, self._stream)
            self.header_fps = header_fps(self._stream)
            self.pixel_aspect = float(self._stream.sample_aspect_ratio or 1)
            self._start_seconds = (self._container.start_time or 0) / av.time_base
        except BaseException:
            self.close()
            raise
        self.next_row = len(self.table.pts)
        self.is_at_end = True
        self.is_damaged = False

    def close(self) -> None:
        """Close the file."""
        self._packets = iter(())
        self._last = []
        self._container.close()

    def seconds_of(self, time: int) -> float:
        """Where a player shows the frame of a time, in the table's unit: the earliest stream begins at 0."""
        return max(0.0, round(float(time * self.table.time_base) - self._start_seconds, 6))  # that is in microseconds

    def reopen(self) -> None:
        """Restart with a fresh decoder at the start of the file.

        Raises:
            DecodeError: if the file cannot be opened any more, or is another one now.
        """
        self.close()
        if file_state(self.path) not in (self._state, None):  # None: opening says why
            raise DecodeError(
                self.path, "the file was changed while it was read. Read it again once nothing writes to it"
            )
        self._container, self._stream = open_stream(self.path, num_threads=self.num_threads)
        self._stand(packets_of(self.path, self._container, self._stream), 0)

    def _stand(self, packets: Iterator[Packet], row: int) -> None:
        self._packets = packets
        self.next_row = row
        self.is_at_end = False
        self.is_damaged = False
        self._fruitless_seconds = 0.0
        self._set_skipping(False)

    def seek(self, row: int) -> bool:
        """Try to go to a row.

        The container's index is not trusted: the packets that follow are compared with the table.

        Returns:
            False if the packet was not found this way; call `reopen` or `seek` before the next `feed`.
        """
        table = self.table
        self._packets = iter(())
        # mov's index goes by decoding time, that of other containers by presentation time; try both.
        times = [int(table.dts[row]), int(table.pts[row])]
        if "mov" not in self._container.format.name:
            times.reverse()
        # Without an index FFmpeg looks for the time in the file's bytes, and may land behind it.
        times.append(int(table.dts[max(0, row - _ROWS_BACK)]))
        for start in times:
            if start == _NO_TIME:
                continue
            try:
                self._container.seek(start, stream=self._stream)
            except av.error.FFmpegError:
                continue
            packets = packets_of(self.path, self._container, self._stream)
            packet = self._pass_to(row, packets)
            if packet is None:
                packets.close()
                continue
            self._stream.codec_context.flush_buffers()
            self._stand(chain([packet], packets), row)
            return True
        return False

    def _pass_to(self, row: int, packets: Iterator[Packet]) -> Packet | None:
        """The packet of a row, if it is among those that come."""
        table = self.table
        times = table.dts if table.is_timed_by_order else table.pts
        at = -1
        for num_passed, packet in enumerate(packets):
            time_of_packet = packet.dts if table.is_timed_by_order else packet.pts
            if at < 0:
                found = np.flatnonzero((times == time_of_packet) & (table.sizes == packet.size))
                at = int(found[0]) if len(found) == 1 else -1
                # FFmpeg may land within a picture: its rest comes first, and what comes next may have no time yet.
                if at > row or (at < 0 and num_passed == _MAX_STRANGE):
                    return None
            else:
                at += 1
            if at == row:
                return packet if (time_of_packet, packet.size) == (times[row], table.sizes[row]) else None
        return None

    def _set_skipping(self, skips: bool) -> None:
        if skips != self._skips:
            self._stream.codec_context.skip_frame = "NONREF" if skips else "DEFAULT"
        self._skips = skips

    def feed(self, *, skip_unreferenced: bool = False) -> list[VideoFrame]:
        """Decode the next packet; at the end of the file, flush the decoder.

        A packet that does not decode sets `is_damaged` and gives nothing.

        Args:
            skip_unreferenced: Skip the packet's picture if no other one refers to it.

        Raises:
            DecodeError: if the file cannot be read further, or keeps the decoder busy for the container's
                `read_timeout` without a frame. (One packet's decoding cannot be interrupted.)
        """
        began = time.monotonic()
        packet = next(self._packets, None)
        if packet is None:
            self.is_at_end = True
        else:
            if self.table.is_timed_by_order and self.next_row < len(self.table.pts):
                packet.pts = int(self.table.pts[self.next_row])
            self.next_row += 1
            self._set_skipping(skip_unreferenced)
        frames = self._decode(packet)
        if frames or skip_unreferenced:
            self._fruitless_seconds = 0.0
            return frames
        # The time between two calls is the caller's and does not count.
        self._fruitless_seconds += time.monotonic() - began
        limit = limit_of(self._container)
        if self._fruitless_seconds > limit:
            raise late(self.path, limit, "while decoding: packets come, but no frame")
        return frames

    def _decode(self, packet: Packet | None) -> list[VideoFrame]:
        try:
            frames: list[VideoFrame] = self._stream.codec_context.decode(packet)
        except av.error.FFmpegError:
            self.is_damaged = self.is_damaged or self.next_row > self.num_lead
            return []
        # FFmpeg patches a damaged picture with the present content of its buffer. Holding the last frame until the
        # next one is decoded, whether or not it is wanted, makes that the same in every pass.
        self._last = frames or self._last[-1:]
        self.is_damaged = self.is_damaged or any(frame.is_corrupt for frame in frames)
        self.num_decoded += len(frames)
        return frames

    def first_frames(self) -> list[VideoFrame]:
        """Begin at the start, and decode until a frame comes out.

        That also shows the decoder the first packet, in which encoders name themselves; FFmpeg treats some of them
        specially, so it must see that before it begins in the middle of a file.

        The beginning of a file that was cut out of another one may give no frames: it is left out of the table.

        Raises:
            DecodeError: if no frame decodes.
        """
        if not self.table.is_whole_start:
            self.num_lead = len(self.table.pts)
        if self.num_lead or self.table.doubt:
            self.num_threads = 1  # in several, FFmpeg patches what is missing differently
        if self.table.doubt or self.num_lead or self.table.is_given_once or not self.seek(0):
            self.reopen()
        frames = self._until_frame()
        table = self.table
        is_late = table.doubt is None and frames[0].pts != table.pts[table.is_shown].min()
        if is_late or (self.num_lead and table.has_times):
            self._leave_out_lead(frames)
            self.reopen()
            frames = self._until_frame()
        return frames

    def _until_frame(self) -> list[VideoFrame]:
        frames: list[VideoFrame] = []
        while not frames and not self.is_at_end:
            frames = self.feed()
        if not frames:
            raise DecodeError(self.path, f"none of its {len(self.table.pts)} video packets can be decoded")
        self.num_lead = min(self.num_lead, self.next_row)
        return frames

    def _leave_out_lead(self, frames: list[VideoFrame]) -> None:
        """Find out which pictures before the first restart on the way give a frame, or before the first frame."""
        table = self.table
        restarts = np.flatnonzero(table.is_restart[1:]) + 1
        times = [_time_of(frame) for frame in frames]
        until = table.pts[restarts[0]] if len(restarts) else times[0]
        while not self.is_at_end and times[-1] < until:
            times += map(_time_of, self.feed())
        if self.is_damaged or any(a >= b for a, b in pairwise(times)):
            self.table = replace(table, doubt=table.doubt or "its beginning is damaged")
        else:
            is_lost = table.is_shown & (table.pts < until) & ~np.isin(table.pts, times)
            is_lost[self.next_row :] = False  # times may begin anew where files were joined
            self.table = replace(table, is_shown=table.is_shown & ~is_lost)


def _time_of(frame: VideoFrame) -> int:
    return _NO_TIME if frame.pts is None else frame.pts
