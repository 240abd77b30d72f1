"""A training with everything switched on, killed at any moment: it ends like one that never stopped."""

import os
import random
import re
import signal
import time

import pytest
import torch
from resuming import (
    BATCHES,
    EPOCHS,
    STATE,
    STEPS,
    assert_equal_end,
    assert_resumes_like,
    steps_done,
    stop,
    whole_training,
    without_saves,
    words,
)
from runs import run, runs_of, start
from small import assert_same

from video_gn.run.metrics_file import read_metrics

KILLS = int(os.environ.get("VIDEO_GN_KILLS", "6"))


@pytest.fixture(scope="module")
def whole(tiny_videos, tmp_path_factory):
    return whole_training(tiny_videos, tmp_path_factory)


def test_the_uninterrupted_run(whole):
    (first, lines), *others = runs_of(whole)
    assert (first, others) == (0, [])
    assert [int(line.split()[1]) for line in lines if line.startswith("optimizer")] == list(range(STEPS))
    assert sum(line.startswith("batch end") for line in lines) == EPOCHS * BATCHES
    assert [line for line in lines if line.startswith("validation at")] == [
        f"validation at {4 * e + 2}" for e in range(EPOCHS)
    ]
    saved = [int(line.split()[1]) for line in lines if line.startswith("save")]
    assert sorted(set(saved)) == list(range(1, STEPS + 1))
    rows = read_metrics(whole / "run/metrics.csv")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    content = torch.load(whole / "run/checkpoints/last.ckpt", weights_only=True)
    name = "net.blocks.0.conv.weight"
    assert not torch.equal(content["state_dict"][name], content["current_model_state"][name])


@pytest.mark.parametrize(
    "moment", ["save", *(pytest.param(m, marks=pytest.mark.slow) for m in ("window", "validation", "any"))]
)
def test_kills_inside(tiny_videos, tmp_path, whole, moment):
    """SIGKILL from outside, inside an accumulation window, a save, a validation, or anywhere."""
    rng = random.Random(moment)
    patterns = {"window": r"^batch end [024] ", "save": r"^save ", "validation": r"^validation batch", "any": r"^"}
    hooks, log = tmp_path / "hooks.txt", tmp_path / "log.txt"
    killed = 0
    for _ in range(-(-KILLS // 4)):
        before = len(hooks.read_text().splitlines()) if hooks.exists() else 0
        process = start(words(tiny_videos, tmp_path, "--ckpt_path=last", pause=0.05), tmp_path, log)
        nth, deadline = rng.randint(2, 4), time.monotonic() + 120
        while process.is_alive():
            assert time.monotonic() < deadline, log.read_text()
            lines = hooks.read_text().splitlines()[before:] if hooks.exists() else []
            if sum(re.search(patterns[moment], line) is not None for line in lines) >= nth:
                break
            time.sleep(0.002)
        time.sleep(rng.random() * 0.06)
        process.kill()
        process.join()
        killed += process.exitcode != 0
    assert killed > 0
    assert "Error" not in log.read_text(), log.read_text()
    status, printed = run(words(tiny_videos, tmp_path, "--ckpt_path=last"), tmp_path)
    assert status == 0, printed
    wanted = runs_of(whole)[0][1]
    starts = runs_of(tmp_path)
    resumed = [int(n) for n in re.findall(r"checkpoint: \S+ \(step (\d+)\)", log.read_text())]
    assert [first for first, _ in starts if first > 0] == [n for n in resumed if 0 < n < STEPS]
    assert sum(first == 0 for first, _ in starts) == 1 + (killed + 1 - len(resumed) - 1 if len(resumed) < killed else 0)
    for first, lines in starts:
        assert_resumes_like(lines, wanted, first)
    assert_equal_end(tmp_path, whole)


@pytest.mark.parametrize("step", [2, 3, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 4, 8))])
def test_going_on_from_any_kept_step(tiny_videos, tmp_path, whole, step):
    """From inside an epoch, after its validation, before its end, and from its end."""
    checkpoint = whole / f"run/checkpoints/step-{step:08d}.ckpt"
    status, printed = run(words(tiny_videos, tmp_path, f"--ckpt_path={checkpoint}"), tmp_path)
    assert status == 0, printed
    ((first, lines),) = runs_of(tmp_path)
    assert first == step
    assert_resumes_like(lines, runs_of(whole)[0][1], step)
    ours, wanted = (torch.load(p / "run/checkpoints/last.ckpt", weights_only=True) for p in (tmp_path, whole))
    for key in STATE:
        assert_same(ours[key], wanted[key])


# ---- asked to stop -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGUSR1, signal.SIGINT))],
    ids=lambda n: n.name,
)
def test_asked_to_stop_it_finishes_the_step_and_saves(tiny_videos, tmp_path, whole, number):
    """Inside an accumulation window, with the workers signalled too, as clusters do: nothing is lost or done twice."""
    hooks, log = tmp_path / "hooks.txt", tmp_path / "log.txt"
    process = start(words(tiny_videos, tmp_path, "--checkpoint.every_n_steps=1000", pause=0.05), tmp_path, log)
    assert stop(process, hooks, log, r"^batch end 4 ", 1, number, everybody=True) == 128 + number
    printed = log.read_text()
    assert f"{number.name}: stopping at the end of this step" in printed
    assert re.search(
        rf"video-gn: {number.name}: stopped after step 3\. \S+last\.ckpt is of step 3; --ckpt_path last", printed
    )
    assert "Traceback" not in printed
    status, printed = run(words(tiny_videos, tmp_path, "--ckpt_path=last"), tmp_path)
    assert status == 0, printed
    (_, first), (begin, rest) = runs_of(tmp_path)
    assert begin == 3
    assert steps_done(first) == [0, 1, 2] and steps_done(rest) == list(range(3, STEPS))
    assert without_saves(first) == without_saves(runs_of(whole)[0][1])[: len(without_saves(first))]
    assert_resumes_like(rest, runs_of(whole)[0][1], 3)
    assert_equal_end(tmp_path, whole)
