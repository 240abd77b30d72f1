"""Kills of any process of a job at any moment: it goes on each time, and the end is that of an undisturbed training."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from clusters import ENDED, EVERY_STEPS, KILLS, assert_equal_end, read, words

pytestmark = [pytest.mark.slow, pytest.mark.needs_slurm, pytest.mark.timeout(max(900, 180 * KILLS))]

KILLS_OF_A_TRAINING = 5


def pids_of(path):
    """srun, the processes that it has started on both nodes, and their loading workers."""
    pattern = f"video-gn fit .*{path}/run"
    found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False).stdout
    return [int(pid) for pid in found.split() if not is_shepherd(pid)]


def is_shepherd(pid):
    """srun's own child, which does nothing while its parent lives."""
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].partition(") ")
        return name == "srun" and Path(f"/proc/{rest.split()[1]}/comm").read_text() == "srun\n"
    except (FileNotFoundError, ProcessLookupError):
        return True  # gone


def is_over(cluster, job):
    return cluster.show(job)["JobState"] in ENDED


def wait_until(cluster, job, condition, seconds=180):
    """Returns whether it came to be before the job's end."""
    deadline = time.monotonic() + seconds
    while not condition():
        if is_over(cluster, job):
            return False
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return True


def num_steps_told(path):
    return sum(line.startswith("step ") for line in read(path / "steps.txt").splitlines())


def kill_one(cluster, job, path, rng, *, late):
    """Kill a process of the present start: while it begins, or after some steps.

    Returns:
        Whether there was one.
    """
    if late or rng.random() < 0.75:
        # Late: the step after a checkpoint has been told, and so the checkpoint is there.
        steps = rng.randint(EVERY_STEPS + 1, EVERY_STEPS + 2) if late else rng.randint(1, EVERY_STEPS + 2)
        wanted = num_steps_told(path) + 2 * steps  # by each of two processes
        if not wait_until(cluster, job, lambda: num_steps_told(path) >= wanted):
            return False
        time.sleep(0.3 * rng.random())
    else:
        time.sleep(5 * rng.random())
    if not wait_until(cluster, job, lambda: pids_of(path)):
        return False
    try:
        os.kill(rng.choice(pids_of(path)), signal.SIGKILL)
    except (IndexError, ProcessLookupError):
        return False
    return True


def train_with_kills(cluster, videos, path, rng, num_kills):
    """Returns how many there were."""
    job = cluster.submit(path, *words(videos, path))
    last, done, fruitless, seen = path / "run/checkpoints/last.ckpt", 0, 0, None
    for number in range(num_kills):
        if not wait_until(cluster, job, lambda n=number: f"start number {n + 1}\n" in read(path / "slurm.log")):
            break
        # The script gives up after three starts without a new checkpoint.
        if not kill_one(cluster, job, path, rng, late=fruitless >= 2):
            break
        done += 1
        saved = last.stat().st_mtime_ns if last.exists() else None
        fruitless, seen = (fruitless + 1 if saved == seen else 0), saved
    found = cluster.wait(job, *ENDED)
    printed = read(path / "slurm.log")
    assert found["JobState"] == "COMPLETED", printed
    # A kill in the last moment may find nothing left to do.
    assert int(found["Restarts"]) in (done, done - 1), printed
    return done


def test_kills_of_any_process_at_any_moment(cluster, whole, tiny_videos, tmp_path):
    rng, left = random.Random(KILLS), KILLS
    while left > 0:
        path = tmp_path / str(left)
        path.mkdir()
        left -= train_with_kills(cluster, tiny_videos, path, rng, min(left, KILLS_OF_A_TRAINING))
        assert_equal_end(path, whole)
        begins = [int(line.split()[1]) for line in read(path / "steps.txt").splitlines() if line.startswith("start")]
        assert all(begin % EVERY_STEPS == 0 for begin in begins) and begins == sorted(begins)
        assert "without a new checkpoint)" in read(path / "slurm.log")
        # Also what was done twice was the same: the videos of each step, and the losses to the last digit.
        told, wanted = (
            {line for line in read(p / "steps.txt").splitlines() if line.startswith("step")} for p in (path, whole)
        )
        assert told == wanted
