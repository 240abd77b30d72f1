"""The directory of a run: the name of every file in it, its lock, and where an earlier training goes.

A training writes `config.yaml`, `checkpoints/` and `metrics.csv`, a test `test/`, a prediction `predict/`; everything
else in the directory is the user's own. No torch is imported, so that reports and studies can read these names.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import IO

from video_gn.errors import RefusedError, RunError
from video_gn.files import HeldError, hold

# ---- names, from the run directory on --------------------------------------------------------------

CONFIG = "config.yaml"  # resolved settings of fit
RESUME_CONFIGS = "config.resume-*.yaml"  # those of each resume, 001 and up
CHECKPOINTS = "checkpoints"
LAST = "last.ckpt"  # in checkpoints/, as are the next two
BEST = "best.ckpt"
STEPS = "step-*.ckpt"
METRICS = "metrics.csv"
WEIGHTS = "weights.json"  # which tensors came from model.weights
FAILURES = "failures.csv"  # training videos that could not be read
TENSORBOARD = "tensorboard"
REPORT = "report.html"
LOCK = ".lock"

TEST = "test"
TEST_CONFIG = "test/config.yaml"
TEST_METRICS = "test/metrics.json"
TEST_PREDICTIONS = "test/predictions.csv"
TEST_SCORES = "test/scores.npz"  # of each view
TEST_UNFINISHED = "test/unfinished"  # videos scored so far
TEST_LOCK = "test/.lock"

PREDICT = "predict"
PREDICT_RESULTS = "predict/predictions.json"

PREVIOUS = "previous"  # earlier trainings, 001 and up, each with all of these:
_SET_ASIDE = (CONFIG, RESUME_CONFIGS, CHECKPOINTS, METRICS, WEIGHTS, FAILURES, TENSORBOARD, TEST, PREDICT, REPORT)


class RunDirectory:
    """A run's directory, made when it is locked and held by one run at a time."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock: IO[str] | None = None

    def lock(self, name: str, *, wait_seconds: float | None = None) -> None:
        """Hold the directory until this process ends; the kernel releases it also after a kill.

        `name` is LOCK or TEST_LOCK: a training and a test of its checkpoint may run side by side. `wait_seconds` for
        another run as in `video_gn.files.hold`.

        Raises:
            RefusedError: If another run holds it, or it cannot be written.
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
        """Release the directory."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def set_aside(self) -> Path | None:
        """Move the files of an earlier training to `previous/NNN/`, so that a new one overwrites nothing.

        Returns the new directory; None if there was nothing to move.

        Raises:
            RunError: While a test writes into the directory.
        """
        if (self.path / TEST).is_dir():
            test = RunDirectory(self.path)
            test.lock(TEST_LOCK)
            test.unlock()
        found = [entry for pattern in _SET_ASIDE for entry in sorted(self.path.glob(pattern))]
        if not found:
            return None
        previous = self.path / PREVIOUS
        numbers = [int(p.name) for p in previous.glob("*") if p.name.isdigit()] if previous.is_dir() else []
        target = previous / f"{max(numbers, default=0) + 1:03d}"
        target.mkdir(parents=True)
        for entry in found:
            entry.rename(target / entry.name)
        return target

    def put_back(self, aside: Path) -> None:
        """Undo `set_aside`, which returned `aside`, if the training after it was refused before it saved anything."""
        if (self.path / CHECKPOINTS).exists():
            return
        for pattern in _SET_ASIDE:
            for entry in self.path.glob(pattern):  # the refused training's config and empty tables
                if entry.is_dir():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
        for entry in sorted(aside.iterdir()):
            entry.rename(self.path / entry.name)
        aside.rmdir()

    def find_checkpoint(self, wanted: str) -> Path | None:
        """The checkpoint that "best", "last" or a path stands for; None for a "best" or "last" that does not exist.

        Raises:
            RunError: For a path that does not exist.
        """
        named = {"best": BEST, "last": LAST}
        if wanted in named:
            path = self.path / CHECKPOINTS / named[wanted]
            return path if path.is_file() else None
        if not Path(wanted).is_file():
            raise RunError(
                f"ckpt_path {wanted!r} is not a file. Give a checkpoint, or best or last of the run directory."
            )
        return Path(wanted)
