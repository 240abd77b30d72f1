"""Draws on every frame of a video: a new mp4 or mkv with the frames' own times and the sound as it was.

Frames are those of `video_gn.decoding`, turned as the file's metadata asks. Sound packets are copied, not encoded
again. A start that is not 0 stays, as does an offset between sound and picture; only recorded streams (MPEG-TS and the
like), whose clock starts anywhere, begin at 0. In an mkv, times are rounded to milliseconds.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.format import Flags
from av.stream import Discard
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from video_gn.decoding.frame_folders import FolderError
from video_gn.decoding.opening import describe, open_container
from video_gn.decoding.probe import packets_of
from video_gn.decoding.raw import RawReader, StartOverError, open_raw
from video_gn.errors import ConfigError, DecodeError
from video_gn.files import check_place, whole_path
from video_gn.prepare.encode import add_stream, clock_of, even_size, frame_times, mp4_options, mux

log = logging.getLogger(__name__)

# From a frame, uint8 (H, W, 3), RGB, which it may draw into, and its time in seconds from the first frame, to the
# frame to show, of the same size.
Draw = Callable[[np.ndarray, float], np.ndarray]

_FORMATS = {".mp4": "mp4", ".mkv": "matroska"}  # by ending
# For watching: x264's "veryfast" encodes several times as many frames per second as "medium".
_X264 = {"preset": "veryfast", "crf": "18"}
# A wrong count of frames and wrong times are found one after the other.
_MAX_ATTEMPTS = 3
# FFmpeg's colour matrices that it converts to by name; it takes BT.601 (its 5) for all others.
_MATRICES, _BT601 = (1, 4, 7, 9), 5
_SMPTE170M = 6  # the name of BT.601 in a file


def render_frames(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    draw: Draw,
    *,
    on_frame: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Draw on all frames of a video and write the result, whole or not at all, with the sound bit for bit.

    An odd row at the bottom or column at the right is cut off, since H.264 has even sizes. Subtitles are not copied.
    Memory does not grow with the video's length.

    Args:
        path: Video, tar member or frame folder.
        output: File to write, .mp4 or .mkv.
        draw: See `Draw`. If the file turns out to be damaged, its frames come again from the first one.
        on_frame: Called after each frame with the number of frames done, and of all.

    Raises:
        ConfigError: see `check_output`.
        DecodeError: the video cannot be read, or its times cannot be written.
        DiskFullError, UnwritableError, RunError: the output cannot be written.
        ValueError: `draw` returns something else than a frame.
    """
    path, output = os.fspath(path), Path(output)
    check_output(path, output)
    with whole_path(output) as part, open_raw(path) as reader:
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            try:
                _write(reader, part, _FORMATS[output.suffix], draw, on_frame)
                return
            except av.error.FFmpegError as error:
                if isinstance(error, OSError):
                    raise  # of the disk
                raise DecodeError(path, f"FFmpeg cannot write its frames and times ({describe(error)})") from error
            except StartOverError as error:
                if attempt == _MAX_ATTEMPTS:
                    raise DecodeError(path, "each pass over it counts other frames") from error


def check_output(path: str, output: Path) -> None:
    """Find out before the work whether a video can be rendered to a place.

    Raises:
        ConfigError: for another ending, the video itself, or a container that cannot hold its sound.
        DecodeError: the video cannot be opened.
        DiskFullError, UnwritableError, RunError: the output cannot be written.
    """
    if output.suffix not in _FORMATS:
        raise ConfigError(f"a rendered video must end in {' or '.join(_FORMATS)}, got {str(output)!r}. Rename it.")
    with contextlib.suppress(OSError):
        if output.samefile(path):
            raise ConfigError(f"{output} must not be the video that is read. Choose another name.")
    check_place(output)
    with _sound_of(path) as (_, streams):
        holding = [ending for ending, name in _FORMATS.items() if _holds(name, streams)]
    if output.suffix not in holding:
        codecs = ", ".join(s.codec_context.name if s.codec_context else "unknown to FFmpeg" for s in streams)
        advice = f"Write {output.with_suffix(holding[0])}." if holding else f"Encode it as AAC, such as by `{_TO_AAC}`."
        raise ConfigError(f"{output} cannot hold the sound of {path} ({codecs}). {advice}")


_TO_AAC = "ffmpeg -i VIDEO -c:v copy -c:a aac COPY.mkv"


# ---- pictures -----------------------------------------------------------------------------------


class _ToYuv:
    """Converts drawn frames for the encoder, with the colour matrix and tags of the source's first frame.

    With the source's own matrix, also where its name is missing, what is not drawn on keeps its colours in any player.
    """

    def __init__(self, first: VideoFrame) -> None:
        self._matrix = _SMPTE170M if first.format.is_rgb else int(first.colorspace)
        self._tags = first.color_primaries, first.color_trc
        self._reformatter = VideoReformatter()

    def __call__(self, rgb_HWC: np.ndarray) -> VideoFrame:
        made = self._reformatter.reformat(
            VideoFrame.from_ndarray(np.ascontiguousarray(rgb_HWC), format="rgb24"),
            format="yuv420p",
            # The mean of the four pixels that a colour was read for, and so the file's own colour, if nothing is drawn:
            # 46.2 dB from the frame that was read at 1920 x 1080, with BICUBIC 43.4.
            interpolation=Interpolation.AREA,
            dst_colorspace=self._matrix if self._matrix in _MATRICES else _BT601,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )
        made.colorspace, made.color_range = self._matrix, ColorRange.MPEG
        made.color_primaries, made.color_trc = self._tags
        return made


