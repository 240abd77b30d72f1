"""Experiment trackers for `--trainer.logger`: `mlflow` and `wandb`, one run of the tracker for a run directory.

It has the run's settings as parameters, the curves, `report.html` and the best checkpoint, and a resume continues it.
A tracker that fails costs a warning, not the training. On ranks other than 0 there is none.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyExperiment, DummyLogger

from video_gn.damage import DAMAGE, in_words, read_object, set_damaged_aside
from video_gn.errors import ConfigError
from video_gn.export.reading import needed
from video_gn.files import hold, write_json
from video_gn.run import directory, torchrun
from video_gn.run.metrics_file import whole_metrics
from video_gn.shown import shown

log = logging.getLogger(__name__)

LOGGERS = ("tensorboard", "mlflow", "wandb")  # short names that --trainer.logger takes, of the classes below
_PROJECT = "video-gn"
_RETRY_SECONDS = 60.0
# Of Lightning's loggers; jsonargparse hands the one of a config's logger on to a logger that replaces it.
_DEFAULT_PLACES = ("", ".", "./mlruns")


class Tracker(Logger):
    """What both trackers' loggers do beside Lightning's: they continue a run, and fail softly.

    What a tracker could not take waits, and is given to it again, in order, after `_RETRY_SECONDS` and at the end.
    """

    extra = ""  # of this package, and the record's key

    def begin(self, run_dir: Path, settings: Mapping[str, Any], *, resumes: bool) -> None:
        """Open the tracker's run; a resumed training gives it the figures of metrics.csv that it does not have yet.

        `settings` are those that the run's training began with, by option. This process holds the run's directory.
        """
        self.run_dir = run_dir
        self._waiting: list[Callable[[], object]] = []
        self._retry_at = 0.0
        self._is_trying = False
        entry = read_record(run_dir).get(self.extra, {})
        # Last step of each figure, as Lightning counts them, from 0: that the tracker has, and that it was given.
        self._kept_steps = dict(entry.get("steps", {}))
        self._steps = dict(self._kept_steps)
        self.attempt(lambda: self._open(settings, is_new=not entry))
        rows: list[dict[str, Any]] = []
        with contextlib.suppress(OSError, ValueError):
            rows = whole_metrics(run_dir / directory.METRICS)[0] if resumes else []
        for row in rows:
            figures = {name: value for name, value in row.items() if name not in ("step", "clips")}
            self.log_metrics(figures, row["step"] - 1)

    def _open(self, settings: Mapping[str, Any], *, is_new: bool) -> None:
        self._keep_record()
        if is_new or isinstance(self, WandbLogger):  # MLflow takes parameters once
            super().log_hyperparams(dict(settings))  # type: ignore[safe-super]

    def _keep_record(self) -> None:
        entry = {"run": str(self.version), "steps": self._kept_steps}  # MLflow's server gives a new run its name here
        write_json(self.run_dir / directory.TRACKERS, read_record(self.run_dir) | {self.extra: entry})

    def attempt(self, act: Callable[[], object], *, is_last: bool = False) -> None:
        """Call `act`, after all that still waits, or keep it waiting."""
        self._waiting.append(act)
        if time.monotonic() < self._retry_at and not is_last:
            return
        self._is_trying = True
        try:
            while self._waiting:
                self._waiting[0]()
                del self._waiting[0]
        except Exception as error:  # noqa: BLE001  (whatever a client raises: the training is worth more)
            if not self._retry_at or is_last:
                log.warning(
                    "%s: %s. The training continues, and metrics.csv has all figures; %s", self.extra,
                    in_words(error).rstrip("."),
                    f"not given to the tracker: {len(self._waiting)}" if is_last else "it is tried again every minute",
                )  # fmt: skip
            self._retry_at = time.monotonic() + _RETRY_SECONDS
        finally:
            self._is_trying = False

    @property
    def experiment(self) -> Any:
        """The tracker's own object; one that does nothing while it cannot be reached."""
        if self._waiting and not self._is_trying:
            return DummyExperiment()
        return self._experiment_of_run()

    def _experiment_of_run(self) -> Any:
        return super().experiment  # type: ignore[misc]

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log figures, each step of each once: a resume repeats the steps after its checkpoint."""
        new = {name: value for name, value in metrics.items() if step is None or step > self._steps.get(name, -1)}
        new = {name: value for name, value in new.items() if not name.startswith("test/")}  # Lightning's, of step 0
        if new:
            steps = {} if step is None else dict.fromkeys(new, step)
            self._steps.update(steps)
            self.attempt(partial(self._log, new, step, steps))

    def log_test(self, figures: Mapping[str, float], step: int) -> None:
        """Log a test's figures, at the step of the checkpoint that was tested."""
        self.attempt(partial(self._log, {f"test/{name}": value for name, value in figures.items()}, step, {}))

    def _log(self, metrics: Mapping[str, float], step: int | None, steps: Mapping[str, int]) -> None:
        super().log_metrics(dict(metrics), step)  # type: ignore[safe-super]
        self._kept_steps.update(steps)
        if self.keeps_at_once():
            self._keep_record()

    def keeps_at_once(self) -> bool:
        """Whether a kill leaves the tracker what it was given."""
        return True

    def renumber(self) -> None:
        """Take figures of all steps from here on: with another batch size they are counted in another way."""
        self._steps, self._kept_steps = {}, {}

    def finalize(self, status: str = "success") -> None:
        """End the training or test; one that has not failed has files to log after that."""
        finalize = super().finalize
        self.attempt(lambda: finalize(status))
        if status == "success":
            self.attempt(self._keep_record)
        else:
            self.log_files(())

    def log_files(self, paths: Iterable[Path]) -> None:
        """Keep copies of files in the tracker's run, and end it here."""
        for path in paths:
            self.attempt(partial(self._log_file, path))
        self.attempt(self._finish)
        self.attempt(self._keep_record, is_last=True)

    def _finish(self) -> None:
        """Write what the client has not written yet."""

    def _log_file(self, path: Path) -> None:
        raise NotImplementedError


