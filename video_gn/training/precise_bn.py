"""Precise statistics for Batch Norm and its relatives: over many batches of one network, instead of running averages.

Definition. Per channel, over all inputs of a norm in all batches of all processes, each value counting once: their
mean, and their variance with n - 1 in the denominator, the convention of torch's `running_var`, so that one batch
gives what Batch Norm with a momentum of 1 stores. `BatchRenorm`, whose average has no n - 1, gets n. In the forward
that makes those inputs each norm normalizes by its batch, as in training, and dropout is on. Mixup and cutmix are
not: no test clip is mixed.

Other implementations differ in the last digits, or more for small batches:
- Non-local Networks' code averages the batches' means and means of squares, every batch and GPU alike, over 200
  iterations: the same for batches of equal size, but with n in the denominator, and in float32, where a mean far from
  0 costs digits. Source: facebookresearch/video-nonlocal-net, lib/utils/bn_helper.py.
- fvcore's `update_bn_stats` weighs batches by their size and has n in the denominator; each process has its own
  statistics. Its unused first estimator averages the batches' variances with n - 1, which ignores how far their means
  lie apart. Source: facebookresearch/fvcore, fvcore/nn/precise_bn.py; Wu & Johnson 2021 (arXiv:2105.07576).

Training never sees them: it keeps its own running averages, so a run is bit-identical with and without, even if it is
killed and resumed.

Shape letters: N batch, C channels, T frames, H, W, R processes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from video_gn.errors import ConfigError
from video_gn.evaluation.scores import normalize_clips
from video_gn.models import BatchRenorm, recomputing
from video_gn.run.lightning_internals import average_of, callbacks_of
from video_gn.run.ranks import gather_objects

log = logging.getLogger(__name__)

_STREAM = 0  # of `VideoDataModule.extra_train_dataloader`
# Keys of a checkpoint, each a table by buffer: the training's own averages, and with averaging the average's.
_KEY = "running_statistics"
_AVERAGED = "averaged_running_statistics"

Statistics = dict[str, torch.Tensor]  # buffers by name, such as blocks.0.norm.running_mean


@dataclass
class Moments:
    """Count, mean and sum of squared deviations of all values seen, float64 (C,).

    Source: Chan, Golub & LeVeque 1983 (The American Statistician 37(3)), pairwise updating.
    """

    count: int = 0
    mean_C: torch.Tensor | None = None
    squares_C: torch.Tensor | None = None

    def add(self, x: torch.Tensor) -> None:
        """Add a batch (N, C, ...)."""
        wide = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        count = wide.numel() // wide.shape[1]
        if count:
            var_C, mean_C = torch.var_mean(wide, [0, *range(2, wide.ndim)], correction=0)
            self.merge(count, mean_C.double(), var_C.double() * count)

    def merge(self, count: int, mean_C: torch.Tensor, squares_C: torch.Tensor) -> None:
        """Add the moments of other values."""
        if self.mean_C is None or self.squares_C is None:
            self.count, self.mean_C, self.squares_C = count, mean_C, squares_C
            return
        total, delta_C = self.count + count, mean_C - self.mean_C
        self.mean_C = self.mean_C + delta_C * (count / total)
        self.squares_C = self.squares_C + squares_C + delta_C.square() * (self.count * count / total)
        self.count = total


def batch_norms(net: nn.Module) -> dict[str, _NormBase]:
    """The norms that keep running averages of training batches, by name, without frozen kinds."""
    return {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, _BatchNorm | BatchRenorm) and module.running_mean is not None
    }


@torch.no_grad()
def estimate_statistics(net: nn.Module, batches: Iterable[torch.Tensor], *, world_size: int = 1) -> Statistics:
    """Estimate what the running averages of the norms in training mode should be; the net is unchanged.

    All processes pool their moments, of equally many batches. Returns `running_mean` and `running_var` of each such
    norm that was used, under the names of the net's state dict.
    """
    norms = {name: norm for name, norm in batch_norms(net).items() if norm.training}
    moments = {name: Moments() for name in norms}
    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]

    def watch(seen: Moments) -> Any:
        return lambda module, inputs: seen.add(inputs[0])

    handles = [norm.register_forward_pre_hook(watch(moments[name])) for name, norm in norms.items()]
    try:
        for x_NCTHW in batches:
            with recomputing():  # our own norms then update no averages; torch's are restored below
                net.forward(x_NCTHW)  # a compiled call would not see the hooks
    finally:
        for handle in handles:
            handle.remove()
        for buffer, before in buffers:
            buffer.copy_(before)
    if world_size > 1:
        moments = _pool(moments, world_size)
    found: Statistics = {}
    for name, norm in norms.items():
        seen = moments[name]
        if seen.mean_C is None or seen.squares_C is None:
            continue
        assert norm.running_mean is not None
        assert norm.running_var is not None
        correction = 0 if isinstance(norm, BatchRenorm) else 1
        found[f"{name}.running_mean"] = seen.mean_C.to(norm.running_mean)
        found[f"{name}.running_var"] = (seen.squares_C / max(1, seen.count - correction)).to(norm.running_var)
    return found


def _pool(moments: Mapping[str, Moments], world_size: int) -> dict[str, Moments]:
    """Merge the moments of all processes in the order of ranks, so that every process gets the same bits."""
    # On the host: a tensor of a device would come back on the device of the process that sent it.
    own = {n: (m.count, m.mean_C.cpu(), m.squares_C.cpu()) for n, m in moments.items() if m.count}  # type: ignore[union-attr]
    pooled = {name: Moments() for name in moments}
    for other in gather_objects(own, world_size):
        for name, (count, mean_C, squares_C) in other.items():
            pooled[name].merge(count, mean_C, squares_C)
    return pooled


class PreciseBN(Callback):
    """Estimates the statistics of Batch Norms for each validation of a fit and for each checkpoint.

    A separate loader draws the clips as training does, as a function of (seed, optimizer step) alone. Norms that
    training keeps in eval mode, and frozen kinds, are unchanged. With averaged weights the estimate is for those, since
    validation and checkpoint use them: `WeightAveraging` swaps them in at `on_validation_epoch_start`, and this
    callback, listed after it, estimates in the same hook.

    A checkpoint's `state_dict` holds the estimate, and "running_statistics" what training resumes with. A checkpoint of
    a validated step holds exactly the validated statistics; nothing is estimated twice for the same weights.

    Args:
        num_batches: Batches of each process, of the training's batch size; 0 is off.
        before_checkpoints: Also estimate for checkpoints of steps without a validation. Otherwise those hold training's
            own running averages.
    """

    def __init__(self, num_batches: int = 0, before_checkpoints: bool = True) -> None:
        if num_batches < 0:
            raise ValueError(f"precise_bn.num_batches must be 0 (off) or above, got {num_batches!r}. Usual: 200.")
        self.num_batches = num_batches
        self.before_checkpoints = before_checkpoints
        self._modes: list[tuple[nn.Module, bool]] = []
        self._of: tuple[int, torch.Tensor] | None = None  # step, and norms of the weights
        self._found: Statistics = {}
        self._own: Statistics = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise ConfigError for a network without such norms, ValueError without data or if averaging comes later."""
        if stage != "fit" or not self.num_batches:
            return
        if not batch_norms(_net(pl_module)):
            raise ConfigError(
                "precise_bn.num_batches must be 0 for a network without Batch Norm, "
                f"got {self.num_batches}. Set it to 0, or model.net.norm to batch, sync_batch or batch_renorm."
            )
        if not hasattr(getattr(trainer, "datamodule", None), "train_transform"):
            raise ValueError("PreciseBN must have a VideoDataModule to draw clips from. Pass it as `datamodule`.")
        places = [i for i, c in enumerate(callbacks_of(trainer)) if isinstance(c, WeightAveraging)]
        if any(place > callbacks_of(trainer).index(self) for place in places):
            raise ValueError("PreciseBN must be listed after WeightAveraging, so that it sees the averaged weights.")

    # ---- training ----------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note which modules are in training mode."""
        self._note_modes(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note which modules are in training mode; during validation none is."""
        self._note_modes(pl_module)

    def _note_modes(self, pl_module: LightningModule) -> None:
        if self.num_batches:
            self._modes = [(module, module.training) for module in _net(pl_module).modules()]

    # ---- validation --------------------------------------------------------------------------

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Estimate, and replace the running averages by the estimate."""
        if self._is_off(trainer):
            return
        self._estimate(trainer, pl_module)
        state = _net(pl_module).state_dict()
        self._own = {name: state[name].clone() for name in self._found}
        _write(state, self._found)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the running averages."""
        if not self._is_off(trainer):
            # With averaging the estimate has moved into the average, with the weights that it belongs to.
            _write(_holder(trainer, pl_module).state_dict(), self._own)
        self._own = {}

    def _is_off(self, trainer: Trainer) -> bool:
        return not self.num_batches or trainer.sanity_checking or trainer.state.fn != "fit"

    # ---- checkpoints -------------------------------------------------------------------------

    @torch.no_grad()
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the estimate into `state_dict`, and the running averages beside it."""
        if self._is_off(trainer) or "state_dict" not in checkpoint:
            return
        averaging = _averaging(trainer)
        if averaging is not None:
            averaging.on_validation_epoch_start(trainer, pl_module)
        try:
            if self.before_checkpoints:
                self._estimate(trainer, pl_module)
            elif not self._is_current(trainer, pl_module):
                return
        finally:
            if averaging is not None:
                averaging.on_validation_epoch_end(trainer, pl_module)
        prefix = "" if _net(pl_module) is pl_module else "net."
        state = checkpoint["state_dict"]  # its tensors are the module's own: they are replaced, not written to
        checkpoint[_KEY if averaging is None else _AVERAGED] = {n: state[prefix + n].clone() for n in self._found}
        state.update({prefix + name: value.clone() for name, value in self._found.items()})

    @torch.no_grad()
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Resume training with its own running averages; a test uses the estimate."""
        if trainer.state.fn == "fit" and _KEY in checkpoint:
            _write(_net(pl_module).state_dict(), checkpoint[_KEY])
        if trainer.state.fn == "fit" and _AVERAGED in checkpoint and _averaging(trainer) is not None:
            _write(_holder(trainer, pl_module).state_dict(), checkpoint[_AVERAGED])

    @torch.no_grad()
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the estimate in the net if it is of the last weights."""
        if self.num_batches and self._is_current(trainer, pl_module):
            _write(_net(pl_module).state_dict(), self._found)

    # ---- the estimate ------------------------------------------------------------------------

    def _is_current(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Whether the last estimate is of this step and these weights: averaging may change them within a step."""
        if self._of is None or self._of[0] != trainer.global_step:
            return False
        return torch.equal(self._of[1], _fingerprint(_net(pl_module)))

    def _estimate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning validates in inference mode, whose tensors could not be written to later.
        with torch.inference_mode(False), torch.no_grad():
            if self._is_current(trainer, pl_module):
                return
            started, net = time.monotonic(), _net(pl_module)
            with isolate_rng(), _modes(net, self._modes), trainer.precision_plugin.forward_context():
                if not any(norm.training for norm in batch_norms(net).values()):
                    raise ConfigError(
                        "precise_bn.num_batches must be 0 for a network whose Batch Norms are all frozen, "
                        f"got {self.num_batches}. Set it to 0."
                    )
                self._found = estimate_statistics(net, self._batches(trainer, pl_module), world_size=trainer.world_size)
            self._of = trainer.global_step, _fingerprint(net)
        if trainer.is_global_zero:
            log.info(
                "step %d: statistics of %d norms over %d batches of %d process(es), %.1f s",
                trainer.global_step, len(self._found) // 2, self.num_batches, trainer.world_size,
                time.monotonic() - started,
            )  # fmt: skip

    def _batches(self, trainer: Trainer, pl_module: LightningModule) -> Iterator[torch.Tensor]:
        data: Any = getattr(trainer, "datamodule", None)
        entropy = np.random.SeedSequence([data.seed, trainer.global_step, trainer.global_rank, _STREAM])
        torch.manual_seed(int(entropy.generate_state(1)[0]))  # dropout in front of a norm
        module: Any = pl_module
        loader = data.extra_train_dataloader(stream=_STREAM, start=trainer.global_step, num_batches=self.num_batches)
        for batch in loader:
            frames_NTCHW = batch.frames_NKTCHW.to(pl_module.device, non_blocking=True).flatten(0, 1)
            yield normalize_clips(frames_NTCHW, module.mean, module.std)


def _net(pl_module: LightningModule) -> nn.Module:
    net = getattr(pl_module, "net", pl_module)
    assert isinstance(net, nn.Module)
    return net


def _holder(trainer: Trainer, pl_module: LightningModule) -> nn.Module:
    """The module that holds the validated weights: the average, or the net itself."""
    averaging = _averaging(trainer)
    average = None if averaging is None else average_of(averaging)
    return _net(pl_module if average is None else average.module)


def _averaging(trainer: Trainer) -> WeightAveraging | None:
    return next((c for c in callbacks_of(trainer) if isinstance(c, WeightAveraging)), None)


def _write(state: Mapping[str, torch.Tensor], values: Statistics) -> None:
    """Copy into the tensors of a state dict, which are the module's own."""
    for name, value in values.items():
        state[name].copy_(value)


def _fingerprint(net: nn.Module) -> torch.Tensor:
    """The norm of every parameter, which changes with any of them."""
    return torch.stack([torch.linalg.vector_norm(p.detach().float()) for p in net.parameters()])


@contextmanager
def _modes(net: nn.Module, wanted: Iterable[tuple[nn.Module, bool]]) -> Iterator[None]:
    """Put every module into its mode of training within the block."""
    before = [(module, module.training) for module in net.modules()]
    try:
        for module, mode in wanted:
            module.training = mode
        yield
    finally:
        for module, mode in before:
            module.training = mode
