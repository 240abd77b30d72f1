"""Opens a file with PyAV and lists its video packets, without decoding: counts, times, places to start from.

No file may block a worker for ever. VIDEO_GN_DECODE_TIMEOUT_SECONDS (60) limits each of these:

- looking at the file, opening it and reading its first bytes, in a thread that is abandoned in time. A stale mount
  shows here: each such file costs the wait once, and a thread that sleeps on.
- FFmpeg's opening, and its reading of each packet, through its interrupt callback.
- packets without content, one after the other.

What cannot be limited: FFmpeg asks its callback before each system call, so one read of a mount that dies between
two packets waits in the kernel as long as the kernel allows (mount NFS with `soft`), as does PyAV's seeking.
"""

from __future__ import annotations

import errno
import math
import os
import stat
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from video_gn.decoding._bitstream import PacketFacts, make_inspector
from video_gn.decoding.frame_folders import FolderError
from video_gn.decoding.tar_members import PROTOCOLS, is_member, member_url
from video_gn.errors import ConfigError, DecodeError

_TIMEOUT_VARIABLE = "VIDEO_GN_DECODE_TIMEOUT_SECONDS"
# Generous: a network file system that is merely busy answers within seconds.
_TIMEOUT_SECONDS = 60.0
# Up to this share of a file's frames, damaged packets do not count as frames.
_MAX_TORN_SHARE = 0.05
# Read by the first look at a file.
_HEAD_BYTES = 4096
# A playlist with a video's name must not make FFmpeg open other files or the network.
_OPTIONS = {"protocol_whitelist": PROTOCOLS}
_NO_TIME = np.iinfo(np.int64).min
# FFmpeg's own rate for files without one, such as single pictures.
DEFAULT_FPS = 25.0
# A header's rate that differs more from the frames' own times is not believed; rounding to milliseconds in short
# videos stays well below.
_FPS_TOLERANCE = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class PacketTable:
    """The video packets of a file, one row for each, in the file's order."""

    pts: np.ndarray  # int64, when the row's frame is shown, in `time_base`; the lowest int64 if unknown
    dts: np.ndarray  # int64, when it is to be decoded; likewise
    sizes: np.ndarray  # int64, bytes
    is_shown: np.ndarray  # bool, whether the row promises a frame
    is_key: np.ndarray  # bool, the container's flag
    # bool, decoding may begin here for this row's frame and all that are shown after it; true for the first row
    is_restart: np.ndarray
    is_closed: np.ndarray  # bool, a restart that no later row's frame is shown before (a closed GOP)
    time_base: Fraction  # seconds of a unit of time
    end_duration: int  # how long the last frame is shown; 0 if the file does not say
    # Why frames must be identified by counting them from the start of the file. None: each frame has its own time, and
    # decoding from any restart gives the same frames.
    doubt: str | None
    has_times: bool  # whether `pts` of shown rows are the times of the frames
    num_video_streams: int  # cover pictures not counted

    @property
    def num_frames(self) -> int:
        """Frames that the packets promise."""
        return int(self.is_shown.sum())


def open_stream(path: str, *, num_threads: int = 1) -> tuple[InputContainer, VideoStream]:
    """Open a file, or a member of a tar, and choose its first video stream that is not a cover picture.

    Raises:
        ConfigError: see `timeout_seconds`.
        DecodeError: for a file that is missing, empty, not a video, holds no video, or does not answer in time.
        FolderError: for a directory.
    """
    limit = timeout_seconds()
    _check_within(path, limit)
    # "file:" keeps FFmpeg from taking "a:b.mp4" for a protocol.
    url = member_url(path) if is_member(path) else f"file:{path}"
    try:
        container = av.open(url, mode="r", options=_OPTIONS, metadata_errors="ignore", timeout=(limit, limit))
    except av.error.ExitError as error:
        raise late(path, limit, "while opening it") from error
    except av.error.FFmpegError as error:
        raise DecodeError(path, f"not a video that FFmpeg can read ({describe(error)})") from error
    try:
        stream = _choose_stream(path, container)
        context = stream.codec_context
        context.thread_count = num_threads
        context.thread_type = "AUTO" if num_threads > 1 else "NONE"
    except BaseException:
        container.close()
        raise
    return container, stream


def timeout_seconds() -> float:
    """How long to wait for data, from VIDEO_GN_DECODE_TIMEOUT_SECONDS; data loader workers inherit it.

    Raises:
        ConfigError: if it is set to anything but a number of seconds above 0.
    """
    text = os.environ.get(_TIMEOUT_VARIABLE)
    if not text:
        return _TIMEOUT_SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= threading.TIMEOUT_MAX:
        raise ConfigError(
            f"{_TIMEOUT_VARIABLE} must be a number of seconds above 0, got {text!r}. "
            f"Leave it unset for {_TIMEOUT_SECONDS:g}."
        )
    return seconds


def limit_of(container: InputContainer) -> float:
    """Seconds that reading an open file's next packet may take."""
    return math.inf if container.read_timeout is None else float(container.read_timeout)


