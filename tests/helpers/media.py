"""Test videos whose pixels say which frame one looks at.

A frame shows 16 bits as a grid of 4 x 4 black and white cells: 12 bits of the number, and 4 bits that
check it. Compression does not get through the difference, and a black, torn or half-decoded picture does
not pass for a number.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.stream import Discard, Disposition

MAX_NUMBER = (1 << 12) - 1
_CELLS = 4
_MILLISECONDS = 1000


def _check_bits(number: int) -> int:
    return (number ^ number >> 4 ^ number >> 8 ^ 0b1010) & 15


def numbered_frame(number: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """A picture of a number.

    Args:
        number: in [0, MAX_NUMBER].
        size: (width, height), px, at least 4 each; a multiple of 4 looks best.

    Returns:
        uint8 (height, width, 3).
    """
    if not 0 <= number <= MAX_NUMBER:
        raise ValueError(f"number must be in [0, {MAX_NUMBER}], got {number!r}")
    word = number << 4 | _check_bits(number)
    bits = np.array([word >> (15 - i) & 1 for i in range(16)], dtype=np.uint8).reshape(_CELLS, _CELLS)
    width, height = size
    rows = np.arange(height) * _CELLS // height
    columns = np.arange(width) * _CELLS // width
    black_or_white = np.where(bits[rows][:, columns] == 1, 225, 30)
    # Noise, so that a picture patched up from its neighbours is not the right one by chance.
    noise = np.random.default_rng(number).integers(-20, 21, size=(height, width, 3))
    return (black_or_white[:, :, None] + noise).astype(np.uint8)


def read_number(frame_HWC: np.ndarray) -> int:
    """The number that a decoded frame shows.

    Args:
        frame_HWC: uint8 (H, W, 3), a numpy array or a torch tensor.

    Raises:
        ValueError: for a picture that does not show a number.
    """
    grey = np.asarray(frame_HWC).astype(np.float64).mean(axis=2)
    height, width = grey.shape
    word = 0
    for row in range(_CELLS):
        for column in range(_CELLS):
            top, left = (4 * row + 1) * height // 16, (4 * column + 1) * width // 16
            bottom, right = (4 * row + 3) * height // 16, (4 * column + 3) * width // 16
            word = word << 1 | (grey[top : bottom + 1, left : right + 1].mean() > 127.5)
    number = int(word >> 4)
    if word & 15 != _check_bits(number):
        raise ValueError(f"the picture shows no number (bits {word:016b})")
    return number


def read_numbers(frames_THWC: Iterable[np.ndarray]) -> list[int]:
    """`read_number` of each frame."""
    return [read_number(frame) for frame in frames_THWC]


def write_numbered_video(
    path: str | Path,
    num_frames: int,
    *,
    fps: int = 25,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    gop: int = 12,
    bframes: int = 2,
    rotation: int = 0,
    pts_ms: Sequence[int] | None = None,
    start_ms: int = 0,
    first_number: int = 0,
    pix_fmt: str = "yuv420p",
    codec_options: Mapping[str, str] | None = None,
    container_options: Mapping[str, str] | None = None,
    audio: str = "",
) -> Path:
    """Write a video whose frame i shows the number first_number + i.

    Args:
        path: the name's ending chooses the container.
        num_frames: at least 1.
        fps: frames per second.
        size: (width, height) of the picture as a viewer sees it.
        codec: FFmpeg's name of an encoder.
        gop: frames from one key frame to the next (exactly so for libx264).
        bframes: B-frames in a row, for the encoders that have them.
        rotation: clockwise turn that the metadata asks for; the stored picture is turned the other way.
        pts_ms: when each frame is shown, for a variable rate; ascending.
        start_ms: when the first frame is shown; may be negative (an edit list then hides what comes
            before 0, in mp4 with container_options {"avoid_negative_ts": "disabled"}).
        first_number: of the first frame.
        pix_fmt: of the encoder.
        codec_options: for the encoder; they win over what the other arguments stand for.
        container_options: for the container.
        audio: FFmpeg's name of an encoder for noise to be heard, if any.

    Returns:
        The path.
    """
    in_ms = pts_ms is not None or start_ms != 0
    time_base = Fraction(1, _MILLISECONDS if in_ms else fps)
    times = list(pts_ms) if pts_ms is not None else list(range(num_frames))
    if pts_ms is None and in_ms:
        times = [round(i * _MILLISECONDS / fps) for i in times]
    width, height = size
    if rotation % 180:
        width, height = height, width
    options = dict(codec_options or {})
    if codec == "libx264":
        params = f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes={bframes}"
        options = {"preset": "ultrafast", "crf": "18", "threads": "1", "x264-params": params, **options}
    elif codec == "libx265":
        params = f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes={bframes}:log-level=none:pools=1"
        options = {"preset": "ultrafast", "x265-params": params, **options}
    elif codec.startswith("libvpx"):
        options = {"deadline": "realtime", "cpu-used": "8", **options}
    elif codec == "libsvtav1":
        os.environ.setdefault("SVT_LOG", "1")  # errors only; it writes to stderr by itself
        options = {"preset": "8", "crf": "8", "svtav1-params": "lp=1", **options}
    with av.open(str(path), "w", options=dict(container_options or {})) as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.time_base = stream.codec_context.time_base = time_base
        stream.codec_context.gop_size = gop
        if codec in ("mpeg4", "mpeg2video"):
            stream.codec_context.max_b_frames = bframes
            stream.codec_context.qmin = stream.codec_context.qmax = 3
        if codec.startswith("libvpx"):
            stream.codec_context.bit_rate = 2_000_000
        if rotation:
            stream.set_display_rotation(-rotation)  # FFmpeg counts counterclockwise
        sound = _Noise(container, audio) if audio else None
        for i in range(num_frames):
            picture = np.rot90(numbered_frame(first_number + i, size), rotation // 90)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = times[i] + start_ms, time_base
            container.mux(stream.encode(frame))
            if sound:
                sound.until(float(frame.pts * time_base))
        container.mux(stream.encode(None))
        if sound:
            sound.end()
    return Path(path)


def with_pixel_aspect(path: Path, aspect: str) -> Path:
    """The video with pixels that are `aspect` times as wide as high, by its header."""
    wide = path.with_name(f"wide_{path.name}")
    with av.open(str(path)) as source, av.open(str(wide), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        stream.sample_aspect_ratio = Fraction(aspect)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    return wide


class _Noise:
    """An audio stream beside the video."""

    _RATE_HZ, _SAMPLES = 48_000, 1152

    def __init__(self, container: av.container.OutputContainer, codec: str) -> None:
        self._container = container
        self._stream = container.add_stream(codec, rate=self._RATE_HZ, layout="mono")
        self._rng = np.random.default_rng(0)
        self._at = 0

    def until(self, seconds: float) -> None:
        """Write the samples up to a time."""
        while self._at < min(seconds, 10) * self._RATE_HZ:
            samples = self._rng.integers(-9000, 9000, (1, self._SAMPLES), dtype=np.int16)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.pts = self._RATE_HZ, self._at
            self._container.mux(self._stream.encode(frame))
            self._at += self._SAMPLES

    def end(self) -> None:
        """Write what the encoder still holds."""
        self._container.mux(self._stream.encode(None))


def _matrix_of(frame: av.VideoFrame) -> np.ndarray:
    """The display matrix of a frame, by rows: int32 (3, 3)."""
    Type._missing_ = classmethod(lambda kinds, value: kinds.SEI_UNREGISTERED)  # PyAV 18 cannot list EXIF data
    try:
        data = frame.side_data.get(Type.DISPLAYMATRIX)
    finally:
        del Type._missing_
    return np.eye(3, dtype=np.int32) if data is None else np.frombuffer(bytes(data), np.int32).reshape(3, 3)


def _as_progressive(frame: av.VideoFrame) -> av.VideoFrame:
    """A frame whose chroma PyAV converts as the command line does: not field by field."""
    if not frame.interlaced_frame:
        return frame
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1)
    )
    graph.link_nodes(source, graph.add("setfield", "prog"), graph.add("buffersink")).configure()
    graph.push(frame)
    return graph.pull()


def as_shown(pixels_HWC: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Turn and mirror a picture as its display matrix asks, where that moves rows and columns as a whole.

    A pixel at (x, y) is shown at (a x + c y, b x + d y), up to a shift.
    """
    (a, b), (c, d) = matrix[:2, :2]
    if a and d and not b and not c:
        return pixels_HWC[:: np.sign(d), :: np.sign(a)]
    if b and c and not a and not d:
        return pixels_HWC.swapaxes(0, 1)[:: np.sign(b), :: np.sign(c)]
    return pixels_HWC


