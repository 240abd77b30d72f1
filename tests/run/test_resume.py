"""A run that is killed at any moment resumes from its last checkpoint, bit for bit."""

import os
import random
import re
import time

import pytest
import torch
from plain_resume import BATCHES, EPOCHS, assert_equals_the_whole_run, fit_words, steps_of, weights
from runs import run, start
from small import assert_same

from video_gn.run.metrics_file import read_metrics

KILLS = int(os.environ.get("VIDEO_GN_KILLS", "6"))


@pytest.fixture(scope="module")
def whole(tiny_videos, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    status, printed = run(fit_words(tiny_videos, path), path)
    assert status == 0, printed
    return path


def test_the_uninterrupted_run(whole):
    rows = read_metrics(whole / "run/metrics.csv")
    assert [row["step"] for row in rows] == list(range(1, EPOCHS * BATCHES + 1))
    validated = [row["step"] for row in rows if "val/top1" in row]
    assert validated == [BATCHES * e for e in range(1, EPOCHS + 1)]
    assert len(steps_of(whole)) == 1
    losses = [line.rsplit(" ", 1)[1] for line in steps_of(whole)[0][1]]
    assert [repr(row["train/loss"]) for row in rows] == losses


@pytest.mark.parametrize("validation", ["each epoch", "inside the epoch"])
def test_kills_at_random_moments(tiny_videos, tmp_path, whole, validation):
    """SIGKILL at random times, until the run has ended; every restart begins at the last checkpoint's step."""
    more = [] if validation == "each epoch" else ["--trainer.val_check_interval=2"]
    if more:
        whole = tmp_path / "whole"
        whole.mkdir()
        status, printed = run(fit_words(tiny_videos, whole, *more), whole)
        assert status == 0, printed
    words = fit_words(tiny_videos, tmp_path, *more, "--ckpt_path=last")
    rng = random.Random(0 if more else 1)
    last = tmp_path / "run/checkpoints/last.ckpt"
    log = tmp_path / "log.txt"
    for _ in range(KILLS):
        before = last.stat().st_mtime_ns if last.exists() else 0
        process = start(words, tmp_path, log)
        deadline = time.monotonic() + 120
        while (not last.exists() or last.stat().st_mtime_ns == before) and process.is_alive():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.002)
        time.sleep(rng.random() * 0.5)
        process.kill()
        process.join()
        if process.exitcode == 0:
            break
    assert "Error" not in log.read_text(), log.read_text()
    status, printed = run(words, tmp_path)
    assert status == 0, printed
    assert_equals_the_whole_run(tmp_path, whole)
    starts = steps_of(tmp_path)
    resumed = [int(n) for n in re.findall(r"checkpoint: \S+ \(step (\d+)\)", log.read_text())]
    assert [first for first, _ in starts if first > 0] == [n for n in resumed if n < EPOCHS * BATCHES]
    assert len([first for first, _ in starts if first == 0]) == 1, "a restart began at step 0"
    executed = sum(len(lines) for _, lines in starts)
    # Each kill may cost the steps since the last save (every 2 steps), and those under way.
    assert EPOCHS * BATCHES <= executed <= EPOCHS * BATCHES + 3 * (len(starts) - 1)


@pytest.mark.parametrize("stop_at", [1, 2, 4, 5, 6, 7, 10])
def test_stopping_by_steps_and_going_on(tiny_videos, tmp_path, whole, stop_at):
    """A run that ended at a step, inside an epoch or at its end, resumes like one that never stopped."""
    status, printed = run(
        fit_words(tiny_videos, tmp_path, "--trainer.max_epochs=-1", f"--trainer.max_steps={stop_at}"), tmp_path
    )
    assert status == 0, printed
    status, printed = run(fit_words(tiny_videos, tmp_path, "--ckpt_path=last"), tmp_path)
    assert status == 0, printed
    assert [first for first, _ in steps_of(tmp_path)] == [0, stop_at]
    assert_same(weights(tmp_path / "run/checkpoints/last.ckpt"), weights(whole / "run/checkpoints/last.ckpt"))
    assert "config differs" in printed
    assert "trainer.max_steps" in printed
    assert (tmp_path / "run/config.resume-001.yaml").is_file()


