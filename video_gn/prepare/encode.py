"""Encodes a video, or a segment of one, as an H.264 mp4 from which random clips decode fast.

Why it is fast: key frames are near each other, so that little is decoded on the way to a clip; and no other frame
refers to seven of eight frames, so that the frames that a clip's stride skips are not decoded.

Random clips of 32 frames, stride 2, opening included, one thread, two videos of Kinetics (340 x 256, 10 s,
H.264 as published); ratios of CPU time. Size and PSNR are against the published files, whose own loss and noise are
coded again. All with ref=1, no psy, no mbtree, and "fast" (CAVLC, no deblocking, no weighted prediction), except the
second and the last row, which otherwise have x264's own settings and were measured on six videos.

| key frames | b-frames | crf | clips/s | size | PSNR |
|---|---|---|---|---|---|
| as published | | | 1.00x | 1.00x | |
| 16 | 1, not fast | 18 | 1.4x | 1.31x | 40.8 dB |
| 16 | 1 | 20 | 2.7x | 1.29x | 37.3 dB |
| 16 | 1 | 22 | 2.8x | 1.04x | 35.8 dB |
| 16 | 3 | 21 | 3.1x | 0.99x | 35.1 dB |
| 16 | 3 | 22 | 3.1x | 0.88x | 34.5 dB |
| **32** | **7** | **20** | **3.4x** | **1.01x** | **34.8 dB** |
| 32 | 7 | 21 | 3.6x | 0.90x | 34.2 dB |
| 32 | 15 | 20 | 3.4x | 1.11x | 34.0 dB |
| each frame | 0 | 18 | 2.6x | 2.8x | 36.8 dB |

Frames are those of `video_gn.decoding`: also of damaged files, the original and its copy give the same frames.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from video_gn import sampling
from video_gn.checks import check_integer
from video_gn.decoding.raw import RawReader, StartOverError, open_raw, turn
from video_gn.errors import DecodeError, SettingError

_VERSION = 1  # to be raised when the same settings give other files
# A wrong count of frames and wrong times are found one after the other.
_MAX_ATTEMPTS = 3
_MAX_RATE = 1000  # frames per second; a header with more is not believed
# Time units of a second that the mp4 format and players accept.
_MAX_UNITS = 1_000_000
_MAX_DURATION = 1 << 31  # of a frame, in units of time
_MAX_SIDE_PX = 16384  # of x264
_BT709, _BT601 = int(Colorspace.ITU709), 6  # 6: FFmpeg's SMPTE170M, BT.601 of new files


@dataclass(frozen=True)
class EncodeSettings:
    """How videos are encoded.

    Args:
        short_side_px: Short side that larger videos are scaled down to, even, at least 16.
        key_frame_interval: Frames from one key frame to the next, at least 1.
        crf: x264's constant rate factor, in [0, 51]; lower is better and larger.
        square_pixels: Scale the width of videos whose pixels are not square (DV, DVD) to what is to be shown.
    """

    short_side_px: int
    key_frame_interval: int
    crf: float
    square_pixels: bool = False

    def __post_init__(self) -> None:
        if self.short_side_px < 16 or self.short_side_px % 2:
            raise SettingError(f"short_side_px must be even and at least 16, got {self.short_side_px!r}.")
        check_integer("key_frame_interval", self.key_frame_interval)
        if not 0 <= self.crf <= 51:
            raise SettingError(f"crf must be in [0, 51], got {self.crf!r}. Lower is better; 18 is hard to tell apart.")

    @property
    def x264_params(self) -> str:
        """Settings for x264."""
        interval = self.key_frame_interval
        return ":".join(
            (
                # No key frames at cuts: they would shift the pattern.
                f"keyint={interval}:min-keyint={interval}:scenecut=0:open-gop=0",
                # I bbbbbbb P bbbbbbb P ...: frames 0, 2, ... cost 1 decoded frame each, 1, 3, ... 1.25.
                "bframes=7:b-adapt=0:b-pyramid=none:weightb=0:ref=1",
                # Without other costs of decoding: arithmetic coding, the filter over block edges, weighted prediction.
                "cabac=0:no-deblock=1:weightp=0:no-psy=1",
                # One thread, or the bytes would depend on how many there are; with mbtree and several references x264
                # gives other bytes now and then, in one run of ten.
                "threads=1:lookahead-threads=1:sliced-threads=0:mbtree=0",
            )
        )

    def fingerprint(self) -> str:
        """A hash that is the same for the same settings."""
        settings = asdict(self)
        if not self.square_pixels:
            del settings["square_pixels"]  # of the first versions, whose files are the same
        text = json.dumps([_VERSION, settings, self.x264_params], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Encoded:
    """A file that was encoded and decoded again; sizes in px."""

    num_frames: int
    width: int
    height: int
    num_bytes: int


def encode(
    source: str,
    target: Path,
    settings: EncodeSettings,
    *,
    segment: tuple[float | None, float | None] = (None, None),
    on_frame: Callable[[], None] = lambda: None,
) -> Encoded:
    """Encode the frames of a segment, and decode the file to check it.

    Args:
        source: Path of a video or a frame folder.
        target: File to write or replace.
        settings: How to encode.
        segment: Start (included) and end (excluded), in seconds from the first frame; None for the video's own.
        on_frame: Called after each frame, as a sign of progress.

    Raises:
        DecodeError: if the video cannot be read, or the written file is wrong.
        OSError: if the file cannot be written.
    """
    with open_raw(source) as reader:
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            first, stop = _frames_of(reader, segment)
            try:
                size = _write(reader, range(first, stop), target, settings, on_frame)
                break
            except StartOverError as error:
                if attempt == _MAX_ATTEMPTS:
                    raise DecodeError(source, "each pass over it counts other frames") from error
    verify(target, num_frames=stop - first, size=size, on_frame=on_frame)
    return Encoded(stop - first, *size, target.stat().st_size)


def verify(path: Path, *, num_frames: int, size: tuple[int, int], on_frame: Callable[[], None] = lambda: None) -> None:
    """Decode an encoded file as `video_gn.decoding` does, to check its number of frames and size, (width, height).

    Raises:
        DecodeError: if the file gives other frames, or its frames cannot be identified by their times.
    """
    with open_raw(os.fspath(path)) as reader:
        info = reader.info
        if (info.num_frames, info.width, info.height, info.rotation_degrees) != (num_frames, *size, 0):
            raise DecodeError(path, f"{num_frames} frames of {size} px were to be written, got {info}")
        count = 0
        try:
            for _ in reader.frames(0, num_frames):
                count += 1
                on_frame()
        except StartOverError as error:
            raise DecodeError(path, f"what was written is damaged ({error.__cause__})") from error
        if reader.doubt is not None or count != num_frames:
            raise DecodeError(path, f"{num_frames} frames were to be written, {count} decode ({reader.doubt})")


def _frames_of(reader: RawReader, segment: tuple[float | None, float | None]) -> tuple[int, int]:
    if segment == (None, None):
        return 0, reader.info.num_frames
    start, end = segment
    try:
        return sampling.segment_frames(reader.frame_seconds, start or 0.0, float("inf") if end is None else end)
    except ValueError as error:
        raise DecodeError(reader.path, str(error)) from error


# ---- pictures ----------------------------------------------------------------------------------


def even_size(path: str, width: int, height: int) -> tuple[int, int]:
    """The size in px without an odd row or column, which is cut off: scaling it away would blur all others.

    Raises:
        DecodeError: if H.264 cannot have such pictures.
    """
    if min(width, height) < 2:
        raise DecodeError(path, f"a picture of {width} x {height} px is too small for a video")
    if max(width, height) > _MAX_SIDE_PX + 1:
        raise DecodeError(path, f"a picture of {width} x {height} px is too long for a video in H.264")
    return width // 2 * 2, height // 2 * 2


class _Pictures:
    """Scales, turns and cuts frames for the encoder: yuv420p of even sizes, the same for all."""

    def __init__(self, reader: RawReader, settings: EncodeSettings) -> None:
        info = reader.info
        self._degrees, self._is_mirrored = info.rotation_degrees, info.is_mirrored
        is_on_its_side = self._degrees % 180 != 0
        self._shown = (info.height, info.width) if is_on_its_side else (info.width, info.height)
        self.aspect = Fraction(info.pixel_aspect).limit_denominator(1000)
        if settings.square_pixels and self.aspect != 1:
            width, height = self._shown
            ratio = 1 / info.pixel_aspect if is_on_its_side else info.pixel_aspect
            self._shown, self.aspect = (2 * round(width * ratio / 2), height), Fraction(1)
        short, long = sorted(self._shown)
        self._scaled = self._shown
        if short > settings.short_side_px:
            scaled = 2 * round(long * settings.short_side_px / short / 2)
            is_wide = self._shown[0] == long
            self._scaled = (scaled, settings.short_side_px) if is_wide else (settings.short_side_px, scaled)
        width, height = even_size(reader.path, *self._scaled)
        self.size = (height, width) if is_on_its_side else (width, height)
        self._cut = (width, height)
        self._reformatter = VideoReformatter()

    def convert(self, frame: VideoFrame) -> VideoFrame:
        """A frame as it is encoded, with the tags of its colours."""
        is_full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
        is_rgb = frame.format.is_rgb
        matrix = _BT601 if is_rgb else int(frame.colorspace)
        full = ColorRange.JPEG if is_full and not is_rgb else ColorRange.MPEG
        width, height = self._scaled
        made = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="yuv420p",
            interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
            src_colorspace=None if is_rgb else matrix,
            dst_colorspace=matrix,
            src_color_range=ColorRange.JPEG if is_rgb or is_full else ColorRange.MPEG,
            dst_color_range=full,
            threads=1,
        )
        if self._degrees or self._is_mirrored or self._cut != self._scaled:
            made = self._turn_and_cut(made)
        made.colorspace = matrix
        made.color_range = full if is_full or is_rgb else int(frame.color_range)
        made.color_primaries, made.color_trc = frame.color_primaries, frame.color_trc
        return made

    def _turn_and_cut(self, frame: VideoFrame) -> VideoFrame:
        out = VideoFrame(*self.size, "yuv420p")
        for plane, (source, target) in enumerate(zip(frame.planes, out.planes, strict=True)):
            width, height = (side >> (plane > 0) for side in self._cut)
            rows = _rows(source)[:height, :width]
            turned = turn(rows, self._degrees, self._is_mirrored)
            _rows(target)[: turned.shape[0], : turned.shape[1]] = turned
        return out


def _rows(plane: Any) -> np.ndarray:
    """A plane's bytes, uint8 (rows, bytes in a row), padding included; a view."""
    return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)


