"""Settings of Lightning's trainer: a run's defaults, what it refuses, and Lightning's own refusals in a line."""

from __future__ import annotations

import contextlib
import enum
import logging
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning import Callback
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, ProgressBar

from video_gn.data.datamodule import VideoDataModule
from video_gn.errors import ConfigError, VideoGNError
from video_gn.run.checkpoints import RunCheckpoint
from video_gn.run.lightning_internals import callbacks_of, raised_on_purpose, start_method
from video_gn.run.progress import LineProgress, TerminalProgress

log = logging.getLogger(__name__)

TRAINER_DEFAULTS = {
    "use_distributed_sampler": False,  # it pads, so that videos would be counted twice
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 10,
    "enable_model_summary": False,
}

# Lightning's Timer has a member of an enum among its defaults, and a resolved config holds them all.
yaml.SafeDumper.add_multi_representer(enum.Enum, lambda dumper, member: dumper.represent_str(str(member.value)))

# ---- values --------------------------------------------------------------------------------------

# Half precision of the weights themselves would also convert the uint8 frames; autocast does not.
PRECISIONS = ("32-true", "32", "bf16-mixed", "16-mixed")


def _is_here(accelerator: Any) -> bool:
    kinds = {"gpu": (CUDAAccelerator, MPSAccelerator), "cuda": (CUDAAccelerator,), "mps": (MPSAccelerator,)}
    return accelerator not in kinds or any(kind.is_available() for kind in kinds[accelerator])


def _limit(value: int) -> bool:
    return value == -1 or value >= 1


_NO_VALIDATION = "For no validation set trainer.limit_val_batches to 0."
# Setting -> (whether a value is allowed, the rule, what to do). None is Lightning's default of all of them.
_RULES: dict[str, tuple[Callable[[Any], bool], str, str]] = {
    "accelerator": (_is_here, "one that this machine has", "No such GPU was found. Set auto."),
    "precision": (lambda v: str(v) in PRECISIONS, f"one of {', '.join(PRECISIONS)}", "Choose one."),
    "log_every_n_steps": (lambda v: v >= 1, "at least 1", "Set 1."),
    "max_epochs": (_limit, "at least 1, or -1 for no limit", "Set the epochs to train for."),
    "max_steps": (_limit, "at least 1, or -1 for no limit", "Set the optimizer steps to train for."),
    "accumulate_grad_batches": (lambda v: v >= 1, "at least 1", "Set 1 for none."),
    "limit_train_batches": (lambda v: v != 0, "above 0", "Set a number of batches, or a fraction such as 0.1."),
    "check_val_every_n_epoch": (lambda v: v >= 1, "at least 1", _NO_VALIDATION),
    "val_check_interval": (lambda v: v != 0, "above 0", _NO_VALIDATION),
    "gradient_clip_val": (lambda v: v >= 0, "0 or more", "Set null for none."),
    "enable_checkpointing": (bool, "true", "A run is resumed and tested from its checkpoints; see checkpoint.*."),
    "sync_batchnorm": (lambda v: not v, "false", "Set model.net.norm to sync_batch: a checkpoint names its norm."),
    "barebones": (lambda v: not v, "false", "It writes nothing; video-gn bench train measures speed."),
}


def check_values(trainer: Namespace, *, of_another_machine: bool = False) -> None:
    """Raise ConfigError for a value of a setting that no run takes; another machine may have a GPU that is not here."""
    for name, (is_allowed, rule, advice) in _RULES.items():
        value = trainer[name]
        if value is not None and not is_allowed(value) and not (of_another_machine and name == "accelerator"):
            raise ConfigError(f"trainer.{name} must be {rule}, got {value!r}. {advice}")
    if trainer.max_epochs == -1 and trainer.max_steps == -1:
        raise ConfigError("trainer.max_epochs and max_steps are both -1. Set one: the schedule needs an end.")


def check_trainer(trainer: Namespace) -> None:
    """Raise ConfigError for settings that a run cannot honour, before it touches anything."""
    check_values(trainer)
    interval, accumulate = trainer.val_check_interval, trainer.accumulate_grad_batches
    if isinstance(interval, int) and interval % accumulate:
        raise ConfigError(
            f"trainer.val_check_interval must be a multiple of accumulate_grad_batches ({accumulate}), got {interval}. "
            "Set a multiple: a run cannot resume from inside an optimizer step."
        )
    if trainer.num_nodes > 1 and not {"MASTER_PORT", "SLURM_JOB_ID"} & os.environ.keys():
        raise ConfigError(
            f"trainer.num_nodes is {trainer.num_nodes}, and nothing says where their processes meet. Start them with "
            "torchrun or srun, or set MASTER_ADDR, MASTER_PORT and NODE_RANK on each node."
        )
    if trainer.default_root_dir is not None:
        log.warning("trainer.default_root_dir is not used: everything lies in --run_dir")


# ---- callbacks -----------------------------------------------------------------------------------

