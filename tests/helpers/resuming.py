"""A training with everything switched on, to kill or stop: its options, and what must be equal at its end."""

import contextlib
import os
import re
import time

import torch
from runs import TINY, children, run
from small import assert_same

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
# Weights that bring a mean of their own, which a resumed run must have too. Filled in by `whole_training`.
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


def whole_training(tiny_videos, tmp_path_factory):
    """The training of `words` without a kill; call it before `words`."""
    here = tmp_path_factory.mktemp("start")
    one = ["--model.mean=[0.3, 0.5, 0.7]", "--trainer.accumulate_grad_batches=1", "--trainer.max_epochs=1"]
    status, printed = run(words(tiny_videos, here, *one, "--trainer.limit_train_batches=4"), here)
    assert status == 0, printed
    START[:] = [f"--model.weights={here / 'run/checkpoints/last.ckpt'}"]
    path = tmp_path_factory.mktemp("whole")
    status, printed = run(words(tiny_videos, path), path)
    assert status == 0, printed
    return path


def assert_resumes_like(lines, wanted, first_step):
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