# ---- the file ----------------------------------------------------------------------------------


def _write(
    reader: RawReader, indices: range, target: Path, settings: EncodeSettings, on_frame: Callable[[], None]
) -> tuple[int, int]:
    """Encode frames into a file; (width, height)."""
    pictures = _Pictures(reader, settings)
    clock = clock_of(reader)
    ticks, length_of = frame_times(reader, indices, clock)
    # bitexact: no library versions and times in the file.
    options = {"fflags": "+bitexact", **mp4_options(clock)}
    decoded = reader.frames(indices.start, indices.stop)
    with contextlib.closing(decoded), av.open(f"file:{target}", "w", format="mp4", options=options) as container:
        stream: Any = None
        for tick, frame in zip(ticks, decoded, strict=True):
            picture = pictures.convert(frame)
            del frame  # FFmpeg patches a damaged picture with the content of a buffer that is no longer held
            if stream is None:
                x264 = {"preset": "medium", "crf": repr(settings.crf), "x264-params": settings.x264_params}
                stream = add_stream(container, reader, picture, pictures.aspect, x264)
            picture.pts, picture.time_base = tick, clock
            picture.pict_type = 0  # or x264 would make the source's key frames its own
            mux(container, stream.encode(picture), length_of)
            on_frame()
        mux(container, stream.encode(None), length_of)
    return pictures.size


