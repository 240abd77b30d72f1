"""A training that is asked to stop: one checkpoint at the step's end, and the end of one that never stopped."""

import os
import random
import re
import signal

import pytest
import torch
from resuming import (
    STEPS,
    assert_equal_end,
    assert_resumes_like,
    lines_of,
    steps_done,
    stop,
    whole_training,
    words,
)
from runs import TINY, free_port, run, runs_of, start

STOPS = int(os.environ.get("VIDEO_GN_KILLS", "3"))
# What a stopped training tells, once.
TIMES = r"^SIG(?:TERM|USR1): \d+\.\d\d s to the step's end, \d+\.\d\d s to save$"


@pytest.fixture(scope="module")
def whole(tiny_videos, tmp_path_factory):
    return whole_training(tiny_videos, tmp_path_factory)


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
def test_where_no_checkpoint_may_be_taken(tiny_videos, tmp_path, whole, pattern, after, saved):
    hooks, log = tmp_path / "hooks.txt", tmp_path / "log.txt"
    process = start(words(tiny_videos, tmp_path, pause=0.05), tmp_path, log)
    assert stop(process, hooks, log, pattern, 1, signal.SIGTERM) == 143
    assert re.search(rf"SIGTERM: stopped after step {after}\. \S+last\.ckpt is of step {saved};", log.read_text())
    assert len(re.findall(TIMES, log.read_text(), re.MULTILINE)) == 1
    status, printed = run(words(tiny_videos, tmp_path, "--ckpt_path=last"), tmp_path)
    assert status == 0, printed
    (_, first), (begin, rest) = runs_of(tmp_path)
    assert (begin, steps_done(rest)) == (saved, list(range(saved, STEPS)))
    assert_resumes_like(first, runs_of(whole)[0][1], 0)
    assert_resumes_like(rest, runs_of(whole)[0][1], begin)
    assert_equal_end(tmp_path, whole)


@pytest.mark.slow
def test_at_any_moment_again_and_again(tiny_videos, tmp_path, whole):
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
        assert_resumes_like(lines, runs_of(whole)[0][1], begin)
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