def _drawn(draw: Draw, frame_HWC: np.ndarray, seconds: float) -> np.ndarray:
    shape = frame_HWC.shape
    drawn = draw(frame_HWC, seconds)
    if not isinstance(drawn, np.ndarray) or drawn.dtype != np.uint8 or drawn.shape != shape:
        got = f"{drawn.dtype} {drawn.shape}" if isinstance(drawn, np.ndarray) else type(drawn).__name__
        raise ValueError(f"draw must return a uint8 array of shape {shape}, got {got}. Return the frame drawn on.")
    return drawn


# ---- the file -----------------------------------------------------------------------------------


def _write(reader: RawReader, part: Path, name: str, draw: Draw, on_frame: Callable[[int, int], None]) -> None:
    """Write all frames and the sound into a file, whose format has this name."""
    info, clock = reader.info, clock_of(reader)
    width, height = even_size(reader.path, info.width, info.height)
    aspect = Fraction(info.pixel_aspect).limit_denominator(1000)
    with contextlib.ExitStack() as stack:
        source, streams = stack.enter_context(_sound_of(reader.path))
        for empty in source.streams.audio if source is not None else ():
            if empty not in streams:
                log.warning("%s: sound stream %d is empty at the start: it is left out", reader.path, empty.index)
        shift = _shift_of(source)
        first = 0 if reader.time_base is None else round((reader.first_time * reader.time_base - shift) / clock)
        ticks, length_of = frame_times(reader, range(info.num_frames), clock, first)
        seconds = reader.frame_seconds.tolist()
        options = mp4_options(clock) if name == "mp4" else {}
        frames = stack.enter_context(contextlib.closing(reader.frames(0, info.num_frames)))
        container = stack.enter_context(av.open(f"file:{part}", "w", format=name, options=options))
        stream: Any = None
        for number, frame in enumerate(frames):
            if stream is None:
                to_yuv = _ToYuv(frame)
                picture = to_yuv(np.zeros((height, width, 3), np.uint8))
                stream = add_stream(container, reader, picture, aspect, _X264)
                sound = _Sound(reader.path, source, streams, container, shift)
            rgb_HWC = reader.rgb(frame)[:height, :width]
            del frame  # FFmpeg patches a damaged picture with the content of a buffer that is no longer held
            picture = to_yuv(_drawn(draw, rgb_HWC, seconds[number]))
            picture.pts, picture.time_base = ticks[number], clock
            for packet in stream.encode(picture):
                sound.copy(packet.dts * clock)
                mux(container, [packet], length_of)
            on_frame(number + 1, info.num_frames)
        mux(container, stream.encode(None), length_of)
        sound.copy(math.inf)


# ---- sound --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _sound_of(path: str) -> Iterator[tuple[InputContainer | None, list[AudioStream]]]:
    """A file opened once more, to read its sound streams alone; (None, []) for a frame folder.

    Streams that are announced, but have no packet at the file's start from which to know their rate, are left out.
    """
    try:
        container = open_container(path)
    except FolderError:
        yield None, []
        return
    with container:
        for stream in container.streams:
            if stream.type != "audio":
                stream.discard = Discard.all  # the demuxer then skips their bytes
        yield container, [stream for stream in container.streams.audio if stream.rate]


def _shift_of(container: InputContainer | None) -> Fraction:
    """Seconds by which times move towards 0: the start of a recorded stream, whose clock starts anywhere."""
    if container is None or container.start_time is None:
        return Fraction(0)
    is_recorded = container.format.flags & Flags.ts_discont.value  # type: ignore[operator]
    return Fraction(container.start_time, av.time_base) if is_recorded else Fraction(0)


def _holds(name: str, streams: list[AudioStream]) -> bool:
    """Whether a format can hold sound streams: asked with a file in memory."""
    if not streams:
        return True
    try:
        with av.open(io.BytesIO(), "w", format=name) as container:
            for stream in streams:
                container.add_stream_from_template(stream)
            container.start_encoding()
    except (ValueError, av.error.FFmpegError):
        return False
    return True


class _Sound:
    """Copies packets of sound streams into a file, a part at a time, in step with its pictures."""

    def __init__(
        self, path: str, source: InputContainer | None, streams: list[AudioStream], target: Any, shift: Fraction
    ) -> None:
        self._target, self._shift = target, shift
        self._may_repeat = target.format.name == "matroska"  # short packets have equal times in its milliseconds
        self._copies = {}
        for stream in streams:
            copy = self._copies[stream.index] = target.add_stream_from_template(stream)
            copy.metadata.update({k: v for k, v in stream.metadata.items() if k == "language"})
        self._last: dict[int, int] = {}
        self._packets = iter(()) if source is None or not streams else packets_of(path, source, streams)
        self._next = next(self._packets, None)

    def copy(self, until_seconds: Fraction | float) -> None:
        """Write the packets up to a time of the target."""
        while self._next is not None:
            packet: Any = self._next
            base, index = packet.time_base, packet.stream.index
            moved = round(self._shift / base)
            # What a damaged file has without a time, or with one that goes back, follows the packet before it.
            step = 0 if self._may_repeat else math.ceil(1 / (packet.stream.rate * base))
            least = self._last.get(index, -(1 << 62)) + step
            known = packet.pts if packet.dts is None else packet.dts
            dts = max(least, (0 if known is None else known) - moved)
            if dts * base > until_seconds:
                return
            packet.pts = max(dts, (dts if packet.pts is None else packet.pts - moved))
            packet.dts = self._last[index] = dts
            packet.stream = self._copies[index]
            self._target.mux(packet)
            self._next = next(self._packets, None)