def test_a_finished_run_stays_as_it_is(tiny_videos, tmp_path):
    words = fit_words(tiny_videos, tmp_path, "--ckpt_path=last", "--trainer.max_epochs=1")
    status, printed = run(words, tmp_path)
    assert status == 0
    assert "no checkpoint yet" in printed
    metrics = (tmp_path / "run/metrics.csv").read_text()
    status, printed = run(words, tmp_path)
    assert status == 0, printed
    assert (tmp_path / "run/metrics.csv").read_text() == metrics


def test_accumulation_resumes_at_a_step(tiny_videos, tmp_path):
    more = ["--trainer.accumulate_grad_batches=2", "--trainer.max_epochs=2"]
    reference = tmp_path / "reference"
    reference.mkdir()
    status, printed = run(fit_words(tiny_videos, reference, *more), reference)
    assert status == 0, printed
    status, printed = run(
        fit_words(tiny_videos, tmp_path, *more, "--trainer.max_epochs=-1", "--trainer.max_steps=2"), tmp_path
    )
    assert status == 0, printed
    status, printed = run(fit_words(tiny_videos, tmp_path, *more, "--ckpt_path=last"), tmp_path)
    assert status == 0, printed
    assert_same(weights(tmp_path / "run/checkpoints/last.ckpt"), weights(reference / "run/checkpoints/last.ckpt"))
    assert (tmp_path / "run/metrics.csv").read_text() == (reference / "run/metrics.csv").read_text()


def test_what_comes_after_an_older_step_is_set_aside(tiny_videos, tmp_path):
    """Resuming from step 2, the kept steps 4 and 5 are another branch's: neither deleted nor resumed from."""
    keep = ["--checkpoint.keep_steps=2", "--trainer.max_epochs=1"]
    status, printed = run(fit_words(tiny_videos, tmp_path, *keep), tmp_path)
    assert status == 0, printed
    directory = tmp_path / "run/checkpoints"
    older = directory / "step-00000004.ckpt"
    status, printed = run(fit_words(tiny_videos, tmp_path, f"--ckpt_path={older}", "--trainer.max_epochs=2"), tmp_path)
    assert status == 0, printed
    assert (directory / "abandoned-00000005.ckpt").is_file()
    assert older.is_file()


def test_a_damaged_checkpoint_and_another_machine_are_named(tiny_videos, tmp_path, whole):
    """The run resumes from the newest whole checkpoint, and says where its arithmetic may differ."""
    keep = ["--checkpoint.keep_steps=2", "--trainer.max_epochs=1"]
    status, printed = run(fit_words(tiny_videos, tmp_path, *keep), tmp_path)
    assert status == 0, printed
    directory = tmp_path / "run/checkpoints"
    kept = directory / "step-00000004.ckpt"
    content = torch.load(kept, weights_only=True)
    content["video_gn"]["environment"]["threads"] = "99"
    torch.save(content, kept)
    for name in ("last.ckpt", "step-00000005.ckpt", "best.ckpt"):
        data = (directory / name).read_bytes()
        (directory / name).unlink()  # they are names of one file
        (directory / name).write_bytes(data[: len(data) // 2])
    status, printed = run(fit_words(tiny_videos, tmp_path, "--ckpt_path=last"), tmp_path)
    assert status == 0, printed
    assert f"Resuming from {kept} (step 4)" in printed
    assert "will not be the same bit for bit: threads: 99 there, 1 here" in printed
    assert [first for first, _ in steps_of(tmp_path)] == [0, 4]
    assert_same(weights(directory / "last.ckpt"), weights(whole / "run/checkpoints/last.ckpt"))
