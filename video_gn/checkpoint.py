"""Reading this package's own checkpoints: plain containers alone, nothing is executed."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from video_gn.errors import CheckpointError

KEY = "video_gn"
NET_PREFIX = "net."


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint that a run has written.

    Args:
        path: of the file; its tensors are mapped, not read.

    Returns:
        The whole checkpoint.

    Raises:
        CheckpointError: for a file that is missing, cut short, or not of this package.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path}: not a checkpoint, or cut short ({reason})") from error
    if not isinstance(content, dict) or KEY not in content:
        raise CheckpointError(
            f"{path}: has no key {KEY!r}: it was not written by this package. "
            "Another zoo's weights go into --model.weights."
        )
    return content
