"""Contenders that take turns, the memory of this process, and the machine that all of it ran on."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def side_by_side(contenders: Mapping[str, Callable[[int], float]], rounds: int) -> dict[str, list[float]]:
    """Let contenders take turns.

    Args:
        contenders: each gets the round's number, 0 for the warm-up, and returns the seconds it took.
        rounds: that count.

    Returns:
        For each contender the seconds of each round but the first.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds + 1):
        # Whoever comes first finds colder caches: the order turns.
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            taken = contenders[name](number)
            if number > 0:
                seconds[name].append(taken)
    return seconds


def summarize(seconds: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median, lowest and highest of each contender's rounds, in milliseconds."""
    return {
        name: {
            "median_ms": 1000 * statistics.median(values),
            "min_ms": 1000 * min(values),
            "max_ms": 1000 * max(values),
        }
        for name, values in seconds.items()
    }


def ratio_of_medians(summary: Mapping[str, Mapping[str, float]], above: str, below: str) -> float:
    """One contender's median divided by another's."""
    return summary[above]["median_ms"] / summary[below]["median_ms"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, and as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def resident_bytes() -> int | None:
    """Memory of this process that lies in RAM; None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def describe_machine() -> dict[str, Any]:
    """Processor, cores, load and versions: figures mean little without them."""
    return {
        "processor": _processor(),
        "num_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "num_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "torchvision", "av", "decord2")},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
