"""Reading this package's own checkpoints: plain containers alone, nothing is executed."""

from __future__ import annotations

import logging
import pickle
import platform
import zipfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from video_gn.errors import CheckpointError

log = logging.getLogger(__name__)

KEY = "video_gn"
NET_PREFIX = "net."


def read_checkpoint(path: str | Path, *, resume: bool = False) -> dict[str, Any]:
    """Read a checkpoint that a run has written.

    Args:
        path: of the file; its tensors are mapped, not read.
        resume: a training will go on from it: every byte is checked.

    Returns:
        The whole checkpoint.

    Raises:
        CheckpointError: for a file that is missing, cut short, not of this package, or without what a training needs.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path}: not a checkpoint of a run, or cut short ({reason}). "
            "Weights in another form go into --model.weights."
        ) from error
    needed = [KEY, "state_dict", "global_step", *(["optimizer_states", "loops"] if resume else [])]
    missing = [key for key in needed if key not in content] if isinstance(content, dict) else needed
    if missing:
        raise CheckpointError(
            f"{path}: has no key {missing[0]!r}: it is no checkpoint of a run{' to go on from' if resume else ''}. "
            f"Weights alone go into --model.weights {path}"
        )
    if resume:
        _check_bytes(path)
    return dict(content)


def _check_bytes(path: Path) -> None:
    """Compare the file's checksums: a flipped bit in a weight would go unseen otherwise."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise CheckpointError(f"{path}: damaged ({error}). Go on from another one.") from error
    if damaged is not None:
        raise CheckpointError(f"{path}: damaged: the checksum of {damaged} is wrong. Go on from another one.")


def newest_checkpoint(directory: Path) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint of a run that a training goes on from: last.ckpt, or where it is damaged the newest whole one.

    Args:
        directory: the run's `checkpoints/`.

    Returns:
        Its path and content; None where there is none at all.

    Raises:
        CheckpointError: where every one is damaged; that of last.ckpt.
    """
    last = directory / "last.ckpt"
    paths = [last, *sorted(directory.glob("step-*.ckpt"), reverse=True), directory / "best.ckpt"]
    damages: list[CheckpointError] = []
    found: list[tuple[Path, dict[str, Any]]] = []
    for path in paths:
        if path.is_file():
            try:
                found.append((path, read_checkpoint(path, resume=True)))
            except CheckpointError as error:
                log.warning("%s", error)
                damages.append(error)
        if path == last and found:
            return found[0]
    if not found:
        if damages:
            raise damages[0]
        return None
    path, content = max(found, key=lambda item: int(item[1]["global_step"]))
    why = "is damaged" if last.is_file() else "is not there"
    log.warning("Going on from %s (step %d): %s %s.", path, content["global_step"], last, why)
    return path, content


def environment() -> dict[str, str]:
    """What a run's arithmetic depends on beside its config, as plain strings."""
    return {
        "cpu": _cpu_name(),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "lightning", "av", "numpy")},
    }


def environment_differences(stored: Mapping[str, str]) -> list[str]:
    """What differs here from where a checkpoint was written, a line each, for example "threads: 2 there, 1 here"."""
    here = environment()
    differing = [name for name, value in here.items() if stored.get(name, value) != value]
    return [f"{name}: {stored[name]} there, {here[name]} here" for name in differing]


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
