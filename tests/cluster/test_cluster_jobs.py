"""Trainings on a real Slurm cluster of two nodes: to their end, and through what clusters do to jobs."""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from runs import TINY
from small import assert_same

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = Path(__file__).with_name("slurm-cluster.sh")
EPOCHS, BATCHES = 2, 12
STEPS = EPOCHS * BATCHES
ENDED = ("COMPLETED", "FAILED", "CANCELLED")

# All of them take minutes; CI runs one of each kind.
FULL = pytest.mark.skipif(int(os.environ.get("VIDEO_GN_KILLS", "3")) < 20, reason="runs with VIDEO_GN_KILLS=20")

pytestmark = [pytest.mark.slow, pytest.mark.needs_slurm, pytest.mark.timeout(900)]


class Cluster:
    """Two nodes with host names and addresses of their own; partition `high` preempts `main`."""

    def __init__(self, directory, proctrack):
        self.environment = {
            **os.environ,
            "SLURM_TEST_DIR": str(directory / "slurm"),
            "PROCTRACK": proctrack,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            "OMP_NUM_THREADS": "1",
        }

    def __call__(self, *words, check=True):
        done = subprocess.run(
            [SCRIPT, *map(str, words)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, path, *words, options=()):
        """Submit a training of two nodes; its id."""
        usual = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", f"--output={path}/slurm.log"]
        script = ROOT / "scripts/slurm/train.sbatch"
        return self("exec", "sbatch", "--parsable", *usual, *options, script, *words).strip()

    def show(self, job):
        return dict(re.findall(r"(\w+)=(\S*)", self("exec", "scontrol", "show", "job", job)))

    def wait(self, job, *states, seconds=240):
        """Until the job is in one of the states; what scontrol then says of it."""
        deadline = time.monotonic() + seconds
        while (found := self.show(job))["JobState"] not in states:
            assert time.monotonic() < deadline, f"{found}\n{read(Path(found['StdOut']))}"
            time.sleep(0.2)
        return found


def read(path):
    return path.read_text() if path.exists() else ""


@pytest.fixture(scope="module", params=["linuxproc"])
def cluster(request):
    # A short path: sockets lie in it.
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)  # munge asks for it
        found = Cluster(Path(directory), request.param)
        if os.environ.get("FAIL_WITHOUT_SLURM") == "1":
            found("up")
        elif "main" not in found("up", check=False):
            found("down", check=False)
            pytest.skip("needs_slurm: no cluster can be brought up here")
        yield found
        found("down", check=False)


def words(videos, path, *more, pause=0.2):
    return [
        *TINY,
        f"--data.train={videos}",
        f"--run_dir={path / 'run'}",
        "--data.batch_size=1",
        "--data.loader.num_workers=2",
        "--trainer.strategy=ddp",
        f"--trainer.max_epochs={EPOCHS}",
        "--trainer.limit_val_batches=2",
        "--model.optimizer.momentum=0.9",
        "--checkpoint.every_n_steps=3",
        "--trainer.callbacks+=runs.StepLog",
        f"--trainer.callbacks.path={path / 'steps.txt'}",
        f"--trainer.callbacks.pause={pause}",
        *more,
    ]


def wait_for_step(path, step, *, seconds=180):
    deadline = time.monotonic() + seconds
    while not re.search(rf"^step {step} ", read(path / "steps.txt"), flags=re.MULTILINE):
        assert time.monotonic() < deadline, read(path / "slurm.log")
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(cluster, tiny_videos, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    found = cluster.wait(cluster.submit(path, *words(tiny_videos, path, pause=0)), *ENDED)
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "0"), read(path / "slurm.log")
    return path


def assert_equal_end(path, whole):
    ours, wanted = (torch.load(p / "run/checkpoints/last.ckpt", weights_only=True) for p in (path, whole))
    assert ours["global_step"] == wanted["global_step"] == STEPS
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_same(ours[key], wanted[key])
    assert (path / "run/metrics.csv").read_text() == (whole / "run/metrics.csv").read_text()


def starts_of(path):
    """Of each start the step that it begins after, told by both processes, and the steps that it has done."""
    starts = []
    for line in read(path / "steps.txt").splitlines():
        kind, number = line.split()[:2]
        if kind == "start":
            if not starts or len(starts[-1][0]) == 2:
                starts.append(([], []))
            starts[-1][0].append(int(number))
        elif kind == "step":
            starts[-1][1].append(int(number))
    assert all(len(first) == 2 and first[0] == first[1] for first, _ in starts)
    return [(first[0], sorted(set(steps))) for first, steps in starts]


def test_a_job_runs_to_its_end(whole):
    assert starts_of(whole) == [(0, list(range(1, STEPS + 1)))]
    assert re.search(r"job \d+ on node\[1-2\]: 2 processes, start number 1", read(whole / "slurm.log"))


@pytest.mark.parametrize(
    "how", [pytest.param("time limit", marks=FULL), pytest.param("requeue", marks=FULL), "preemption"]
)
def test_it_goes_on_bit_for_bit(cluster, whole, tiny_videos, tmp_path, how):
    job = cluster.submit(tmp_path, *words(tiny_videos, tmp_path))
    wait_for_step(tmp_path, 4)
    if how == "preemption":
        quick = ["--parsable", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap=sleep 1"]
        cluster.wait(cluster("exec", "sbatch", *quick).strip(), "COMPLETED")
    elif how == "requeue":
        cluster("exec", "scontrol", "requeue", job)
    else:
        cluster("exec", "scancel", "--signal=USR1", job)  # what --signal=USR1@120 sends
    found = cluster.wait(job, *ENDED)
    printed = read(tmp_path / "slurm.log")
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "1"), printed
    (zero, first), (begin, rest) = starts_of(tmp_path)
    # Saved at the step under way: nothing is done twice.
    assert zero == 0 and first == list(range(1, begin + 1)) and rest == list(range(begin + 1, STEPS + 1)), printed
    assert_equal_end(tmp_path, whole)


def test_a_crashed_process_is_started_again(cluster, whole, tiny_videos, tmp_path):
    job = cluster.submit(tmp_path, *words(tiny_videos, tmp_path))
    wait_for_step(tmp_path, 4)
    subprocess.run(["pkill", "-KILL", "-o", "-f", f"video-gn fit .*{tmp_path}/run"], check=True)
    found = cluster.wait(job, *ENDED)
    printed = read(tmp_path / "slurm.log")
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "1"), printed
    assert "requeued (1 of 3 without a new checkpoint)" in printed
    (_, first), (begin, rest) = starts_of(tmp_path)
    assert begin % 3 == 0 and 3 <= begin <= max(first) and rest == list(range(begin + 1, STEPS + 1))
    assert_equal_end(tmp_path, whole)


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
    second = cluster.submit(other, *words(tiny_videos, tmp_path), options=["--no-requeue"])
    cluster.wait(second, *ENDED)
    cluster("exec", "scancel", job)
    found = cluster.wait(job, *ENDED)
    assert re.search(rf"run is in use by another run \(process \d+ on node1, job {job}\)", read(other / "slurm.log"))
    # Cancelled with its checkpoint, and not started again.
    assert (found["JobState"], found["Restarts"]) == ("CANCELLED", "0"), read(tmp_path / "slurm.log")
    done = max(steps for _, steps in starts_of(tmp_path))[-1]
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == done
