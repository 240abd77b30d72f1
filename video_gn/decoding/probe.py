"""Lists a file's video packets with PyAV, without decoding: counts, times, places to start from."""

from __future__ import annotations

import errno
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.stream import VideoStream

from video_gn.decoding._bitstream import is_interlaced, lacks_pictures, make_inspector, mpeg4_layer
from video_gn.decoding._nal import Inspector, PacketFacts, is_torn
from video_gn.decoding.opening import describe, late, limit_of, video_streams
from video_gn.errors import DecodeError

_NO_TIME = np.iinfo(np.int64).min
# Side data that demuxers attach to a packet once in a freshly opened file.
_GIVEN_ONCE: tuple[Literal["palette", "new_extradata"], ...] = ("palette", "new_extradata")
# Containers of recorded streams (FFmpeg's names), whose clock runs evenly. Where it leaps, two were spliced.
_STREAMS = ("mpegts", "mpeg")
# Codecs whose pictures are numbered within groups: see `lacks_pictures`.
_NUMBERED = ("mpeg1video", "mpeg2video")
_UNKNOWN = PacketFacts()  # of codecs without an inspector
# Of the usual steps of a stream's clock: one that is larger is a leap. Repeated fields and rounding stay below.
_MAX_STEPS = 3
# FFmpeg's own rate for files without one, such as single pictures.
DEFAULT_FPS = 25.0
# A header's rate that differs more from the frames' own times is not believed; rounding to milliseconds in short
# videos stays well below.
_FPS_TOLERANCE = 0.05
# No frame is shown so long within a video that is shorter by far. Counters of 32 bits run over after an hour or more.
_WILD_SECONDS = 600


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
    # Whether the file begins with a picture that needs nothing from before, as do all that follow it. Otherwise
    # pictures of its beginning may give no frame (see `PacketDecoder.first_frames`).
    is_whole_start: bool
    # Whether the first row's packet brings a palette or header that FFmpeg gives only after opening, not after a seek.
    is_given_once: bool
    time_base: Fraction  # seconds of a unit of time
    end_duration: int  # how long the last frame is shown; 0 if the file does not say
    # Why frames must be identified by counting them from the start of the file. None: each frame has its own time, and
    # decoding from any restart gives the same frames.
    doubt: str | None
    has_times: bool  # whether `pts` of shown rows are the times of the frames
    is_timed_by_order: bool  # whether `pts` are made from the order of the pictures: the file's packets have others
    num_extra: int  # frames that no packet promises: MPEG-4's decoder makes up one for a picture before a cut
    num_video_streams: int  # cover pictures not counted
    header_frames: int  # that the container's header claims; 0 if it does not say

    @property
    def num_frames(self) -> int:
        """Frames that are promised."""
        return int(self.is_shown.sum()) + self.num_extra


