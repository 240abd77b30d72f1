"""Guard against losses and gradients that are not finite: the step is not taken, and the error names the source."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from video_gn.checks import check_choice
from video_gn.clips import ClipBatch
from video_gn.errors import RunError
from video_gn.run.ranks import gather_objects
from video_gn.shown import count

log = logging.getLogger(__name__)


@dataclass
class _Kept:
    """A batch since the last optimizer step. The loss is Lightning's: divided by the batches of a step, and scaled."""

    batch_idx: int
    batch: ClipBatch
    loss: torch.Tensor | None = None


class NonFiniteGuard(Callback):
    """Stops the run before a step whose loss or gradients are not finite, or skips such steps.

    All ranks decide alike, from the averaged gradients and the losses of all, and wait for the device once a step.
    The error names the videos of every batch since the last step, and the first module whose output is not finite (the
    batch is run again, with the same random numbers). If the loss is finite it names instead the first parameter, in
    the order of the backward pass, whose gradient is not. The uint8 frames of those batches are kept until the step.

    "skip" leaves weights, optimizer state and running statistics unchanged bit for bit; the schedule and the step count
    advance. With 16-mixed only the loss counts: the gradient scaler itself skips steps whose gradients are not finite,
    as it does while it finds its scale.

    No checkpoint is written with weights or statistics that are not finite.

    Args:
        action: "stop" or "skip".
        max_skipped: Steps that "skip" may leave out in the whole run, resumes included.
    """

    def __init__(self, action: Literal["stop", "skip"] = "stop", max_skipped: int = 10) -> None:
        check_choice("guard.action", action, ("stop", "skip"))
        if max_skipped < 0:
            raise ValueError(
                f"guard.max_skipped must be 0 or above, got {max_skipped!r}. With 0 use guard.action=stop."
            )
        self.action = action
        self.max_skipped = max_skipped
        self.num_skipped = 0
        self._kept: list[_Kept] = []
        self._buffers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def state_dict(self) -> dict[str, Any]:
        """Number of skipped steps."""
        return {"num_skipped": self.num_skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count."""
        self.num_skipped = int(state_dict["num_skipped"])

    # ---- what a step is made of --------------------------------------------------------------

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the batches of the last epoch."""
        self._kept = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: ClipBatch, batch_idx: int
    ) -> None:
        """Keep the batch."""
        if self.action == "skip" and not self._kept:
            # A forward that is not finite spoils running averages for good.
            self._buffers = [(buffer, buffer.clone()) for buffer in pl_module.buffers()]
        self._kept.append(_Kept(batch_idx, batch))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Keep the loss."""
        if self._kept:
            self._kept[-1].loss = loss.detach()

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Check the losses and the averaged gradients; stop by a RunError that names the source, or skip the step."""
        kept, self._kept = self._kept, []
        buffers, self._buffers = self._buffers, []
        losses = [k.loss for k in kept if k.loss is not None]
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients = [g for g in gradients if g.numel()]
        device = pl_module.device
        values = [v.to(device, torch.float32).reshape(()) for v in (_whole(get_total_norm(gradients)), *losses)]
        bad, *bad_losses = _anywhere(trainer, ~torch.stack(values).isfinite())
        bad = bad and _has_bad(trainer, pl_module, gradients)
        if not any(bad_losses) and (not bad or _scaler(trainer) is not None):
            return
        text = self._describe(trainer, pl_module, optimizer, kept, bad_losses)
        if self.action == "stop":
            raise RunError(
                f"{text} The step was not taken. Lower model.optimizer.lr, set trainer.gradient_clip_val, train in "
                "float32, or set guard.action to skip; --ckpt_path last resumes from the last checkpoint."
            )
        self.num_skipped += 1
        if self.num_skipped > self.max_skipped:
            raise RunError(
                f"{text} {count(self.num_skipped, 'step')} had to be skipped, more than guard.max_skipped = "
                f"{self.max_skipped} allows. Lower model.optimizer.lr, or raise the limit."
            )
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        for buffer, before in buffers:
            buffer.copy_(before)
        if trainer.is_global_zero:
            log.warning("%s The step is skipped; %d so far", text, self.num_skipped)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Raise RunError, naming the first, for weights or statistics that are not finite."""
        state = {
            name if key == "state_dict" else f"{key}: {name}": value
            for key in ("state_dict", "current_model_state", "running_statistics", "averaged_running_statistics")
            for name, value in checkpoint.get(key, {}).items()
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel()
        }
        if not _has_bad(trainer, pl_module, [value.detach() for value in state.values()]):
            return
        name = next((name for name, value in state.items() if not value.isfinite().all()), "another rank's statistics")
        raise RunError(
            f"step {trainer.global_step}: {name} must be finite in a checkpoint, got values that are not. The last "
            "checkpoint is unchanged: resume from it with a lower model.optimizer.lr."
        )

    # ---- what happened -----------------------------------------------------------------------

    def _describe(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        optimizer: Optimizer,
        kept: Sequence[_Kept],
        bad_losses: Sequence[bool],
    ) -> str:
        """The error's text, the same on all ranks; all must call it."""
        scaler = _scaler(trainer)
        # The task and Lightning have divided each loss by the batches of the step.
        factor = len(kept) / (scaler.get_scale() if scaler is not None else 1.0)
        batches = []
        for k in kept:
            loss = "unknown" if k.loss is None else f"{float(k.loss) * factor:g}"
            batches.append(f"rank {trainer.global_rank}, batch {k.batch_idx}, loss {loss}: {_names(trainer, k.batch)}")
        where = None
        if any(bad_losses):
            # All ranks run the same batch again: norms may need the statistics of all.
            where = first_bad_module(trainer, pl_module, kept[list(bad_losses).index(True)])
        everybodys = gather_objects((batches, where), trainer.world_size)
        found = [place for _, place in everybodys if place is not None]
        if found:
            cause = f"the loss is not finite; the first output that is not is of {found[0]}"
        elif any(bad_losses):
            cause = "the loss is not finite, while every module's output is when the batch is run again"
        else:
            cause = f"the gradients are not finite, the first one on the way back being that of {_first_bad(pl_module)}"
        return (
            f"step {trainer.global_step + 1} (epoch {trainer.current_epoch + 1}, learning rate "
            f"{float(optimizer.param_groups[0]['lr']):g}): {cause}. Since the last step: "
            f"{'; '.join(line for lines, _ in everybodys for line in lines)}."
        )