def _rate(reader: RawReader) -> Fraction:
    """Frames per second as a fraction that an mp4 file can hold."""
    return Fraction(max(1 / 1001, min(reader.info.fps, _MAX_RATE))).limit_denominator(1001)


def clock_of(reader: RawReader) -> Fraction:
    """Seconds of a unit of time: the file's own, if it has one that mp4 can hold."""
    base = reader.time_base
    longest = np.diff(np.append(reader.frame_seconds, reader.info.duration_seconds)).max()
    usable = base is not None and base.numerator * _MAX_UNITS >= base.denominator and longest / base < _MAX_DURATION
    return base if base is not None and usable else 1 / (_rate(reader) * 1000)


def frame_times(reader: RawReader, indices: range, clock: Fraction, first: int = 0) -> tuple[list[int], dict[int, int]]:
    """Times of frames in units of `clock`, the first one at `first`; and by these how long each is shown.

    Raises:
        DecodeError: if two have the same time.
    """
    chosen = slice(indices.start, indices.stop)
    ends = np.append(reader.frame_seconds[1:], reader.info.duration_seconds)[chosen]
    seconds = reader.frame_seconds[chosen]
    ticks = first + np.round((seconds - seconds[0]) / float(clock)).astype(np.int64)
    durations = np.round((ends - seconds) / float(clock)).astype(np.int64)
    if not (np.diff(ticks) > 0).all():
        raise DecodeError(reader.path, f"frames of it are less than {clock} seconds apart")
    return ticks.tolist(), dict(zip(ticks.tolist(), np.maximum(durations, 1).tolist(), strict=True))


def mp4_options(clock: Fraction) -> dict[str, str]:
    """Settings of an mp4 file with such times; its index is at its start."""
    return {"movflags": "+faststart", "video_track_timescale": str(clock.denominator)}


def add_stream(container: Any, reader: RawReader, picture: VideoFrame, aspect: Fraction, x264: dict[str, str]) -> Any:
    """An H.264 stream for pictures like this one, whose pixels have this aspect ratio."""
    stream = container.add_stream("libx264", rate=_rate(reader), options=x264)
    stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, "yuv420p"
    stream.time_base = stream.codec_context.time_base = clock_of(reader)
    context = stream.codec_context
    context.color_range, context.colorspace = picture.color_range, picture.colorspace
    context.color_primaries, context.color_trc = picture.color_primaries, picture.color_trc
    if aspect != 1:
        context.sample_aspect_ratio = aspect
    return stream


def mux(container: Any, packets: list[Any], length_of: dict[int, int]) -> None:
    """Write packets, each with its duration."""
    for packet in packets:
        packet.duration = length_of[packet.pts]
        container.mux(packet)
