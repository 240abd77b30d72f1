"""The commands of scripts/slurm/README.md are run as printed; only paths and numbers of processes are replaced."""

import json
import re
import shlex
import shutil

import pytest
from clusters import ENDED, FULL, ROOT, read, wait_for
from runs import run
from small import write_small_configs

pytestmark = [pytest.mark.slow, pytest.mark.needs_slurm, pytest.mark.timeout(900)]

PAGE = (ROOT / "scripts/slurm/README.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"^```shell\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if line.startswith("sbatch")
]


@pytest.fixture(scope="module")
def place(tiny_videos, tmp_path_factory):
    """A directory where the commands' paths exist."""
    here = tmp_path_factory.mktemp("cluster-readme")
    write_small_configs(here)
    (here / "scripts").symlink_to(ROOT / "scripts")
    shutil.copytree(tiny_videos, here / "videos")
    videos = [video.relative_to(here) for video in sorted((here / "videos").rglob("*.mp4"))]
    (here / "videos.txt").write_text("".join(f"{video}\n" for video in videos))
    (here / "weizmann").mkdir()
    people = ("daria", "lyova", "shahar", "ira", "lena")
    rows = [f"../{video},{video.parent.name},{people[n % 5]}" for n, video in enumerate(videos)]
    (here / "weizmann/labels.csv").write_text("\n".join(["path,label,person", *rows]) + "\n")
    return here


def submit(cluster, place, script):
    """The page's command with this script, with one process on a node and two jobs of an array."""
    (command,) = [line for line in COMMANDS if f"/{script}.sbatch" in line]
    assert command.startswith("sbatch ")
    command = command.replace("-per-node 8", "-per-node 1").replace("--array 0-7", "--array 0-1")
    log = place / (f"{script}-%a.log" if "--array" in command else f"{script}.log")
    return cluster.sbatch("--cpus-per-task=1", f"--output={log}", *shlex.split(command)[1:], cwd=place)


def assert_completed(cluster, job, log, *, restarts=0):
    found = cluster.wait(job, *ENDED)
    assert (found["JobState"], int(found["Restarts"])) == ("COMPLETED", restarts), read(log)


def test_a_command_for_each_script():
    scripts = sorted(path.stem for path in (ROOT / "scripts/slurm").glob("*.sbatch"))
    assert sorted(re.search(r"scripts/slurm/(\w+)\.sbatch", line)[1] for line in COMMANDS) == scripts


def test_train_test_and_label_many_videos(usual_cluster, place):
    assert_completed(usual_cluster, submit(usual_cluster, place, "train"), place / "train.log")
    tested = submit(usual_cluster, place, "test")
    labelled = submit(usual_cluster, place, "infer_array")
    parts = [place / f"labels.part-0000{n}-of-00002.jsonl" for n in (0, 1)]
    # One of the array's jobs is asked to leave, as before its time limit.
    wait_for(parts[1], r"\A.*\n", log=place / "infer_array-1.log")
    usual_cluster("exec", "scancel", "--signal=USR1", f"{labelled}_1")
    assert_completed(usual_cluster, f"{labelled}_0", place / "infer_array-0.log")
    assert_completed(usual_cluster, f"{labelled}_1", place / "infer_array-1.log", restarts=1)
    listed = read(place / "videos.txt").splitlines()
    for n, part in enumerate(parts):
        assert [json.loads(line)["path"] for line in part.read_text().splitlines()] == listed[n::2]
    assert_completed(usual_cluster, tested, place / "test.log")
    metrics = json.loads((place / "runs/mine/test/metrics.json").read_text())
    assert metrics["num_failed"] == 0 and 0 < metrics["num_videos"] < 30
    assert len((place / "runs/mine/test/predictions.csv").read_text().splitlines()) == metrics["num_videos"] + 1


def test_prepare_many_videos(usual_cluster, place):
    """Two jobs of which one is asked to leave; merged, the lists are those of one run."""
    job = submit(usual_cluster, place, "prepare_array")
    wait_for(place / "prepared/.prepare.part-00001-of-00002.journal", r"\A.*\n", log=place / "prepare_array-1.log")
    usual_cluster("exec", "scancel", "--signal=USR1", f"{job}_1")
    found = usual_cluster.wait(f"{job}_1", *ENDED)
    assert (found["JobState"], found["ExitCode"]) == ("COMPLETED", "0:0"), read(place / "prepare_array-1.log")
    assert_completed(usual_cluster, f"{job}_0", place / "prepare_array-0.log")
    (merge,) = re.findall(r"^video-gn (data prepare .* --merge)$", PAGE, re.MULTILINE)
    status, printed = run(shlex.split(merge), place)
    assert status == 0, printed
    status, printed = run([*shlex.split(merge.replace("prepared", "whole"))[:-1]], place)
    assert status == 0, printed
    for name in ("manifest.csv", "videos-000000.tar", "classes.txt"):
        assert (place / "prepared" / name).read_bytes() == (place / "whole" / name).read_bytes()


@pytest.mark.parametrize("stopped", [False, pytest.param(True, marks=FULL)])
def test_a_study(usual_cluster, place, stopped):
    out = place / "runs/study/weizmann"
    shutil.rmtree(out, ignore_errors=True)
    job = submit(usual_cluster, place, "study_array")
    if stopped:  # while a cell of one of its jobs trains
        wait_for(out / "cells/gn_8x2_b4_s0/log.txt", "ResNet-50", log=place / "study_array-1.log")
        usual_cluster("exec", "scancel", "--signal=USR1", f"{job}_1")
    assert_completed(usual_cluster, f"{job}_0", place / "study_array-0.log")
    assert_completed(usual_cluster, f"{job}_1", place / "study_array-1.log", restarts=int(stopped))
    cells = sorted((out / "cells").iterdir())
    assert len(cells) == 2 and all((cell / "test/metrics.json").is_file() for cell in cells)
