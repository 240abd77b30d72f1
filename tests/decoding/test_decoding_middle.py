"""Files that begin in the middle, are spliced or lack packets, and palettes: any order of calls gives the frames of
decoding in order."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from decoding_cases import check_orders
from media import decode_in_order, numbered_frame, read_numbers, write_numbered_video

from video_gn.decoding import open_video
from video_gn.decoding._pyav import PyAVReader

TS_PACKET = 188

X264 = "keyint=12:min-keyint=12:scenecut=0:"
X265 = "keyint=12:min-keyint=12:bframes=3:log-level=none:pools=1:"
SOURCES: dict[str, dict[str, Any]] = {
    "h264": {},
    "h264-open": {"codec_options": {"x264-params": X264 + "bframes=3:open-gop=1"}},
    "h264-refresh": {"codec_options": {"x264-params": "keyint=12:intra-refresh=1:bframes=0"}},
    "hevc": {"codec": "libx265", "codec_options": {"x265-params": X265 + "open-gop=0"}},
    "hevc-open": {"codec": "libx265", "codec_options": {"x265-params": X265 + "open-gop=1"}},
    "mpeg2": {"codec": "mpeg2video"},
    "mpeg4": {"codec": "mpeg4"},
    "mpeg4-no-b": {"codec": "mpeg4", "bframes": 0},
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """60 frames as a transport stream, a key frame every 12."""
    directory = tmp_path_factory.mktemp("sources")

    def write(name: str) -> Path:
        path = directory / f"{name}.ts"
        return path if path.exists() else write_numbered_video(path, 60, **SOURCES[name])

    return write


def copy_packets(source: Path, out: Path, chosen: Sequence[int]) -> Path:
    """Copy some of a file's packets."""
    with av.open(str(source)) as container, av.open(str(out), "w") as target:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        copy = target.add_stream_from_template(stream)
        for i in chosen:
            packets[i].stream = copy
            target.mux(packets[i])
    return out


# Beginnings


@pytest.mark.parametrize("ending", ["ts", "mkv"])
@pytest.mark.parametrize("name", ["h264", "h264-open", "h264-refresh", "hevc", "hevc-open", "mpeg2"])
def test_a_beginning_that_does_not_decode_is_not_counted(
    sources: Callable[[str], Path], tmp_path: Path, name: str, ending: str
) -> None:
    num_lost = 0
    for first in (1, 8, 14):
        path = copy_packets(sources(name), tmp_path / f"{first}.{ending}", range(first, 60))
        expected = decode_in_order(path)
        assert check_orders(path, expected) == len(expected)
        num_lost += 60 - first - len(expected)
        with PyAVReader(str(path)) as reader:
            assert reader.doubt is None
    assert num_lost > 0


