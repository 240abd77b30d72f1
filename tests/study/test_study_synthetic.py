"""A study that makes its own videos, with commands that only write what a run leaves."""

import functools
from concurrent.futures import ThreadPoolExecutor

import pytest
from fake_study import Commands, write_study

from video_gn.errors import ConfigError
from video_gn.study import CellDirectory, read_study, run_study

ONE = {"train_per_class": 1, "val_per_class": 1, "seed": 3}


@pytest.fixture
def write(tmp_path):
    return functools.partial(write_study, tmp_path, synthetic=ONE)


def test_whose_training_videos_they_are(write, tmp_path):
    cell = read_study(write()).cells[0]
    assert cell.settings["data.train"] == "{out}/synthetic" and cell.origin["synthetic.seed"] == 3
    given = read_study(write(), ["--data.train=mine"])
    assert given.resolved(given.cells[0])["data.train"] == "mine" and not given.cells[0].origin
    run_study(tmp_path / "s.yaml", out=tmp_path / "out", words=given.words, cell="0", runner=Commands())
    study = read_study(tmp_path / "s.yaml")
    assert CellDirectory(tmp_path / "out", study.cells[0]).state(study) == "done", "as the command line had it"
    study = read_study(write(pretrain=None, synthetic={"val_per_class": 7}))
    assert study.synthetic == {"train_per_class": 40, "val_per_class": 7, "seed": 0}, "as of data synth"
    study = read_study(write(pretrain={"settings": {}}), ["--data.train=mine"])
    assert study.pretrain.cells[0].settings["data.train"] == "{out}/synthetic"
    assert study.resolved(study.cells[0])["data.train"] == "mine"
    assert study.cells[0].origin["pretrain.synthetic.seed"] == 3
    study = read_study(write(pretrain={"settings": {"data.train": "others"}}))
    assert study.pretrain.cells[0].settings["data.train"] == "others" and not study.pretrain.cells[0].origin


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"synthetic": 3}, "synthetic must be options of `video-gn data synth`, train_per_class, .*, seed, got 3"),
        ({"synthetic": {"frames": 3}}, "synthetic must be options of .* got {'frames': 3}"),
        ({"synthetic": {"val_per_class": 0}}, r"synthetic\.val_per_class must be a whole number of at least 1, got 0"),
        ({"synthetic": {"seed": -1}}, r"synthetic\.seed must be a whole number of at least 0, got -1"),
        ({"settings": {"data.train": "x"}}, r"settings\.data\.train is set by the study itself"),
    ],
)  # fmt: skip
def test_words_that_do_not_fit(write, changes, match):
    with pytest.raises(ConfigError, match=match):
        read_study(write(**changes))


def test_parts_that_need_them_at_once(write, tmp_path, capsys):
    path, out, commands = write(), tmp_path / "out", Commands()
    run_study(path, out=out, action="list")
    assert not out.exists()
    with ThreadPoolExecutor(4) as pool:
        parts = [pool.submit(run_study, path, out=out, cell=f"{i}/4", runner=commands) for i in range(4)]
        assert [part.result() for part in parts] == [0] * 4
    videos = sorted(out.glob("synthetic/*/*/*.mp4"))
    assert len(videos) == 16 and len(commands.calls) == 16
    assert commands.words["fit", "gn_16x2_b2_s1"]["data.train"] == str(out / "synthetic")
    out.rename(tmp_path / "moved")
    study = read_study(path)
    assert {CellDirectory(tmp_path / "moved", cell).state(study) for cell in study.cells} == {"done"}
    changed = write(synthetic=ONE | {"seed": 4})
    with pytest.raises(ConfigError, match=r"bn_16x2_b8_s0, was started with other settings: synthetic\.seed: 3 -> 4"):
        run_study(changed, out=tmp_path / "moved", runner=commands)
    (tmp_path / "moved/cells").rename(tmp_path / "cells")
    assert run_study(changed, out=tmp_path / "moved", cell="0/4", runner=commands) == 1, "the videos are others"
    assert len(commands.calls) == 16
