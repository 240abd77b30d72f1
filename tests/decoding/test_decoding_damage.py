"""Files that are cut off, damaged, or promise more than they hold."""

from __future__ import annotations

import random
from pathlib import Path

import av
import numpy as np
import pytest
from media import decode_in_order, read_number, read_numbers, write_numbered_video

from video_gn.decoding import open_video
from video_gn.decoding._pyav import PyAVReader
from video_gn.errors import DecodeError, FrameCountError

NUM_FRAMES = 60


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 frames, a key frame every 12, the index before the pictures."""
    return write_numbered_video(
        tmp_path_factory.mktemp("damage") / "whole.mp4", NUM_FRAMES, container_options={"movflags": "faststart"}
    )


def packets_of(path: Path) -> list[tuple[int, int, int, bool]]:
    """Position, size, time in frames, whether a key frame; for each packet in the file's order."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        found = [p for p in container.demux(stream) if p.size]
        return [(p.pos, p.size, round(float(p.pts * p.time_base) * 25), p.is_keyframe) for p in found]


def spoil(path: Path, out: Path, times: list[int], *, keep: int = 5) -> Path:
    """Overwrite all of the pictures shown at these times but their first bytes: they do not decode."""
    data = bytearray(path.read_bytes())
    for pos, size, time, is_key in packets_of(path):
        if time in times:
            # The very first packet begins with the encoder's name, a NAL unit of its own.
            assert not is_key or time > 0
            data[pos + keep : pos + size] = b"\xff" * (size - keep)
    out.write_bytes(data)
    return out


def read_all(path: Path, indices: list[int] | None = None) -> tuple[PyAVReader, np.ndarray]:
    """Read frames, drawing them again once where the count was wrong."""
    reader = PyAVReader(str(path))
    for attempt in range(2):
        try:
            chosen = range(reader.info.num_frames) if indices is None else indices
            return reader, reader.frames_at([i for i in chosen if i < reader.info.num_frames]).numpy()
        except FrameCountError as error:
            if attempt or not reader.info.num_frames == len(reader.frame_seconds) == error.num_frames < error.promised:
                raise
    raise AssertionError


def test_fewer_frames_than_promised(whole: Path, tmp_path: Path) -> None:
    path = spoil(whole, tmp_path / "last.mp4", [NUM_FRAMES - 1])
    with open_video(path) as reader:
        assert reader.info.num_frames == 60
        assert read_number(reader.frames_at([30])[0]) == 30
        with pytest.raises(FrameCountError, match="only 59 of 60 frames decode") as caught:
            reader.frames_at([3, 59])
        assert caught.value.path == str(path)
        assert (caught.value.num_frames, caught.value.promised) == (59, 60)
        assert reader.info.num_frames == 59
        assert reader.info.duration_seconds == pytest.approx(59 / 25)
        np.testing.assert_allclose(reader.frame_seconds, np.arange(59) / 25, atol=1e-9)
        assert read_numbers(reader.frames_at([58, 3])) == [58, 3]
        with pytest.raises(IndexError, match=r"must be in \[0, 59\)"):
            reader.frames_at([59])


def test_a_frame_that_is_missing_in_the_middle_moves_those_after_it(whole: Path, tmp_path: Path) -> None:
    path = spoil(whole, tmp_path / "middle.mp4", [25])
    expected = decode_in_order(path)
    assert len(expected) == 59
    reader, frames = read_all(path)
    assert all(np.array_equal(a, b) for a, b in zip(frames, expected, strict=True))
    seconds = reader.frame_seconds
    assert seconds[24] == pytest.approx(24 / 25) and seconds[25] == pytest.approx(26 / 25)
    # Random access afterwards agrees with decoding in order.
    for index in (40, 25, 3, 58):
        assert np.array_equal(reader.frames_at([index])[0].numpy(), expected[index])
    reader.close()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("times", [[7], [12], [24, 25, 26], [5, 59], list(range(13, 60))])
def test_damaged_frames_are_those_of_decoding_in_order(
    whole: Path, tmp_path: Path, times: list[int], threads: int
) -> None:
    path = spoil(whole, tmp_path / "spoilt.mp4", times)
    expected = decode_in_order(path)
    with PyAVReader(str(path), num_threads=threads) as reader:
        for _ in range(2):
            try:
                num_frames = reader.info.num_frames
                frames = reader.frames_at(range(num_frames)).numpy()
                break
            except FrameCountError:
                continue
        assert len(frames) == len(expected)
        assert all(np.array_equal(a, b) for a, b in zip(frames, expected, strict=True))


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv", "cut.webm", "cut.avi", "cut.ts"])
@pytest.mark.parametrize("share", [0.5, 0.83])
def test_a_file_that_was_cut_gives_what_is_there(tmp_path: Path, name: str, share: float) -> None:
    kwargs = {
        "cut.mp4": {"container_options": {"movflags": "faststart"}},
        "cut.webm": {"codec": "libvpx"},
        "cut.avi": {"codec": "mpeg4", "bframes": 0},
    }.get(name, {})
    path = write_numbered_video(tmp_path / name, NUM_FRAMES, **kwargs)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    expected = decode_in_order(path)
    assert 10 < len(expected) < NUM_FRAMES
    reader, frames = read_all(path)
    assert all(np.array_equal(a, b) for a, b in zip(frames, expected, strict=True))
    reader.close()


