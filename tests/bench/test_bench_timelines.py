import json

import numpy as np
import pytest
from media import read_numbers, write_numbered_video

from video_gn.bench import timelines
from video_gn.bench._video import repeat_video
from video_gn.bench.infer import InferSetup
from video_gn.decoding import open_video
from video_gn.errors import DecodeError

TINY = InferSetup("i3d", num_videos=2, num_clips=2, frames=8, size=32, width=4)


def test_figures_and_page(tmp_path, monkeypatch):
    monkeypatch.setattr(timelines, "keep_freed_memory", lambda: None)  # it is for the whole process
    video = str(write_numbered_video(tmp_path / "a.mp4", 80, size=(56, 48)))
    found = timelines.bench_timelines(TINY, 0.2, videos=[video], rounds=1)
    assert json.loads(json.dumps(found)) == found
    assert found["num_windows"] == 2 * 4  # of 64 frames, from frames 0, 5, 10, 15 of 80
    medians = [figures["median_ms"] for figures in found["contenders"].values()]
    assert found["ratio"] == medians[2] / (medians[0] + medians[1])
    page = timelines.format_page(found)
    assert f"timeline / (reading + network): {found['ratio']:.2f}, target at most 1.1: " in page
    (tmp_path / "bad.mp4").write_text("<html>")
    with pytest.raises(DecodeError, match="bad"):
        timelines.bench_timelines(TINY, 0.2, videos=[str(tmp_path / "bad.mp4")], rounds=1)


def test_a_video_in_a_row(tmp_path):
    path = write_numbered_video(tmp_path / "a.mp4", 30)
    repeat_video(path, tmp_path / "long.mp4", times=3)
    with open_video(tmp_path / "long.mp4") as reader:
        assert read_numbers(reader.frames_at(range(90))) == [*range(30)] * 3
        np.testing.assert_allclose(reader.frame_seconds, np.arange(90) / 25, atol=1e-6)
