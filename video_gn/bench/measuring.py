"""What the benchmarks share: contenders that take turns, memory, the machine, and the lines of a page."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import video_gn

_ROOT = Path(video_gn.__file__).parent.parent
# Instructions that decide how fast a CPU computes a network.
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")

# ---- time ------------------------------------------------------------------------------------------


def timed(action: Callable[[int], object], device: str | torch.device = "cpu") -> Callable[[int], float]:
    """A contender of `side_by_side` that counts the time of a whole action, until the device has done it."""

    def run(number: int) -> float:
        start = time_on(device)
        action(number)
        return time_on(device) - start

    return run


def time_on(device: str | torch.device) -> float:
    """The time, in seconds, when a device has done all that it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def side_by_side(contenders: Mapping[str, Callable[[int], float]], rounds: int) -> dict[str, list[float]]:
    """Let contenders take turns, in a changing order, so that a busy machine slows all of them.

    Each gets the round's number, 0 for the warm-up, and returns the seconds it took; the warm-up does not count. At
    least one round follows it.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds + 1):
        # The first of a round finds colder caches: the order rotates.
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            taken = contenders[name](number)
            if number > 0:
                seconds[name].append(taken)
    return seconds


def summarize(seconds: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median, lowest and highest of each contender's rounds, in milliseconds."""
    figures: dict[str, Callable[[list[float]], float]] = {"median_ms": statistics.median, "min_ms": min, "max_ms": max}
    return {name: {figure: 1000 * of(values) for figure, of in figures.items()} for name, values in seconds.items()}


def ratio_of_medians(summary: Mapping[str, Mapping[str, float]], above: str, below: str) -> float:
    """One contender's median divided by another's."""
    return summary[above]["median_ms"] / summary[below]["median_ms"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---- memory ----------------------------------------------------------------------------------------


def resident_bytes(*, peak: bool = False) -> int | None:
    """Memory of this process in RAM, mapped files included; None if the system has no /proc.

    `peak` is the highest since the start, or since `reset_peak`.
    """
    name = "VmHWM:" if peak else "VmRSS:"
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(name)), None)


def reset_peak() -> bool:
    """Start the highest memory anew; whether the system could."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


# ---- the machine and the page ----------------------------------------------------------------------


def describe_machine(device: str = "cpu") -> dict[str, Any]:
    """Where, when and with what is measured on a torch device; figures mean little without them.

    Returns:
        Processor, its cores and instructions, device (a GPU's name), load, commit (None if the package is not in its
        repository, "-dirty" at its end if files differ from it), date in UTC, and versions.
    """
    return {
        "processor": next(iter(_cpuinfo("model name")), platform.processor() or platform.machine()),
        "num_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instructions": [name for name in _INSTRUCTIONS if name in " ".join(_cpuinfo("flags")[:1]).split()],
        "device": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device,
        "load_average": os.getloadavg()[0],
        "num_threads": torch.get_num_threads(),
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "video_gn": video_gn.__version__,
        **{name: _version(name) for name in ("torch", "torchvision", "lightning", "av", "decord2")},
    }


def _cpuinfo(key: str) -> list[str]:
    """Values of a key in /proc/cpuinfo, one for each processor; none if the system has no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key]


def _commit() -> str | None:
    if not (_ROOT / ".git").exists():  # git would find a repository that the package was installed in
        return None
    try:
        words = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def head_lines(result: Mapping[str, Any]) -> list[str]:
    """The first lines of every page: the machine, the versions, and how to read the figures."""
    machine = result["machine"]
    versions = ", ".join(f"{n} {machine[n]}" for n in ("torch", "torchvision", "av", "decord2") if machine[n])
    return [
        f"{machine['processor']}, {machine['num_threads']} of {machine['num_cores']} cores, "
        f"load {machine['load_average']:.1f}, {versions}",
        f"Medians over {result['rounds']} round(s) side by side (lowest to highest)",
    ]


def contender_row(label: str, figures: Mapping[str, float], *more: str) -> str:
    """A contender's line: median, lowest and highest, and what else there is to say."""
    spread = f"({figures['min_ms']:.1f} to {figures['max_ms']:.1f})"
    return "  ".join((f"  {label:37s}{figures['median_ms']:10.1f} ms", spread, *more))


def verdict(value: float, *, at_most: float | None = None, at_least: float | None = None) -> str:
    """A target, and whether a ratio meets it."""
    if at_most is not None:
        return f"target at most {at_most:.3g}: {'met' if value <= at_most else 'missed'}"
    assert at_least is not None
    return f"target at least {at_least:.3g}: {'met' if value >= at_least else 'missed'}"
