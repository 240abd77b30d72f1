"""Processes that torchrun or Lightning started: their ranks, and that none outlives the process that started it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

from video_gn.errors import ConfigError, RunError, StoppedError


def launched_rank(environment: Mapping[str, str] = os.environ) -> int:
    """This process's rank in its launch, before any of them talk to each other; 0 without a launcher.

    From torchrun (RANK), srun (SLURM_PROCID) or Lightning's own launcher (LOCAL_RANK), which has no global rank: any
    process but the first of the first node gets at least 1.
    """
    for name in ("RANK", "SLURM_PROCID"):
        if environment.get(name, "").isdecimal():
            return int(environment[name])
    return int(environment.get("LOCAL_RANK") or 0) + int(environment.get("NODE_RANK") or 0)


def from_torchrun(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in environment


def torchrun_sizes(
    *, num_nodes: int, devices: int | str | Sequence[int], environment: Mapping[str, str] = os.environ
) -> tuple[int, int]:
    """Nodes and processes on each, as torchrun started them.

    With a trainer of one device Lightning would run a separate training in each process, all in one run directory.
    The trainer's defaults, 1 node and "auto" devices, take torchrun's; other numbers, or nodes that differ, are
    a ConfigError.
    """
    nodes, per_node, world = (int(environment[name]) for name in ("GROUP_WORLD_SIZE", "LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    if nodes * per_node != world:
        raise ConfigError(
            f"torchrun's --nproc_per_node must be the same on each of the {nodes} nodes, got {per_node} on this one "
            f"and {world} in all. Start them alike."
        )
    wanted = len(devices) if isinstance(devices, Sequence) and not isinstance(devices, str) else devices
    if str(wanted) not in ("auto", "-1", str(per_node)):
        raise ConfigError(
            f"trainer.devices must be torchrun's --nproc_per_node ({per_node}), got {wanted}. Leave it out, or start "
            f"torchrun --nproc_per_node {wanted}."
        )
    if num_nodes not in (1, nodes):
        raise ConfigError(
            f"trainer.num_nodes must be torchrun's --nnodes ({nodes}), got {num_nodes}. Leave it out, or start "
            f"torchrun --nnodes {num_nodes}."
        )
    return nodes, per_node


@contextlib.contextmanager
def ending_with_parent(
    *, poll_seconds: float = 0.5, end: Callable[[], None] | None = None, environment: Mapping[str, str] = os.environ
) -> Iterator[None]:
    """End this process as soon as the one that started it is gone.

    Nobody would end it otherwise: a training whose torchrun was killed would keep running unseen, and save into the
    run directory of the one started in its place. So it ends at once and saves nothing: `end` is called, or the process
    killed, with its workers if it has its own process group. A process that no launcher started is left alone.
    """
    # Neither torchrun nor the first process of `--trainer.devices N` waits for it.
    if not from_torchrun(environment) and environment.get("LOCAL_RANK", "0") == "0":
        yield
        return
    parent, over = os.getppid(), threading.Event()

    def look() -> None:
        while not over.wait(poll_seconds):
            if os.getppid() != parent:
                (end or _kill)()
                return

    threading.Thread(target=look, name="ending-with-parent", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _kill() -> None:
    if os.getpgrp() == os.getpid():  # torchrun gives each process a group
        os.killpg(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def leaving_group() -> Iterator[None]:
    """Leave the process group at the end of a run, and after a signal has stopped it.

    A process that is in a gloo group when it exits may be aborted, since one of the group's threads is still at work
    (torch 2.15: of 40 pairs that exited right after a collective call, 14). Its exit status is lost then, and with it
    whether the job is done or wants to be started again. After an error nobody is waited for.
    """
    try:
        yield
    except StoppedError:
        _leave_group()
        raise
    _leave_group()


def lost_rank(error: RuntimeError) -> RunError | None:
    """What to raise in place of an error that another rank's end causes; None for another error."""
    if not re.search(r"gloo/transport/.* by peer|ncclRemoteError", str(error)):
        return None
    return RunError("another rank has ended, so this one ends too; why is in the other's messages.")


def _leave_group() -> None:
    distributed = sys.modules.get("torch.distributed")  # not imported: in no group
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
