"""Trainings on a real Slurm cluster of two nodes: to their end, and through what clusters do to jobs."""

import re

import pytest
import torch
from clusters import (
    BATCHES,
    ENDED,
    EVERY_STEPS,
    FULL,
    STEPS,
    assert_equal_end,
    read,
    starts_of,
    wait_for,
    wait_for_step,
    words,
)

pytestmark = [pytest.mark.slow, pytest.mark.needs_slurm, pytest.mark.timeout(900)]


def test_a_job_runs_to_its_end(whole):
    assert starts_of(whole) == [(0, list(range(1, STEPS + 1)))]
    assert re.search(r"job \d+ on node\[1-2\]: 2 processes, start number 1", read(whole / "slurm.log"))


# How the job is stopped, to which processes its signals go, how workers are started, and which process lags behind.
STOPS = [
    pytest.param("preemption", "cluster", "fork", 1),
    pytest.param("USR1", "cgroup_cluster", "fork", 0, marks=FULL),
    pytest.param("USR1", "cluster", "spawn", None, marks=FULL),
    pytest.param("requeue", "cgroup_cluster", "spawn", 1, marks=FULL),
    pytest.param("requeue", "cluster", "fork", 0, marks=FULL),
    pytest.param("preemption", "cgroup_cluster", "spawn", 0, marks=FULL),
]


@pytest.mark.parametrize(("how", "where", "workers", "slow_rank"), STOPS)
def test_it_goes_on_bit_for_bit(request, whole, tiny_videos, tmp_path, how, where, workers, slow_rank):
    cluster = request.getfixturevalue(where)
    spawned = ["--trainer.callbacks+=runs.SpawnedWorkers"] if workers == "spawn" else []
    job = cluster.submit(tmp_path, *words(tiny_videos, tmp_path, slow_rank=slow_rank), *spawned)
    wait_for_step(tmp_path, 4)
    if how == "preemption":
        cluster.preempt()
    elif how == "requeue":
        cluster("exec", "scontrol", "requeue", job)
    else:
        cluster("exec", "scancel", "--signal=USR1", job)
    found = cluster.wait(job, *ENDED)
    printed = read(tmp_path / "slurm.log")
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "1"), printed
    (zero, first), (begin, rest) = starts_of(tmp_path)
    # Saved at the step under way: nothing is done twice.
    assert zero == 0 and first == list(range(1, begin + 1)) and rest == list(range(begin + 1, STEPS + 1)), printed
    assert_equal_end(tmp_path, whole)
    if how != "requeue":  # which ends srun at once, and with it what is printed
        line = r"^SIGUSR1: \d+\.\d\d s to the step's end, \d+\.\d\d s to save$"
        assert len(re.findall(line, printed, flags=re.MULTILINE)) == 1, printed


@FULL
def test_the_time_limit_is_no_end(cluster, whole, tiny_videos, tmp_path):
    """Slurm looks at time limits every 30 s: its signal comes half a minute to a minute after the start."""
    limit = ["--time=1", "--signal=USR1@1"]
    job = cluster.submit(tmp_path, *words(tiny_videos, tmp_path, pause=2), options=limit)
    found = cluster.wait(job, *ENDED, seconds=600)
    printed = read(tmp_path / "slurm.log")
    assert found["JobState"] == "COMPLETED" and int(found["Restarts"]) >= 1, printed
    done = 0
    for begin, steps in starts_of(tmp_path):
        # Where a validation comes next nothing is saved.
        before = done - EVERY_STEPS if done in (BATCHES, STEPS) else done
        assert begin in (before, done), printed
        done = begin
        assert steps == list(range(begin + 1, begin + 1 + len(steps))), printed
        done += len(steps)
    assert_equal_end(tmp_path, whole)


@pytest.mark.parametrize("node", [pytest.param("node1", marks=FULL), "node2"])
def test_a_node_that_dies(cluster, whole, tiny_videos, tmp_path, node):
    """The first one runs the job's script and srun, the second one a process alone."""
    job = cluster.submit(tmp_path, *words(tiny_videos, tmp_path, pause=0.3))
    wait_for_step(tmp_path, 4)
    cluster("fail", node)
    try:
        found = cluster.wait(job, "PENDING")
    finally:
        cluster("recover", node)
    found = cluster.wait(job, *ENDED)
    printed = read(tmp_path / "slurm.log")
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "1"), printed
    (_, first), (begin, rest) = starts_of(tmp_path)
    # From the last periodic checkpoint.
    assert (
        begin % EVERY_STEPS == 0 and EVERY_STEPS <= begin <= max(first) and rest == list(range(begin + 1, STEPS + 1))
    ), printed
    assert_equal_end(tmp_path, whole)


@FULL
def test_a_signal_before_the_training_loses_no_job(cluster, tiny_videos, tmp_path):
    """While the processes still import, nobody in them could ask for another start."""
    job = cluster.submit(tmp_path, *words(tiny_videos, tmp_path, "--trainer.max_epochs=1", pause=0))
    cluster.wait(job, "RUNNING")
    wait_for(tmp_path / "slurm.log", "start number 1")
    cluster("exec", "scancel", "--signal=USR1", job)
    found = cluster.wait(job, *ENDED)
    printed = read(tmp_path / "slurm.log")
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "1"), printed
    assert "exit status 138; requeued" in printed


@FULL
def test_one_that_always_crashes_is_given_up(cluster, tiny_videos, tmp_path):
    crash = ["--trainer.callbacks+=runs.Crash"]
    job = cluster.submit(tmp_path, *words(tiny_videos, tmp_path), *crash)
    found = cluster.wait(job, *ENDED)
    printed = read(tmp_path / "slurm.log")
    assert (found["JobState"], found["Restarts"]) == ("FAILED", "3"), printed
    assert "3 new starts brought no new checkpoint" in printed


def test_a_second_job_in_one_run_directory_is_refused(cluster, tiny_videos, tmp_path):
    job = cluster.submit(tmp_path, *words(tiny_videos, tmp_path, "--trainer.max_epochs=100"))
    wait_for_step(tmp_path, 1)
    other = tmp_path / "other"
    other.mkdir()
    second = cluster.submit(other, *words(tiny_videos, tmp_path))
    refused = cluster.wait(second, *ENDED)
    assert (refused["JobState"], refused["Restarts"], refused["ExitCode"]) == ("FAILED", "0", "2:0")
    cluster("exec", "scancel", job)
    found = cluster.wait(job, *ENDED)
    assert re.search(rf"run is in use by another run \(process \d+ on node1, job {job}\)", read(other / "slurm.log"))
    # Cancelled with its checkpoint, and not started again.
    assert (found["JobState"], found["Restarts"]) == ("CANCELLED", "0"), read(tmp_path / "slurm.log")
    done = max(steps for _, steps in starts_of(tmp_path))[-1]
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"]
    # A validation, after an epoch of 3 steps, ends at once: the end of the epoch before is what is saved.
    assert saved == done or (done % 3 == 0 and saved == done - 3)
    assert f"stopped after step {done}. {tmp_path}/run/checkpoints/last.ckpt is of step {saved};" in read(
        tmp_path / "slurm.log"
    )
