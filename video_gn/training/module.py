"""The LightningModule: a network, its loss and its optimizer. It builds no data.

Shape letters: N videos, K views, T frames, C channels, H, W, Y classes.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_only
from torch import nn
from torch.nn import functional as F

from video_gn.clips import ClipBatch
from video_gn.errors import CheckpointError, ConfigError, RunError
from video_gn.evaluation.scores import normalize_clips, score_views
from video_gn.lists.class_names import same_classes
from video_gn.models import OwnNet, VideoNet
from video_gn.run.checkpoint_files import environment
from video_gn.run.directory import checkpoint_of
from video_gn.run.lightning_internals import callbacks_of, trainer_of
from video_gn.training.checks import check_same_net, check_training, class_difference, rounded
from video_gn.training.mixing import Mixing
from video_gn.training.optimizer import OptimizerConfig, build_optimizer, freeze_stages, scaled_lr
from video_gn.training.schedule import ScheduleConfig, build_scheduler
from video_gn.training.sharded import ShardedStrategy
from video_gn.weights import WeightsOptions
from video_gn.weights.about import KEY, VIDEO_INPUT, write_about

if TYPE_CHECKING:
    from video_gn.weights import LoadReport

log = logging.getLogger(__name__)


class VideoClassifier(LightningModule):
    """Trains and tests a clip classifier.

    Args:
        net: Network of `video_gn.models`, or any module that turns clips (N, 3, T, H, W) into logits (N, Y).
        optimizer: Kind and settings; the learning rate is scaled to the actual global batch.
        schedule: Schedule of the learning rate, by epochs or optimizer steps.
        weights: Weight file of any zoo to start from, or PACKAGE:NAME; see `video_gn.weights.load_into`. A run's
            directory stands for its best checkpoint. A checkpoint that is resumed or tested replaces it.
        weights_options: How weights are read, and what may differ.
        mean: Mean of pixels in [0, 1], RGB; None takes the checkpoint's or the weights', or 0.45 without either
            (Non-local Networks' code).
        std: Standard deviation of pixels in [0, 1], RGB; None as for the mean, or 0.225.
        views_per_forward: Views of a test video that go through the network at a time.
        mixing: Mixup, cutmix and label smoothing of training batches; off by default.
        compile: Compile the training step's forward pass. Evaluation is not compiled, so that no shape of a batch
            costs a compilation.
        activation_checkpointing: Keep only each block's input and recompute the rest in the backward pass.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        net: nn.Module,
        *,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008
        weights: str | None = None,
        weights_options: WeightsOptions = WeightsOptions(),  # noqa: B008
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        views_per_forward: int = 10,
        mixing: Mixing = Mixing(),  # noqa: B008
        compile: bool = False,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.mixing = mixing
        if views_per_forward < 1:
            raise ValueError(f"views_per_forward must be at least 1, got {views_per_forward}")
        self.input_is_told = mean is not None, std is not None
        mean, std = mean or VIDEO_INPUT.mean, std or VIDEO_INPUT.std
        if len(mean) != 3 or len(std) != 3 or not all(s > 0 for s in std):
            raise ValueError(f"mean and std must be three numbers each, std above 0, got {mean} and {std}")
        self.weights = weights
        self.weights_options = weights_options
        self.load_report: LoadReport | None = None
        self.is_restored = False
        if not isinstance(net, nn.Module):
            raise ConfigError(
                f"model.net must build a torch.nn.Module that turns clips into logits, got {type(net).__name__}."
            )
        self.net = net if isinstance(net, VideoNet) else OwnNet(net)
        self.net.to(memory_format=torch.channels_last_3d)
        if activation_checkpointing and isinstance(self.net, OwnNet):
            raise ConfigError(
                f"model.activation_checkpointing must be false for {self.net.title}, which is not of video_gn.models. "
                "Call torch.utils.checkpoint in its forward instead."
            )
        self.net.activation_checkpointing = activation_checkpointing
        self.frozen = freeze_stages(self.net, optimizer.frozen_stages)
        if compile:
            self.net.compile()  # in place: parameters keep their names
        self.optimizer_config = optimizer
        self.schedule_config = schedule
        self.views_per_forward = views_per_forward
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32), persistent=False)
        self.classes: list[str] = []
        self._batch: dict[str, Any] = {}  # what the learning rate was scaled to

    def train(self, mode: bool = True) -> VideoClassifier:
        """As torch's, but frozen stages stay in eval mode, which keeps their running statistics."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def configure_model(self) -> None:
        """Shard the net among the processes if the strategy does; Lightning calls this before it restores."""
        if isinstance(self.trainer.strategy, ShardedStrategy):
            self.trainer.strategy.shard(self.net)

    def setup(self, stage: str) -> None:
        """Tell somebody's own network how many classes there are, to check what it returns."""
        if isinstance(self.net, OwnNet):
            datamodule = getattr(self.trainer, "datamodule", None)
            self.net.num_classes = len(getattr(datamodule, "classes", ()) or self.classes)

    # ---- weights to start from ---------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Load `weights`, unless they or a checkpoint were loaded; then check that the net can be trained."""
        self._load_weights_once()
        self.check_training(self.trainer, getattr(self.trainer, "datamodule", None))
        if self.frozen and self.load_report is None and not self.is_restored:
            log.warning(
                "model.optimizer.frozen_stages is %d and nothing was loaded: those stages stay at their random values",
                self.optimizer_config.frozen_stages,
            )

    def check_training(self, trainer: Trainer, datamodule: Any) -> None:
        """Refuse a training whose net cannot learn from its batches; see `checks.check_training`."""
        check_training(self.net, self.mixing, trainer, datamodule)

    def _load_weights_once(self) -> None:
        if self.load_report is None and not self.is_restored:
            datamodule = getattr(self.trainer, "datamodule", None)
            self.load_weights(classes=getattr(datamodule, "classes", ()))

    on_validation_start = on_test_start = on_predict_start = _load_weights_once

    def load_weights(self, *, classes: Sequence[str] = ()) -> LoadReport | None:
        """Load `weights`, if any, into the network, and take their mean and std unless others are set.

        A classifier of other classes than the data's, named by number, is not taken; weights that cannot be read or do
        not fit are a CheckpointError.
        """
        if self.weights is None:
            return None
        from video_gn.weights.load import load_into

        if isinstance(self.net, OwnNet):
            raise ConfigError(
                f"model.weights must be null for {self.net.title}, which is not of video_gn.models, got "
                f"{self.weights!r}. Load its weights in its __init__."
            )
        source = checkpoint_of(self.weights) if Path(self.weights).is_dir() else self.weights
        report = load_into(self.net, source, classes=classes, **vars(self.weights_options))
        self.load_report = report
        if getattr(rank_zero_only, "rank", 0) == 0:
            log.info("%s", report.text())
        self._take_input(report.preprocessing.mean, report.preprocessing.std, f"the weights {self.weights}")
        return report

    def _take_input(self, mean: Sequence[float], std: Sequence[float], of: str) -> None:
        """Take mean and std, or warn if others are set."""
        for name, buffer, values, is_set in zip(
            ("mean", "std"), (self.mean, self.std), (mean, std), self.input_is_told, strict=True
        ):
            wanted = torch.tensor(list(values), dtype=buffer.dtype, device=buffer.device)
            if not is_set:
                buffer.copy_(wanted)
            elif not torch.allclose(buffer, wanted, rtol=0, atol=5e-4):
                log.warning(
                    "model.%s is set to %s, but %s were trained with %s: scores will differ from theirs. "
                    "Set model.%s to null to take theirs.",
                    name, rounded(buffer.tolist()), of, rounded(values), name,
                )  # fmt: skip

    # ---- training ----------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """Build the optimizer and its schedule for the actual global batch, and log them."""
        trainer = self.trainer
        datamodule = getattr(trainer, "datamodule", None)
        batch_size = getattr(datamodule, "batch_size", None)
        trainer.fit_loop.setup_data()  # Lightning counts an epoch's batches no sooner if max_epochs is not set
        batches = trainer.num_training_batches  # infinite if there is nothing to train
        accumulate = int(min(trainer.accumulate_grad_batches, batches))
        if accumulate < trainer.accumulate_grad_batches and trainer.is_global_zero:
            log.warning(
                "trainer.accumulate_grad_batches is %d, an epoch has %d batches: each step has %d",
                trainer.accumulate_grad_batches, batches, batches,
            )  # fmt: skip
        if batch_size is None:
            if self.optimizer_config.reference_batch_size is not None:
                raise RunError(
                    "the data module has no batch_size, so the learning rate cannot be scaled to the global batch. "
                    "Set model.optimizer.reference_batch_size to null."
                )
            batch_size = 1
        self._batch = self._batch_settings()
        global_batch = trainer.world_size * batch_size * accumulate
        config = self.optimizer_config
        total_steps = int(trainer.estimated_stepping_batches)
        steps_per_epoch = -(-int(batches) // accumulate) if math.isfinite(batches) else 1
        try:
            optimizer = build_optimizer(self.net, config, global_batch_size=global_batch)
            scheduler = build_scheduler(
                optimizer,
                self.schedule_config,
                steps_per_epoch=steps_per_epoch,
                total_steps=total_steps,
                is_trial=bool(getattr(trainer, "fast_dev_run", False)),
            )
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if trainer.is_global_zero:
            reference = config.reference_batch_size
            lr = scaled_lr(config.lr, global_batch_size=global_batch, reference_batch_size=reference)
            formula = f" = {config.lr:g} x {global_batch} / {reference}" if reference else ""
            log.info(
                "global batch %d = %d process(es) x %d clips x %d accumulated; "
                "learning rate %g%s; %d %s, %d an epoch; seed %d",
                global_batch, trainer.world_size, batch_size, accumulate,
                lr, formula, total_steps, "step" if total_steps == 1 else "steps", steps_per_epoch,
                getattr(datamodule, "seed", 0),
            )  # fmt: skip
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _batch_settings(self) -> dict[str, Any]:
        batch_size = getattr(getattr(self.trainer, "datamodule", None), "batch_size", None)
        return {"data.batch_size": batch_size, "trainer.accumulate_grad_batches": self.trainer.accumulate_grad_batches}

    def on_train_epoch_start(self) -> None:
        """Refuse a batch that a callback has changed: learning rate, schedule and checkpoints count on the first."""
        for name, value in self._batch_settings().items():
            if value != self._batch.get(name, value):
                raise ConfigError(
                    f"{name} must stay {self._batch[name]} during a run, got {value} from a callback: the learning "
                    "rate and the steps of an epoch follow from it. Take the callback out of trainer.callbacks."
                )

    def on_train_batch_start(self, batch: ClipBatch, batch_idx: int) -> None:
        """Seed the random state (dropout) from the step alone, so that a resumed run draws the same numbers."""
        seed, batches = self._seed_and_batches(batch_idx)
        entropy = np.random.SeedSequence([seed, batches, self.global_rank]).generate_state(2)
        # torch.manual_seed also formats a traceback for each kind of device that is not in use: 0.5 ms of every step.
        seed_torch = torch.default_generator.manual_seed if self.device.type == "cpu" else torch.manual_seed
        seed_torch(int(entropy[0]))
        np.random.seed(int(entropy[1]))
        random.seed(int(entropy[1]))

    def _seed_and_batches(self, batch_idx: int) -> tuple[int, int]:
        seed = getattr(getattr(self.trainer, "datamodule", None), "seed", 0)
        return seed, self.trainer.current_epoch * int(self.trainer.num_training_batches) + batch_idx

    def training_step(self, batch: ClipBatch, batch_idx: int) -> torch.Tensor:
        """Mean cross entropy of the batch's clips, times `_window_factor`."""
        frames_NTCHW = batch.frames_NKTCHW.flatten(0, 1)
        labels = batch.labels.repeat_interleave(batch.frames_NKTCHW.shape[1])
        x_NCTHW, targets = normalize_clips(frames_NTCHW, self.mean, self.std), labels
        if self.mixing.has_soft_targets:
            seed, step = self._seed_and_batches(batch_idx)
            x_NCTHW, targets = self.mixing.mix(
                x_NCTHW, labels, self.net.num_classes, seed=seed, step=step, rank=self.global_rank
            )
        loss = F.cross_entropy(self.net(x_NCTHW), targets)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        optimizer: Any = self.optimizers()
        # On the host: of a number Lightning would make a tensor on the device, and wait there for the forward pass.
        self.log("lr", torch.tensor(float(optimizer.param_groups[0]["lr"])), batch_size=len(batch))
        factor = self._window_factor(batch_idx)
        return loss if factor == 1 else loss * factor

    def _window_factor(self, batch_idx: int) -> float:
        """What makes the gradient of an accumulation window the mean over its clips.

        Lightning divides each loss by `accumulate_grad_batches`, also in an epoch's last window, which may hold
        fewer batches (all batches are of one size). 7 batches, accumulated by 3: factors 1 1 1, 1 1 1, 3.
        """
        trainer = trainer_of(self)
        if trainer is None or trainer.accumulate_grad_batches == 1 or math.isinf(trainer.num_training_batches):
            return 1.0
        accumulate = trainer.accumulate_grad_batches
        first = batch_idx - batch_idx % accumulate
        return accumulate / min(accumulate, int(trainer.num_training_batches) - first)

    # ---- validation, test, prediction --------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Give all ranks the running statistics of rank 0."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # Those that a checkpoint holds; DDP itself shares them at the next forward.
            for buffer in self.net.buffers():
                torch.distributed.broadcast(buffer, 0)

    def validation_step(self, batch: ClipBatch, batch_idx: int) -> torch.Tensor:
        """Softmax scores of one clip of each video, float32 (N, 1, Y); `EvaluationWriter` counts them."""
        if len(batch) == 0:
            return torch.zeros((0, 1, self.net.num_classes), device=self.device)
        frames_NTCHW = batch.frames_NKTCHW.flatten(0, 1)
        # `forward` itself: a compiled call is for training's shapes alone.
        scores_NY: torch.Tensor = self.net.forward(normalize_clips(frames_NTCHW, self.mean, self.std)).float()
        return scores_NY[:, None]

    def test_step(self, batch: ClipBatch, batch_idx: int) -> torch.Tensor:
        """As `predict_step`; `EvaluationWriter` counts and keeps the scores."""
        return self.predict_step(batch, batch_idx)

    def predict_step(self, batch: ClipBatch, batch_idx: int) -> torch.Tensor:
        """Softmax scores of all views, float32 (N, K, Y)."""
        scores = [
            score_views(self.net, frames, mean_C=self.mean, std_C=self.std, views_per_forward=self.views_per_forward)
            for frames in batch.frames_NKTCHW
        ]
        return torch.stack(scores) if scores else torch.zeros((0, 0, self.net.num_classes), device=self.device)

    # ---- checkpoints -------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """What a checkpoint says of itself; see `write_about`."""
        datamodule = getattr(trainer_of(self), "datamodule", None)
        data = datamodule.describe() if datamodule is not None else {}
        pixels = {"mean": self.mean.tolist(), "std": self.std.tolist()}
        return write_about(self.net.arguments, **pixels, environment=environment(), **data)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Describe net and data in the checkpoint, so that it stands alone."""
        checkpoint[KEY] = self.describe()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise CheckpointError for another network or other classes, before anything is loaded."""
        stored = checkpoint.get(KEY)
        if stored is None:
            raise CheckpointError(f"the checkpoint has no key {KEY!r}: it was not written by this package")
        datamodule = getattr(trainer_of(self), "datamodule", None)
        classes = list(getattr(datamodule, "classes", ()))
        if classes and stored.get("classes") and not same_classes(classes, stored["classes"]):
            raise CheckpointError(class_difference(stored["classes"], classes))
        check_same_net(stored["net"], self.net.arguments)
        self.is_restored = True
        if stored.get("mean") and stored.get("std"):
            self._take_input(stored["mean"], stored["std"], "the checkpoint's weights")
        self.classes = list(stored.get("classes") or classes)
        self._take_weights_in_training(checkpoint)

    def _take_weights_in_training(self, checkpoint: dict[str, Any]) -> None:
        """Resume an averaged run without averaging from its weights in training, not from their average."""
        trainer = trainer_of(self)
        if "current_model_state" not in checkpoint or trainer is None or trainer.state.fn != "fit":
            return
        if not any(isinstance(callback, WeightAveraging) for callback in callbacks_of(trainer)):
            log.warning(
                "the checkpoint's weights are averaged, this run's will not be: it resumes from those in training"
            )
            checkpoint["state_dict"] = checkpoint["current_model_state"]
