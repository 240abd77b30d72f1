"""Jobs that could only wait for ever, or train on something else, are told so and are not started again."""

import re
import shlex

import pytest
from clusters import ENDED, read, words

pytestmark = [pytest.mark.slow, pytest.mark.needs_slurm, pytest.mark.timeout(300)]

TWO_NODES = ["--nodes=2", "--ntasks-per-node=1"]


def test_launches_that_would_wait_for_ever(cluster, tiny_videos, tmp_path):
    fit = "video-gn fit " + shlex.join(words(tiny_videos, tmp_path, "--trainer.num_nodes=2"))
    cases = [
        (
            TWO_NODES,
            f"srun {fit} --trainer.devices=2",
            r"must be the job's 1 tasks on each node, got 2\. Set it to 1, or",
        ),
        (TWO_NODES, fit, r"the job has 2 tasks, and this process was not started by srun.*Write srun video-gn fit"),
        (
            ["--nodes=2", "--ntasks=2"],
            f"srun {fit}",
            r"--ntasks=2 must come as .*Write --nodes=2 --ntasks-per-node=1\.",
        ),
        (TWO_NODES, f"MASTER_ADDR=nowhere srun {fit}", r"the first node, nowhere, cannot be resolved from node[12] "),
    ]
    jobs = []
    for number, (options, command, _) in enumerate(cases):
        log = f"--output={tmp_path}/{number}.log"
        jobs.append(cluster.sbatch("--cpus-per-task=1", log, *options, f"--wrap={command}"))
    for number, job in enumerate(jobs):
        found = cluster.wait(job, *ENDED)
        printed = read(tmp_path / f"{number}.log")
        assert (found["JobState"], found["ExitCode"]) == ("FAILED", "2:0"), printed
        assert re.search(cases[number][2], printed), printed
    assert not (tmp_path / "run").exists()


def test_a_node_without_the_data_or_with_other_data(cluster, tiny_videos, tmp_path):
    """The jobs' first process waits for the other one, until srun ends it."""
    scratch = cluster.directory / "scratch"  # each node's own
    for node, name in [("node1", "one"), ("node1", "both"), ("node2", "both")]:
        cluster(node, "cp", "-r", tiny_videos, scratch / name)
    (gone,) = sorted((tiny_videos / "two").glob("00.*"))
    cluster("node2", "rm", scratch / "both" / "two" / gone.name)
    jobs = {}
    for name in ("one", "both"):
        (tmp_path / name).mkdir()
        jobs[name] = cluster.submit(tmp_path / name, *words(scratch / name, tmp_path / name))
    messages = {
        "one": rf"^video-gn on node2: error: {scratch}/one\b",
        "both": r"^video-gn on node2: error: \S+both: the train list must .* on node2.* on node1",
    }
    for name, job in jobs.items():
        found = cluster.wait(job, *ENDED)
        printed = read(tmp_path / name / "slurm.log")
        assert re.search(messages[name], printed, re.MULTILINE), printed
        assert (found["JobState"], found["Restarts"], found["ExitCode"]) == ("FAILED", "0", "2:0"), printed