def first_bad_module(trainer: Trainer, pl_module: LightningModule, kept: _Kept) -> str | None:
    """Run a batch again and find the innermost module with the first output that is not finite.

    Random numbers, precision and mode are those of training; buffers, random state and logged values are unchanged.
    Returns the module's name, with its weight that is not finite if there is one; None if every output is finite.
    """
    found: list[str] = []

    def watch(name: str) -> Any:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and isinstance(output, torch.Tensor) and not output.isfinite().all():
                own = [n for n, p in module.named_parameters(recurse=False) if not p.isfinite().all()]
                found.append(f"{name} (its {own[0]} is not finite)" if own else name)

        return look

    handles = [module.register_forward_hook(watch(name)) for name, module in pl_module.named_modules() if name]
    buffers = [(buffer, buffer.clone()) for buffer in pl_module.buffers()]
    try:
        # A compiled call would not see the hooks.
        with isolate_rng(), _without_logging(pl_module), torch.compiler.set_stance("force_eager"):
            pl_module.on_train_batch_start(kept.batch, kept.batch_idx)  # seeds the random state
            with trainer.precision_plugin.train_step_context():
                pl_module.training_step(kept.batch, kept.batch_idx)
    finally:
        for handle in handles:
            handle.remove()
        for buffer, before in buffers:
            buffer.copy_(before)
    return found[0] if found else None


@contextlib.contextmanager
def _without_logging(pl_module: LightningModule) -> Iterator[None]:
    own = {name: value for name, value in vars(pl_module).items() if name == "log"}
    vars(pl_module)["log"] = lambda *args, **kwargs: None
    try:
        yield
    finally:
        del vars(pl_module)["log"]
        vars(pl_module).update(own)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a sharded tensor; all ranks must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _has_bad(trainer: Trainer, pl_module: LightningModule, tensors: Sequence[torch.Tensor]) -> bool:
    """Whether a value is not finite on any rank; all must call it.

    The sum of squares tells in a fifteenth of the time that a CPU takes for the largest magnitude, but it overflows
    before that does.
    """
    for norm_type in (2.0, math.inf):
        norm = _whole(get_total_norm(tensors, norm_type=norm_type)).to(pl_module.device)
        if not any(_anywhere(trainer, ~norm.isfinite().reshape(1))):
            return False
    return True


def _first_bad(pl_module: LightningModule) -> str:
    # Backward goes through the modules from the last to the first.
    for name, parameter in reversed(list(pl_module.named_parameters())):
        if parameter.grad is not None and not _whole(parameter.grad).isfinite().all():
            return name
    return "no parameter of this rank"


def _names(trainer: Trainer, batch: ClipBatch) -> str:
    ids: Iterable[int] = batch.video_ids.tolist()
    manifests = getattr(getattr(trainer, "datamodule", None), "manifests", {})
    if "train" not in manifests:
        return ", ".join(f"video {i}" for i in ids)
    return ", ".join(manifests["train"].records[i].path for i in ids)


def _scaler(trainer: Trainer) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)


def _anywhere(trainer: Trainer, flags: torch.Tensor) -> list[bool]:
    """Flags that are set on any rank. This is the one place that waits for the device."""
    if trainer.world_size > 1:
        flags = flags.to(torch.int32)
        torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    return [bool(flag) for flag in flags.tolist()]