def packets_of(
    path: str, container: InputContainer, stream: Stream | Sequence[Stream]
) -> Generator[Packet, None, None]:
    """The packets of a stream, or of several, from the file's present position, without empty ones.

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
        if isinstance(error, OSError) and error.errno != errno.EPERM:  # -1: what some demuxers say of a torn end
            raise DecodeError(path, f"reading failed ({describe(error)})") from error


def read_table(path: str, container: InputContainer, stream: VideoStream) -> PacketTable:
    """Pass over the packets of a freshly opened file.

    Raises:
        DecodeError: if there are none, or the file cannot be read.
    """
    codec = stream.codec_context.codec.canonical_name
    extradata = stream.codec_context.extradata or b""
    is_avi = container.format.name == "avi"
    inspect = make_inspector(codec, extradata, is_intra=stream.codec_context.codec.intra_only, with_places=is_avi)
    is_stream = container.format.name in _STREAMS
    rows, facts, given_once = _read_rows(path, container, stream, inspect)
    pts, dts = (np.array([_NO_TIME if t is None else t for t in rows[at::7]], dtype=np.int64) for at in (0, 1))
    sizes, durations = (np.array([n or 0 for n in rows[at::7]], dtype=np.int64) for at in (2, 3))
    is_key, is_corrupt, is_discard = (np.array(rows[at::7], dtype=bool) for at in (4, 5, 6))
    num_shown = np.array([fact.num_shown for fact in facts], dtype=np.int64)
    num_pictures = np.array([fact.num_pictures for fact in facts], dtype=np.int64)
    kinds = list({id(fact): fact for fact in facts}.values())  # most packets share one
    second = np.array(_find_second_fields(facts) if any(fact.field for fact in kinds) else [], dtype=np.int64)
    num_shown[second] = 0
    durations[second - 1] += durations[second]
    is_packed = bool((num_pictures > 1).any())
    is_shown = (_count_packed(num_shown) if is_packed else num_shown > 0) & ~is_discard
    tells_b = codec in _NUMBERED or codec == "mpeg4"
    has_b = any(fact.has_b_picture for fact in kinds) if tells_b else bool(stream.codec_context.has_b_frames)
    layers = {mpeg4_layer(extradata), *(fact.sequence for fact in kinds)} - {b""} if codec == "mpeg4" else set()
    ordered = _times_in_order(dts, facts)
    is_reordered_avi = is_avi and (has_b or (ordered is not None and not np.array_equal(ordered, dts)))
    pts = ordered if is_reordered_avi and ordered is not None else pts
    first = int(np.argmax(num_pictures > 0))
    is_whole_start = bool(is_key[first] if inspect is None else facts[first].is_restart)
    is_whole_start = is_whole_start and not (pts[is_shown] < pts[first]).any()
    num_extra = int(codec == "mpeg4" and not is_whole_start)
    shown = np.sort(pts[is_shown])
    has_gaps = bool((shown == _NO_TIME).any())
    is_spliced = codec in _NUMBERED and lacks_pictures([facts[row] for row in np.flatnonzero(num_shown)])
    is_spliced = is_spliced or any(fact.is_broken for fact in kinds) or (is_stream and _has_leap(dts, facts))
    reasons = {
        "packets of it are damaged or cut off": is_corrupt.any(),
        "an edit list hides frames of it": is_discard.any(),
        "its packets hold two pictures (packed B-frames)": is_packed,
        "it has B-frames in AVI, which does not store when they are shown": is_reordered_avi
        and not (pts is ordered or (codec == "mpeg4" and _is_order_of_kinds(pts, facts))),
        "its frames are reordered more than its beginning tells, so that the decoder loses some": codec == "h264"
        and _depth(pts[is_shown]) > stream.codec_context.reorder_depth,
        "it begins in the middle of a longer MPEG-4 video": num_extra > 0,
        "pictures of it are missing or damaged": is_spliced,
        "its coding changes on the way": len(layers) > 1
        or any(row > 0 and kind == "new_extradata" for row, kind in given_once),
        "frames of it have no time": has_gaps,
        "frames of it have the same time": not has_gaps and (np.diff(shown) == 0).any(),
    }
    doubt = next((reason for reason, applies in reasons.items() if applies), None)
    is_restart = np.zeros(len(pts), dtype=bool) if doubt else _find_restarts(pts, is_shown, is_key, facts)
    is_restart[1:] &= all(row == 0 for row, _ in given_once)  # palettes that follow each other
    # FFmpeg measures the times of MPEG-4's fields by those of the first B picture that it sees.
    is_restart[1:] &= not (has_b and any(is_interlaced(layer) for layer in layers))
    return PacketTable(
        pts=pts,
        dts=dts,
        sizes=sizes,
        is_shown=is_shown,
        is_key=is_key,
        is_restart=is_restart,
        is_closed=is_restart & _is_first_of_rest(pts, is_shown),
        is_whole_start=is_whole_start,
        is_given_once=any(row == 0 for row, _ in given_once),
        time_base=Fraction(stream.time_base or 1),
        end_duration=int(durations[np.argmax(np.where(is_shown, pts, _NO_TIME))]),
        doubt=doubt,
        has_times=not (is_packed or is_reordered_avi or num_extra or len(shown) == 0 or shown[0] == _NO_TIME)
        and bool((np.diff(shown) > 0).all()),
        is_timed_by_order=pts is ordered,
        num_extra=num_extra,
        num_video_streams=len(video_streams(container)),
        header_frames=int(stream.frames),
    )


def _read_rows(
    path: str, container: InputContainer, stream: VideoStream, inspect: Inspector | None
) -> tuple[list[int | None], list[PacketFacts], list[tuple[int, str]]]:
    """Seven numbers of each packet, one after the other; its facts; rows and kinds of side data that is given once."""
    codec, extradata = stream.codec_context.codec.canonical_name, stream.codec_context.extradata or b""
    is_stream = container.format.name in _STREAMS
    rows: list[int | None] = []
    facts: list[PacketFacts] = []
    given_once: list[tuple[int, str]] = []
    for packet in packets_of(path, container, stream):
        rows += (
            packet.pts,
            packet.dts,
            packet.size,
            packet.duration,
            packet.is_keyframe,
            packet.is_corrupt,
            packet.is_discard,
        )
        facts.append(_UNKNOWN if inspect is None else inspect(bytes(packet)))
        if packet.is_corrupt and is_torn(codec, extradata, bytes(packet)):
            facts[-1] = facts[-1]._replace(num_shown=0)
        if not is_stream:  # there each packet has side data, but none of these
            # Faster than to ask for each kind.
            given_once += [
                (len(facts) - 1, kind) for side in packet.iter_sidedata() if (kind := side.data_type) in _GIVEN_ONCE
            ]
    if not facts:
        raise DecodeError(path, "no video packets in it: the file is cut off or damaged")
    return rows, facts, given_once


def header_fps(stream: VideoStream) -> float:
    """Frames per second by the container's header; 0 if it has none."""
    return float(stream.average_rate or stream.guessed_rate or 0)


