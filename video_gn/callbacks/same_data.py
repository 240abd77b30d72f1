"""Refuses processes that read other lists than the first one: they would train on other clips, or wait for ever."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import PurePath

from lightning import Callback, LightningModule, Trainer

from video_gn.data.manifest import Manifest
from video_gn.errors import ManifestError


class SameData(Callback):
    """Compares the lists of all processes before anything is read.

    Names and labels are compared, not directories: a node may have its own copy of the data somewhere else.

    Args:
        manifests: by their part of the data, "train" and the like.
    """

    def __init__(self, manifests: Mapping[str, Manifest]) -> None:
        self.manifests = manifests

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compare.

        Raises:
            ManifestError: on the process whose list differs from the first one's.
        """
        if trainer.world_size == 1:
            return
        mine = {part: (len(manifest.records), fingerprint(manifest)) for part, manifest in self.manifests.items()}
        node, first = trainer.strategy.broadcast((os.uname().nodename, mine))
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


def fingerprint(manifest: Manifest) -> str:
    """SHA-256 of the names, labels and segments of a list, in their order; of a file without its directory.

    Args:
        manifest: to be compared with another machine's.
    """
    digest = hashlib.sha256()
    for record in manifest.records:
        row = (PurePath(record.path).name, record.label, record.start_seconds, record.end_seconds)
        digest.update(repr(row).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
