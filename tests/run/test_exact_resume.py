"""A training with everything switched on, killed at any moment: it ends like one that never stopped."""

import contextlib
import os
import random
import re
import signal
import time

import pytest
import torch
from runs import TINY, children, run, runs_of, start
from small import assert_same

from video_gn.run.metrics_file import read_metrics

KILLS = int(os.environ.get("VIDEO_GN_KILLS", "6"))
EPOCHS, BATCHES = 4, 7  # windows of 2, 2, 2 and 1 batches: 4 optimizer steps an epoch
STEPS = EPOCHS * 4
STATE = (
    "state_dict",
    "current_model_state",
    "averaging_state",
    "averaged_running_statistics",
    "optimizer_states",
    "lr_schedulers",
)
# Weights that bring a mean of their own, which a resumed run must have too. Filled in by the fixture.
START = []


def words(videos, path, *more, pause=0.0):
    """Dropout, mixup, averaging, precise BN, accumulation with a short last window, validation inside, two workers."""
    return [
        "fit",
        *TINY,
        f"--data.train={videos}",
        f"--run_dir={path / 'run'}",
        # Beside the running statistics, its limits' warm-up is a state of the norms: it ends in the second epoch.
        "--model.net.norm=batch_renorm",
        "--model.net.num_groups=null",
        "--model.net.norm_options={r_max: 1.5, d_max: 0.5, warmup_start_steps: 4, warmup_steps: 8}",
        "--model.net.dropout=0.3",
        "--model.mixing.mixup_alpha=0.4",
        "--model.mixing.label_smoothing=0.1",
        "--model.optimizer.momentum=0.9",
        "--model.schedule.name=cosine",
        "--model.schedule.unit=step",
        "--model.schedule.warmup=3",
        "--model.net.drop_path=0.1",
        *START,
        "--precise_bn.num_batches=2",
        "--averaging.kind=ema",
        "--averaging.decay=0.8",
        "--averaging.start_step=2",
        "--data.augment.brightness=0.4",
        "--data.augment.erase=0.3",
        "--data.batch_size=2",
        "--data.loader.num_workers=2",
        f"--trainer.max_epochs={EPOCHS}",
        f"--trainer.limit_train_batches={BATCHES}",
        "--trainer.limit_val_batches=2",
        "--trainer.accumulate_grad_batches=2",
        "--trainer.val_check_interval=4",
        "--trainer.gradient_clip_val=5",
        "--checkpoint.every_n_steps=1",
        "--checkpoint.keep_steps=30",
        "--trainer.callbacks+=runs.HookLog",
        f"--trainer.callbacks.path={path / 'hooks.txt'}",
        f"--trainer.callbacks.pause={pause}",
        *more,
    ]


@pytest.fixture(scope="module")
def whole(tiny_videos, tmp_path_factory):
    here = tmp_path_factory.mktemp("start")
    one = ["--model.mean=[0.3, 0.5, 0.7]", "--trainer.accumulate_grad_batches=1", "--trainer.max_epochs=1"]
    status, printed = run(words(tiny_videos, here, *one, "--trainer.limit_train_batches=4"), here)
    assert status == 0, printed
    START[:] = [f"--model.weights={here / 'run/checkpoints/last.ckpt'}"]
    path = tmp_path_factory.mktemp("whole")
    status, printed = run(words(tiny_videos, path), path)
    assert status == 0, printed
    return path


def assert_goes_on_like(lines, wanted, first_step):
    """A restart's hooks are the whole run's from its checkpoint on, but for the epoch's start, which comes again."""
    saved = [i for i, line in enumerate(wanted) if line == f"save {first_step}"]
    rest = wanted[saved[-1] + 1 :] if saved else wanted
    if first_step and lines and lines[0].startswith("epoch ") and not rest[0].startswith("epoch "):
        lines = lines[1:]
    assert lines == rest[: len(lines)]


def assert_equal_end(path, whole):
    for name in ("last", "best"):
        ours, wanted = (torch.load(p / f"run/checkpoints/{name}.ckpt", weights_only=True) for p in (path, whole))
        assert ours.keys() == wanted.keys()
        for key in STATE:
            assert_same(ours[key], wanted[key])
        assert ours["global_step"] == wanted["global_step"]
    assert (path / "run/metrics.csv").read_text() == (whole / "run/metrics.csv").read_text()
    assert not list((path / "run/checkpoints").glob(".*"))


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
        assert_goes_on_like(lines, wanted, first)
    assert_equal_end(tmp_path, whole)


@pytest.mark.parametrize("step", [2, 3, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 4, 8))])
def test_going_on_from_any_kept_step(tiny_videos, tmp_path, whole, step):
    """From inside an epoch, after its validation, before its end, and from its end."""
    checkpoint = whole / f"run/checkpoints/step-{step:08d}.ckpt"
    status, printed = run(words(tiny_videos, tmp_path, f"--ckpt_path={checkpoint}"), tmp_path)
    assert status == 0, printed
    ((first, lines),) = runs_of(tmp_path)
    assert first == step
    assert_goes_on_like(lines, runs_of(whole)[0][1], step)
    ours, wanted = (torch.load(p / "run/checkpoints/last.ckpt", weights_only=True) for p in (tmp_path, whole))
    for key in STATE:
        assert_same(ours[key], wanted[key])


# ---- asked to stop -----------------------------------------------------------------------------


def lines_of(path):
    return path.read_text().splitlines() if path.exists() else []


def stop(process, hooks, log, pattern, nth, number, *, everybody=False, after=0.0):
    """Wait for the nth line of a kind, then send a signal; to all of its processes where asked."""
    before, deadline = len(lines_of(hooks)), time.monotonic() + 120
    while process.is_alive():
        assert time.monotonic() < deadline, log.read_text()
        if sum(re.search(pattern, line) is not None for line in lines_of(hooks)[before:]) >= nth:
            break
        time.sleep(0.002)
    time.sleep(after)
    for pid in [*(children(process.pid) if everybody else []), process.pid]:
        with contextlib.suppress(ProcessLookupError):  # it has come to its end
            os.kill(pid, number)
    process.join(120)
    assert process.exitcode is not None, log.read_text()
    return process.exitcode


def without_saves(lines):
    return [line for line in lines if not line.startswith("save ")]


def steps_done(lines):
    return [int(line.split()[1]) for line in lines if line.startswith("optimizer ")]


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
    assert_goes_on_like(rest, runs_of(whole)[0][1], 3)
    assert_equal_end(tmp_path, whole)