@pytest.mark.parametrize("name", ["mpeg4", "mpeg4-no-b"])
def test_mpeg4_makes_up_a_picture_before_a_cut(sources: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    for first, ending in ((1, "ts"), (8, "mkv"), (14, "mp4")):
        path = copy_packets(sources(name), tmp_path / f"{first}.{ending}", range(first, 60))
        check_orders(path, decode_in_order(path))


def test_threads_give_the_same_beginning(sources: Callable[[str], Path], tmp_path: Path) -> None:
    path = copy_packets(sources("h264-open"), tmp_path / "cut.ts", range(5, 60))
    check_orders(path, decode_in_order(path), num_orders=1, threads=3)


def test_whole_files_are_opened_without_decoding_more(write) -> None:
    for name in (
        "b.mp4",
        "b.ts",
        "hevc_open_gop.mp4",
        "open_gop.mkv",
        "mpeg2.ts",
        "mpeg4_b.mp4",
        "vp9.webm",
        "av1.mp4",
    ):
        with PyAVReader(str(write(name)[0])) as reader:
            assert reader.table.is_whole_start and reader.num_decoded <= 2


# Splices


@pytest.mark.parametrize("ending", ["ts", "mkv", "mp4"])
@pytest.mark.parametrize("name", ["h264", "h264-open", "mpeg2"])
def test_spliced_files(sources: Callable[[str], Path], tmp_path: Path, name: str, ending: str) -> None:
    rng = random.Random(f"{name} {ending}")
    for number in range(3):
        first, second = sorted(rng.sample(range(5, 55), 2))
        path = copy_packets(
            sources(name), tmp_path / f"{number}.{ending}", [*range(first), *range(max(second, first + 3), 60)]
        )
        check_orders(path, decode_in_order(path))


@pytest.mark.parametrize("name", ["hevc", "hevc-open", "mpeg4"])
def test_transport_streams_whose_clock_leaps(sources: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    path = copy_packets(sources(name), tmp_path / "leap.ts", [*range(8), *range(17, 60)])
    check_orders(path, decode_in_order(path))
    with PyAVReader(str(path)) as reader:
        assert reader.doubt == "pictures of it are missing or damaged"


def test_a_leap_to_a_restart_is_no_splice(sources: Callable[[str], Path], tmp_path: Path) -> None:
    path = copy_packets(sources("h264"), tmp_path / "leap.ts", [*range(12), *range(36, 60)])
    expected = decode_in_order(path)
    assert check_orders(path, expected) == len(expected) == 36
    with PyAVReader(str(path)) as reader:
        assert reader.doubt is None and len(reader.table.is_restart.nonzero()[0]) == 3


# Lost packets


@pytest.mark.parametrize("name", ["h264", "hevc", "mpeg2", "mpeg4"])
def test_transport_streams_that_lack_packets(sources: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    data = sources(name).read_bytes()
    packets = [data[at : at + TS_PACKET] for at in range(0, len(data), TS_PACKET)]
    rng = random.Random(name)
    for number in range(3):
        left = list(packets)
        for _ in range(rng.choice([1, 4])):
            at = rng.randrange(len(left) // 4, len(left))
            del left[at : at + rng.choice([1, 3])]
        if number == 2:
            del left[: len(left) // 5]
        path = tmp_path / f"{number}.ts"
        path.write_bytes(b"".join(left))
        check_orders(path, decode_in_order(path))


def test_the_last_frame_is_there_after_a_lost_packet(sources: Callable[[str], Path], tmp_path: Path) -> None:
    data = sources("h264").read_bytes()
    path = tmp_path / "lost.ts"
    middle = len(data) // TS_PACKET // 2 * TS_PACKET
    path.write_bytes(data[:middle] + data[middle + TS_PACKET :])
    expected = decode_in_order(path)
    with open_video(path) as reader:
        assert reader.info.num_frames == len(expected) == 60
        assert np.array_equal(reader.frames_at([59])[0].numpy(), expected[59])


# Palettes


def write_paletted(path: Path, codec: str, *, changes: bool) -> Path:
    """20 frames of 256 colors, whose palette may change with each."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "pal8"
        stream.codec_context.gop_size = 5
        for i in range(20):
            rng = np.random.default_rng(i if changes else 0)
            palette = np.concatenate([np.full((256, 1), 255), rng.integers(0, 256, (256, 3))], axis=1).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray((numbered_frame(i)[:, :, 0].copy(), palette), format="pal8")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("changes", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "rawvideo.avi",
        "rawvideo.mov",
        "rawvideo.nut",
        "msrle.avi",
        "msrle.mov",
        "smc.mov",
        "png.avi",
        "png.mov",
        "gif.gif",
    ],
)
def test_palettes(tmp_path: Path, name: str, changes: bool) -> None:
    path = write_paletted(tmp_path / name, name.partition(".")[0], changes=changes)
    expected = decode_in_order(path)
    assert len({frame.tobytes() for frame in expected}) >= 19
    assert check_orders(path, expected) == len(expected)


def test_a_demuxer_that_ends_with_an_error_of_its_own(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "video.gxf", 20, codec="mjpeg", pix_fmt="yuvj420p", size=(720, 512))
    with open_video(path) as reader:
        assert read_numbers(reader.frames_at(range(reader.info.num_frames))) == list(range(20))


@pytest.mark.parametrize(
    ("codec", "ending", "second"),
    [
        *(("mpeg1video", "m1v", second) for second in ("another size", "from its middle")),
        *(("mpeg2video", "m2v", second) for second in ("another size", "another chroma", "from its middle")),
    ],
)
def test_pictures_lost_where_mpeg_is_spliced_shift_no_other(
    tmp_path: Path, codec: str, ending: str, second: str
) -> None:
    size = (80, 64) if second == "another size" else (64, 48)
    pix_fmt = "yuv422p" if second == "another chroma" else "yuv420p"
    one = write_numbered_video(tmp_path / f"one.{ending}", 30, codec=codec).read_bytes()
    two = write_numbered_video(
        tmp_path / f"two.{ending}", 40, codec=codec, size=size, pix_fmt=pix_fmt, first_number=30
    ).read_bytes()
    if second == "from its middle":
        places = [at for at in range(len(two)) if two.startswith(b"\0\0\1\0", at)]
        two = two[places[5] :]
    path = tmp_path / f"spliced.{ending}"
    path.write_bytes(one + two)
    expected = decode_in_order(path)
    assert 30 < len(expected) <= 70
    check_orders(path, expected)
    with PyAVReader(str(path)) as reader:
        assert reader.doubt == "pictures of it are missing or damaged"


def test_times_that_begin_anew_after_a_beginning_that_does_not_decode(
    sources: Callable[[str], Path], tmp_path: Path
) -> None:
    path = write_numbered_video(tmp_path / "late.ts", 60, start_ms=2000)
    data = path.read_bytes()
    path.write_bytes(data[200 * TS_PACKET :] + sources("h264").read_bytes())
    expected = decode_in_order(path)
    assert 60 < len(expected) < 120
    check_orders(path, expected)
