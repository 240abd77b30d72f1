"""The directory of a run: the name of every file in it, its lock, and where an earlier training goes.

A training writes `config.yaml`, `checkpoints/` and `metrics.csv`, a test `test/`, a prediction `predict/`; everything
else in the directory is the user's own. No torch is imported, so that reports and studies can read these names.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from pathlib import Path
from typing import IO

from video_gn.damage import read_settings, set_damaged_aside
from video_gn.errors import CheckpointError, ConfigError, RefusedError, RunError, UnwritableError
from video_gn.files import HeldError, hold, naming_full_disk, reason_of, write_text
from video_gn.weights import named

log = logging.getLogger(__name__)

# ---- names, from the run directory on --------------------------------------------------------------

CONFIG = "config.yaml"  # resolved settings of fit
RESUME_CONFIGS = "config.resume-*.yaml"  # those of each resume, 001 and up
CHECKPOINTS = "checkpoints"
LAST = "last.ckpt"  # in checkpoints/, as are the next two
BEST = "best.ckpt"
STEPS = "step-*.ckpt"
_ANY_CHECKPOINT = "*.ckpt"
METRICS = "metrics.csv"
WEIGHTS = "weights.json"  # which tensors came from model.weights
FAILURES = "failures.csv"  # training videos that could not be read
TENSORBOARD = "tensorboard"
TRACKERS = "trackers.json"  # the run's names in MLflow and W&B
WANDB = "wandb"  # what W&B's own library writes
REPORT = "report.html"
CARD = "card.md"  # of the model, for others
LOCK = ".lock"

TEST = "test"
TEST_CONFIG = "test/config.yaml"
TEST_METRICS = "test/metrics.json"
TEST_PREDICTIONS = "test/predictions.csv"
TEST_SCORES = "test/scores.npz"  # of each view
TEST_UNFINISHED = "test/unfinished"  # videos scored so far
TEST_LOCK = "test/.lock"

VALIDATE = "validate"
PREDICT = "predict"
PREDICT_RESULTS = "predict/predictions.json"
PREDICT_UNFINISHED = "predict/unfinished"  # videos labelled so far
PREDICT_LOCK = "predict/.lock"

PREVIOUS = "previous"  # earlier trainings, 001 and up, each with all of these:
_SET_ASIDE = (
    CONFIG, RESUME_CONFIGS, CHECKPOINTS, METRICS, WEIGHTS, FAILURES, TENSORBOARD, TRACKERS, WANDB, TEST, VALIDATE,
    PREDICT, REPORT, CARD,
)  # fmt: skip
_DIRECTORIES = (CHECKPOINTS, TENSORBOARD, WANDB, TEST, TEST_UNFINISHED, VALIDATE, PREDICT, PREDICT_UNFINISHED, PREVIOUS)
_LOCKS = (LOCK, TEST_LOCK, PREDICT_LOCK)
_DISPLACED = "previous/.displaced"  # "moving NNN" or "moved NNN": comes back unless the next one saves a checkpoint


class RunDirectory:
    """A run's directory, made when it is locked and held by one run at a time."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock: IO[str] | None = None

    def lock(self, name: str, *, wait_seconds: float | None = None) -> None:
        """Hold the directory until this process ends; the kernel releases it also after a kill.

        `name` is LOCK, TEST_LOCK or PREDICT_LOCK: a training and a test of its checkpoint may run side by side.
        `wait_seconds` for another run as in `video_gn.files.hold`.

        Raises:
            RefusedError: If another run holds it, or it cannot be written.
            DiskFullError: If there is no room.
        """
        target = self.path / name
        try:
            with naming_full_disk(target):
                self._set_strange_aside(Path(name).parent.name, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                self._lock = hold(target, wait_seconds=wait_seconds)
        except OSError as error:
            raise UnwritableError(
                f"--run_dir {self.path} cannot be written: {reason_of(error, target)} ({error.filename}). Choose "
                "one that this user may write to."
            ) from error
        except HeldError as error:
            raise RefusedError(
                f"{self.path} is in use by another run ({error.holder}). Wait for it, or choose another --run_dir."
            ) from error

    def set_strange_files_aside(self, stage: str) -> None:
        """Rename what lies where a training ("fit"), "test" or "predict" writes its files, and is no such file.

        Call it while holding the directory. A link that leads nowhere is no file, a link to a directory is one.
        """
        names = {
            "fit": [name for name in _SET_ASIDE if "*" not in name],
            "test": [TEST_CONFIG, TEST_METRICS, TEST_PREDICTIONS, TEST_SCORES, TEST_UNFINISHED],
            "predict": [PREDICT_RESULTS, PREDICT_UNFINISHED],
        }
        self._set_strange_aside(*names[stage], PREVIOUS)

    def _set_strange_aside(self, *names: str) -> None:
        for name in filter(None, names):
            path = self.path / name
            is_right = path.is_dir() if name in _DIRECTORIES else path.is_file()
            # A lock is written to as it is: a link would have what it leads to overwritten.
            if os.path.lexists(path) and (not is_right or (name in _LOCKS and path.is_symlink())):
                set_damaged_aside(path, "it is not what a run writes there", "A new one takes its place.")

    def unlock(self) -> None:
        """Release the directory."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def set_aside(self) -> Path | None:
        """Move the files of an earlier training to `previous/NNN/`, so that a new one overwrites nothing.

        It comes back at the next `settle`, unless the new one has saved a checkpoint by then. While a test or
        prediction writes into the directory, it is a RunError.

        Returns the new directory; None if there was nothing to move.
        """
        for name in (TEST_LOCK, PREDICT_LOCK):
            if (self.path / name).parent.is_dir():
                other = RunDirectory(self.path)
                other.lock(name)
                other.unlock()
        found = self._files()
        if not found:
            return None
        target = self._next_previous()
        target.mkdir(parents=True)
        self._mark("moving", target)
        for entry in found:
            entry.rename(target / entry.name)
        self._mark("moved", target)
        return target

    def settle(self) -> Path | None:
        """Bring back the training that was set aside, unless the one after it has saved a checkpoint.

        Call it while holding the directory: when a training ends, however it does, and before the next command if it
        was killed. What the training without a checkpoint has logged goes to `previous/NNN/` in its turn.

        Returns where the training lay that is back; None if there is none.
        """
        marker = self.path / _DISPLACED
        aside = self.displaced()
        if aside is None:
            if os.path.lexists(marker):
                so = f"Whether one of the earlier runs in {marker.parent} belongs back here is not known."
                set_damaged_aside(marker, "it names no run", so)
            return None
        is_moved = self._marked()[0] == "moved"
        if not aside.is_dir() or (is_moved and self.has_checkpoint()):
            marker.unlink()
            return None
        if is_moved:
            self._clear()
            self._mark("moving", aside)
        for entry in sorted(aside.iterdir()):
            entry.rename(self.path / entry.name)
        aside.rmdir()
        marker.unlink()
        with contextlib.suppress(OSError):  # unless there are others
            marker.parent.rmdir()
        log.info("%s: no checkpoint was saved, so the earlier run is back in its place", self.path)
        return aside

    def settle_after_kill(self) -> None:
        """Do what a killed training could not, unless another one is running, or nothing may be moved here."""
        if not os.path.lexists(self.path / _DISPLACED):
            return
        with contextlib.suppress(RefusedError, PermissionError):
            self.lock(LOCK, wait_seconds=0)
            try:
                self.settle()
            finally:
                self.unlock()

    def displaced(self) -> Path | None:
        """Where the training lies that was set aside for one which may not have saved a checkpoint yet."""
        name = self._marked()[1]
        return self.path / PREVIOUS / name if name else None

    def _marked(self) -> tuple[str, str]:
        """The displaced run's state and directory; two empty texts without one, or if the mark is damaged."""
        marker = self.path / _DISPLACED
        if not marker.is_file():
            return "", ""
        with marker.open("rb") as file:
            found = re.fullmatch(rb"(moving|moved) (\d{3,9})\n", file.read(100))
        return (found[1].decode(), found[2].decode()) if found else ("", "")

    def _clear(self) -> None:
        """Remove the files of a training that saved no checkpoint, or set them aside if it has logged something."""
        metrics, kept = self.path / METRICS, None
        if metrics.is_file() and metrics.read_bytes().count(b"\n") > 1:
            kept = self._next_previous()
            kept.mkdir(parents=True)
            log.info("what the run without a checkpoint has logged lies in %s", kept)
        for entry in self._files():
            if kept is not None:
                entry.rename(kept / entry.name)
            elif entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _files(self) -> list[Path]:
        patterns = (p for name in _SET_ASIDE for p in (name, f"{name}.damaged*"))
        return [entry for pattern in patterns for entry in sorted(self.path.glob(pattern))]

    def _next_previous(self) -> Path:
        previous = self.path / PREVIOUS
        numbers = [int(p.name) for p in previous.glob("*") if re.fullmatch(r"[0-9]{1,9}", p.name)]
        return previous / f"{max(numbers, default=0) + 1:03d}"

    def _mark(self, state: str, aside: Path) -> None:
        write_text(self.path / _DISPLACED, f"{state} {aside.name}\n")

    # ---- settings and checkpoints ----------------------------------------------------------------

    def settings(self) -> Path | None:
        """The config of the training: that of its newest resume, else the first one; None without any.

        A damaged one is passed over; if all are, it is a ConfigError.
        """
        # The second for other processes of a launch that displaces it.
        for place in filter(None, (self.path, self.displaced())):
            problem = ""
            for path in (path for name in (RESUME_CONFIGS, CONFIG) for path in sorted(place.glob(name), reverse=True)):
                try:
                    read_settings(path, within=self.path)
                    return path
                except (OSError, ValueError) as error:
                    problem = f"{path} is damaged ({error})"
                    log.warning("%s: passed over", problem)
            if problem:
                raise ConfigError(
                    f"{problem}, so the settings of the run are not known. Give the config that it was trained with: "
                    "-c CONFIG."
                )
        return None

    def has_checkpoint(self) -> bool:
        """Whether the training has saved anything."""
        return any((self.path / CHECKPOINTS).glob(_ANY_CHECKPOINT))

    def find_checkpoint(self, wanted: str) -> Path | None:
        """The checkpoint that "best", "last" or a path stands for; None for a "best" or "last" that does not exist.

        A path may be another run's directory: see `checkpoint_of`.

        Raises:
            RunError: For a path that does not exist.
            CheckpointError: For a directory without checkpoints.
        """
        named = {"best": BEST, "last": LAST}
        if wanted in named:
            path = self.path / CHECKPOINTS / named[wanted]
            return path if path.is_file() else None
        path = checkpoint_of(wanted)
        if str(path).startswith("hf:"):
            raise RunError(f"ckpt_path {wanted!r} holds weights alone. Give them as --model.weights {wanted}.")
        if not path.is_file():
            raise RunError(
                f"ckpt_path {wanted!r} is not a file. Give a checkpoint, or best or last of the run directory."
            )
        return path

    def whole_checkpoint(self) -> Path | None:
        """The best checkpoint, or if that is damaged or not there the newest whole one, with a warning.

        None if there is none; a single one that is damaged is left to its reader to refuse, several are a
        CheckpointError that names each.
        """
        from video_gn.weights.files import check_bytes, without_advice  # it imports torch

        place = self.path / CHECKPOINTS
        paths = [place / BEST, place / LAST, *sorted(place.glob(STEPS), reverse=True)]
        found = list(filter(Path.is_file, paths))
        damages: list[CheckpointError] = []
        for path in found:
            try:
                check_bytes(path)
            except CheckpointError as error:
                damages.append(error)
                continue
            why = "; ".join(without_advice(damages)) or f"{place} has no {BEST}"
            if path != paths[0]:
                log.warning("Taking %s: %s.", path, why)
            return path
        if len(damages) > 1:
            raise CheckpointError(f"{'; '.join(without_advice(damages))}. No checkpoint of the run is whole.")
        return found[0] if found else None


def checkpoint_of(path: str | os.PathLike[str]) -> Path:
    """The checkpoint that a path stands for: of a run's directory its `whole_checkpoint`; any other path is itself.

    Of a directory that `video-gn hub save` has written it is the file of weights; one without any is a CheckpointError.
    A run that a killed training has set aside comes back first.
    """
    path = Path(path)
    if not path.is_dir():
        if path.parent.name == CHECKPOINTS and not path.is_file():
            RunDirectory(path.parent.parent).settle_after_kill()
        return path
    run = RunDirectory(path)
    run.settle_after_kill()
    found = run.whole_checkpoint()
    if found is not None:
        return found
    if (path / named.MODEL_FILE).is_file():
        return path / named.MODEL_FILE
    earlier = f" Its earlier trainings lie in {path / PREVIOUS}." if (path / PREVIOUS).is_dir() else ""
    raise CheckpointError(
        f"{path}: is a directory without {CHECKPOINTS}/{BEST} or {LAST}. Give a run's directory or a file of weights."
        f"{earlier}"
    )
