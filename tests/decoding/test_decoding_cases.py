"""Files that went wrong once: the pictures, sizes and rates that ffmpeg shows, or a refusal, from every back end."""

from __future__ import annotations

import csv
import random
from functools import cache

import av
import numpy as np
import pytest
from decoding_cases import TORCHCODEC, assert_same
from media import frames_in_order
from places import ROOT

from video_gn.decoding import open_video
from video_gn.errors import DecodeError

CASES = ROOT.parent / "shared" / "cases" / "decoding"
ROWS = list(csv.DictReader((CASES / "cases.csv").open(encoding="utf-8"))) if CASES.is_dir() else []
# What decord and torchcodec may refuse among the others depends on their versions.
ALL_READ = {"stts_hugelast.mp4"}


@cache
def in_order(name: str) -> tuple[np.ndarray, str]:
    """The frames that plain decoding gives, and the format of their pixels."""
    read = [(pixels, frame.format.name) for frame, pixels in frames_in_order(CASES / name)]
    return np.stack([pixels for pixels, _ in read]), read[0][1]


@pytest.mark.skipif(not ROWS, reason=f"{CASES} is missing")
def test_there_are_cases() -> None:
    assert len(ROWS) >= 10 and {row["file"] for row in ROWS} >= ALL_READ


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["file"])
@pytest.mark.parametrize("backend", ["pyav", "decord", TORCHCODEC])
def test_cases(row: dict[str, str], backend: str) -> None:
    path = CASES / row["file"]
    try:
        frames, pix_fmt = in_order(row["file"])
    except av.error.OSError:  # FFmpeg 8 cannot convert these colours; earlier ones took them for others
        with pytest.raises(DecodeError, match="cannot convert it to RGB"):
            open_video(path, backend)
        return
    assert len(frames) == int(row["decoded_frames"])
    rng = random.Random(row["file"])
    try:
        for _ in range(2):
            with open_video(path, backend) as reader:
                info = reader.info
                assert info.num_frames == len(frames)
                assert (info.height, info.width) == frames[0].shape[:2]
                assert {info.width, info.height} == {int(row["coded_width"]), int(row["coded_height"])}
                assert info.fps == pytest.approx(float(row["mean_fps_of_times"]), abs=1e-3)
                for _ in range(5):
                    indices = [rng.randrange(len(frames)) for _ in range(rng.randint(1, 8))]
                    read = reader.frames_at(indices).numpy()
                    if backend == "torchcodec":
                        assert_same(read, frames[indices], pix_fmt)
                    else:
                        assert np.array_equal(read, frames[indices]), indices
    except DecodeError:
        if backend == "pyav" or row["file"] in ALL_READ:
            raise
