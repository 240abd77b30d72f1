"""All back ends on videos whose frames show their numbers, held against decoding in order."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from media import decode_in_order, read_number, read_numbers, write_numbered_video
from test_decoding_torchcodec import TORCHCODEC, assert_same

from video_gn.decoding import open_video
from video_gn.decoding._pyav import PyAVReader
from video_gn.errors import DecodeError, FrameCountError

NUM_FRAMES = 60
VARIABLE = [40 * i + (i % 3) * 11 for i in range(NUM_FRAMES)]
OPEN_GOP = {"x264-params": "keyint=12:min-keyint=12:scenecut=0:bframes=2:open-gop=1"}
HEVC = "keyint=12:min-keyint=12:bframes=3:log-level=none:pools=1:open-gop="


@dataclass(frozen=True)
class Case:
    """A file name, how it is written, and what is expected of it."""

    name: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    num_hidden: int = 0  # frames that an edit list hides at the start
    restarts: tuple[int, ...] = tuple(range(0, NUM_FRAMES, 12))  # indices where decoding may begin
    doubt: str | None = None
    decord: bool = True  # whether decord can be relied on


CASES = [
    Case("b.mp4"),
    Case("b.mkv"),
    Case("no_b.mp4", {"bframes": 0}),
    Case("many_b.mp4", {"bframes": 5}),
    Case("gop_1.mp4", {"gop": 1, "bframes": 0}, restarts=tuple(range(NUM_FRAMES))),
    Case("gop_3.mp4", {"gop": 3}, restarts=tuple(range(0, NUM_FRAMES, 3))),
    Case("long_gop.mp4", {"gop": 250}, restarts=(0,)),
    Case("open_gop.mp4", {"codec_options": OPEN_GOP}, restarts=(0,), decord=False),
    Case("open_gop.mkv", {"codec_options": OPEN_GOP}, restarts=(0,), decord=False),
    Case(
        "refresh.mp4",
        {"codec_options": {"x264-params": "keyint=12:intra-refresh=1:bframes=0"}},
        restarts=(0,),
        decord=False,
    ),
    Case("fragments.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}),
    Case("b.ts", decord=False),
    Case("b.flv"),
    Case("raw.h264", restarts=(), doubt="frames of it have no time", decord=False),
    Case("h264.avi", restarts=(), doubt="B-frames in AVI", decord=False),
    Case("mpeg4_b.avi", {"codec": "mpeg4"}, restarts=(), doubt="B-frames in AVI", decord=False),
    Case("mpeg4.avi", {"codec": "mpeg4", "bframes": 0}),
    Case("mpeg4.mp4", {"codec": "mpeg4", "bframes": 0}),
    Case("mpeg4_b.mp4", {"codec": "mpeg4"}, restarts=(0, 12, 24, 36, 48, 59), decord=False),
    Case("mpeg2.ts", {"codec": "mpeg2video"}, restarts=(0,), decord=False),
    Case("mjpeg.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}, restarts=tuple(range(NUM_FRAMES)), decord=False),
    Case("vp8.webm", {"codec": "libvpx"}),
    Case("vp9.webm", {"codec": "libvpx-vp9"}),
    Case("vp9_odd_size.webm", {"codec": "libvpx-vp9", "size": (63, 47)}),
    Case("av1.mp4", {"codec": "libsvtav1", "size": (64, 64)}),
    Case("hevc.mp4", {"codec": "libx265", "codec_options": {"x265-params": HEVC + "0"}}, decord=False),
    Case("hevc_open_gop.mp4", {"codec": "libx265", "codec_options": {"x265-params": HEVC + "1"}}, decord=False),
    Case("variable.mp4", {"pts_ms": VARIABLE}),
    Case("variable.mkv", {"pts_ms": VARIABLE}),
    Case("start.mp4", {"start_ms": 5000}),
    Case("start.mkv", {"start_ms": 3_600_000}),
    Case(
        "edit_list.mp4",
        {"start_ms": -400, "container_options": {"avoid_negative_ts": "disabled"}},
        num_hidden=10,
        restarts=(),
        doubt="an edit list hides frames of it",
        decord=False,
    ),
    Case("turned_90.mp4", {"rotation": 90}),
    Case("turned_180.mp4", {"rotation": 180}),
    Case("turned_270.mov", {"rotation": 270}),
    Case("ten_bits.mp4", {"pix_fmt": "yuv420p10le"}, decord=False),
    Case("444.mp4", {"pix_fmt": "yuv444p"}, decord=False),
    Case("a:b, c%d é.mp4"),
]

# What torchcodec may refuse: its FFmpeg is the system's, and may know more or less than another one.
TORCHCODEC_MAY_REFUSE = {
    *("open_gop.mp4", "open_gop.mkv", "hevc_open_gop.mp4", "refresh.mp4", "b.ts", "mpeg2.ts"),
    *("raw.h264", "h264.avi", "mpeg4_b.avi", "mpeg4_b.mp4", "edit_list.mp4"),
}


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("generated")

    @cache
    def write(name: str) -> tuple[Path, list[np.ndarray]]:
        case = next(case for case in CASES if case.name == name)
        path = write_numbered_video(folder / name, NUM_FRAMES, **case.kwargs)
        return path, decode_in_order(f"file:{path}")

    return write


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("backend", ["auto", "pyav", "decord", TORCHCODEC])
def test_frames_are_those_of_decoding_in_order(write, case: Case, backend: str) -> None:
    path, expected = write(case.name)
    num_frames = NUM_FRAMES - case.num_hidden
    assert len(expected) == num_frames
    rng = random.Random(case.name)
    drawn = [rng.randrange(num_frames) for _ in range(20)]
    may_refuse = not case.decord if backend == "decord" else case.name in TORCHCODEC_MAY_REFUSE
    requests = [drawn, sorted(drawn), sorted(set(drawn))[::-1], [num_frames - 1], [0], list(range(num_frames))]
    try:
        with open_video(path, backend) as reader:
            assert reader.info.num_frames == num_frames
            for indices in requests:
                frames = reader.frames_at(indices)
                assert frames.dtype == torch.uint8 and frames.is_contiguous()
                assert frames.shape == (len(indices), reader.info.height, reader.info.width, 3)
                assert read_numbers(frames) == [i + case.num_hidden for i in indices]
                if backend == "torchcodec":
                    assert_same(
                        frames.numpy(), np.stack([expected[i] for i in indices]), case.kwargs.get("pix_fmt", "")
                    )
                    continue
                assert all(np.array_equal(frame, expected[i]) for frame, i in zip(frames.numpy(), indices, strict=True))
            assert backend != "decord" or case.decord
            if isinstance(reader, PyAVReader):
                assert (reader.doubt is None) == (case.doubt is None)
    except DecodeError as error:
        if backend not in ("decord", "torchcodec") or not may_refuse or "Use backend='pyav'" not in error.reason:
            raise


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_where_decoding_may_begin(write, case: Case) -> None:
    path, _ = write(case.name)
    with PyAVReader(str(path)) as reader:
        rows = np.flatnonzero(reader.table.is_restart)
        pts = reader.table.pts
        assert [int((pts < pts[row]).sum()) for row in rows] == list(case.restarts)
        assert (reader.table.doubt is None) == (case.doubt is None)
        assert case.doubt is None or case.doubt in (reader.table.doubt or "")


@pytest.mark.parametrize("threads", [2, 4])
@pytest.mark.parametrize("name", ["b.mp4", "gop_3.mp4", "open_gop.mp4", "mpeg4_b.avi", "vp9.webm", "hevc_open_gop.mp4"])
def test_threads_change_nothing(write, name: str, threads: int) -> None:
    path, expected = write(name)
    with open_video(path, num_threads=threads) as reader:
        for indices in ([3, 50, 20], [59], list(range(0, 60, 2)), [10, 10, 11]):
            frames = reader.frames_at(indices).numpy()
            assert all(np.array_equal(frame, expected[i]) for frame, i in zip(frames, indices, strict=True))


@given(st.lists(st.lists(st.integers(0, NUM_FRAMES - 1), min_size=1, max_size=12), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("name", ["b.mp4", "open_gop.mkv", "hevc_open_gop.mp4", "mpeg4_b.avi"])
def test_any_indices_in_any_order(write, name: str, requests: list[list[int]]) -> None:
    path, expected = write(name)
    with open_video(path) as reader:
        for indices in requests:
            frames = reader.frames_at(np.array(indices)).numpy()
            assert all(np.array_equal(frame, expected[i]) for frame, i in zip(frames, indices, strict=True))


def test_facts(write) -> None:
    with open_video(write("b.mp4")[0]) as reader:
        info = reader.info
        assert (info.num_frames, info.fps, info.width, info.height) == (60, 25.0, 64, 48)
        assert (info.rotation_degrees, info.codec) == (0, "h264")
        assert info.path == str(write("b.mp4")[0])
        assert info.duration_seconds == pytest.approx(2.4, abs=1e-9)
        np.testing.assert_allclose(reader.frame_seconds, np.arange(60) / 25, atol=1e-9)
        with pytest.raises(ValueError, match="read-only"):
            reader.frame_seconds[0] = 1


@pytest.mark.parametrize(
    ("name", "rotation"), [("turned_90.mp4", 90), ("turned_180.mp4", 180), ("turned_270.mov", 270)]
)
@pytest.mark.parametrize("backend", ["pyav", "decord", TORCHCODEC])
def test_rotation_is_applied_and_told(write, name: str, rotation: int, backend: str) -> None:
    with open_video(write(name)[0], backend) as reader:
        assert reader.info.rotation_degrees == rotation
        assert (reader.info.width, reader.info.height) == (64, 48)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("variable.mp4", np.array(VARIABLE) / 1000),
        ("variable.mkv", np.array(VARIABLE) / 1000),
        ("start.mp4", np.arange(60) / 25),
        ("start.mkv", np.arange(60) / 25),
        ("edit_list.mp4", np.arange(50) / 25),
        ("mpeg4_b.avi", np.arange(60) / 25),
        ("raw.h264", np.arange(60) / 25),
        ("b.ts", np.arange(60) / 25),
    ],
)
def test_times(write, name: str, expected: np.ndarray) -> None:
    with open_video(write(name)[0]) as reader:
        # Containers round to 1 ms at most.
        np.testing.assert_allclose(reader.frame_seconds, expected, atol=1e-3)
        assert reader.frame_seconds.dtype == np.float64
        assert reader.info.fps == pytest.approx(25, rel=0.02)
        # The last frame lasts as long as the file says, or one frame's time.
        assert 0.01 < reader.info.duration_seconds - reader.frame_seconds[-1] < 0.06


@pytest.mark.parametrize("name", ["b.mp4", "long_gop.mp4", "open_gop.mp4", "mpeg4_b.avi", "vp8.webm", "edit_list.mp4"])
def test_growing_chunks_decode_each_frame_at_most_once(write, name: str) -> None:
    with PyAVReader(str(write(name)[0])) as reader:
        wanted = range(1, reader.info.num_frames, 2)
        for first in range(0, len(wanted), 7):
            reader.frames_at(wanted[first : first + 7])
        assert reader.num_decoded <= reader.info.num_frames + 10 * (name == "edit_list.mp4")


def test_one_pass_over_the_union_of_clips(write) -> None:
    with PyAVReader(str(write("long_gop.mp4")[0])) as reader:
        clips = np.array([[(start + 2 * i) % 60 for i in range(16)] for start in (0, 10, 20, 30, 40)])
        frames = reader.frames_at(clips.reshape(-1))
        assert read_numbers(frames) == clips.reshape(-1).tolist()
        assert reader.num_decoded <= 60


def test_seeking_skips_work(write) -> None:
    with PyAVReader(str(write("b.mp4")[0])) as reader:
        first = reader.num_decoded
        assert first <= 2
        reader.frames_at([50])
        assert reader.num_decoded <= first + 12
        reader.frames_at([2, 26, 49])  # three groups of pictures out of five, each in part
        assert reader.num_decoded <= first + 12 + 24


def test_unwanted_pictures_that_no_other_needs_are_not_decoded(write) -> None:
    path, expected = write("b.mp4")
    with PyAVReader(str(path)) as reader:
        sparse = list(range(0, 60, 12))
        for indices in (sparse, [0, 1, 59], list(range(0, 60, 5))):
            frames = reader.frames_at(indices).numpy()
            assert all(np.array_equal(frame, expected[i]) for frame, i in zip(frames, indices, strict=True))
    with PyAVReader(str(write("long_gop.mp4")[0])) as reader:
        reader.frames_at([0, 59])
        # Two of three pictures are B-frames, and in a pyramid of two one of them is referred to by none.
        assert reader.num_decoded <= 45


def test_a_frame_left_out_before_is_there_when_asked_for_next(write) -> None:
    path, expected = write("long_gop.mp4")
    for first in range(16):
        for second in range(first + 1, first + 5):
            with PyAVReader(str(path)) as reader:
                reader.frames_at([first])
                frames = reader.frames_at([second, second + 1]).numpy()
                assert np.array_equal(frames[0], expected[second]) and np.array_equal(frames[1], expected[second + 1])
                assert reader.doubt is None and reader.num_decoded <= 60


def test_going_on_after_the_end_and_back(write) -> None:
    for name in ("b.mp4", "mpeg4_b.avi"):
        with open_video(write(name)[0]) as reader:
            assert [read_number(reader.frames_at([i])[0]) for i in (59, 59, 0, 59, 58)] == [59, 59, 0, 59, 58]


def test_an_index_that_leads_astray_is_given_up(write, monkeypatch: pytest.MonkeyPatch) -> None:
    from video_gn.decoding._decoder import PacketDecoder

    path, expected = write("b.mp4")
    with PyAVReader(str(path)) as reader:
        monkeypatch.setattr(PacketDecoder, "seek", lambda self, row: False)
        for indices in ([50], [30, 59], [2]):
            frames = reader.frames_at(indices).numpy()
            assert all(np.array_equal(frame, expected[i]) for frame, i in zip(frames, indices, strict=True))


def test_a_seek_that_lands_elsewhere_is_noticed(write, monkeypatch: pytest.MonkeyPatch) -> None:
    from video_gn.decoding import _decoder

    path, _ = write("b.mp4")
    decoder = _decoder.PacketDecoder(str(path))
    assert decoder.seek(24) and decoder.next_row == 24
    decoder.table.sizes[24] += 1
    assert not decoder.seek(24)
    decoder.table.sizes[12] = decoder.table.sizes[13]
    assert decoder.seek(36)
    decoder.close()


@pytest.mark.parametrize("lost", [[17], [0], [40, 41], [59]])
def test_frames_that_get_lost_without_a_word(write, monkeypatch: pytest.MonkeyPatch, lost: list[int]) -> None:
    from video_gn.decoding._decoder import PacketDecoder

    real = PacketDecoder.feed
    times = {512 * i for i in lost}  # mp4 counts in 1/12800 s here

    def feed(self, **kwargs):
        return [frame for frame in real(self, **kwargs) if frame.pts not in times]

    monkeypatch.setattr(PacketDecoder, "feed", feed)
    path, expected = write("long_gop.mp4")
    left = [frame for i, frame in enumerate(expected) if i not in lost]
    with PyAVReader(str(path)) as reader:
        with pytest.raises(FrameCountError, match=f"only {len(left)} of 60 frames decode"):
            reader.frames_at(range(60))
        frames = reader.frames_at(range(len(left))).numpy()
        assert all(np.array_equal(a, b) for a, b in zip(frames, left, strict=True))
        assert np.array_equal(reader.frames_at([20])[0].numpy(), left[20])


def test_a_frame_that_nobody_wants_gets_lost(write, monkeypatch: pytest.MonkeyPatch) -> None:
    from video_gn.decoding._decoder import PacketDecoder

    real = PacketDecoder.feed
    monkeypatch.setattr(PacketDecoder, "feed", lambda self, **kw: [f for f in real(self, **kw) if f.pts != 680])
    path, expected = write("vp9.webm")  # in milliseconds: frame 17
    with PyAVReader(str(path)) as reader:
        assert np.array_equal(reader.frames_at([12, 20])[1].numpy(), expected[21])
        assert reader.doubt == "its frames do not come in the order of their times"


def test_pictures_shown_before_a_restart_are_passed_over(write) -> None:
    from types import SimpleNamespace

    with PyAVReader(str(write("hevc_open_gop.mp4")[0])) as reader:
        reader.frames_at([30])
        assert (reader._first_index, reader._position) == (24, 30)
        time = int(np.sort(reader.table.pts)[23])
        reader._advance(SimpleNamespace(pts=time))  # type: ignore[arg-type]
        assert reader._position == 30


def test_no_restart_where_an_earlier_picture_is_shown_later() -> None:
    from video_gn.decoding._bitstream import PacketFacts
    from video_gn.decoding.probe import _find_restarts, _is_first_of_rest

    pts = np.array([0, 30, 10, 20, 60, 40, 50])
    key = np.array([True, False, True, False, True, False, False])
    facts = [PacketFacts(is_restart=True)] * 7
    shown = np.ones(7, dtype=bool)
    # Row 2 is shown before row 1. Row 4 is a restart, but rows 5 and 6 are shown before it.
    assert _find_restarts(pts, shown, key, facts).tolist() == [True, False, False, False, True, False, False]
    assert _is_first_of_rest(pts, shown).tolist() == [True, False, True, True, False, True, True]
    # With row 1 hidden, nothing is shown after row 2 that lies before it.
    shown[1] = False
    assert _find_restarts(pts, shown, key, facts).tolist() == [True, False, True, False, True, False, False]
    # A file that repeats its parameter sets: only rows that bring theirs.
    facts = [PacketFacts(is_restart=True, has_sets=i == 2, has_new_sets=i == 2) for i in range(7)]
    assert _find_restarts(pts, shown, key, facts).tolist() == [True, False, True, False, False, False, False]


def test_hidden_vp8_pictures_are_not_counted(tmp_path: Path) -> None:
    import av

    path = write_numbered_video(tmp_path / "hidden.webm", 24, codec="libvpx")
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for i in (5, 17):
        at = data.index(packets[i])
        data[at] &= ~0x10  # show_frame
    path.write_bytes(data)
    expected = decode_in_order(path)
    shown = [i for i in range(24) if i not in (5, 17)]
    assert read_numbers(expected) == shown
    with PyAVReader(str(path)) as reader:
        assert reader.info.num_frames == 22 and reader.doubt is None
        for indices in ([21, 3, 5], [5], [14, 15, 16], list(range(22))):
            assert read_numbers(reader.frames_at(indices)) == [shown[i] for i in indices]
        assert reader.doubt is None
    with pytest.raises(DecodeError, match="packets of it show no frame"):
        open_video(path, "decord")


def test_pictures_that_change_their_size_are_brought_to_the_first_ones(tmp_path: Path) -> None:
    small = write_numbered_video(tmp_path / "small.h264", 12, size=(64, 48), bframes=0)
    large = write_numbered_video(tmp_path / "large.h264", 12, size=(128, 96), bframes=0, first_number=12)
    both = tmp_path / "both.h264"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    with open_video(both) as reader:
        frames = reader.frames_at([1, 20])
        assert frames.shape == (2, 48, 64, 3)
        assert read_numbers(frames) == [1, 20]


def test_read_number_refuses_what_shows_none() -> None:
    for grey in (0, 128, 255):
        with pytest.raises(ValueError, match="shows no number"):
            read_number(np.full((48, 64, 3), grey, dtype=np.uint8))
