"""Shows progress: bars with clips/s and the time left on a terminal, log lines elsewhere; and how long a run takes."""

from __future__ import annotations

import logging
import math
import time
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.progress import BarColumn, ProgressColumn, TextColumn
from rich.table import Column
from rich.text import Text

from video_gn.clips import ClipBatch
from video_gn.models import I3D

log = logging.getLogger(__name__)


class _Figures(ProgressColumn):
    """Batches done, the time left, clips per second of all processes, and the bar's metrics: one line, never broken."""

    def __init__(self, bar: TerminalProgress) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self.bar = bar

    def render(self, task: Any) -> Text:
        # Lightning calls the training's task "Epoch i/n"; a validation runs in the midst of it.
        trains = str(task.description).startswith("Epoch")
        parts = [f"{int(task.completed)}/{'--' if math.isinf(task.total) else int(task.total)}"]
        if task.time_remaining is not None:
            parts.append(f"{_duration(task.time_remaining)} left")
        rate = 0.0 if task.speed is None else task.speed * (self.bar.train_clips if trains else self.bar.eval_clips)
        parts.append(f"{rate:.1f} clips/s")
        parts += [f"{name} {value:.3f}" for name, value in self.bar.shown.items()] if trains else []
        return Text(" ".join(parts))


# Metrics on the bar: at 80 columns there is room for these two, by short names.
_SHOWN = {"train/loss": "loss", "val/top1": "top1"}


class TerminalProgress(RichProgressBar):
    """Lightning's rich bars, counting clips, in one line of 80 columns."""

    def __init__(self) -> None:
        super().__init__()
        self.train_clips = 0
        self.eval_clips = 0
        self.shown: dict[str, float] = {}

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Description, a bar that takes what is left over, and all figures."""
        (bar,) = (column for column in super().configure_columns(trainer) if isinstance(column, BarColumn))
        bar.bar_width = None
        return [TextColumn("{task.description}"), bar, _Figures(self)]

    def _get_train_description(self, current_epoch: int) -> str:
        """Lightning's, with epochs from 1 as everywhere else: "Epoch 1/10" and not "Epoch 0/9"."""
        last = self.trainer.max_epochs or -1
        text = f"Epoch {current_epoch + 1}" + (f"/{last}" if last > 0 else "")
        return f"{text:{len(self.validation_description)}}"  # bars of one width do not flicker

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Note the metrics that the bar shows; none for Lightning's own column, which breaks into lines."""
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        self.shown = {short: float(metrics[name]) for name, short in _SHOWN.items() if name in metrics}
        return {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *more: Any, **words: Any
    ) -> None:
        """Note the batch's clips, then move the bar."""
        self.train_clips = batch.num_clips * trainer.world_size
        super().on_train_batch_end(trainer, pl_module, outputs, batch, *more, **words)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *more: Any, **words: Any
    ) -> None:
        """Note the batch's clips, then move the bar."""
        self.eval_clips = batch.num_clips * trainer.world_size
        super().on_validation_batch_end(trainer, pl_module, outputs, batch, *more, **words)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *more: Any, **words: Any
    ) -> None:
        """Note the batch's clips, then move the bar."""
        self.eval_clips = batch.num_clips * trainer.world_size
        super().on_test_batch_end(trainer, pl_module, outputs, batch, *more, **words)