class mlflow(Tracker, MLFlowLogger):  # noqa: N801  (a value of --trainer.logger)
    """MLflow: `tracking_uri`, or the variable MLFLOW_TRACKING_URI, or the file mlflow.db beside the run directory."""

    extra = "mlflow"

    def _open(self, settings: Mapping[str, Any], *, is_new: bool) -> None:
        super()._open(settings, is_new=is_new)
        self.experiment.update_run(self.run_id, status="RUNNING")  # also what a stopped training has ended

    def _log_file(self, path: Path) -> None:
        self.experiment.log_artifact(self.run_id, str(path))


class wandb(Tracker, WandbLogger):  # noqa: N801
    """Weights & Biases: its files lie in the run directory; without a server it works offline."""

    extra = "wandb"

    def _experiment_of_run(self) -> Any:
        import wandb as client

        try:
            return super()._experiment_of_run()
        except client.Error as error:
            if os.environ.get("WANDB_MODE") == "offline":
                raise
            log.warning("wandb works offline: %s. `wandb sync` sends what lies in %s", error, self.save_dir)
            client.teardown()
            os.environ["WANDB_MODE"] = "offline"
            return super()._experiment_of_run()

    def _finish(self) -> None:
        self.experiment.finish()

    def keeps_at_once(self) -> bool:
        """Offline, W&B's library writes its file in blocks."""
        return not self.experiment.offline

    def _log_file(self, path: Path) -> None:
        kind = "model" if path.suffix == ".ckpt" else path.stem
        self.experiment.log_artifact(str(path), name=f"{path.stem}-{self.version}", type=kind)


class tensorboard(TensorBoardLogger):  # noqa: N801
    """TensorBoard's events in the run directory, as without any logger; to be named beside a tracker."""

    def __init__(self, save_dir: str = "", name: str = "", version: str = directory.TENSORBOARD, **settings: Any):
        super().__init__(save_dir, name, version, **settings)