class Timing(NamedTuple):
    """When a video's frames are shown."""

    fps: float
    duration_seconds: float  # from the first frame to the end of the last
    frame_seconds: np.ndarray  # float64 (num_frames,), from the first frame, ascending; read-only


def timing_of(table: PacketTable, header_fps: float) -> Timing:
    """See `time_frames`; of a table with a frame."""
    times = np.sort((table.pts if table.has_times else table.dts)[table.is_shown])
    return time_frames(
        np.append(times, np.full(table.num_extra, _NO_TIME)),
        table.time_base,
        header_fps,
        end_duration=table.end_duration if table.has_times else 0,
        is_exact=table.has_times,
    )


def time_frames(
    times: np.ndarray, time_base: Fraction, header_fps: float, *, end_duration: int = 0, is_exact: bool = True
) -> Timing:
    """Find the rate of frames from their times.

    The header's rate is used if it agrees with the times. Otherwise it is their mean rate. A time, or the last frame's
    duration, so far away that it dwarfs the rest of the video is damage: the usual distance takes its place.

    Args:
        times: int64 (num_frames,), one or more; the lowest int64 if unknown.
        time_base: Seconds of a unit of time.
        header_fps: See `header_fps`.
        end_duration: How long the last frame is shown; 0 if unknown.
        is_exact: Whether these are the times when the frames are shown. Otherwise (when their packets come) they give
            the rate, and no more than that if the header agrees: frames are then 1 / fps apart, as they are if times
            are missing or not ascending.
    """
    places = np.flatnonzero(times != _NO_TIME)
    gaps, end = np.diff(times[places]), max(0, end_duration)
    has_times = len(places) > 0 and bool((gaps > 0).all())
    if has_times:
        closed = _close(np.append(gaps, end), float(time_base))
        gaps, end = closed[:-1], int(closed[-1])
    span, last = float(gaps.sum()) * float(time_base), end * float(time_base)
    measured = float(places[-1] - places[0]) / span if span > 0 else 0.0
    fps = header_fps
    is_measured = measured > 0 and not abs(fps / measured - 1) <= _FPS_TOLERANCE
    if is_measured:
        # A last frame that is shown longer than any other has too much weight if there are few. One that is shown
        # shorter than any other has the duration that the wrong rate gave it.
        end = end if end >= gaps.min() else 0
        full = len(times) / (span + last) if 0 < end <= gaps.max() else measured
        fps = fps if abs(fps / full - 1) <= _FPS_TOLERANCE else full
    fps = fps or DEFAULT_FPS
    if has_times and len(places) == len(times) and (is_exact or is_measured):
        seconds = np.concatenate(([0], np.cumsum(gaps))) * float(time_base)
        duration = span + (last if end > 0 else 1 / fps)
    else:
        seconds = np.arange(len(times)) / fps
        duration = (len(times) - 1) / fps + 1 / fps
    seconds.flags.writeable = False
    return Timing(fps, duration, seconds)


