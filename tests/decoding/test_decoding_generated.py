"""All back ends on videos whose frames show their numbers, held against decoding in order."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from decoding_cases import CASES, NUM_FRAMES, TORCHCODEC, VARIABLE, Case, assert_same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from media import read_number, read_numbers, write_numbered_video

from video_gn.decoding import open_video
from video_gn.decoding._pyav import PyAVReader
from video_gn.errors import DecodeError

# What torchcodec may refuse: its FFmpeg is the system's, and may know more or less than another one.
TORCHCODEC_MAY_REFUSE = {
    *("open_gop.mp4", "open_gop.mkv", "hevc_open_gop.mp4", "refresh.mp4", "b.ts", "mpeg2.ts"),
    *("raw.h264", "h264.avi", "mpeg4_b.avi", "mpeg4_b.mp4", "edit_list.mp4"),
}


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
