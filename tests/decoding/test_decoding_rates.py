"""Rates and times: from the frames' own times, whatever the header says."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from decoding_cases import in_order
from fields import write_fields
from media import numbered_frame, read_numbers, write_numbered_video
from mp4_boxes import Boxes

from video_gn.decoding import probe
from video_gn.decoding._pyav import PyAVReader
from video_gn.decoding.probe import time_frames
from video_gn.errors import FrameCountError
from video_gn.prepare.encode import EncodeSettings, encode

NO_TIME = np.iinfo(np.int64).min
UNIT = Fraction(1, 1000)  # seconds, of the times below
EVEN = np.arange(0, 1000, 40)  # 25 frames
WILD = 4_000_000_000


@pytest.mark.parametrize(
    ("times", "end", "header", "fps", "duration"),
    [
        (EVEN, 40, 25.0, 25, 1.0),
        (EVEN, 40, 25.5, 25.5, 1.0),  # the header's, near enough
        (EVEN, 40, 50.0, 25, 1.0),  # the header counts fields
        (EVEN, 20, 50.0, 25, 1.0),  # and so does the last duration
        (EVEN, 0, 0.0, 25, 1.0),
        # One wild time or several, at either end.
        (EVEN, WILD, 0.0007, 25, 1.0),
        ([*EVEN, WILD], 40, 0.0007, 25, 1.04),
        ([-WILD, *EVEN], 40, 0.0007, 25, 1.04),
        ([-WILD, *EVEN, WILD, 2 * WILD], WILD, 0.0007, 25, 1.12),
        ([0, 40], WILD, 0.0007, 25, 0.08),
        # Long, but not wild: a picture that stands still.
        (EVEN, 60_000, 0.4, 25, 60.96),
        ([*EVEN, 60_000], 40, 30.0, 26 / 60.04, 60.04),
        ([0, 3_600_000, 7_200_000], 3_600_000, 0.0, 1 / 3600, 10_800),
        ([0, 40, 120, 160, 240], 40, 30.0, 5 / 0.28, 0.28),
        ([0], 40, 25.0, 25, 0.04),
        ([0], 3_600_000, 1 / 3600, 1 / 3600, 3600),
        # Times that are no times.
        ([NO_TIME] * 25, 0, 30.0, 30, 25 / 30),
        ([NO_TIME] * 25, 0, 0.0, 25, 1.0),
        ([5, 5, 3], 0, 30.0, 30, 0.1),
        ([0, NO_TIME, 80, 120, NO_TIME], 0, 50.0, 25, 0.2),
    ],
)
def test_the_rate_of_times(times, end: int, header: float, fps: float, duration: float) -> None:
    timing = time_frames(np.array(times, dtype=np.int64), UNIT, header, end_duration=end)
    assert timing.fps == pytest.approx(fps)
    assert timing.duration_seconds == pytest.approx(duration)
    seconds = timing.frame_seconds
    assert len(seconds) == len(times) and seconds[0] == 0 and (np.diff(seconds) > 0).all()
    assert seconds[-1] < timing.duration_seconds


def test_packets_times_give_the_rate_alone_where_the_header_agrees() -> None:
    uneven = np.array([0, 40, 81, 119, 160])
    even = time_frames(uneven, UNIT, 25.0, is_exact=False)
    assert np.array_equal(even.frame_seconds, np.arange(5) / 25)
    assert np.array_equal(time_frames(uneven, UNIT, 50.0, is_exact=False).frame_seconds, uneven * 0.001)


@pytest.mark.parametrize("name", ["fields.mp4", "fields.mkv", "fields.avi", "fields.ts", "fields.h264"])
@pytest.mark.parametrize("second", ["I", "P"])
def test_a_packet_for_each_field_counts_as_half_a_frame(tmp_path: Path, name: str, second: str) -> None:
    path = write_fields(tmp_path / name, 24, second=second, is_split=True)
    expected = in_order(path)
    assert len(expected) == 24
    with PyAVReader(str(path)) as reader:
        assert reader.info.num_frames == 24
        assert reader.info.fps == pytest.approx(25) and reader.info.duration_seconds == pytest.approx(0.96)
        np.testing.assert_allclose(reader.frame_seconds, np.arange(24) / 25, atol=1e-9)
        for indices in ([20, 3, 11], [23], list(range(24))):
            frames = reader.frames_at(indices).numpy()
            assert all(np.array_equal(frame, expected[i]) for frame, i in zip(frames, indices, strict=True))


def write_mpeg2_fields(path: Path, num_frames: int) -> Path:
    """64 x 64 pictures of two I fields, a packet each: frames of 64 x 32 whose headers say that they are fields."""
    context = av.CodecContext.create("mpeg2video", "w")
    context.width, context.height, context.pix_fmt, context.gop_size = 64, 32, "yuv420p", 1
    context.time_base, context.framerate = Fraction(1, 25), Fraction(25)
    packets: list[bytes] = []
    for number in range(2 * num_frames):
        rows = numbered_frame(number // 2, (64, 64))[number % 2 :: 2]
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rows), format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.pict_type = number, 0
        packets += map(bytes, context.encode(frame))
    packets += map(bytes, context.encode(None))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 64, 64, "yuv420p", Fraction(1, 50)
        for number, data in enumerate(map(bytearray, packets)):
            # ISO/IEC 13818-2, 6.2.2 and 6.2.3: the height, not progressive; a field's parity, not progressive.
            at = data.find(b"\0\0\1\xb3")
            data[at + 5], data[at + 6] = data[at + 5] & 0xF0, 64
            data[data.find(b"\0\0\1\xb5") + 5] &= ~0x08
            picture = data.find(b"\0\0\1\0")
            at = data.find(b"\0\0\1\xb5", picture)
            data[at + 6] = data[at + 6] & ~3 | 1 + number % 2
            data[at + 7] &= ~0xC0
            data[at + 8] &= ~0x80
            packet = av.Packet(bytes(data[picture if number % 2 else 0 :]))
            packet.stream, packet.time_base, packet.duration = stream, Fraction(1, 50), 1
            packet.pts = packet.dts = number
            packet.is_keyframe = number % 2 == 0
            container.mux(packet)
    return path


@pytest.mark.parametrize("name", ["fields.mkv", "fields.mp4", "fields.avi", "fields.ts"])
def test_mpeg2_fields(tmp_path: Path, name: str) -> None:
    path = write_mpeg2_fields(tmp_path / name, 24)
    with PyAVReader(str(path)) as reader:
        assert reader.info.num_frames == len(in_order(path)) == 24
        assert reader.info.fps == pytest.approx(25) and reader.info.duration_seconds == pytest.approx(0.96)
        assert read_numbers(reader.frames_at([20, 3, 23, 11])) == [20, 3, 23, 11]
        assert reader.doubt is None


@pytest.mark.parametrize("name", ["fields.mp4", "fields.h264"])
def test_a_corrected_count_corrects_the_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = write_fields(tmp_path / name, 24, is_split=True)
    monkeypatch.setattr(probe, "_find_second_fields", lambda facts: [])
    with PyAVReader(str(path)) as reader:
        with pytest.raises(FrameCountError, match="only 24 of 48 frames decode"):
            reader.frames_at([47])
        assert reader.info.fps == pytest.approx(25) and reader.info.duration_seconds == pytest.approx(0.96)
        np.testing.assert_allclose(reader.frame_seconds, np.arange(24) / 25, atol=1e-9)


def copy_packets(source: Path, target: Path, step: int) -> Path:
    """The packets of an mpeg4 video, `step` units of 1/50 s apart, as decoding needs them."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        stream.time_base = Fraction(1, 50)
        packets = [packet for packet in old.demux(video=0) if packet.size]
        for i, packet in enumerate(packets):
            packet.stream, packet.time_base = stream, Fraction(1, 50)
            packet.pts = packet.dts = step * i
            packet.duration = step
            new.mux(packet)
    return target