_BATCH = "the learning rate and the steps of an epoch follow from the batch"
# Callback of Lightning -> why it is refused, and what to set.
_REFUSED = {
    "BatchSizeFinder": f"{_BATCH}. Set data.batch_size",
    "GradientAccumulationScheduler": f"{_BATCH}. Set trainer.accumulate_grad_batches",
    "LearningRateFinder": "the learning rate follows from the batch. Set model.optimizer.lr",
    "StochasticWeightAveraging": "it replaces the schedule, and no checkpoint holds its average. Set averaging.kind",
    "OnExceptionCheckpoint": "the next run would start from its file. Set checkpoint.every_n_steps",
    "BackboneFinetuning": "the network has no `backbone`. Set model.optimizer.frozen_stages",
    "ModelPruning": "no test could load its checkpoints. Train without it",
}


def progress(trainer: Namespace) -> list[Callback]:
    """What shows a run's progress: bars on a terminal, lines elsewhere; a bar among the trainer's callbacks stays."""
    has_bar = any(isinstance(callback, ProgressBar) for callback in as_list(trainer.callbacks))
    if sys.stderr.isatty() and trainer.enable_progress_bar is not False:
        return [] if has_bar else [TerminalProgress()]
    if not has_bar:
        trainer.enable_progress_bar = False
    return [LineProgress()]


def check_built(trainer: Any, data: VideoDataModule) -> None:
    """Raise ConfigError for callbacks and a strategy that a fit cannot have; warn of a run without validation.

    A fraction in the trainer's `overfit_batches` takes at least one batch of the validation.
    """
    if start_method(trainer.strategy) == "spawn":
        raise ConfigError(
            "trainer.strategy must not spawn its processes: they would not have the run's signals and files. Set it "
            "to auto or ddp."
        )
    callbacks = callbacks_of(trainer)
    for name, reason in _REFUSED.items():
        if any(isinstance(callback, getattr(lightning_callbacks, name)) for callback in callbacks):
            raise ConfigError(f"trainer.callbacks must not hold {name}: {reason}, and take the callback out.")
    if isinstance(trainer.overfit_batches, float) and trainer.overfit_batches:
        batches = len(data.manifests["val"].records) / (data.val_batch_size * trainer.world_size)
        trainer.limit_val_batches = math.ceil(trainer.overfit_batches * batches)
    every, epochs = trainer.check_val_every_n_epoch or 1, trainer.max_epochs or -1
    if every > epochs > 0 and trainer.limit_val_batches and trainer.is_global_zero:
        log.warning(
            "trainer.check_val_every_n_epoch is %d, the run has %d epochs: it validates nothing, and writes no "
            "best.ckpt", every, epochs,
        )  # fmt: skip
    own = all(type(callback).__module__.split(".")[0] in ("lightning", "video_gn") for callback in callbacks)
    for callback in callbacks:
        if isinstance(callback, RunCheckpoint) and callback.monitor == "val/top5" and len(data.classes) < 5:
            raise ConfigError(
                f"checkpoint.monitor must be val/top1 for {len(data.classes)} classes, got 'val/top5', which needs 5. "
                "Set it so."
            )
        if isinstance(callback, EarlyStopping | ModelCheckpoint) and callback.monitor is not None:
            _check_monitor(callback, trainer, len(data.classes), known_only=own)


def _check_monitor(callback: Any, trainer: Any, num_classes: int, *, known_only: bool) -> None:
    """Refuse a figure that no training has, unless a callback from elsewhere may log it, or one that grows as it should
    fall.
    """
    name, monitor = type(callback).__name__, callback.monitor
    figures = ["train/loss", "lr"]
    if trainer.limit_val_batches:
        figures += ["val/loss", "val/top1", *(["val/top5"] if num_classes >= 5 else [])]
    counted = ["epoch", "step"] if isinstance(callback, ModelCheckpoint) else []
    if known_only and monitor not in figures + counted:
        raise ConfigError(
            f"{name}'s monitor must be a figure of this run ({', '.join(figures)}), got {monitor!r}. Choose one."
        )
    better = {"val/top1": "max", "val/top5": "max", "val/loss": "min", "train/loss": "min"}.get(monitor, callback.mode)
    if callback.mode != better:
        raise ConfigError(f"{name}'s mode must be {better} for {monitor}, got {callback.mode!r}. Set it so.")


# ---- Lightning's own refusals --------------------------------------------------------------------


@contextlib.contextmanager
def refusals_in_a_line() -> Iterator[None]:
    """Make a ConfigError of an error that Lightning raises on purpose: a setting, here or of one of its callbacks."""
    try:
        yield
    except Exception as error:
        if not raised_on_purpose(error):
            raise
        if isinstance(error.__context__, VideoGNError):  # what Lightning then fails on, on its way out, says nothing
            raise error.__context__ from None
        raise ConfigError(" ".join(str(error).split())) from error


def as_list(value: Any) -> list[Any]:
    """A setting that may be None, one thing, or several."""
    if value is None:
        return []
    return list(value) if isinstance(value, Sequence) else [value]


def last_line(error: Exception, *, within: str) -> str | None:
    """The last line of somebody's own module, `within`, that an error passed: "my_net.py, line 9"."""
    file = getattr(sys.modules.get(within), "__file__", None)
    if file is None or within.startswith("video_gn."):
        return None
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == file]
    return f"{Path(file).name}, line {lines[-1]}" if lines else None
