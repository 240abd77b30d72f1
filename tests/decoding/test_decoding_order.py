"""H.264 whose frames have no times (AVI), or whose headers do not say how much they are reordered: the frames of
decoding in order, wherever reading begins."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from decoding_cases import TORCHCODEC, check_orders
from fields import write_fields
from h264_headers import without_vui
from media import decode_in_order, numbered_frame

from video_gn.decoding import open_video
from video_gn.decoding._pyav import PyAVReader
from video_gn.errors import DecodeError

NUM_DRAWN = int(os.environ.get("VIDEO_GN_DRAWN_X264", "3"))  # files
NO_B = "keyint=12:min-keyint=12:scenecut=0:bframes=0"
PYRAMID = "keyint=20:min-keyint=20:scenecut=0:bframes=3:b-adapt=0:b-pyramid=normal"


def write(path: Path, num_frames: int, params: str, *, is_plain: Callable[[int], bool] = lambda i: False) -> Path:
    """Write a numbered video with x264, some of whose pictures may not be B pictures."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast", "x264-params": params})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(num_frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(i), format="rgb24")
            frame.pts = i
            if is_plain(i):
                frame.pict_type = av.video.frame.PictureType.P
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def draw(rng: random.Random) -> str:
    keyint = rng.choice([1, 2, 5, 12, 30, 250])
    drawn = {
        "keyint": keyint,
        "min-keyint": rng.choice([1, keyint]),
        "scenecut": rng.choice([0, 40]),
        "bframes": rng.choice([0, 1, 2, 3, 4, 5]),
        "b-adapt": rng.choice([0, 1, 2]),
        "b-pyramid": rng.choice(["none", "strict", "normal", "normal"]),
        "ref": rng.choice([1, 2, 3, 5, 8]),
        "open-gop": rng.choice([0, 1]),
        "weightp": rng.choice([0, 2]),
        "slices": rng.choice([1, 1, 3]),
        "intra-refresh": rng.choice([0] * 9 + [1]),
        "tff": rng.choice([0] * 9 + [1]),
        "fake-interlaced": rng.choice([0] * 9 + [1]),
        "bluray-compat": rng.choice([0] * 9 + [1]),
        "rc-lookahead": rng.choice([0, 10, 40]),
        "mbtree": rng.choice([0, 1]),
        "weightb": rng.choice([0, 1]),
        "direct": rng.choice(["spatial", "temporal", "auto"]),
        "cabac": rng.choice([0, 1]),
        "8x8dct": rng.choice([0, 1]),
        "bitrate": rng.choice([40, 400]),
    }
    if not drawn["tff"]:  # with it FFmpeg cannot decode what x264 then writes
        drawn["constrained-intra"] = rng.choice([0, 1])
    return ":".join(f"{name}={value}" for name, value in drawn.items())


@pytest.mark.parametrize("number", range(NUM_DRAWN))
def test_any_order_of_calls_gives_the_frames_of_decoding_in_order(tmp_path: Path, number: int) -> None:
    rng = random.Random(number)
    params, num_frames = draw(rng), rng.randint(60, 200 if NUM_DRAWN > 3 else 90)
    plain = [rng.random() < rng.choice([0, 0, 0.5, 1]) for _ in range(8)]  # stretches of 25 frames without B pictures
    has_vui = rng.random() < 0.5
    path = tmp_path / f"{number}.{rng.choice(['avi'] * 5 + ['mkv', 'flv', 'ts', 'mp4'])}"
    write(path, num_frames, params, is_plain=lambda i: plain[i // 25 % 8])
    if not has_vui:
        without_vui(path)
    expected = decode_in_order(path)
    name = f"{path.name} {has_vui} {plain} {params}"
    check_orders(path, expected, threads=rng.choice([1, 1, 1, 3]))
    for backend in ("decord", "torchcodec"):
        try:
            with open_video(path, backend) as reader:
                indices = [rng.randrange(reader.info.num_frames) for _ in range(6)]
                frames = reader.frames_at(indices).numpy()
                assert all(np.array_equal(f, expected[i]) for f, i in zip(frames, indices, strict=True)), name
        except (DecodeError, ImportError):
            continue


@pytest.mark.parametrize("params", [PYRAMID, PYRAMID + ":open-gop=1:ref=4", PYRAMID + ":slices=3"])
def test_avi_with_b_frames_is_read_from_its_closed_places(tmp_path: Path, params: str) -> None:
    path = write(tmp_path / "b.avi", 60, params)
    expected = decode_in_order(path)
    with PyAVReader(str(path)) as reader:
        assert reader.doubt is None and not reader.table.has_times
        for index in (47, 3, 25, 59):
            before = reader.num_decoded
            assert np.array_equal(reader.frames_at([index])[0].numpy(), expected[index])
            assert reader.num_decoded - before <= 20
        np.testing.assert_allclose(reader.frame_seconds, np.arange(60) / 25)


@pytest.mark.parametrize("ending", ["avi", "mkv", "flv", "ts"])
def test_frames_that_the_decoder_loses_at_first_shift_no_others(tmp_path: Path, ending: str) -> None:
    # Without the header's word the decoder learns from what it loses: here a frame in the middle.
    path = without_vui(write(tmp_path / f"late.{ending}", 200, PYRAMID, is_plain=lambda i: i < 120 or i >= 160))
    expected = decode_in_order(path)
    assert len(expected) == 199
    with PyAVReader(str(path)) as reader:
        assert "reordered more than its beginning tells" in (reader.doubt or "")
        for index in (190, 20, 170):
            assert np.array_equal(reader.frames_at([index])[0].numpy(), expected[index])
    for backend in ("decord", TORCHCODEC.values[0]):
        try:
            with open_video(path, backend):
                raise AssertionError(backend)
        except (DecodeError, ImportError):
            continue


def test_fields_and_changed_headers_in_avi_are_counted(tmp_path: Path) -> None:
    joined = tmp_path / "joined.avi"
    parts = [write(tmp_path / f"{name}.avi", 24, name) for name in (PYRAMID, PYRAMID.replace("=3", "=1"))]
    with av.open(str(joined), "w") as target:
        stream = None
        for number, part in enumerate(parts):
            with av.open(str(part)) as source:
                stream = stream or target.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.size:
                        packet.pts = packet.dts = packet.dts + 24 * number
                        packet.stream = stream
                        target.mux(packet)
    fields = write(tmp_path / "fields.avi", 40, PYRAMID + ":tff=1")
    for path in (joined, fields):
        with PyAVReader(str(path)) as reader:
            assert "B-frames in AVI" in (reader.doubt or ""), path
        check_orders(path, decode_in_order(path))
    for is_split in (False, True):
        path = write_fields(tmp_path / f"paff_{is_split}.avi", 18, is_split=is_split)
        check_orders(path, decode_in_order(path))


def test_key_marks_of_avi_that_are_wrong(tmp_path: Path) -> None:
    path = write(tmp_path / "b.avi", 60, PYRAMID)
    expected = decode_in_order(path)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"idx1") + 8
    rows = range(at, at + int.from_bytes(data[at - 4 : at], "little"), 16)
    for marks in ([0x10] * 60, [0] * 60, [0x10 if i % 20 else 0 for i in range(60)]):
        for row, mark in zip(rows, marks, strict=True):
            data[row + 4] = mark
        path.write_bytes(data)
        assert len(decode_in_order(path)) == len(expected)
        check_orders(path, expected)
