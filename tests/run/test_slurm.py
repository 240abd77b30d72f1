"""What is asked of SLURM, with hand-written environments; the real cluster's tests are in tests/cluster."""

import logging
import os
import re
import socket

import pytest

from video_gn.errors import CheckpointError, ConfigError, DiskFullError, ManifestError, RefusedError, RunError
from video_gn.run import slurm

# Two nodes with four tasks each, as srun sets them.
STEP = {
    "SLURM_JOB_ID": "4217",
    "SLURM_JOB_NAME": "video-gn",
    "SLURM_NTASKS": "8",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_NNODES": "2",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_NODELIST": "node[1-2]",
    "SLURM_PROCID": "1",
    "MASTER_ADDR": "127.0.0.1",
}


def without(*names, **changes):
    return {name: value for name, value in (STEP | changes).items() if name not in names}


def check(environment, *, num_nodes=2, devices=4):
    slurm.check_launch(
        num_nodes=num_nodes, devices=devices, resolve=lambda nodes: "nowhere.invalid", environment=environment
    )


@pytest.mark.parametrize(
    ("environment", "settings"),
    [
        (STEP, {}),
        (STEP, {"devices": "4"}),
        (STEP, {"devices": "auto"}),
        (STEP, {"devices": -1}),
        (STEP, {"devices": [0, 1, 2, 3]}),
        ({}, {"num_nodes": 7}),
        (without(SLURM_JOB_NAME="interactive"), {"num_nodes": 1, "devices": 1}),
        # A job of one process needs no srun.
        (without("SLURM_STEP_ID", SLURM_NTASKS="1"), {"num_nodes": 1, "devices": 1}),
    ],
)
def test_launches_that_meet(environment, settings):
    check(environment, **settings)


@pytest.mark.parametrize(
    ("environment", "settings", "message"),
    [
        (without("SLURM_STEP_ID"), {}, r"8 tasks, and this process was not started by srun.*Write srun video-gn fit"),
        (
            without("SLURM_NTASKS_PER_NODE"),
            {},
            r"must come as --ntasks-per-node.*--nodes=2 --ntasks-per-node=4\.",
        ),
        (STEP, {"devices": [0, 1]}, r"4 tasks on each node, got 2\. Set it to 4, or"),
        (STEP, {"num_nodes": 1}, r"trainer\.num_nodes must be the job's 2 nodes, got 1\. Set it to 2\."),
        (
            STEP,
            {"devices": 8},
            r"trainer\.devices must be the job's 4 tasks on each node, got 8\. Set it to 4, or",
        ),
        (without("MASTER_ADDR"), {}, r"the first node, nowhere\.invalid, cannot be resolved from .*MASTER_ADDR"),
    ],
)
def test_launches_that_would_wait_for_ever(environment, settings, message):
    with pytest.raises(ConfigError, match=message):
        check(environment, **settings)


def test_a_port_in_use_is_told_by_the_first_process():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        check(without(MASTER_PORT=port))
        with pytest.raises(ConfigError, match=rf"port {port} of \S+, where the processes meet, is in use.*MASTER_PORT"):
            check(without(MASTER_PORT=port, SLURM_PROCID="0"))
    check(without(MASTER_PORT=port, SLURM_PROCID="0"))


@pytest.mark.parametrize(
    ("environment", "job"),
    [
        ({}, None),
        (STEP, "4217"),
        (without(SLURM_JOB_NAME="bash"), None),
        (without(SLURM_ARRAY_JOB_ID="4200", SLURM_ARRAY_TASK_ID="17"), "4200_17"),
    ],
)
def test_the_jobs_id_is_scontrols(environment, job):
    assert slurm.job_id(environment) == job


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ('echo "$@" > called', r"job 4217 is requeued, in \d+\.\d\d s"),
        ("echo no such job >&2; exit 1", "job 4217 was not requeued: no such job"),
        (None, "job 4217 could not be requeued"),
    ],
)
def test_requeue(tmp_path, monkeypatch, caplog, script, message):
    monkeypatch.chdir(tmp_path)
    if script is not None:
        (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path) if script is None else f"{tmp_path}:{os.environ['PATH']}")
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.INFO, "video_gn"):
        slurm.requeue()
    assert re.search(message, caplog.text)
    if script and script.startswith('echo "'):
        assert (tmp_path / "called").read_text() == "requeue 4217\n"


def test_outside_of_a_job_nothing_is_requeued(monkeypatch, caplog):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("PATH", "")
    slurm.requeue()
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "2"}, True),
        ({"WORLD_SIZE": "2"}, True),
    ],
)
def test_errors_name_the_node_where_there_may_be_several(environment, named):
    assert slurm.place(environment) == (f" on {os.uname().nodename}" if named else "")


@pytest.mark.parametrize("error", [ConfigError, ManifestError, CheckpointError, RefusedError, DiskFullError])
def test_the_jobs_script_hears_of_what_another_start_would_not_mend(tmp_path, monkeypatch, error):
    note = tmp_path / "note"
    monkeypatch.setenv("VIDEO_GN_REFUSED", str(note))
    for _ in range(2):  # two processes
        with pytest.raises(error, match="no such list"), slurm.refusals_noted():
            raise error("no such list")
    assert note.read_text() == 2 * f"{os.uname().nodename}: no such list\n"


def test_a_crash_is_no_refusal(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDEO_GN_REFUSED", str(tmp_path / "note"))
    with pytest.raises(RunError), slurm.refusals_noted():
        raise RunError("a worker died")
    assert not (tmp_path / "note").exists()
    # Where nobody asks, or nothing can be written, the error is the same.
    monkeypatch.setenv("VIDEO_GN_REFUSED", str(tmp_path / "nowhere/note"))
    with pytest.raises(ConfigError, match="wrong"), slurm.refusals_noted():
        raise ConfigError("wrong")
    monkeypatch.delenv("VIDEO_GN_REFUSED")
    with pytest.raises(ConfigError, match="wrong"), slurm.refusals_noted():
        raise ConfigError("wrong")
