"""Refuses processes that read other files than the first one: they would train on other clips, or wait for ever."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from lightning import Callback, LightningModule, Trainer

from video_gn.errors import CheckpointError, ManifestError
from video_gn.lists.read import Manifest


class SameData(Callback):
    """Compares the lists and the checkpoint of all processes before anything is read.

    Names and labels are compared, not directories: a node may have its own copy of the data somewhere else.

    Args:
        manifests: by their part of the data, "train" and the like.
        run_dir: of the run.
        step: of the checkpoint found there; 0 for none.
    """

    def __init__(self, manifests: Mapping[str, Manifest], *, run_dir: Path, step: int) -> None:
        self.manifests = manifests
        self.run_dir = run_dir
        self.step = step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compare.

        Raises:
            ManifestError: on the process whose list differs from the first one's.
            CheckpointError: on the one whose checkpoint does.
        """
        if trainer.world_size == 1:
            return
        mine = {
            part: (len(manifest.records), manifest.digest(of_copies=True)) for part, manifest in self.manifests.items()
        }
        node, step, first = trainer.strategy.broadcast((os.uname().nodename, self.step, mine))
        if step != self.step:
            raise CheckpointError(
                f"{self.run_dir}: the checkpoint must be the same on all nodes, got step {self.step} on "
                f"{os.uname().nodename} and step {step} on {node}. Give a --run_dir that all nodes see."
            )
        for part, found in mine.items():
            theirs = first.get(part, (0, ""))
            if found == theirs:
                continue
            counts = f"{found[0]} here, on {os.uname().nodename}, and {theirs[0]} on {node}"
            raise ManifestError(
                f"{self.manifests[part].origin}: the {part} list must have the same videos on all nodes, got "
                f"{counts if found[0] != theirs[0] else f'others on {os.uname().nodename} than on {node}'}. Put the "
                "same files on each."
            )
