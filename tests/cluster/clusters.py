"""A real Slurm cluster of two nodes on one machine, and trainings on it."""

import contextlib
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
EPOCHS, BATCHES, EVERY_STEPS = 2, 12, 3  # a checkpoint every so many steps
STEPS = EPOCHS * BATCHES
ENDED = ("COMPLETED", "FAILED", "CANCELLED")

KILLS = int(os.environ.get("VIDEO_GN_KILLS", "3"))
# All of them take many minutes; CI runs one of each kind.
FULL = pytest.mark.skipif(KILLS < 20, reason="runs with VIDEO_GN_KILLS=20")


class Cluster:
    """Two nodes with host names and addresses of their own; partition `high` preempts `main`."""

    def __init__(self, directory, proctrack):
        self.directory = directory / "slurm"
        self.environment = {
            **os.environ,
            "SLURM_TEST_DIR": str(self.directory),
            "PROCTRACK": proctrack,
            "CPUS": "8",  # jobs of stand-ins run side by side
            "GRES": "gpu:8",  # devices that only Slurm believes in
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/helpers'}",
            "OMP_NUM_THREADS": "1",
        }

    def __call__(self, *words, check=True, cwd=None, **more):
        done = subprocess.run(
            [SCRIPT, *map(str, words)],
            env=self.environment | more,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def sbatch(self, *words, **more):
        """Submit anything; its id."""
        return self("exec", "sbatch", "--parsable", *words, **more).strip()

    def submit(self, path, *words, options=()):
        """Submit a training of two nodes; its id."""
        usual = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", f"--output={path}/slurm.log"]
        return self.sbatch(*usual, *options, ROOT / "scripts/slurm/train.sbatch", *words)

    def show(self, job):
        return dict(re.findall(r"(\w+)=(\S*)", self("exec", "scontrol", "show", "job", job)))

    def wait(self, job, *states, seconds=240):
        """Until the job is in one of the states; what scontrol then says of it."""
        deadline = time.monotonic() + seconds
        while (found := self.show(job))["JobState"] not in states:
            assert time.monotonic() < deadline, f"{found}\n{read(Path(found['StdOut']))}"
            time.sleep(0.2)
        return found

    def preempt(self):
        """Take both nodes away for a second, by a job that comes first."""
        quick = ["-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap=sleep 1"]
        self.wait(self.sbatch(*quick), "COMPLETED")


@contextlib.contextmanager
def running(proctrack):
    """A cluster, brought up and ended; a file system that is mounted later is not seen on its nodes."""
    # A short path: sockets lie in it.
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)  # munge asks for it
        found = Cluster(Path(directory), proctrack)
        try:
            try:
                found("up")
            except AssertionError as error:
                if os.environ.get("FAIL_WITHOUT_SLURM") == "1" and proctrack == "linuxproc":
                    raise
                pytest.skip(f"needs_slurm: no cluster with proctrack/{proctrack} can be brought up here: {error}")
            yield found
        finally:
            found("down", check=False)


def read(path):
    return path.read_text() if path.exists() else ""


def wait_for(path, pattern, *, log=None, seconds=180):
    """Until a file has a line."""
    deadline = time.monotonic() + seconds
    while not re.search(pattern, read(path), flags=re.MULTILINE):
        assert time.monotonic() < deadline, read(log or path)
        time.sleep(0.02)


# ---- trainings whose steps are logged ------------------------------------------------------------


def words(videos, path, *more, pause=0.2, slow_rank=None):
    """Of a training whose steps are logged.

    Args:
        pause: seconds after each step.
        slow_rank: the process that waits; None is both.
    """
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
        f"--checkpoint.every_n_steps={EVERY_STEPS}",
        "--trainer.callbacks+=runs.StepLog",
        f"--trainer.callbacks.path={path / 'steps.txt'}",
        f"--trainer.callbacks.pause={pause}",
        f"--trainer.callbacks.slow_rank={'null' if slow_rank is None else slow_rank}",
        *more,
    ]


def wait_for_step(path, step, *, seconds=180):
    wait_for(path / "steps.txt", rf"^step {step} ", log=path / "slurm.log", seconds=seconds)


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