def frames_in_order(path: str | Path, *, alone: bool = False) -> Iterator[tuple[av.VideoFrame, np.ndarray]]:
    """The oracle: decode the first video stream from its first packet to its last, and convert each frame.

    Packets that do not decode are passed over, and a container that breaks off has ended. One thread, since FFmpeg
    patches damaged pictures differently with more. BICUBIC is what decord asks for; it matters above 8 bits.

    Args:
        path: the file.
        alone: tell the demuxer that nobody wants the other streams, so that their damage does no harm.

    Yields:
        A frame and its pixels: uint8 (H, W, 3), all of the first one's size, turned as its metadata asks.
    """
    size: dict[str, int] = {}
    matrix = np.eye(3, dtype=np.int32)
    with av.open(str(path), metadata_errors="ignore") as container:
        stream = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic][0]  # noqa: RUF015
        stream.codec_context.thread_count = 1
        for other in container.streams:
            if alone and other.index != stream.index:
                other.discard = Discard.all
        packets = container.demux(stream)
        is_at_end = False
        while not is_at_end:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError:
                packet = None
            if packet is not None and not packet.size:
                continue
            is_at_end = packet is None
            try:
                frames = stream.codec_context.decode(packet)
            except av.error.FFmpegError:
                continue
            for frame in frames:
                if not size:
                    size, matrix = {"width": frame.width, "height": frame.height}, _matrix_of(frame)
                yield (
                    frame,
                    as_shown(
                        _as_progressive(frame).to_ndarray(format="rgb24", interpolation="BICUBIC", **size), matrix
                    ),
                )


def decode_in_order(path: str | Path) -> list[np.ndarray]:
    """The pixels of `frames_in_order`: uint8 (H, W, 3) each."""
    return [pixels for _, pixels in frames_in_order(path)]


def all_frames(path: str | Path) -> np.ndarray:
    """Every frame that `video_gn.decoding` reads; uint8 (T, H, W, 3)."""
    from video_gn.decoding import open_video
    from video_gn.errors import FrameCountError

    with open_video(path) as reader:
        try:
            return reader.frames_at(range(reader.info.num_frames)).numpy()
        except FrameCountError:
            return reader.frames_at(range(reader.info.num_frames)).numpy()
