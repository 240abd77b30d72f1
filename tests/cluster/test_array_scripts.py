"""The launch scripts' own part, on a real cluster: `video-gn` is a stand-in that leaves with the status it is told."""

import stat
import sys

import pytest
from clusters import ENDED, ROOT, read, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.needs_slurm, pytest.mark.timeout(300)]

# Its first start waits for a signal, or ends with FIRST; the second one does its work.
STAND_IN = f"""#!{sys.executable} -S
import os, signal, sys, time
def end(number, frame):
    os._exit(128 + number)
for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
    signal.signal(number, end)
with open(os.environ["CALLS"], "a") as file:
    start = os.environ.get("SLURM_RESTART_COUNT", "0")
    file.write(" ".join([os.environ.get("SLURM_ARRAY_TASK_ID", "-"), start, *sys.argv[1:]]) + "\\n")
if start == "0" or os.environ.get("FIRST") == "always":
    if "FIRST" not in os.environ:
        time.sleep(60)
    os._exit(int(os.environ["STATUS"]))
"""

WORDS = {
    "train": ["-c", "c.yaml", "--run_dir", "run"],
    "test": ["-c", "c.yaml", "--run_dir", "run"],
    "study_array": ["-c", "study.yaml", "--data.train", "videos"],
    "infer_array": ["--list", "videos.txt", "--output", "labels.jsonl"],
}
CALLS = {
    "train": "fit -c c.yaml --run_dir run --ckpt_path last --trainer.num_nodes 1 --trainer.devices 1",
    "test": "test -c c.yaml --run_dir run --trainer.num_nodes 1 --trainer.devices 1",
    "study_array": "study -c study.yaml --data.train videos --cell {}/2",
    "infer_array": "infer --list videos.txt --output labels.jsonl --shard slurm",
}


def submit(cluster, path, script, *options, **environment):
    stand_in = path / "bin/video-gn"
    stand_in.parent.mkdir()
    stand_in.write_text(STAND_IN)
    stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
    if script.endswith("_array"):
        options = ("--array=4-6:2", *options)
    return cluster.sbatch(
        "--cpus-per-task=1", f"--output={path}/%a.log", *options, ROOT / f"scripts/slurm/{script}.sbatch",
        *WORDS[script], cwd=path, CALLS=str(path / "calls.txt"),
        PATH=f"{stand_in.parent}:{cluster.environment['PATH']}", **environment,
    )  # fmt: skip


def tasks(job, script):
    return [f"{job}_4", f"{job}_6"] if script.endswith("_array") else [job]


@pytest.mark.parametrize("script", list(WORDS))
@pytest.mark.parametrize(
    ("how", "options"),
    [
        ("USR1", []),
        ("preemption", []),
        # Where Slurm is not told to send the job's own signal, a preemption begins with SIGTERM.
        ("preemption", ["--signal=TERM@5"]),
    ],
)
def test_what_is_asked_to_leave_is_started_again(cluster, tmp_path, script, how, options):
    job = submit(cluster, tmp_path, script, *options)
    names = tasks(job, script)
    for number in range(len(names)):
        wait_for(tmp_path / "calls.txt", rf"(?s)\A(.*\n){{{number + 1}}}")
    if how == "USR1":
        for name in names:
            cluster("exec", "scancel", "--signal=USR1", name)
    else:
        cluster.preempt()
    for name in names:
        found = cluster.wait(name, *ENDED)
        assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "1"), found
    calls = sorted(read(tmp_path / "calls.txt").splitlines())
    wanted = [(n, task) for n, task in enumerate(("4", "6"))] if len(names) == 2 else [(0, "-")]
    assert calls == [f"{task} {start} {CALLS[script].format(n)}" for n, task in wanted for start in (0, 1)]
