"""SLURM: checks that a run was started as its job allows, and requeues the job."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from video_gn.errors import CheckpointError, ConfigError, DiskFullError, ManifestError, RefusedError

log = logging.getLogger(__name__)

# Jobs of these names are shells that people work in.
_INTERACTIVE = ("bash", "interactive")


def job_id(environment: Mapping[str, str] = os.environ) -> str | None:
    """The job's id as scontrol takes it, 17 or 17_3 in an array; None outside a batch job."""
    if "SLURM_JOB_ID" not in environment or environment.get("SLURM_JOB_NAME") in _INTERACTIVE:
        return None
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment["SLURM_JOB_ID"]


def place(environment: Mapping[str, str] = os.environ) -> str:
    """Node of this process, for its messages: " on node2"; "" if it is the only one of its launch."""
    counts = [environment.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "WORLD_SIZE")]
    return "" if counts == ["1", "1"] else f" on {os.uname().nodename}"


@contextlib.contextmanager
def refusals_noted() -> Iterator[None]:
    """Note an error that another start would not cure in the file VIDEO_GN_REFUSED, for the job's script.

    srun's exit status does not show it: it is that of the processes which were ended with the one that failed.
    """
    try:
        yield
    except (ConfigError, ManifestError, CheckpointError, RefusedError, DiskFullError) as error:
        note = os.environ.get("VIDEO_GN_REFUSED")
        if note:
            with contextlib.suppress(OSError), Path(note).open("a") as file:
                file.write(f"{os.uname().nodename}: {error}\n")
        raise


def requeue() -> None:
    """Ask for this job to be started again; outside a job nothing happens."""
    job = job_id()
    if job is None:
        return
    begin = time.monotonic()
    try:
        found = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("job %s could not be requeued (%s): submit it again", job, error)
        return
    if found.returncode:
        log.warning("job %s was not requeued: %s", job, (found.stderr or found.stdout).strip())
    else:
        log.info("job %s is requeued, in %.2f s", job, time.monotonic() - begin)


def check_launch(
    *,
    num_nodes: int,
    devices: int | str | Sequence[int],
    resolve: Callable[[str], str],
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Raise ConfigError for a start inside an allocation that would wait for processes that never come.

    `num_nodes` and `devices` are the trainer's; `resolve` gives the first node of a list as SLURM writes it.
    """
    if job_id(environment) is None:
        return
    num_tasks = int(environment.get("SLURM_NTASKS", "1"))
    if "SLURM_STEP_ID" not in environment:
        if num_tasks > 1:
            raise ConfigError(
                f"the job has {num_tasks} tasks, and this process was not started by srun: it would wait for the "
                "others. Write srun video-gn fit ..., as scripts/slurm/train.sbatch does."
            )
        return
    nodes = int(environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES", "1")))
    if num_tasks > 1 and "SLURM_NTASKS_PER_NODE" not in environment:
        raise ConfigError(
            f"--ntasks={num_tasks} must come as --ntasks-per-node, so that every node has as many processes as "
            f"devices. Write --nodes={nodes} --ntasks-per-node={-(-num_tasks // nodes)}."
        )
    if num_nodes != nodes:
        raise ConfigError(f"trainer.num_nodes must be the job's {nodes} nodes, got {num_nodes}. Set it to {nodes}.")
    per_node = int(environment.get("SLURM_NTASKS_PER_NODE", "1"))
    wanted = len(devices) if isinstance(devices, Sequence) and not isinstance(devices, str) else devices
    if str(wanted) not in ("auto", "-1", str(per_node)):
        raise ConfigError(
            f"trainer.devices must be the job's {per_node} tasks on each node, got {wanted}. Set it to {per_node}, or "
            f"submit with --ntasks-per-node={wanted}."
        )
    if num_tasks > 1:
        _check_meeting_place(resolve(environment.get("SLURM_NODELIST", "127.0.0.1")), environment)


def _check_meeting_place(first_node: str, environment: Mapping[str, str]) -> None:
    address = environment.get("MASTER_ADDR", first_node)
    try:
        socket.getaddrinfo(address, None)
    except OSError as error:
        raise ConfigError(
            f"the first node, {address}, cannot be resolved from {socket.gethostname()} ({error.strerror}). Set the "
            "environment variable MASTER_ADDR to an address of it that all nodes reach."
        ) from error
    # As Lightning derives it.
    port = int(environment.get("MASTER_PORT", 15000 + int(environment["SLURM_JOB_ID"][-4:])))
    if environment.get("SLURM_PROCID") == "0":
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError as error:
                raise ConfigError(
                    f"port {port} of {socket.gethostname()}, where the processes meet, is in use. Set the environment "
                    "variable MASTER_PORT to a free one."
                ) from error
