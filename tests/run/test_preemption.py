"""A training that is asked to stop: one checkpoint at the step's end, and the end of one that never stopped."""

import multiprocessing
import os
import random
import re
import signal
import subprocess
import time

import pytest
import torch
from runs import TINY, free_port, run, start
from test_exact_resume import (  # noqa: F401 - whole is a fixture
    STEPS,
    assert_equal_end,
    assert_goes_on_like,
    lines_of,
    runs_of,
    steps_done,
    stop,
    whole,
    words,
)

from video_gn.errors import StoppedError
from video_gn.run import signals

STOPS = int(os.environ.get("VIDEO_GN_KILLS", "3"))
# What a stopped training tells, once.
TIMES = r"^SIG(?:TERM|USR1): \d+\.\d\d s to the step's end, \d+\.\d\d s to save$"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "after", "saved"),
    [
        # A checkpoint between a step and its validation would lose the validation.
        (r"^batch end 2 ", 2, 1),
        (r"^validation batch 0", 2, 1),
        # The epoch's own end is waited for.
        (r"^batch end 6 ", 4, 4),
    ],
    ids=["before a validation", "in a validation", "at an epoch's end"],
)
def test_where_no_checkpoint_may_be_taken(tiny_videos, tmp_path, whole, pattern, after, saved):  # noqa: F811
    hooks, log = tmp_path / "hooks.txt", tmp_path / "log.txt"
    process = start(words(tiny_videos, tmp_path, pause=0.05), tmp_path, log)
    assert stop(process, hooks, log, pattern, 1, signal.SIGTERM) == 143
    assert re.search(rf"SIGTERM: stopped after step {after}\. \S+last\.ckpt is of step {saved};", log.read_text())
    assert len(re.findall(TIMES, log.read_text(), re.MULTILINE)) == 1
    status, printed = run(words(tiny_videos, tmp_path, "--ckpt_path=last"), tmp_path)
    assert status == 0, printed
    (_, first), (begin, rest) = runs_of(tmp_path)
    assert (begin, steps_done(rest)) == (saved, list(range(saved, STEPS)))
    assert_goes_on_like(first, runs_of(whole)[0][1], 0)
    assert_goes_on_like(rest, runs_of(whole)[0][1], begin)
    assert_equal_end(tmp_path, whole)


@pytest.mark.slow
def test_at_any_moment_again_and_again(tiny_videos, tmp_path, whole):  # noqa: F811
    rng = random.Random(0)
    hooks, log = tmp_path / "hooks.txt", tmp_path / "log.txt"
    stopped = 0
    for _ in range(STOPS):
        process = start(words(tiny_videos, tmp_path, "--ckpt_path=last", pause=0.03), tmp_path, log)
        number = rng.choice([signal.SIGTERM, signal.SIGUSR1])
        status = stop(process, hooks, log, r"^", rng.randint(1, 12), number, everybody=True, after=rng.random() * 0.06)
        assert status in (0, 128 + number), log.read_text()
        stopped += status != 0
    assert stopped > 0
    status, printed = run(words(tiny_videos, tmp_path, "--ckpt_path=last"), tmp_path)
    assert status == 0, printed
    assert "Traceback" not in log.read_text()
    for begin, lines in runs_of(tmp_path):
        assert_goes_on_like(lines, runs_of(whole)[0][1], begin)
    assert_equal_end(tmp_path, whole)


@pytest.mark.slow
def test_all_processes_stop_at_the_same_step(tiny_videos, tmp_path):
    """Two processes, the signal to one alone, whichever it is: both have done the same steps, and one file says so."""
    for rank, number in ((1, signal.SIGTERM), (0, signal.SIGUSR1)):
        here = tmp_path / str(rank)
        here.mkdir()
        processes, port = [], free_port()
        for r in range(2):
            plain = [*TINY, f"--data.train={tiny_videos}", f"--run_dir={here / 'run'}", "--trainer.max_epochs=30"]
            plain += ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.limit_val_batches=0"]
            plain += ["--checkpoint.every_n_steps=1000", "--data.loader.num_workers=1"]
            plain += ["--trainer.callbacks+=runs.HookLog", f"--trainer.callbacks.path={here / f'hooks-{r}.txt'}"]
            plain += [f"--trainer.callbacks.pause={0.02 + 0.05 * r}"]
            launch = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
            launch |= {"NODE_RANK": "0", "LOCAL_RANK": str(r)}
            processes.append(start(["fit", *plain], here, here / f"log-{r}.txt", **launch))
        log = here / f"log-{rank}.txt"
        assert stop(processes[rank], here / f"hooks-{rank}.txt", log, r"^batch end", 4, number) == 128 + number
        processes[1 - rank].join(60)
        assert processes[1 - rank].exitcode == 128 + number, (here / f"log-{1 - rank}.txt").read_text()
        done = [steps_done(lines_of(here / f"hooks-{r}.txt")) for r in range(2)]
        assert done[0] == done[1] and len(done[0]) >= 4
        content = torch.load(here / "run/checkpoints/last.ckpt", weights_only=True)
        assert content["global_step"] == len(done[0])
        told = [len(re.findall(TIMES, (here / f"log-{r}.txt").read_text(), re.MULTILINE)) for r in range(2)]
        assert told == [1, 0]


# ---- the parts -----------------------------------------------------------------------------------


def test_outside_of_a_training_the_signal_ends_it_where_it_is():
    flag = signals.StopFlag()
    before = [signal.getsignal(n) for n in signals.SIGNALS]
    with flag.installed(), pytest.raises(StoppedError, match="SIGUSR1: stopped") as found:
        signal.raise_signal(signal.SIGUSR1)
    assert found.value.status == 138
    assert [signal.getsignal(n) for n in signals.SIGNALS] == before


def test_the_first_signal_is_the_one_that_is_waited_for():
    flag = signals.StopFlag()
    with flag.installed(), flag.waiting("step"):
        before = time.monotonic()
        signal.raise_signal(signal.SIGUSR1)
        first = flag.since_seconds
        signal.raise_signal(signal.SIGTERM)
        assert flag.number == signal.SIGTERM
    assert before <= first == flag.since_seconds <= time.monotonic()


def test_ctrl_c_twice_is_at_once(capfd):
    flag = signals.StopFlag()
    with flag.installed(), flag.waiting("step"):
        signal.raise_signal(signal.SIGINT)
        assert flag.number == signal.SIGINT
        with pytest.raises(StoppedError, match="SIGINT: stopped"):
            signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == "SIGINT: stopping at the end of this step (once more: at once)\n"


def test_a_worker_ignores_signals_and_can_be_ended_all_the_same(tmp_path):
    context = multiprocessing.get_context("fork")

    def work():
        signals.ignore_in_worker(0)
        (tmp_path / "ready").touch()
        time.sleep(60)

    with signals.held_back():
        process = context.Process(target=work)
        process.start()
        subprocess.run(["kill", "-TERM", str(process.pid)], check=True)  # before it is ready: it waits
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    # From somebody else than its parent, as a cluster sends them.
    subprocess.run(["bash", "-c", f"for s in TERM USR1 INT; do kill -$s {process.pid}; done"], check=True)
    time.sleep(0.2)
    assert process.is_alive()
    process.terminate()
    process.join(10)
    assert process.exitcode == 0
