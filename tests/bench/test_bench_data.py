import json
import re

import numpy as np
import pytest
import torch
from media import write_numbered_video

from video_gn.__main__ import main
from video_gn.bench import _video, data
from video_gn.bench._video import records_of, write_typical_video
from video_gn.bench.data import bench_data, format_page
from video_gn.bench.measuring import one_thread
from video_gn.data.crops import TrainTransform
from video_gn.data.dataset import TrainDataset
from video_gn.data.layout import read_views
from video_gn.decoding import open_video
from video_gn.errors import DecodeError

FIGURES = {"median_ms", "min_ms", "max_ms"}


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "numbered.mp4"
    write_numbered_video(path, 90, fps=30, size=(64, 48), gop=250)
    return str(path)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(data, "_MEMORY_VIDEOS", 4)


def test_the_result_and_the_page(video, few, tmp_path, capsys):
    threads = torch.get_num_threads()
    output = tmp_path / "sub" / "bench.json"

    assert main(["bench", "data", video, "--rounds=1", f"--output={output}"]) == 0

    page = capsys.readouterr().out
    found = json.loads(output.read_text())
    assert page == format_page(found)
    assert [p.name for p in output.parent.iterdir()] == ["bench.json"]
    assert torch.get_num_threads() == threads
    assert set(found) == {
        "command",
        "settings",
        "machine",
        "rounds",
        "videos",
        "ten_clip_test",
        "training_clip",
        "memory",
    }
    assert found["machine"]["num_threads"] == 1
    assert found["machine"]["torch"] == torch.__version__.partition("+")[0] or found["machine"]["torch"]
    described = found["videos"][0]
    assert (described["path"], described["width"], described["height"]) == (video, 64, 48)
    assert (described["num_frames"], described["fps"], described["codec"]) == (90, 30.0, "h264")

    assert set(found["ten_clip_test"]) == {"pyav", "decord"}
    for result in found["ten_clip_test"].values():
        for contender in ("one_pass", "clip_by_clip", "whole_sample"):
            assert set(result[contender]) == FIGURES
            assert 0 < result[contender]["min_ms"] <= result[contender]["median_ms"] <= result[contender]["max_ms"]
        assert result["ratio"] == pytest.approx(result["one_pass"]["median_ms"] / result["clip_by_clip"]["median_ms"])
        assert result["target"] == 0.25
        # 10 clips of 32 frames, stride 2, that begin every 9 frames and wrap around: every frame.
        assert result["num_frames_wanted"] == 90
    decoded = found["ten_clip_test"]["pyav"]["num_frames_decoded"]
    assert decoded["one_pass"] == 90
    assert decoded["clip_by_clip"] > 90

    training = found["training_clip"]
    assert set(training["sample"]) == set(training["bare_decoding"]) == FIGURES
    assert training["ratio"] == pytest.approx(training["sample"]["median_ms"] / training["bare_decoding"]["median_ms"])
    assert training["target"] == 1.3
    memory = found["memory"]
    assert (memory["num_videos"], memory["warm_up"]) == (4, 2)
    assert memory["peak_growth_mb"] >= memory["growth_mb"]

    assert f"{video}: 64x48, 90 frames, 30 fps, h264" in page
    assert "Medians over 1 round(s) side by side" in page
    ratios = re.findall(r"ratio (\d+\.\d{3}), target at most (0\.25|1\.3): (met|missed)", page)
    told = [*(r["ratio"] for r in found["ten_clip_test"].values()), training["ratio"]]
    assert [ratio for ratio, _, _ in ratios] == [f"{ratio:.3f}" for ratio in told]
    assert [target for _, target, _ in ratios] == ["0.25", "0.25", "1.3"]
    assert "Memory, 4 test videos of 10 clips" in page
    assert "MB after 2 videos" in page


