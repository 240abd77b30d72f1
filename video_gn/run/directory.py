"""One directory for a run: its lock, its config, and what an earlier run left in it."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import yaml
from lightning import Callback, LightningModule, Trainer

from video_gn.errors import RefusedError, RunError
from video_gn.files import HeldError, hold, write_text

log = logging.getLogger(__name__)

# Written by a training; everything else in the directory is the user's own.
_FIT_FILES = (
    "config.yaml",
    "config.resume-*.yaml",
    "checkpoints",
    "metrics.csv",
    "weights.json",
    "failures.csv",
    "tensorboard",
    "test",
    "predict",
    "report.html",
)


class RunDirectory:
    """A run's directory, held by one run at a time.

    Args:
        path: of the directory; made if it is not there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock: IO[str] | None = None

    def lock(self, name: str, *, wait_seconds: float | None = None) -> None:
        """Hold the directory until this process ends; the kernel lets go of it also after a kill.

        Args:
            name: of the lock file: a training and a test of its checkpoint may run side by side.
            wait_seconds: how long to wait for another run, see `video_gn.files.hold`.

        Raises:
            RefusedError: where another run holds it, or it cannot be written.
        """
        target = self.path / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._lock = hold(target, wait_seconds=wait_seconds)
        except OSError as error:
            raise RefusedError(
                f"--run_dir {self.path} cannot be written: {error.strerror} ({error.filename})"
            ) from error
        except HeldError as error:
            raise RefusedError(
                f"{self.path} is in use by another run ({error.holder}). Wait for it, or choose another --run_dir."
            ) from error

    def unlock(self) -> None:
        """Let go of the directory."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def set_aside(self) -> Path | None:
        """Move what an earlier training left to `previous/NNN/`, so that a new one loses nothing.

        Returns:
            Where it lies now; None where there was nothing.

        Raises:
            RunError: while a test writes into the directory.
        """
        if (self.path / "test").is_dir():
            test = RunDirectory(self.path)
            test.lock("test/.lock")
            test.unlock()
        found = [entry for pattern in _FIT_FILES for entry in sorted(self.path.glob(pattern))]
        if not found:
            return None
        previous = self.path / "previous"
        numbers = [int(p.name) for p in previous.glob("*") if p.name.isdigit()] if previous.is_dir() else []
        target = previous / f"{max(numbers, default=0) + 1:03d}"
        target.mkdir(parents=True)
        for entry in found:
            entry.rename(target / entry.name)
        return target

    def put_back(self, aside: Path) -> None:
        """Undo `set_aside`, where the training that came after it was refused before it saved anything.

        Args:
            aside: what `set_aside` returned.
        """
        if (self.path / "checkpoints").exists():
            return
        for pattern in _FIT_FILES:
            for entry in self.path.glob(pattern):  # the refused training's config and empty tables
                if entry.is_dir():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
        for entry in sorted(aside.iterdir()):
            entry.rename(self.path / entry.name)
        aside.rmdir()

    def find_checkpoint(self, wanted: str) -> Path | None:
        """The checkpoint that a name stands for.

        Args:
            wanted: "best", "last", or a path.

        Returns:
            Its path; None for "last" or "best" where there is none.

        Raises:
            RunError: for a path that does not exist.
        """
        directory = self.path / "checkpoints"
        if wanted in ("best", "last"):
            path = directory / f"{wanted}.ckpt"
            return path if path.is_file() else None
        if not Path(wanted).is_file():
            raise RunError(
                f"ckpt_path {wanted!r} is not a file. Give a checkpoint, or best or last of the run directory."
            )
        return Path(wanted)


class SaveConfig(Callback):
    """Writes the resolved config: `config.yaml`, `test/config.yaml`, or a resume's own beside the first.

    Args:
        run_dir: the run's directory.
        text: the resolved config as yaml.
        stage: "fit", "validate", "test" or "predict".
        resumes: whether a fit goes on from a checkpoint of this directory.
    """

    def __init__(self, run_dir: Path, text: str, *, stage: str, resumes: bool) -> None:
        self.run_dir = run_dir
        self.text = text
        self.stage = stage
        self.resumes = resumes

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file, once everything has been built."""
        if not trainer.is_global_zero:
            return
        first = self.run_dir / "config.yaml"
        if self.stage != "fit":
            target = self.run_dir / self.stage / "config.yaml"
        elif self.resumes and first.is_file():
            target = _next_resume_name(self.run_dir)
            differences = config_differences(yaml.safe_load(first.read_text()), yaml.safe_load(self.text))
            for line in differences:
                log.warning("config differs from %s: %s", first, line)
        else:
            target = first
        write_text(target, self.text)


def _next_resume_name(run_dir: Path) -> Path:
    number = 1
    while (run_dir / f"config.resume-{number:03d}.yaml").exists():
        number += 1
    return run_dir / f"config.resume-{number:03d}.yaml"


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines "key: old -> new" for every leaf that differs, but for `ckpt_path`, which a resume must change.

    Args:
        old: nested mapping.
        new: nested mapping.
        prefix: of the keys.
    """
    lines = []
    for key in sorted({*old, *new}, key=str):
        name = f"{prefix}{key}"
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += config_differences(a, b, f"{name}.")
        elif a != b and name != "ckpt_path":
            lines.append(f"{name}: {a!r} -> {b!r}")
    return lines
