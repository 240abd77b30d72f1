"""The PyAV back end: reads everything FFmpeg reads, and gives the right frames of every file.

How frames are identified:

- By time, if the packet table has no doubts: each frame carries its packet's time, which gives its index.
  Decoding starts at the last restart at or before the wanted frame, if that is ahead of the decoder.
- By counting from the start of the file, if the table has doubts, and from the moment that something does not fit
  (a damaged packet, a missing frame). Such files are decoded with one thread.

The beginning of a file that was cut out of another one may give no frames: `PacketDecoder.first_frames` finds out.

Unnoticed: damage that its packets do not show in parts of the file that no call has decoded, damage that the codec
cannot see (VP8 has no checks), and a whole picture that refers to a damaged one which is shown after all that was
asked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import av
import numpy as np
import torch
from av.video.frame import VideoFrame

from video_gn.clips import VideoInfo
from video_gn.decoding._base import VideoReader, check_indices, empty_frames, group_repeats
from video_gn.decoding._decoder import PacketDecoder
from video_gn.decoding._rgb import RgbConverter
from video_gn.decoding.opening import describe
from video_gn.decoding.probe import PacketTable, time_frames, timing_of
from video_gn.errors import DecodeError, FrameCountError

# With several threads, each seek flushes all of them.
_MIN_SKIP_PACKETS_PER_THREAD = 8

_NO_TIME = int(np.iinfo(np.int64).min)


class UntrustedError(Exception):
    """The decoder's frames do not fit the packet table."""