def test_a_video_is_made_where_none_is_given(few, monkeypatch):
    made = []

    def small(path):
        made.append(path)
        write_typical_video(path, num_frames=70, width=64, height=48)

    monkeypatch.setattr(_video, "write_typical_video", small)
    monkeypatch.setattr(data, "BACKENDS", ("pyav",))
    page = format_page(bench_data([], rounds=1))
    assert "made for this run: 64x48, 70 frames, 30 fps, h264" in page
    assert len(made) == 1
    assert not made[0].exists()


def test_a_back_end_that_refuses_a_video_is_named(few, tmp_path):
    path = tmp_path / "numbered.mp4"
    write_numbered_video(path, 40, pix_fmt="yuv444p")
    result = bench_data([str(path)], rounds=1)
    found = result["ten_clip_test"]
    assert "ratio" in found["pyav"]
    assert list(found["decord"]) == ["refused"]
    assert found["decord"]["refused"].startswith(f"{path}: decord cannot be relied on here: ")
    assert f"  not measured: {found['decord']['refused']}\n" in format_page(result)


def test_a_video_that_is_not_there(tmp_path):
    with pytest.raises(DecodeError, match=r"nowhere\.mp4"):
        bench_data([str(tmp_path / "nowhere.mp4")], rounds=1)


def test_bare_decoding_reads_the_frames_of_the_sample(video):
    """The denominator of the training ratio decodes what the sample decodes."""
    asked = {}

    def recording(name):
        def opened(path, backend="auto", **options):
            reader = open_video(path, backend=backend, **options)
            read = reader.frames_at

            def frames_at(indices):
                asked.setdefault(name, []).append(np.asarray(indices).tolist())
                return read(indices)

            reader.frames_at = frames_at
            return reader

        return opened

    records = records_of([video])
    options = {"clip": data._CLIP, "transform": TrainTransform(short_side_px=(32, 40), crop_px=32), "seed": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("video_gn.data.dataset.open_video", recording("sample"))
        samples = [TrainDataset(records, **options)[epoch, 0] for epoch in range(6)]
        patch.setattr(data, "open_video", recording("bare"))
        bare = [data._BareDecoding(records, **options)[epoch, 0] for epoch in range(6)]
    assert asked["sample"] == asked["bare"]
    assert len({tuple(row) for row in asked["bare"]}) > 1
    assert all(s.frames_VTCHW.shape == (1, 32, 3, 32, 32) for s in samples)
    assert all(s.frames_VTCHW.shape == (1, 32, 3, 48, 64) for s in bare)


def test_both_ways_of_the_ten_clips_decode_the_same_frames(video):
    indices_KT = data._test_indices(video, "pyav")
    assert indices_KT.shape == (10, 32)
    assert indices_KT[:, 0].tolist() == [9 * j for j in range(10)]
    with open_video(video) as reader:
        clock = data._Clock(reader)
        clips = torch.stack([reader.frames_at(row) for row in indices_KT])
        views = read_views(clock, indices_KT, lambda frames: frames.permute(0, 3, 1, 2)[None])
    assert torch.equal(views.permute(0, 1, 3, 4, 2), clips)
    assert clock.seconds > 0


def test_a_system_that_does_not_tell_its_memory(video, few, monkeypatch):
    monkeypatch.setattr(data, "resident_bytes", lambda: None)
    monkeypatch.setattr(data, "BACKENDS", ())
    result = bench_data([video], rounds=1)
    assert "not measured: this system has no /proc/self/status" in format_page(result)
    assert result["memory"]["growth_mb"] is None


def test_memory_is_counted_after_the_warm_up(video, monkeypatch):
    sizes = iter([100, 300, 200, 250, 500, 400])
    monkeypatch.setattr(data, "resident_bytes", lambda: next(sizes) * 10**6)
    monkeypatch.setattr(data, "_NUM_CLIPS", 1)
    with one_thread():
        found = data._memory([video], 6)
    assert found == {"num_videos": 6, "warm_up": 3, "growth_mb": 200.0, "peak_growth_mb": 300.0, "rss_mb": 200.0}
