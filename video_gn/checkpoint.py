"""Reading this package's own checkpoints: plain containers alone, nothing is executed."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from video_gn.errors import CheckpointError

KEY = "video_gn"
NET_PREFIX = "net."


def read_checkpoint(path: str | Path, *, resume: bool = False) -> dict[str, Any]:
    """Read a checkpoint that a run has written.

    Args:
        path: of the file; its tensors are mapped, not read.
        resume: a training will go on from it.

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
    return dict(content)
