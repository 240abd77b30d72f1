"""Reads the checkpoints of runs: the newest whole one of a directory, and what differs from where it was written."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from video_gn.errors import CheckpointError
from video_gn.run.directory import BEST, LAST, STEPS
from video_gn.weights.about import KEY, brief, check_words
from video_gn.weights.files import read_file, without_advice

log = logging.getLogger(__name__)

# What a checkpoint of a run holds, and what training needs beside it to resume.
_CONTENT = {KEY: dict, "state_dict": dict, "global_step": int}
_TRAINING = {"optimizer_states": list, "loops": dict}
# What counts steps, batches, clips or epochs, in the state of loops, schedules and data; 9e15 is exact in any number.
_COUNTS = {"ready", "started", "processed", "completed", "_batches_that_stepped", "last_epoch", "_step_count", "epoch"}
_COUNTS |= {"batches", "clips", "clips_per_batch", "accumulate", "batches_per_epoch", "repeats", "global_step"}
_MOST = 9 * 10**15


def read_checkpoint(path: str | Path, *, resume: bool = False) -> dict[str, Any]:
    """Read a whole checkpoint that a run has written, and check that it has what a run needs, or also to `resume`.

    Its checksums are compared; its tensors are mapped, not read. A file that is missing, damaged, not of this package,
    or lacks what training needs is a CheckpointError.
    """
    content = read_plain(path)
    advice = f"Weights alone go into --model.weights {path}"
    for key, kind in (_CONTENT | _TRAINING if resume else _CONTENT).items():
        if not isinstance(content.get(key), kind):
            raise CheckpointError(
                f"{path}: has no key {key!r}: it is no checkpoint of a run{' to resume' if resume else ''}. {advice}"
            )
    check_words(str(path), content[KEY])
    _check_counts(path, content if resume else {"global_step": content["global_step"]})
    return content


def _check_counts(path: str | Path, content: Mapping[str, Any]) -> None:
    """Check each count of a training's state; the trees of weights have none."""
    seen: set[int] = set()

    def check(node: Any, place: str) -> None:
        if not isinstance(node, Mapping | list) or id(node) in seen:
            return
        seen.add(id(node))
        for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            name = f"{place}{key}"
            if key in _COUNTS and not (type(value) is int and 0 <= value <= _MOST):
                raise CheckpointError(
                    f"{path}: {name} must be a whole number from 0 to {_MOST:.0e}, got {brief(value)}. Take another "
                    "checkpoint."
                )
            check(value, f"{name}.")

    parts = ("global_step", "epoch", "loops", "lr_schedulers", "VideoDataModule")
    check({name: content[name] for name in parts if name in content}, "")
    position = content.get("VideoDataModule")
    if isinstance(position, Mapping) and position.get("clips") and not position.get("batches"):
        raise CheckpointError(f"{path}: VideoDataModule.clips must be 0 after 0 batches, got {position['clips']}")


def read_plain(path: str | Path, *, mapped: bool = True) -> dict[str, Any]:
    """Read a file of plain containers and tensors that torch.save wrote; nothing in it is executed.

    `mapped` maps the tensors instead of reading them; see `read_file`. A file that is missing, damaged, of another
    kind, or holds objects of other libraries is a CheckpointError.
    """
    found = read_file(path, mapped=mapped)
    if found.container != "torch" or not isinstance(found.content, dict):
        raise CheckpointError(
            f"{path}: not a checkpoint of a run, but {type(found.content).__name__} in a file of kind "
            f"{found.container}. Weights alone go into --model.weights {path}"
        )
    if found.foreign:
        raise CheckpointError(
            f"{path}: not a checkpoint of a run: it holds {found.foreign[0]}, and a run writes plain containers and "
            f"tensors alone. Weights alone go into --model.weights {path}"
        )
    return found.content


def newest_checkpoint(directory: Path) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint that a training resumes from: last.ckpt, or if that is damaged the newest whole one.

    Returns its path and content; None if the directory has no checkpoints, a CheckpointError if all are damaged.
    """
    last = directory / LAST
    paths = [last, *sorted(directory.glob(STEPS), reverse=True), directory / BEST]
    damages: list[CheckpointError] = []
    found: list[tuple[Path, dict[str, Any]]] = []
    for path in filter(Path.is_file, paths):
        try:
            found.append((path, read_checkpoint(path, resume=True)))
        except CheckpointError as error:
            damages.append(error)
        if found and found[0][0] == last:
            return found[0]
    if not found:
        if damages:
            raise CheckpointError(
                f"{'; '.join(without_advice(damages))}. No checkpoint of the training is whole: without --ckpt_path "
                "last it starts from the beginning, and what is there is kept in previous/."
            )
        return None
    path, content = max(found, key=lambda item: int(item[1]["global_step"]))
    why = "; ".join(([] if last.is_file() else [f"{last} is not there"]) + without_advice(damages))
    log.warning("Resuming from %s (step %d): %s.", path, content["global_step"], why)
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