class PyAVReader(VideoReader):
    """Reads frames of a video with PyAV. See `video_gn.decoding.VideoReader` and `open_video`.

    Raises:
        DecodeError: for a file that cannot be opened, holds no frame, or does not answer in time (see `opening`).
    """

    def __init__(self, path: str, *, num_threads: int = 1, short_side_px: int | None = None) -> None:
        decoder = PacketDecoder(path, num_threads=num_threads)
        super().__init__(path)
        self._decoder = decoder
        self._queue: deque[VideoFrame] = deque()
        try:
            self._queue.extend(decoder.first_frames())
            table = decoder.table
            first = self._queue[0]
            if table.num_frames == 0:
                raise DecodeError(path, f"none of its {len(table.pts)} video packets is whole and to be shown")
            self._converter = RgbConverter(first, path, short_side_px)
            self.pix_fmt = first.format.name  # FFmpeg's name, before conversion
        except BaseException:
            self.close()
            raise
        # Why frames are counted from the start of the file; None if they are identified by their times.
        self.doubt = table.doubt
        self._restart_rows = np.flatnonzero(table.is_restart)  # all but the first show a frame
        self._index_of_row, self._sorted_times = _index_rows(table)
        self._restart_indices = self._index_of_row[self._restart_rows]
        self._restart_indices[:1] = 0
        self._may_skip = num_threads == 1 and self._decoder.codec == "h264"
        self._was_skipped = np.zeros(table.num_frames, dtype=bool)
        self._times: list[tuple[int, int]] = []  # of each frame counted, its own and its packet's
        # The decoder has given its first frame, and continues from there.
        self._position = -1  # index of the last frame taken from the queue
        self._first_index = 0  # index of the frame that decoding began with
        self._first_time = int(table.pts[table.is_shown].min()) if table.has_times else 0
        self._info, self._seconds = self._describe(table)

    @property
    def num_decoded(self) -> int:
        """Frames decoded so far, including those passed over."""
        return self._decoder.num_decoded

    @property
    def table(self) -> PacketTable:
        """The video's packets."""
        return self._decoder.table

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        super().close()
        self._queue.clear()
        self._decoder.close()

    def frames_at(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Decode frames; see `VideoReader.frames_at`."""
        self._check_usable()
        checked = check_indices(indices, num_frames=self._info.num_frames, path=self.path)
        wanted, places = group_repeats(checked)
        out_THWC = empty_frames(self.path, len(checked), self._info.height, self._info.width)
        try:
            try:
                self._write(wanted, places, out_THWC)
            except UntrustedError as error:
                self._distrust(str(error))
                self._write(wanted, places, out_THWC)
            return torch.from_numpy(out_THWC)
        except av.error.FFmpegError as error:
            self._lose_place()
            raise DecodeError(self.path, f"decoding failed ({describe(error)})") from error
        except BaseException:
            self._lose_place()
            raise

    def _write(self, wanted: np.ndarray, places: list[np.ndarray], out_THWC: np.ndarray) -> None:
        may_skip_row = self._rows_to_skip(wanted)
        for target, where in zip(wanted.tolist(), places, strict=True):
            # No name is kept for a frame: see PacketDecoder.feed.
            self._converter.write(self._next_frame(target, may_skip_row), out_THWC[where[0]])
            for repeat in where[1:]:
                out_THWC[repeat] = out_THWC[where[0]]

    def _next_frame(self, target: int, may_skip_row: np.ndarray) -> VideoFrame:
        return self._frame_by_time(target, may_skip_row) if self.doubt is None else self._frame_by_count(target)

    def _lose_place(self) -> None:
        """Let the next frame begin at a restart."""
        self._queue.clear()
        self._position = np.iinfo(np.int64).max

    def _distrust(self, reason: str) -> None:
        """From now on count frames from the start, in one thread: in several, FFmpeg patches damage differently."""
        self.doubt = reason
        self._decoder.num_threads = 1
        self._lose_place()

    # By time

    def _check_undamaged(self) -> None:
        if self._decoder.is_damaged:
            raise UntrustedError("packets of it are damaged")

    def _frame_by_time(self, target: int, may_skip_row: np.ndarray) -> VideoFrame:
        self._check_undamaged()
        self._stand_before(target)
        while True:
            while not self._queue:
                self._feed_by_time(may_skip_row)
            self._advance(self._queue[0])
            if self._position == target:
                return self._queue.popleft()
            if self._position > target:
                raise UntrustedError(f"frame {target} did not decode")
            self._queue.popleft()

    def _rows_to_skip(self, wanted: np.ndarray) -> np.ndarray:
        """Rows whose frames are not wanted; frames past the last wanted one may be wanted by the next call."""
        skip = np.zeros(len(self._index_of_row), dtype=bool)
        if self._may_skip and self.doubt is None:
            skip = (self._index_of_row >= 0) & (self._index_of_row < wanted[-1])
            skip &= ~np.isin(self._index_of_row, wanted)
            skip[: self._decoder.num_lead] = False
        return skip

    def _stand_before(self, target: int) -> None:
        """Move the decoder to the nearest place before a frame, unless it is there already."""
        last = int(np.searchsorted(self._restart_indices, target, side="right")) - 1
        row, index = int(self._restart_rows[last]), int(self._restart_indices[last])
        threads = self._decoder.num_threads
        margin = 0 if threads == 1 else threads * _MIN_SKIP_PACKETS_PER_THREAD
        is_on_the_way = self._position < target and row <= self._decoder.next_row + margin
        if is_on_the_way:
            return
        self._queue.clear()
        if row == 0:
            # A fresh decoder, free of what unnoticed damage has left in the old one.
            self._decoder.reopen()
        elif not self._decoder.seek(row):
            # An index that leads to wrong places is not tried again.
            self._restart_rows, self._restart_indices = self._restart_rows[:1], self._restart_indices[:1]
            self._decoder.reopen()
            index = 0
        self._first_index = index
        self._position = index - 1

    def _feed_by_time(self, may_skip_row: np.ndarray) -> None:
        decoder = self._decoder
        if decoder.is_at_end:
            raise UntrustedError("fewer frames decode than its packets promise")
        row = decoder.next_row
        skip = row < len(may_skip_row) and bool(may_skip_row[row])
        if row < len(may_skip_row) and self._index_of_row[row] >= 0:
            self._was_skipped[self._index_of_row[row]] = skip
        self._queue.extend(decoder.feed(skip_unreferenced=skip))
        self._check_undamaged()

    def _advance(self, frame: VideoFrame) -> None:
        """Note which frame came out, and check that none before it is missing."""
        index = -1 if frame.pts is None else int(np.searchsorted(self._sorted_times, frame.pts, side="right")) - 1
        if index >= 0 and self._sorted_times[index] != frame.pts:
            index = -1
        if 0 <= index < self._first_index:
            return  # shown before the restart, but after it in the file: not whole (an open GOP)
        if index <= self._position or not self._was_skipped[self._position + 1 : index].all():
            raise UntrustedError("its frames do not come in the order of their times")
        self._position = index

    # By counting

    def _frame_by_count(self, target: int) -> VideoFrame:
        if self._position >= target:
            self._queue.clear()
            self._decoder.reopen()
            self._position = -1
            self._times = []
        while True:
            while not self._queue:
                if self._decoder.is_at_end:
                    self._correct_count()
                self._queue.extend(self._decoder.feed())
            self._position += 1
            frame = self._queue[0]
            self._times.append((_known(frame.pts), _known(frame.dts)))
            del frame  # see PacketDecoder.feed
            if self._position == target:
                return self._queue.popleft()
            self._queue.popleft()

    def _correct_count(self) -> None:
        promised, num_frames = self._info.num_frames, self._position + 1
        if num_frames == 0:
            raise DecodeError(self.path, f"none of its {promised} frames can be decoded")
        times, packet_times = np.array(self._times[:num_frames], dtype=np.int64).T
        is_exact = bool((times != _NO_TIME).all())
        timing = time_frames(
            times if is_exact else packet_times,
            self._decoder.table.time_base,
            self._decoder.header_fps,
            is_exact=is_exact,
        )
        self._seconds = timing.frame_seconds
        self._first_time = int(times[0]) if is_exact and self.table.has_times else 0
        self._info = replace(
            self._info,
            num_frames=num_frames,
            fps=timing.fps,
            duration_seconds=timing.duration_seconds,
            first_frame_seconds=self._decoder.seconds_of(int(times[0])) if is_exact else 0.0,
        )
        raise FrameCountError(self.path, num_frames, promised)

    # Facts

    def _describe(self, table: PacketTable) -> tuple[VideoInfo, np.ndarray]:
        timing = timing_of(table, self._decoder.header_fps)
        height, width = self._converter.size
        aspect = self._decoder.pixel_aspect
        shown = table.pts[table.is_shown]
        info = VideoInfo(
            path=self.path,
            num_frames=table.num_frames,
            fps=timing.fps,
            width=width,
            height=height,
            rotation_degrees=self._converter.rotation_degrees,
            codec=self._decoder.codec,
            duration_seconds=timing.duration_seconds,
            is_mirrored=self._converter.is_mirrored,
            pixel_aspect=1 / aspect if self._converter.rotation_degrees % 180 else aspect,
            first_frame_seconds=self._decoder.seconds_of(int(shown.min())) if table.has_times else 0.0,
        )
        return info, timing.frame_seconds


def _known(time: int | None) -> int:
    return _NO_TIME if time is None else time


def _index_rows(table: PacketTable) -> tuple[np.ndarray, np.ndarray]:
    """The frame index of each row (-1 where it shows none), and the times of the frames, ascending."""
    rows = np.flatnonzero(table.is_shown)
    rows = rows[np.argsort(table.pts[rows], kind="stable")]
    index_of_row = np.full(len(table.pts), -1, dtype=np.int64)
    index_of_row[rows] = np.arange(len(rows))
    return index_of_row, table.pts[rows]
