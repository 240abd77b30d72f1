"""Shows progress: bars with clips/s and the time left on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import ProcessingSpeedColumn
from rich.text import Text

from video_gn.clips import ClipBatch

log = logging.getLogger(__name__)


class _ClipsPerSecond(ProcessingSpeedColumn):
    """Batches per second of a rich task, as clips of all processes."""

    def __init__(self, bar: TerminalProgress, style: Any) -> None:
        super().__init__(style=style)
        self.bar = bar

    def render(self, task: Any) -> Text:
        # Lightning calls the training's task "Epoch i/n"; a validation runs in the midst of it.
        clips = self.bar.train_clips if str(task.description).startswith("Epoch") else self.bar.eval_clips
        rate = 0.0 if task.speed is None else task.speed * clips
        return Text(f"{rate:.1f} clips/s", style=self.style)


class TerminalProgress(RichProgressBar):
    """Lightning's rich bars, counting clips."""

    def __init__(self) -> None:
        super().__init__()
        self.train_clips = 0
        self.eval_clips = 0

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Lightning's columns, with clips/s for batches/s."""
        columns = super().configure_columns(trainer)
        return [_ClipsPerSecond(self, c.style) if isinstance(c, ProcessingSpeedColumn) else c for c in columns]

    def _get_train_description(self, current_epoch: int) -> str:
        """Lightning's, with epochs from 1 as everywhere else: "Epoch 1/10" and not "Epoch 0/9"."""
        last = self.trainer.max_epochs or -1
        text = f"Epoch {current_epoch + 1}" + (f"/{last}" if last > 0 else "")
        return f"{text:{len(self.validation_description)}}"  # bars of one width do not flicker

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The logged figures, without Lightning's version number."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics

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
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: ClipBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log how far the test is."""
        if self._count(trainer, batch):
            done, total = batch_idx + 1, trainer.num_test_batches[0]
            log.info("test: video %d of %s, %.1f clips/s, %s left", done, total, *self._speed(done, total))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
