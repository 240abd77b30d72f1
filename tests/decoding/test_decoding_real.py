"""Real videos, whole and odd ones, held against decoding in order."""

from __future__ import annotations

import csv
import random
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from media import decode_in_order
from places import REAL_VIDEOS

from video_gn.decoding import open_video
from video_gn.decoding._pyav import PyAVReader
from video_gn.errors import DecodeError, FrameCountError

pytestmark = pytest.mark.needs_real_videos

_TABLE = REAL_VIDEOS / "files.csv"
ROWS = list(csv.DictReader(_TABLE.open(encoding="utf-8"))) if _TABLE.is_file() else [{"path": "none"}]

# What decord must read; all else it may refuse.
DECORD_READS = {
    "clips/R6llTwEh07w.mp4",
    "clips/SOX5yA1l24A.mp4",
    "clips/WUzgd7C1pWA.mp4",
    "clips/arm_wrestling.mp4",
    "clips/cleaning_pool.mp4",
    "clips/v_GGSY1Qvo990.mp4",
    "clips/v_SoccerJuggling_g23_c01.avi",
    "clips/flipping_a_pancake.mkv",
    "odd/rot90_meta.mp4",
    "odd/vfr_select.mp4",
    "odd/webm_named.mp4",
}
DAMAGED = {"odd/bitflips_in_mdat.mp4", "odd/corrupted.mp4", "odd/truncated_faststart_60pct.mp4"}
REASONS = {
    "odd/all_zeros.mp4": "not a video",
    "odd/audio_only.mp4": "no video stream",
    "odd/html_error_page.mp4": "not a video",
    "odd/zero_bytes.mp4": "empty",
}


@lru_cache(maxsize=1)  # tests of one file follow one another
def in_order(path: Path) -> list[np.ndarray]:
    return decode_in_order(path)


def read(reader, draw) -> tuple[list[int], np.ndarray]:
    """Draw indices and read them, again where the count was wrong."""
    indices = draw(reader.info.num_frames)
    try:
        return indices, reader.frames_at(indices).numpy()
    except FrameCountError as error:
        if not reader.info.num_frames == error.num_frames < error.promised:
            raise
        indices = draw(reader.info.num_frames)
        return indices, reader.frames_at(indices).numpy()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["path"])
@pytest.mark.parametrize("backend", ["auto", "decord"])
def test_counts_and_frames(real_videos: Path, row: dict[str, str], backend: str) -> None:
    path = real_videos / row["path"]
    if not row["decoded_frames"]:
        with pytest.raises(DecodeError, match=REASONS[row["path"]]):
            open_video(path, backend)
        return
    try:
        with open_video(path, backend) as reader:
            expected = in_order(path)
            rng = random.Random(row["path"])
            draws = [
                lambda n: [rng.randrange(n) for _ in range(20)],
                lambda n: sorted(rng.randrange(n) for _ in range(20)),
                lambda n: list(range(max(0, n - 8), n)),
            ]
            for draw in draws:
                indices, frames = read(reader, draw)
                assert len(frames) == len(indices)
                for index, frame in zip(indices, frames, strict=True):
                    assert np.array_equal(frame, expected[index]), index
            promised = int(row["decoded_frames"])
            if row["path"] in DAMAGED:
                assert 0.95 * promised <= reader.info.num_frames <= promised
            else:
                assert reader.info.num_frames == promised
    except DecodeError as error:
        if backend != "decord" or row["path"] in DECORD_READS or "Use backend='pyav'" not in error.reason:
            raise


@pytest.mark.parametrize("row", [r for r in ROWS if r.get("decoded_frames")], ids=lambda row: row["path"])
def test_facts(real_videos: Path, row: dict[str, str]) -> None:
    with open_video(real_videos / row["path"]) as reader:
        info = reader.info
        size = int(row["width"]), int(row["height"])
        clockwise = -int(row["rotation"] or 0) % 360  # ffprobe counts counterclockwise
        assert info.rotation_degrees == clockwise
        assert (info.width, info.height) == (size[::-1] if clockwise % 180 else size)
        assert info.codec == row["codec"]
        # ffprobe counts the frames that sample_edit_list's edit list hides into its rate.
        hidden = 86 / 77 if row["path"] == "odd/sample_edit_list.mp4" else 1
        assert info.fps == pytest.approx(float(row["fps"]), rel=1e-3 if hidden == 1 else hidden - 1)
        seconds = reader.frame_seconds
        assert len(seconds) == info.num_frames and seconds[0] == 0 and (np.diff(seconds) > 0).all()
        assert info.duration_seconds > seconds[-1]
        assert info.duration_seconds == pytest.approx(info.num_frames / info.fps, rel=0.03)


@pytest.mark.parametrize("name", ["clips/arm_wrestling.mp4", "clips/v_SoccerJuggling_g23_c01.avi"])
def test_ordinary_files_are_read_by_seeking(real_videos: Path, name: str) -> None:
    with PyAVReader(str(real_videos / name)) as reader:
        assert reader.table.doubt is None and reader.table.is_restart.sum() > 1
        last = int(np.flatnonzero(reader.table.is_restart)[-1])
        first = reader.num_decoded
        reader.frames_at([reader.info.num_frames - 1])
        assert first <= 2 and reader.num_decoded <= first + reader.info.num_frames - last


def test_ten_clips_of_a_video_in_one_pass(real_videos: Path) -> None:
    path = real_videos / "clips/arm_wrestling.mp4"
    expected = in_order(path)
    with PyAVReader(str(path)) as reader:
        starts = np.linspace(0, reader.info.num_frames - 63, 10).astype(int)
        wanted = np.unique(starts[:, None] + 2 * np.arange(32))
        for first in range(0, len(wanted), 64):
            chunk = wanted[first : first + 64]
            frames = reader.frames_at(chunk).numpy()
            assert all(np.array_equal(frame, expected[i]) for frame, i in zip(frames, chunk, strict=True))
        assert reader.num_decoded <= reader.info.num_frames


def test_weizmann_counts(real_videos: Path) -> None:
    paths = sorted((real_videos / "weizmann").rglob("*.avi"))
    assert len(paths) == 90
    rng = random.Random(0)
    for path in paths:
        with open_video(path) as reader:
            num_frames = reader.info.num_frames
            assert 30 <= num_frames <= 150
            if rng.random() < 0.2:
                expected = decode_in_order(path)
                assert len(expected) == num_frames
                indices = [rng.randrange(num_frames) for _ in range(10)]
                frames = reader.frames_at(indices).numpy()
                assert all(np.array_equal(frame, expected[i]) for frame, i in zip(frames, indices, strict=True))
            else:
                reader.frames_at([num_frames - 1])
