"""The launch scripts' own part, on a real cluster: `video-gn` is a stand-in that leaves with the status it is told."""

import re
import sys

import pytest
from clusters import ENDED, FULL, ROOT, read, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.needs_slurm, pytest.mark.timeout(300)]

# Its first start waits for a signal and the second one ends well; with STATUS every one ends with that.
STAND_IN = f"""#!{sys.executable} -S
import os, signal, sys, time
def end(number, frame):
    os._exit(128 + number)
for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
    signal.signal(number, end)
start = os.environ.get("SLURM_RESTART_COUNT", "0")
words = [os.environ.get("SLURM_ARRAY_TASK_ID", "-"), start, *sys.argv[1:]]
with open(os.environ["CALLS"], "a") as file:
    file.write(" ".join(words) + "\\n")
if "REFUSES" in os.environ:
    with open(os.environ["VIDEO_GN_REFUSED"], "a") as file:
        file.write("node1: no\\n")
if "STATUS" in os.environ:
    os._exit(int(os.environ["STATUS"]))
if start == "0":
    time.sleep(60)
"""

WORDS = {
    "train": ["-c", "c.yaml", "--run_dir", "run"],
    "test": ["-c", "c.yaml", "--run_dir", "run"],
    "study_array": ["-c", "study.yaml", "--data.train", "videos"],
    "infer_array": ["--list", "videos.txt", "--output", "labels.jsonl"],
    "prepare_array": ["scan", "videos", "--output", "scan.csv"],
}
CALLS = {
    "train": ["- {} fit -c c.yaml --run_dir run --ckpt_path last --trainer.num_nodes 1 --trainer.devices 1"],
    "test": ["- {} test -c c.yaml --run_dir run --trainer.num_nodes 1 --trainer.devices 1"],
    "study_array": [f"{4 + 2 * n} {{}} study -c study.yaml --data.train videos --cell {n}/2" for n in (0, 1)],
    "infer_array": [f"{n} {{}} infer --list videos.txt --output labels.jsonl --part slurm" for n in (4, 6)],
    "prepare_array": [f"{n} {{}} data scan videos --output scan.csv --part slurm" for n in (4, 6)],
}


class Job:
    """A script that has been submitted, in a directory of its own."""

    def __init__(self, cluster, path, script, *options, **environment):
        self.cluster, self.path, self.script = cluster, path, script
        stand_in = path / "bin/video-gn"
        stand_in.parent.mkdir(parents=True)
        stand_in.write_text(STAND_IN)
        stand_in.chmod(0o755)
        self.calls = path / "calls.txt"
        environment |= {"CALLS": str(self.calls), "PATH": f"{stand_in.parent}:{cluster.environment['PATH']}"}
        self.id = cluster.sbatch(
            "--cpus-per-task=1", f"--output={path}/%a.log", *(["--array=4-6:2"] if "array" in script else []), *options,
            ROOT / f"scripts/slurm/{script}.sbatch", *WORDS[script], cwd=path, **environment,
        )  # fmt: skip
        self.tasks = [f"{self.id}_4", f"{self.id}_6"] if "array" in script else [self.id]

    def wait_for_start(self):
        wait_for(self.calls, rf"(?s)\A(.*\n){{{len(self.tasks)}}}")

    def signal(self, *options):
        for task in self.tasks:
            self.cluster("exec", "scancel", *options, task)

    def ends(self):
        """Of each task its state, how often it was started again, and its exit status."""
        found = [self.cluster.wait(task, *ENDED) for task in self.tasks]
        return [(f["JobState"], int(f["Restarts"]), f["ExitCode"]) for f in found]

    @property
    def printed(self):
        return "".join(read(path) for path in sorted(self.path.glob("*.log")))


@pytest.mark.parametrize(
    ("how", "options"),
    [
        ("USR1", []),
        ("preemption", []),
        # Where Slurm is not told to send the job's own signal, a preemption begins with SIGTERM.
        ("preemption", ["--signal=TERM@5"]),
    ],
)
def test_what_is_asked_to_leave_is_started_again(cluster, tmp_path, how, options):
    jobs = [Job(cluster, tmp_path / script, script, *options) for script in WORDS]
    for job in jobs:
        job.wait_for_start()
    if how == "preemption":
        cluster.preempt()
    else:
        for job in jobs:
            job.signal("--signal=USR1")
    for job in jobs:
        assert job.ends() == [("COMPLETED", 1, "0:0")] * len(job.tasks), job.printed
        calls = sorted(read(job.calls).splitlines())
        assert calls == [call.format(start) for call in CALLS[job.script] for start in (0, 1)]


def test_what_is_cancelled_or_refused_is_not_started_again(cluster, tmp_path):
    cancelled = [Job(cluster, tmp_path / "cancel" / script, script) for script in WORDS]
    interrupted = Job(cluster, tmp_path / "interrupt", "train")
    for job in (*cancelled, interrupted):
        job.wait_for_start()
    for job in cancelled:
        job.signal()
    interrupted.signal("--signal=INT")
    for job in cancelled:
        assert all(end[:2] == ("CANCELLED", 0) for end in job.ends()), job.printed
    assert interrupted.ends() == [("FAILED", 0, "130:0")]
    # Status 2 is that of wrong settings, 3 of videos that could not be read.
    for script, status in [("train", 2), ("test", 2), ("test", 1), ("infer_array", 3), ("study_array", 1)]:
        job = Job(cluster, tmp_path / f"{script}-{status}", script, STATUS=str(status))
        assert job.ends() == [("FAILED", 0, f"{status}:0")] * len(job.tasks), job.printed
    # srun's status is that of a process which it killed, beside the one that refused.
    job = Job(cluster, tmp_path / "refused", "train", STATUS="137", REFUSES="1")
    assert job.ends() == [("FAILED", 0, "2:0")], job.printed


@pytest.mark.parametrize("status", [7, pytest.param(143, marks=FULL)])
def test_a_training_that_always_crashes_is_started_three_times_more(cluster, tmp_path, status):
    """143 without a preemption: srun has ended the others of the one that crashed."""
    job = Job(cluster, tmp_path, "train", STATUS=str(status))
    assert job.ends() == [("FAILED", 3, f"{status}:0")], job.printed
    assert [int(n) for n in re.findall(r"requeued \((\d) of 3 without a new checkpoint\)", job.printed)] == [1, 2, 3]
    assert "3 new starts brought no new checkpoint" in job.printed
    assert not list((tmp_path / "run").glob(".*-*"))


def test_what_is_missing_is_told(cluster, tmp_path):
    """A run directory that cannot be made, none at all, and scripts of arrays outside of one."""
    (tmp_path / "run").touch()
    for script, words, message in [
        ("train", WORDS["train"], r"cannot create directory .?run"),
        ("train", ["-c", "c.yaml"], "--run_dir must be given"),
        ("study_array", WORDS["study_array"], "submit it with --array"),
        ("infer_array", WORDS["infer_array"], "submit it with --array"),
        ("prepare_array", WORDS["prepare_array"], "submit it with --array"),
    ]:
        log = tmp_path / f"{script}{len(words)}.log"
        path = ROOT / f"scripts/slurm/{script}.sbatch"
        job = cluster.sbatch("--cpus-per-task=1", f"--output={log}", path, *words, cwd=tmp_path)
        found = cluster.wait(job, *ENDED)
        assert (found["JobState"], found["Restarts"], found["ExitCode"]) == ("FAILED", "0", "2:0")
        assert re.search(message, read(log)), read(log)