def test_a_cut_in_mid_packet_is_known_before_decoding(whole: Path, tmp_path: Path) -> None:
    pos, size, _, _ = packets_of(whole)[40]
    path = tmp_path / "mid.mp4"
    path.write_bytes(whole.read_bytes()[: pos + size // 2])
    with PyAVReader(str(path)) as reader:
        assert reader.info.num_frames == 40
        assert reader.table.doubt == "packets of it are damaged or cut off"
        assert read_numbers(reader.frames_at([35, 2])) == [35, 2]
    with pytest.raises(DecodeError, match="decord cannot be relied on here: packets of it are damaged or cut off"):
        open_video(path, "decord")


def test_decord_refuses_damage_that_only_decoding_shows(whole: Path, tmp_path: Path) -> None:
    path = spoil(whole, tmp_path / "decord.mp4", [25], keep=7)  # its number stays
    with open_video(path, "decord") as reader:
        for _ in range(2):
            with pytest.raises(DecodeError, match=r"packets of it are damaged\. Use backend='pyav'"):
                reader.frames_at([0])


def test_no_frame_decodes(whole: Path, tmp_path: Path) -> None:
    data = bytearray(whole.read_bytes())
    for pos, size, _, _ in packets_of(whole):
        data[pos : pos + size] = b"\x00" * size
    path = tmp_path / "nothing.mp4"
    path.write_bytes(data)
    for backend in ("auto", "pyav", "decord"):
        with pytest.raises(DecodeError, match="none of its 60 video packets can be decoded"):
            open_video(path, backend)


def test_no_packets(tmp_path: Path) -> None:
    path = write_numbered_video(
        tmp_path / "header.mp4", 5, container_options={"movflags": "frag_keyframe+empty_moov", "frag_size": "1"}
    )
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"moof") - 4])
    with pytest.raises(DecodeError, match=r"header\.mp4: .*(no video packets in it|not a video)"):
        open_video(path)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "webm"])
def test_random_damage_gives_frames_or_a_decode_error(tmp_path: Path, suffix: str) -> None:
    kwargs = {"avi": {"codec": "mpeg4"}, "webm": {"codec": "libvpx-vp9"}}.get(suffix, {})
    whole = write_numbered_video(tmp_path / f"whole.{suffix}", 30, gop=6, **kwargs).read_bytes()
    path = tmp_path / f"damaged.{suffix}"
    num_read = 0
    for seed in range(40):
        rng = random.Random(seed)
        data = bytearray(whole)
        for _ in range(rng.choice([1, 5, 40])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        if seed % 4 == 0:
            del data[rng.randrange(len(data)) :]
        path.write_bytes(data)
        try:
            reader, frames = read_all(path)
        except FrameCountError:
            raise
        except DecodeError:
            continue
        with reader:
            num_read += 1
            assert 1 <= len(frames) == reader.info.num_frames == len(reader.frame_seconds)
            assert (np.diff(reader.frame_seconds) > 0).all()
            again = reader.frames_at([len(frames) - 1, 0]).numpy()
            assert np.array_equal(again[0], frames[-1]) and np.array_equal(again[1], frames[0])
    assert num_read >= 20


@pytest.mark.parametrize("num_whole", [0, 1, 9, 18])
def test_a_torn_picture_counts_where_there_are_few(tmp_path: Path, num_whole: int) -> None:
    # Found in short clips: leaving the torn picture out took more than 5% of what decodes, or all of it.
    path = write_numbered_video(tmp_path / "torn.avi", 40, codec="mpeg4", bframes=0)
    with av.open(str(path)) as container:
        torn = [packet for packet in container.demux(video=0) if packet.size][num_whole]
    path.write_bytes(path.read_bytes()[: torn.pos + torn.size * 3 // 4])
    expected = decode_in_order(path)
    assert len(expected) == num_whole + 1
    with PyAVReader(str(path)) as reader:
        frames = reader.frames_at(range(reader.info.num_frames)).numpy()
    assert len(frames) == len(expected)
    assert all(np.array_equal(a, b) for a, b in zip(frames, expected, strict=True))


def test_a_torn_picture_that_cannot_decode_is_not_counted(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "torn.mp4", 9, bframes=0, container_options={"movflags": "faststart"})
    with av.open(str(path)) as container:
        last = [packet for packet in container.demux(video=0) if packet.size][8]
    path.write_bytes(path.read_bytes()[: last.pos + 6])
    expected = decode_in_order(path)
    assert len(expected) == 8
    with PyAVReader(str(path)) as reader:
        assert reader.info.num_frames == 8
        frames = reader.frames_at(range(8)).numpy()
    assert all(np.array_equal(a, b) for a, b in zip(frames, expected, strict=True))
