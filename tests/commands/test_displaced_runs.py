"""A trained run stays what it is beside a trial, and after a training in its directory that came to nothing."""

import shutil
import signal

import pytest
from runs import TINY, run

from video_gn.run.directory import RunDirectory


@pytest.fixture(scope="module")
def trained(tiny_videos, tmp_path_factory):
    here = tmp_path_factory.mktemp("displaced")
    shutil.copytree(tiny_videos, here / "videos")
    for words in (["fit", *TINY, "--data.train=videos", "--trainer.max_epochs=1"], ["test"]):
        status, printed = run([*words, "--run_dir=runs/mine"], here)
        assert status == 0, printed
    return here


def tree(path):
    return {
        str(p.relative_to(path)): p.read_bytes()
        for p in path.rglob("*")
        if p.is_file() and not p.name.endswith(".lock")
    }


def without_failed(files):
    """All but what a training that failed has logged."""
    return {name: content for name, content in files.items() if not name.startswith("runs/mine/previous/")}


AGAIN = ["fit", "-c", "runs/mine/config.yaml", "--run_dir=runs/mine"]


@pytest.mark.parametrize("words", [[*AGAIN, "--model.schedule.warmup=5"], ["fit", "--ckpt_path=last"], ["test"]])
def test_a_trial_leaves_everything_alone(trained, words):
    before = tree(trained)
    status, printed = run([*words, "--run_dir=runs/mine", "--trainer.fast_dev_run=1"], trained, trained / "../log")
    assert status == 0, printed
    assert "a trial, of which nothing is kept; runs/mine is left alone" in printed
    assert "shortened" not in printed and " 1 steps" not in printed
    assert tree(trained) == before
    assert [path.name for path in (trained / "runs").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--trainer.callbacks+=runs.Fails"], 1),
        (
            ["--trainer.callbacks+=runs.Fails", f"--trainer.callbacks.number={int(signal.SIGTERM)}"],
            128 + signal.SIGTERM,
        ),
        (["--trainer.callbacks+=runs.Fails", f"--trainer.callbacks.number={int(signal.SIGINT)}"], 128 + signal.SIGINT),
        (["--trainer.callbacks+=runs.Crash"], 7),
    ],
)
def test_a_run_is_back_after_a_training_without_a_checkpoint(trained, more, expected):
    before = without_failed(tree(trained))
    status, printed = run([*AGAIN, *more], trained, trained / "../log")
    assert status == expected, printed
    assert "an earlier run of runs/mine now lies in runs/mine/previous/" in printed
    back = "runs/mine: no checkpoint was saved, so the earlier run is back in its place"
    if expected == 7:  # as with kill -9, nothing could be done
        assert back not in printed
        status, printed = run(["test", "--run_dir=runs/mine", "--trainer.fast_dev_run=1"], trained, trained / "../log")
        assert status == 0, printed
    assert back in printed
    assert without_failed(tree(trained)) == before


def test_every_command_brings_a_run_back_after_a_kill(trained):
    before = without_failed(tree(trained))
    mine = trained / "runs/mine"
    video = next(path for path in (trained / "videos").rglob("*") if path.is_file())
    for words in (
        ["report", "runs/mine"],
        ["infer", str(video), "--checkpoint=runs/mine", "--num_workers=0"],
        ["infer", str(video), "--checkpoint=runs/mine/checkpoints/best.ckpt", "--num_workers=0"],
        ["weights", "inspect", "runs/mine"],
    ):
        RunDirectory(mine).set_aside()
        assert not (mine / "checkpoints").exists()
        status, printed = run(words, trained, trained / "../log")
        assert status == 0, printed
        assert "the earlier run is back in its place" in printed
        after = without_failed(tree(trained))
        assert {**after, "runs/mine/report.html": before["runs/mine/report.html"]} == before


def test_a_monitor_that_cannot_exist_is_refused_before_anything_is_moved(trained):
    before = tree(trained)
    status, printed = run([*AGAIN, "--checkpoint.monitor=val/top5"], trained, trained / "../log")
    assert status == 2
    assert "checkpoint.monitor must be val/top1 for 3 classes, got 'val/top5', which needs 5. Set it so." in printed
    assert "an earlier run" not in printed
    assert tree(trained) == before
