"""What a config asks for, in numbers: batches, steps and validations; and the rate at which a machine does them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LIGHTNINGS_EPOCHS = 1000  # without max_epochs and max_steps


@dataclass(frozen=True)
class Length:
    """How long a training is."""

    batches_of_epoch: int  # of one process
    batches: int  # of one process, in the whole run
    steps: int  # of the optimizer
    epochs: float  # of the whole run, perhaps not whole
    validations: int  # of the whole run


def length_of(trainer: Mapping[str, Any], batches_of_epoch: int) -> Length:
    """Length of a run, from the settings of Lightning's trainer and the batches of its loader, at least 1."""
    batches = _limited(trainer["limit_train_batches"], batches_of_epoch)
    accumulate = min(trainer["accumulate_grad_batches"], batches)
    steps_of_epoch = math.ceil(batches / accumulate)
    epochs, most_steps = trainer["max_epochs"], trainer["max_steps"]
    if epochs is None and most_steps == -1:
        epochs = _LIGHTNINGS_EPOCHS
    steps = math.inf if epochs in (None, -1) else epochs * steps_of_epoch
    if most_steps != -1:
        steps = min(steps, most_steps)
    whole, rest = divmod(int(steps), steps_of_epoch)
    total = whole * batches + rest * accumulate
    return Length(batches, total, int(steps), total / batches, _validations(trainer, batches, total))


def _limited(limit: int | float | None, number: int) -> int:
    if limit is None:
        return number
    return max(1, min(number, limit if isinstance(limit, int) else int(number * limit)))


def _validations(trainer: Mapping[str, Any], batches: int, total: int) -> int:
    if trainer["limit_val_batches"] in (0, 0.0):
        return 0
    every_epochs, interval = trainer["check_val_every_n_epoch"], trainer["val_check_interval"]
    interval = 1.0 if interval is None else interval
    between = interval if isinstance(interval, int) else max(1, int(batches * interval))
    if every_epochs is None:
        return total // between
    return total // batches // every_epochs * (batches // between) if between <= batches else total // between


@dataclass(frozen=True)
class Machine:
    """What does the work."""

    num_processes: int  # processes of a training, one a GPU
    num_cores: int  # cores of all nodes
    num_workers: int  # loading workers of a process; 0 if it loads by itself
    num_threads: int  # threads that compute in each process on CPUs, which loading workers then share; 0 with GPUs


def rate_of(machine: Machine, compute_seconds: float, core_seconds: float) -> tuple[float, str]:
    """Clips (or videos) a second of all processes, and what limits it: "computing", "loading" or "the cores".

    For each, a process computes `compute_seconds`, and a core loads `core_seconds`.
    """
    if not machine.num_workers:  # in turns
        return machine.num_processes / (compute_seconds + core_seconds), "loading without workers"
    readers = machine.num_workers * machine.num_processes
    cores = machine.num_cores
    seconds = {
        "computing": compute_seconds / machine.num_processes,
        "loading workers": core_seconds / readers,
        "cores for loading": core_seconds / cores,
    }
    if machine.num_threads:
        del seconds["cores for loading"]
        busy = machine.num_threads * compute_seconds + core_seconds
        if machine.num_threads * machine.num_processes >= cores:
            # A layer waits for the slowest of its threads, so that a core which loads holds up all that compute.
            busy = machine.num_threads * (compute_seconds + core_seconds)
        seconds["cores, which compute and load"] = busy / cores
    slowest = max(seconds, key=seconds.__getitem__)
    return 1 / seconds[slowest], slowest