class LineProgress(Callback):
    """Logs a line now and then, for files and batch systems."""

    def __init__(self, every_seconds: float = 10.0) -> None:
        self.every_seconds = every_seconds
        self._begin(0)

    def _begin(self, done: int) -> None:
        self._start = self._last = time.monotonic()
        self._clips = 0
        self._first_done = done

    def _count(self, trainer: Trainer, batch: ClipBatch) -> bool:
        """Count a batch; whether a line is due on this rank."""
        self._clips += batch.num_clips * trainer.world_size
        now = time.monotonic()
        if not trainer.is_global_zero or now - self._last < self.every_seconds:
            return False
        self._last = now
        return True

    def _speed(self, done: int, total: float) -> tuple[float, str]:
        """(clips/s, time left) after `done` of `total` steps or videos."""
        seconds = self._last - self._start
        left = (total - done) * seconds / max(1, done - self._first_done)
        return self._clips / seconds, _duration(left)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._begin(trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: ClipBatch, batch_idx: int
    ) -> None:
        """Log epoch, step, loss, speed and the time left."""
        if not self._count(trainer, batch):
            return
        total, done = int(trainer.estimated_stepping_batches), trainer.global_step
        loss = float(trainer.callback_metrics.get("train/loss", float("nan")))
        log.info(
            "epoch %d, step %d of %d, loss %.4f, %.1f clips/s, %s left",
            trainer.current_epoch + 1, done, total, loss, *self._speed(done, total),
        )  # fmt: skip

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the figures of the validation."""
        if trainer.is_global_zero and not trainer.sanity_checking:
            values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
            where = f"step {trainer.global_step}" if trainer.state.fn == "fit" else "validation"
            log.info("%s: %s", where, ", ".join(f"{k} {v:.4f}" for k, v in sorted(values.items())))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._begin(0)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: ClipBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Log how far the test is."""
        if self._count(trainer, batch):
            done, total = batch_idx + 1, trainer.num_test_batches[0]
            log.info("test: video %d of %s, %.1f clips/s, %s left", done, total, *self._speed(done, total))


# The training step of a clip of `configs/finetune.yaml`: width, frames, and crop.
_FULL_SIZE = (64, 32, 224)


class RunLength(Callback):
    """Logs once, after a few steps, how long a step, an epoch and the whole training take.

    Args:
        after_seconds: Time that the steps after the first must have taken; the first is told by itself, since it
            starts the loaders and plans the convolutions.
        at_least: Number of those steps; one is enough if it took four times `after_seconds`.
    """

    def __init__(self, after_seconds: float = 5.0, at_least: int = 4) -> None:
        self.after_seconds = after_seconds
        self.at_least = at_least
        self._first: float | None = None  # seconds of the first batch
        self._told = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; warn of a net and clips of full size on a CPU."""
        self._start = time.monotonic()
        self._batches, self._first_step = 0, trainer.global_step
        data, net = getattr(trainer, "datamodule", None), cast(Any, pl_module.net)
        if trainer.strategy.root_device.type != "cpu" or data is None or not trainer.is_global_zero:
            return
        if not isinstance(net, I3D):
            return
        size = (net.arguments["width"], data.clip.num_frames, data.augment.crop_px)
        width, frames, side = (here / full for here, full in zip(size, _FULL_SIZE, strict=True))
        if width**2 * frames * side**2 >= 1 / 4:
            log.warning(
                "a net of width %d and clips of %d x %d x %d px are so much for a CPU that a step may take a minute. "
                "configs/finetune_small.yaml needs a 68th of finetune.yaml's arithmetic.",
                *size, size[-1],
            )  # fmt: skip

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: ClipBatch, batch_idx: int
    ) -> None:
        """Take the time of a batch, and log the figures once they are known well enough."""
        if self._told or not trainer.is_global_zero:
            return
        now = time.monotonic()
        if self._first is None:
            self._first, self._start = now - self._start, now
            return
        self._batches += 1
        seconds = now - self._start
        enough = 1 if seconds >= 4 * self.after_seconds else self.at_least
        if seconds >= self.after_seconds and self._batches >= enough:
            self._told = True
            self._tell(trainer, seconds / self._batches)

    def _tell(self, trainer: Trainer, a_batch: float) -> None:
        a_step = a_batch * trainer.accumulate_grad_batches
        figures = [f"{in_words(a_step)} a step"]
        if math.isfinite(trainer.num_training_batches):
            figures.append(f"{in_words(a_batch * trainer.num_training_batches)} an epoch")
        steps = trainer.estimated_stepping_batches - self._first_step
        if math.isfinite(steps):
            figures.append(f"{in_words(a_step * steps)} {'for the rest' if self._first_step else 'in all'}")
        log.info("%s, without validations (the first batch took %s)", ", ".join(figures), in_words(self._first or 0.0))


def in_words(seconds: float) -> str:
    """A duration with its unit: 0.21 s, 2.1 s, 48 s, 14 min, 3 h 20 min, 2 d 4 h."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
