"""Feeds a file's packets to FFmpeg's decoder, from the start or from a row of its packet table; converts frames."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from itertools import chain

import av
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from video_gn.decoding._base import scaled_size
from video_gn.decoding.probe import PacketTable, header_fps, late, limit_of, open_stream, packets_of, read_table
from video_gn.errors import DecodeError

_logger = logging.getLogger(__name__)

# How frames are scaled down. CPU time of a 32 x 2 training clip (short side 256 to 320) and of ten test clips (256),
# scaled to 320 while decoding, as a share of that at full size; H.264, two videos enlarged to each size:
# from 480: 0.92 to 1.00 and 0.95 to 0.98; from 720: 0.87 to 0.89 and 0.79; from 1080: 0.77 to 0.81 and 0.68 to 0.75.
# From 720 BICUBIC saves nothing (0.97 to 1.00) and BILINEAR less; test clips are at 45.9 dB from those of full size,
# with BICUBIC at 46.5, with BILINEAR at 44.7.
_SCALING = Interpolation.AREA


class PacketDecoder:
    """The open file, the decoder, and the row of the packet that comes next; errors as `open_stream`, `read_table`."""

    def __init__(self, path: str, *, num_threads: int = 1) -> None:
        self.path = path
        self.num_threads = num_threads
        self.num_decoded = 0
        self._packets: Iterator[Packet] = iter(())
        self._skips = False
        self._last: list[VideoFrame] = []
        self._fruitless_seconds = 0.0
        self._container, self._stream = open_stream(path, num_threads=num_threads)
        try:
            self.codec = self._stream.codec_context.codec.canonical_name
            self.table: PacketTable = read_table(path, self._container, self._stream)
            self.header_fps = header_fps(self._stream)
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

    def reopen(self) -> None:
        """Restart with a fresh decoder at the start of the file.

        Raises:
            DecodeError: if the file cannot be opened any more.
        """
        self.close()
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
        for start in times:
            if start == np.iinfo(np.int64).min:
                continue
            try:
                self._container.seek(start, stream=self._stream)
            except av.error.FFmpegError:
                continue
            packets = packets_of(self.path, self._container, self._stream)
            packet = next(packets, None)
            if packet is None:
                continue
            found = np.flatnonzero((table.pts == packet.pts) & (table.sizes == packet.size))
            if len(found) != 1 or found[0] > row:
                packets.close()
                continue
            for _ in range(row - int(found[0])):
                packet = next(packets, None)
            if packet is None or (packet.pts, packet.size) != (table.pts[row], table.sizes[row]):
                packets.close()
                continue
            self._stream.codec_context.flush_buffers()
            self._stand(chain([packet], packets), row)
            return True
        return False

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
            self.is_damaged = True
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

        Raises:
            DecodeError: if no frame decodes.
        """
        if self.table.doubt or not self.seek(0):
            self.reopen()
        frames: list[VideoFrame] = []
        while not frames and not self.is_at_end:
            frames = self.feed()
        if not frames:
            raise DecodeError(self.path, f"none of its {len(self.table.pts)} video packets can be decoded")
        return frames


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