@pytest.mark.parametrize("bframes", [0, 2])
def test_avi_whose_header_has_twice_the_rate(tmp_path: Path, bframes: int) -> None:
    source = write_numbered_video(tmp_path / "source.mp4", 48, codec="mpeg4", bframes=bframes)
    path = copy_packets(source, tmp_path / "copy.avi", step=2)
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 50
    with PyAVReader(str(path)) as reader:
        assert reader.info.num_frames == 48
        assert reader.info.fps == pytest.approx(25) and reader.info.duration_seconds == pytest.approx(1.92)
        np.testing.assert_allclose(reader.frame_seconds, np.arange(48) / 25, atol=1e-9)


@pytest.mark.parametrize("bframes", [0, 2])
def test_variable_rate_in_avi(tmp_path: Path, bframes: int) -> None:
    frames = np.cumsum([0, *[1, 1, 2] * 15, 1, 1])
    path = write_numbered_video(
        tmp_path / "variable.avi", 48, codec="mpeg4", bframes=bframes, fps=30, pts_ms=(frames * 100).tolist()
    )
    with av.open(str(path)) as container:
        times = [frame.pts if frame.pts is not None else frame.dts for frame in container.decode(video=0)]
        base = float(container.streams.video[0].time_base)
    known = [time for time in times if time is not None]
    mean = (len(known) - 1) / ((known[-1] - known[0]) * base)
    with PyAVReader(str(path)) as reader:
        assert reader.info.fps == pytest.approx(mean, rel=0.02)
        assert reader.info.duration_seconds == pytest.approx(48 / reader.info.fps, rel=0.03)
        assert reader.frame_seconds[-1] == pytest.approx(47 / reader.info.fps, rel=0.02)


def set_durations(path: Path, durations: list[int]) -> Path:
    """Write how long each frame of an mp4 file is shown."""
    boxes = Boxes(path.read_bytes())
    pairs = [number for duration in durations for number in (1, duration)]
    boxes.body(b"stts")[:] = struct.pack(f">II{len(pairs)}I", 0, len(durations), *pairs)
    path.write_bytes(boxes.write())
    return path


def test_wild_durations_in_a_header(tmp_path: Path) -> None:
    last = set_durations(write_numbered_video(tmp_path / "last.mp4", 20, bframes=0), [512] * 19 + [WILD])
    alone = set_durations(write_numbered_video(tmp_path / "alone.mp4", 1, bframes=0), [WILD])
    with PyAVReader(str(last)) as reader:
        assert (reader.info.num_frames, reader.info.fps) == (20, pytest.approx(25))
        assert reader.info.duration_seconds == pytest.approx(0.8)
    for path, num_frames in ((last, 20), (alone, 1)):
        made = encode(str(path), tmp_path / "made.mp4", EncodeSettings(short_side_px=48, key_frame_interval=8, crf=20))
        assert made.num_frames == num_frames
