"""Averaged weights: Lightning's callback, kept exact over kills and resumes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging

from video_gn.checks import check_choice
from video_gn.run.lightning_internals import average_of


@dataclass(frozen=True)
class AveragingConfig:
    """Averaging of the weights over optimizer steps. Validation, test and inference use the averaged weights.

    Args:
        kind: "none"; "ema", an exponential moving average; "mean", the plain mean of the averaged steps.
        decay: Weight of the old average in "ema", in [0, 1).
        start_step: Optimizer steps before the first averaged one.
        every_n_steps: Optimizer steps from one averaged step to the next, at least 1.

    Source: "mean" is stochastic weight averaging (arXiv:1803.05407).
    """

    kind: Literal["none", "ema", "mean"] = "none"
    decay: float = 0.999
    start_step: int = 0
    every_n_steps: int = 1

    def __post_init__(self) -> None:
        check_choice("averaging.kind", self.kind, ("none", "ema", "mean"))
        if not 0 <= self.decay < 1:
            raise ValueError(f"averaging.decay must be in [0, 1), got {self.decay!r}. Usual: 0.999 to 0.9999.")
        if self.start_step < 0 or self.every_n_steps < 1:
            raise ValueError(
                "averaging.start_step must be 0 or more and every_n_steps at least 1, "
                f"got {self.start_step} and {self.every_n_steps}"
            )

    def build(self) -> Averaging | None:
        """The callback, or None for "none"."""
        return None if self.kind == "none" else Averaging(self)


class Averaging(WeightAveraging):
    """Lightning's callback: averaged weights in validation and in a checkpoint's `state_dict`.

    Buffers, such as running statistics, are averaged like weights; integer buffers are copied.
    """

    def __init__(self, config: AveragingConfig) -> None:
        super().__init__(use_buffers=True, avg_fn=_ema(config.decay) if config.kind == "ema" else _mean)
        self.config = config

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Whether the weights after a step (counted from 0) are averaged in."""
        if step_idx is None or step_idx < self.config.start_step:
            return False
        return (step_idx - self.config.start_step) % self.config.every_n_steps == 0

    def _follow(self, pl_module: LightningModule) -> None:
        """Before the first averaged step, make the average the present weights, not those of the start."""
        average = average_of(self)
        if average is not None and average.n_averaged == 0:
            average.module.load_state_dict(pl_module.state_dict())
            self._take_unsaved(pl_module)

    def _take_unsaved(self, pl_module: LightningModule) -> None:
        """Take buffers that no state dict holds: the mean and std that came with weights or a checkpoint."""
        average = average_of(self)
        if average is None:
            return
        saved, own = pl_module.state_dict().keys(), dict(pl_module.named_buffers())
        for name, buffer in average.module.named_buffers():
            if name not in saved:
                buffer.copy_(own[name])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the average to the net's device: Lightning makes it before it moves the net."""
        average = average_of(self)
        if average is not None:
            # `n_averaged` stays on the host, where reading it waits for no device.
            average.module.to(pl_module.device)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Resume both the weights in training and their average."""
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        self._take_unsaved(pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swap the averaged weights in."""
        self._follow(pl_module)
        super().on_validation_epoch_start(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the averaged weights into `state_dict`, where tests and inference read them."""
        self._follow(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the averaged weights in the net."""
        self._follow(pl_module)
        super().on_train_end(trainer, pl_module)


def _ema(decay: float) -> Callable[[torch.Tensor, torch.Tensor, Any], torch.Tensor]:
    def average(old: torch.Tensor, new: torch.Tensor, num_averaged: Any) -> torch.Tensor:
        # lerp keeps equal values bit for bit: mean and std of the pixels must not drift.
        return torch.lerp(old, new, 1 - decay) if old.is_floating_point() else new

    return average


def _mean(old: torch.Tensor, new: torch.Tensor, num_averaged: Any) -> torch.Tensor:
    return old + (new - old) / (num_averaged + 1) if old.is_floating_point() else new