def _close(gaps: np.ndarray, time_base: float) -> np.ndarray:
    """How long frames are shown, without the times that dwarf the rest of the video."""
    usual = int(np.sort(gaps)[(len(gaps) - 1) // 2])
    is_wild = (gaps * time_base > _WILD_SECONDS) & (gaps / 1000 > usual)
    is_wild &= gaps / 10 > gaps[~is_wild].sum()
    return np.where(is_wild, max(1, usual), gaps)


def _times_in_order(dts: np.ndarray, facts: list[PacketFacts]) -> np.ndarray | None:
    """The packets' times in the order in which their pictures are shown, or None if that is not known of all."""
    places = [fact.place for fact in facts if fact.place is not None]
    is_known = len(set(places)) == len(facts) and dts[0] != _NO_TIME and bool((np.diff(dts) > 0).all())
    return dts[np.argsort(np.argsort(places))] if is_known else None


def _depth(pts: np.ndarray) -> int:
    """How many pictures H.264's decoder must hold back to give all in the order of their times.

    With less it drops those that come late, and then holds back more: which ones depends on where it began. With as
    many or more it drops none.
    """
    return int((np.arange(len(pts)) - np.argsort(np.argsort(pts))).max(initial=0))


def _is_order_of_kinds(pts: np.ndarray, facts: list[PacketFacts]) -> bool:
    """Whether the times that FFmpeg finds for MPEG-4's pictures in AVI are those when its decoder gives them.

    It gives B pictures at once, others before the next one that is no B picture.
    """
    is_plain = all(fact.num_shown == fact.num_pictures == 1 for fact in facts)
    rows: list[int] = []
    held: int | None = None
    for row, fact in enumerate(facts):
        if fact.has_b_picture:
            rows.append(row)
        else:
            rows += [] if held is None else [held]
            held = row
    rows += [] if held is None else [held]
    return is_plain and bool((np.diff(pts[rows]) > 0).all())


def _find_second_fields(facts: list[PacketFacts]) -> list[int]:
    """Rows that complete the frame of the field before them."""
    seconds: list[int] = []
    first: tuple[int, int] | None = None
    for row, fact in enumerate(facts):
        if first and fact.field and fact.field == (3 - first[0], first[1]):
            seconds.append(row)
            first = None
        else:
            first = fact.field
    return seconds


def _has_leap(dts: np.ndarray, facts: list[PacketFacts]) -> bool:
    """Whether the times of a recorded stream leap, except to a restart."""
    rows = np.flatnonzero(dts != _NO_TIME)
    if len(rows) < 2:
        return False
    steps = np.diff(dts[rows]) / np.diff(rows)
    is_leap = (steps <= 0) | (steps > _MAX_STEPS * np.median(steps))
    return any(not facts[row].is_restart for row in rows[1:][is_leap])


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


def _find_restarts(pts: np.ndarray, is_shown: np.ndarray, is_key: np.ndarray, facts: list[PacketFacts]) -> np.ndarray:
    """Rows where decoding may begin: no earlier row's frame is shown after theirs.

    If a file repeats parameter sets on its way, a row must bring its own.
    """
    restart = np.array([fact.is_restart for fact in facts])
    if any(fact.has_new_sets for fact in facts):
        restart &= np.array([fact.has_sets for fact in facts])
    latest = np.maximum.accumulate(np.where(is_shown, pts, _NO_TIME))  # hidden rows bound nothing
    restart &= is_key & is_shown & (pts > np.concatenate(([_NO_TIME], latest[:-1])))
    restart[0] = True  # decoding can always begin there
    return restart


def _is_first_of_rest(pts: np.ndarray, is_shown: np.ndarray) -> np.ndarray:
    """Rows whose frame is shown before the frames of all later rows."""
    times = np.where(is_shown, pts, np.iinfo(np.int64).max)
    return is_shown & (np.minimum.accumulate(times[::-1])[::-1] == pts)