def read_record(run_dir: Path) -> dict[str, dict[str, Any]]:
    """By extra the run that a run directory has in a tracker, and the last step of its figures there.

    A damaged record is set aside.
    """
    path = run_dir / directory.TRACKERS
    try:
        record = read_object(path)
        for entry in record.values():
            if not (isinstance(entry["run"], str) and all(isinstance(n, int) for n in entry["steps"].values())):
                raise ValueError(f"it must hold a run and its steps, got {entry!r:.100}")
    except FileNotFoundError:
        return {}
    except DAMAGE as error:
        set_damaged_aside(path, in_words(error), "The trackers get a new run.")
        return {}
    return record


def build_logger(kind: type[Logger], run_dir: Path, *, step: int, continues: bool, settings: dict[str, Any]) -> Logger:
    """A logger of `--trainer.logger`; what its settings leave open follows from the run directory.

    Lightning's own classes of MLflow and W&B stand for ours. A training resumes from `step`, 0 for a new one;
    `continues` says whether the run that the directory has in the tracker goes on. A package that is missing, or a
    tracker that a new run cannot open, is a ConfigError.
    """
    ours: dict[Any, type[Logger]] = {MLFlowLogger: mlflow, WandbLogger: wandb}
    kind = ours.get(kind, kind)
    if issubclass(kind, tensorboard):
        settings["save_dir"] = str(run_dir) if settings["save_dir"] in _DEFAULT_PLACES else settings["save_dir"]
        settings["purge_step"] = settings["purge_step"] or step or None
    if not issubclass(kind, Tracker):
        return kind(**settings)
    needed(kind.extra, extra=kind.extra)
    if torchrun.launched_rank():
        return DummyLogger()
    identity = read_record(run_dir).get(kind.extra, {}).get("run") if continues else None
    if issubclass(kind, mlflow):
        # Its own 7 tries, each waiting longer, would hold the training for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        place = run_dir.parent.absolute()
        settings["tracking_uri"] = settings["tracking_uri"] or os.environ.get("MLFLOW_TRACKING_URI")
        if not settings["tracking_uri"]:
            settings["tracking_uri"] = f"sqlite:///{place / 'mlflow.db'}"
            settings["artifact_location"] = settings["artifact_location"] or (place / "mlflow").as_uri()
        settings["run_id"] = settings["run_id"] or identity
        settings["run_name"] = settings["run_name"] or run_dir.name
        if settings["experiment_name"] == "lightning_logs":  # Lightning's default
            settings["experiment_name"] = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
    else:
        settings["id"] = settings["version"] or settings["id"] or identity or uuid.uuid4().hex[:8]
        settings["save_dir"] = str(run_dir) if settings["save_dir"] in _DEFAULT_PLACES else settings["save_dir"]
        settings["name"] = settings["name"] or run_dir.name
        settings["project"] = settings["project"] or os.environ.get("WANDB_PROJECT", _PROJECT)
    try:
        with _alone(settings.get("tracking_uri")):
            return kind(**settings)
    except Exception as error:  # a database that cannot be opened, or an address of no known kind
        place = settings.get("tracking_uri") or settings["save_dir"]
        reason = f"{kind.extra} cannot open {shown(place)}: {in_words(error)}".rstrip(".")
        if not continues:
            raise ConfigError(f"{reason}. Mend or move it, or name another --trainer.logger.") from error
        log.warning("%s. This command goes on without it; a later one gives it what it lacks", reason)
        return DummyLogger()


@contextlib.contextmanager
def _alone(uri: str | None) -> Iterator[None]:
    """Hold a database while it is opened: trainings that start together would all make the tables of a new one."""
    name = (uri or "").removeprefix("sqlite:///")
    if name == uri or not name:
        yield
        return
    path = Path(f"{name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with hold(path, wait_seconds=_RETRY_SECONDS):
        try:
            yield
        finally:
            path.unlink()


def trackers(loggers: Iterable[Any]) -> list[Tracker]:
    """The trackers among a trainer's loggers."""
    return [logger for logger in loggers if isinstance(logger, Tracker)]