def late(path: str, limit: float, when: str) -> DecodeError:
    """The error for a file that does not answer in time."""
    return DecodeError(
        path,
        f"no data for {limit:g} seconds {when}. Look at the disk or mount it lies on, or raise {_TIMEOUT_VARIABLE}",
    )


def _check_within(path: str, limit: float) -> None:
    """`_check_file` in a thread, the only way to leave a system call that does not return."""
    errors: list[DecodeError] = []

    def work() -> None:
        try:
            _check_file(path)
        except DecodeError as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="video_gn: first look at a file", daemon=True)
    thread.start()
    thread.join(limit)
    if thread.is_alive():
        raise late(path, limit, "at the first look at it")
    if errors:
        raise errors[0]


def _check_file(path: str) -> None:
    if is_member(path):
        member_url(path)  # reads the shard's index, and the member's header
        return
    try:
        status = Path(path).stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise DecodeError(path, "the file is missing") from error
        raise DecodeError(path, f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DecodeError(path, f"cannot be read ({error})") from error
    if stat.S_ISDIR(status.st_mode):
        raise FolderError(path)
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError(path, "a pipe or device, not a video file")
    if status.st_size == 0:
        raise DecodeError(path, "the file is empty (0 bytes)")
    if not os.access(path, os.R_OK):
        raise DecodeError(path, "cannot be read (Permission denied)")
    try:
        with Path(path).open("rb", buffering=0) as file:
            file.read(_HEAD_BYTES)
    except OSError as error:
        raise DecodeError(path, f"cannot be read ({error.strerror})") from error


def _video_streams(container: InputContainer) -> list[VideoStream]:
    return [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]


def _choose_stream(path: str, container: InputContainer) -> VideoStream:
    streams = _video_streams(container)
    if not streams:
        has = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise DecodeError(path, f"no video stream in it (it has: {has})")
    stream = streams[0]
    if stream.codec_context is None:
        raise DecodeError(path, "FFmpeg has no decoder for its video stream")
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all  # the demuxer then skips their bytes
    return stream


def describe(error: av.error.FFmpegError) -> str:
    """FFmpeg's own words, without the path and number."""
    return error.strerror or type(error).__name__


def packets_of(path: str, container: InputContainer, stream: VideoStream) -> Generator[Packet, None, None]:
    """The stream's packets from the file's present position, without empty ones.

    A container that breaks off ends the packets; a file system that fails is an error. Close the generator before
    seeking or asking for packets again: PyAV keeps one clock for a container.

    Raises:
        DecodeError: if reading fails, or gives nothing for the container's `read_timeout`.
    """
    since = time.monotonic()
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
                since = time.monotonic()
            # The last packet is always an empty one: some demuxers take an interrupt for the end.
            elif time.monotonic() - since > limit_of(container):
                raise late(path, limit_of(container), "while reading its packets")
    except av.error.FFmpegError as error:
        if isinstance(error, av.error.ExitError):
            raise late(path, limit_of(container), "while reading its packets") from error
        if isinstance(error, OSError):
            raise DecodeError(path, f"reading failed ({describe(error)})") from error


def read_table(path: str, container: InputContainer, stream: VideoStream) -> PacketTable:
    """Pass over the packets of a freshly opened file.

    Raises:
        DecodeError: if there are none, or the file cannot be read.
    """
    codec = stream.codec_context.codec.canonical_name
    inspect = make_inspector(codec, stream.codec_context.extradata or b"")
    rows: list[tuple[int, int, int, int, bool, bool, bool]] = []
    facts: list[PacketFacts] = []
    is_reconfigured = False
    for packet in packets_of(path, container, stream):
        rows.append(
            (
                _NO_TIME if packet.pts is None else packet.pts,
                _NO_TIME if packet.dts is None else packet.dts,
                packet.size,
                packet.duration or 0,
                packet.is_keyframe,
                packet.is_corrupt,
                packet.is_discard,
            )
        )
        facts.append(PacketFacts() if inspect is None else inspect(bytes(packet)))
        # Asking for side data is slow, and a new header comes with a key frame.
        if packet.is_keyframe and len(rows) > 1 and packet.has_sidedata("new_extradata"):
            is_reconfigured = True
    if not rows:
        raise DecodeError(path, "no video packets in it: the file is cut off or damaged")
    columns = np.array(rows, dtype=np.int64).T
    pts, dts, sizes, durations = columns[:4]
    is_key, is_corrupt, is_discard = columns[4:].astype(bool)
    num_shown, num_pictures = np.array([fact[:2] for fact in facts], dtype=np.int64).T
    is_packed = bool((num_pictures > 1).any())
    is_shown = _leave_out_torn((_count_packed(num_shown) if is_packed else num_shown > 0) & ~is_discard, is_corrupt)
    has_b = any(fact.has_b_picture for fact in facts) if codec == "mpeg4" else bool(stream.codec_context.has_b_frames)
    is_reordered_avi = has_b and container.format.name == "avi"
    doubt = _find_doubt(
        pts[is_shown],
        is_corrupt=bool(is_corrupt.any()),
        is_discard=bool(is_discard.any()),
        is_packed=is_packed,
        is_reordered_avi=is_reordered_avi,
        is_reconfigured=is_reconfigured,
    )
    shown = np.sort(pts[is_shown])
    is_restart = np.zeros(len(pts), dtype=bool) if doubt else _find_restarts(pts, is_shown, is_key, facts)
    return PacketTable(
        pts=pts,
        dts=dts,
        sizes=sizes,
        is_shown=is_shown,
        is_key=is_key,
        is_restart=is_restart,
        is_closed=is_restart & _is_first_of_rest(pts, is_shown),
        time_base=Fraction(stream.time_base or 1),
        end_duration=int(durations[np.argmax(np.where(is_shown, pts, _NO_TIME))]),
        doubt=doubt,
        has_times=not (is_packed or is_reordered_avi or len(shown) == 0 or shown[0] == _NO_TIME)
        and bool((np.diff(shown) > 0).all()),
        num_video_streams=len(_video_streams(container)),
    )


def header_fps(stream: VideoStream) -> float:
    """Frames per second by the container's header; 0 if it has none."""
    return float(stream.average_rate or stream.guessed_rate or 0)


def rate_and_duration(table: PacketTable, header_fps: float) -> tuple[float, float]:
    """Frames per second, and seconds from the first frame to the end of the last, of a table with a frame.

    The header's rate is used if it agrees with the frames' own times. If the file has no usable times, frames are
    1 / fps apart.
    """
    fps, num_frames = header_fps, table.num_frames
    if not table.has_times:
        fps = fps or DEFAULT_FPS
        return fps, (num_frames - 1) / fps + 1 / fps
    shown = table.pts[table.is_shown]
    base = float(table.time_base)
    span, last = float(shown.max() - shown.min()) * base, table.end_duration * base
    measured = (num_frames - 1) / span if span > 0 else 0.0
    # In a few frames of variable rate the last one's duration weighs too much.
    if measured and not abs(fps / measured - 1) <= _FPS_TOLERANCE:
        full = num_frames / (span + last) if table.end_duration > 0 else measured
        fps = fps if abs(fps / full - 1) <= _FPS_TOLERANCE else full
    fps = fps or DEFAULT_FPS
    return fps, span + (last if table.end_duration > 0 else 1 / fps)


def _leave_out_torn(is_shown: np.ndarray, is_corrupt: np.ndarray) -> np.ndarray:
    """Which packets promise a frame if some are damaged.

    A torn picture, often the last one of a file that was cut, may decode in part. It is left out if there are many
    other frames, and counted if there are few.
    """
    is_torn = is_shown & is_corrupt
    return is_shown & ~is_torn if is_torn.sum() <= _MAX_TORN_SHARE * is_shown.sum() else is_shown


def _count_packed(num_shown: np.ndarray) -> np.ndarray:
    """Which packets give a frame if a packet may hold two pictures (MPEG-4's packed B-frames).

    A decoder gives one frame for a packet and keeps the rest for the next one, often a packet made empty for that
    purpose. The rest of the last packet is lost.
    """
    gives = np.zeros(len(num_shown), dtype=bool)
    kept = 0
    for row, count in enumerate(num_shown):
        gives[row] = kept + count > 0
        kept = max(0, kept + int(count) - 1)
    return gives


def _find_doubt(
    shown_pts: np.ndarray,
    *,
    is_corrupt: bool,
    is_discard: bool,
    is_packed: bool,
    is_reordered_avi: bool,
    is_reconfigured: bool,
) -> str | None:
    has_gaps = bool((shown_pts == _NO_TIME).any())
    reasons = (
        (is_corrupt, "packets of it are damaged or cut off"),
        (is_discard, "an edit list hides frames of it"),
        (is_packed, "its packets hold two pictures (packed B-frames)"),
        (is_reordered_avi, "it has B-frames in AVI, which does not store when they are shown"),
        (is_reconfigured, "its coding changes on the way"),
        (has_gaps, "frames of it have no time"),
        (not has_gaps and len(np.unique(shown_pts)) < len(shown_pts), "frames of it have the same time"),
    )
    return next((reason for applies, reason in reasons if applies), None)


def _find_restarts(pts: np.ndarray, is_shown: np.ndarray, is_key: np.ndarray, facts: list[PacketFacts]) -> np.ndarray:
    """Rows where decoding may begin: no earlier row's frame is shown after theirs.

    If a file repeats parameter sets on its way, a row must bring its own.
    """
    has_new_sets = any(fact.has_new_sets for fact in facts)
    restart = np.array([fact.is_restart and (fact.has_sets or not has_new_sets) for fact in facts])
    latest = np.maximum.accumulate(np.where(is_shown, pts, _NO_TIME))  # hidden rows bound nothing
    restart &= is_key & is_shown & (pts > np.concatenate(([_NO_TIME], latest[:-1])))
    restart[0] = True  # decoding can always begin there
    return restart


def _is_first_of_rest(pts: np.ndarray, is_shown: np.ndarray) -> np.ndarray:
    """Rows whose frame is shown before the frames of all later rows."""
    times = np.where(is_shown, pts, np.iinfo(np.int64).max)
    return is_shown & (np.minimum.accumulate(times[::-1])[::-1] == pts)
