import json

import numpy as np
import pytest
import torch
from media import write_numbered_video

from video_gn.__main__ import main
from video_gn.bench import infer
from video_gn.bench.infer import CONTENDERS, OURS, InferSetup, Reading, bench_infer, format_page, random_weights
from video_gn.errors import ConfigError

# 40 px of 48 x 56: resized, and cropped with a pixel more on one side.
TINY = InferSetup("i3d", num_videos=1, num_clips=2, frames=8, size=40, width=4)

LIGHT = InferSetup("x3d_s", num_videos=1, num_clips=2, frames=13, size=160, width=4)  # its head has no smaller window


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "a.mp4"
    write_numbered_video(path, 70, size=(56, 48))
    return str(path)


@pytest.mark.parametrize("setup", [TINY, pytest.param(LIGHT, marks=pytest.mark.slow)])
def test_every_contender_gives_the_same_scores(setup, video, tmp_path, monkeypatch):
    monkeypatch.setattr(infer, "keep_freed_memory", lambda: None)  # it is for the whole process
    job = Reading(video, setup)
    if setup is TINY:
        assert job.indices_KT.tolist() == [list(range(0, 57, 8)), list(range(13, 70, 8))]
    torch.save({"model_state": random_weights(setup, job)}, tmp_path / "weights.pyth")
    found = {}
    for name, make in CONTENDERS.items():
        contender = make(setup, [job], str(tmp_path / "weights.pyth"))
        [found[name]] = contender(True)
        assert contender(False) is None
    assert found[OURS].shape == (2, 400)
    assert found[OURS].max() > 0.02  # logits that differ: the mean is 0.0025
    assert np.abs(found[OURS][0] - found[OURS][1]).max() > 1e-3
    for scores_KY in found.values():
        # Of weights of one seed and a small net: rounding, and 6 digits of ours.
        np.testing.assert_allclose(scores_KY, found[OURS], rtol=0, atol=5e-6)


@pytest.mark.slow
def test_the_page_and_the_figures(video):
    found = bench_infer(TINY, videos=[video], rounds=1)
    page = format_page(found)
    assert json.loads(json.dumps(found)) == found
    medians = [found["contenders"][name]["median_ms"] for name in CONTENDERS]
    assert list(found["ratios"].values()) == [medians[0] / medians[2], medians[1] / medians[2]]
    assert found["same_scores"] and "are the same to 1e-05" in page
    assert f"as it comes / video_gn: {medians[0] / medians[2]:.2f}, target at least 4: " in page
    assert "NOT THE SAME" in format_page(found | {"same_scores": False})


def test_bad_input(video, tmp_path):
    write_numbered_video(tmp_path / "short.mp4", 56, size=(56, 48))
    with pytest.raises(ConfigError, match=r"videos must have at least 57 frames, got 56 in .*short\.mp4"):
        bench_infer(TINY, videos=[str(tmp_path / "short.mp4")], rounds=1)


def test_the_options_of_the_command_line(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(infer, "bench_infer", lambda setup, **more: seen.append((setup, more)))
    monkeypatch.setattr(infer, "format_page", lambda result: "page")
    assert main(["bench", "infer", "a.mp4", "--frames=32", "--num_clips=3", "--rounds=2"]) == 0
    setup = InferSetup("i3d", num_videos=3, num_clips=3, frames=32, size=224, width=64)
    assert seen == [(setup, {"videos": ["a.mp4"], "rounds": 2, "engines": False})]
    assert (setup.clip.num_frames, setup.clip.stride) == (32, 2)
    assert main(["bench", "infer", "a.mp4", "--network=x3d_s"]) == 0
    assert seen[1][0] == InferSetup("x3d_s", num_videos=3, num_clips=10, frames=13, size=160, width=12)
    assert capsys.readouterr().out == "pagepage"
