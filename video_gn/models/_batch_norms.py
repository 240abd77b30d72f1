"""The relatives of Batch Norm, with its names in a state dict, and their exact statistics under recomputation.

All hold `weight`, `bias`, `running_mean`, `running_var` (C,) and `num_batches_tracked` (), so that the statistics of
one load into another. `BatchNorm3d` and `SyncBatchNorm` are torch's `_BatchNorm`, and torch's utilities for Batch
Norm (`update_bn`, `convert_sync_batchnorm`) treat them as such; `FrozenBatchNorm` and `BatchRenorm` are only its
`_NormBase`, since those utilities would overwrite fixed statistics, or put another computation in their place.

Shape letters: N batch, C channels, T frames, H, W.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase

from video_gn.models._sync_batch import SyncNormalize, all_but_channels, per_channel, pooled_statistics, widened

T = TypeVar("T")

# ---- recomputation -------------------------------------------------------------------------------------


class _State(threading.local):
    """This thread's part in checkpointed forwards; backward may run in a thread of its own."""

    recomputing: bool = False
    replay: Iterator[Any] | None = None
    tapes: tuple[list[Any], ...] = ()


_state = _State()
_lock = threading.Lock()
# Scopes that are entered, in all threads. torch.compile would put what it finds in a thread's state into its graph
# for good; these it looks at again before each call.
_num_recomputing = 0
_num_recording = 0


class _Scope(contextlib.AbstractContextManager[None]):
    """Sets this thread's state. It can be entered again: a retained graph is recomputed for each backward."""

    def __init__(self, enter: Callable[[], None], *, recomputes: bool) -> None:
        self._enter = enter
        self._recomputes = recomputes
        self._before: list[tuple[bool, Iterator[Any] | None, tuple[list[Any], ...]]] = []

    def __enter__(self) -> None:
        self._before.append((_state.recomputing, _state.replay, _state.tapes))
        self._enter()
        self._count(1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _state.recomputing, _state.replay, _state.tapes = self._before.pop()
        self._count(-1)

    def _count(self, change: int) -> None:
        global _num_recomputing, _num_recording
        with _lock:
            if self._recomputes:
                _num_recomputing += change
            else:
                _num_recording += change


def recomputing() -> contextlib.AbstractContextManager[None]:
    """A context in which a second forward of the same input leaves no trace in this thread.

    Norms built by `make_norm` normalize as in training but update no statistics and no count. `BatchRenorm` then takes
    its correction from the statistics that the first forward has updated: only `checkpoint_contexts`, which keeps the
    first forward's values, repeats its output exactly.
    """

    def enter() -> None:
        _state.recomputing, _state.replay, _state.tapes = True, None, ()

    return _Scope(enter, recomputes=True)


def checkpoint_contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """Contexts of one checkpointed forward and of its recomputation, which update statistics once.

    For `torch.utils.checkpoint.checkpoint(..., use_reentrant=False, context_fn=checkpoint_contexts)`. What the forward
    took from other processes or from running statistics is kept, a few numbers per channel: the recomputation gives
    the same output without communication. Inside a graph of torch.compile, whose checkpoints take no such contexts
    and need none, leave `context_fn` out.
    """
    tape: list[Any] = []

    def record() -> None:
        tape.clear()
        _state.tapes = (*_state.tapes, tape)  # of this checkpoint and of those around it

    def replay() -> None:
        _state.recomputing, _state.replay, _state.tapes = True, iter(tape), ()

    return _Scope(record, recomputes=False), _Scope(replay, recomputes=True)


def _is_recomputing() -> bool:
    return _num_recomputing > 0 and _state.recomputing


def _taken_once(compute: Callable[[], T]) -> T:
    """A value that a recomputation must repeat, not compute again."""
    return _from_tape(compute) if _num_recomputing or _num_recording else compute()


@torch.compiler.disable
def _from_tape(compute: Callable[[], T]) -> T:
    value = compute() if _state.replay is None else next(_state.replay)
    for tape in _state.tapes:
        tape.append(value)
    return value


# ---- the norms -----------------------------------------------------------------------------------------


class BatchNorm3d(nn.BatchNorm3d):
    """torch's, for (N, C, ...), that can be recomputed (`recomputing`) without a second update."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalized over all but C; same shape and dtype."""
        if self.training and _is_recomputing():
            self._check_input_dim(input)
            # Copies take the update. None would not do: the forward has saved these tensors for backward, and a
            # checkpoint expects as many from the recomputation.
            mean, var = (None if s is None else s.clone() for s in (self.running_mean, self.running_var))
            return F.batch_norm(input, mean, var, self.weight, self.bias, training=True, eps=self.eps)
        return super().forward(input)

    def _check_input_dim(self, input: torch.Tensor) -> None:
        _check_shape(input, self.num_features)


class SyncBatchNorm(BatchNorm3d):
    """Batch Norm over the batches of all processes, on any backend and device.

    Each process sends its count, mean and sum of squared deviations (in float32 at least), so that batches of unequal
    size, or empty ones, count correctly. With one process it is `BatchNorm3d`. As DDP averages gradients, those of
    weight and bias are of the process's own samples; those of the input are exact.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalized over all but C, and over processes; same shape and dtype."""
        if not (self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input)
        self._check_input_dim(input)
        mean_C, var_C, count = _taken_once(lambda: pooled_statistics(input.detach()))
        if self.track_running_stats and not _is_recomputing():
            factor = _next_factor(self)
            with torch.no_grad():
                # The unbiased variance, as torch keeps it.
                _move(self.running_mean, mean_C, factor)
                _move(self.running_var, var_C * (count / (count - 1).clamp(min=1)), factor)
        normalized: torch.Tensor = SyncNormalize.apply(input, self.weight, self.bias, mean_C, var_C, count, self.eps)
        return normalized


class FrozenBatchNorm(_NormBase):
    """A fixed linear layer for each channel, from statistics, scale and shift that were trained elsewhere (BN*).

    It computes the same in training as in evaluation. The four tensors never change: scale and shift are parameters,
    so that they have Batch Norm's names, but get no gradient even if `requires_grad` is set.

    Source: Wu & He 2018 (arXiv:1803.08494), section 4.2; He et al. 2016 (arXiv:1512.03385), appendix A.
    """

    def __init__(self, num_features: int, *, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps, momentum=0.0)
        self.requires_grad_(False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(x - running_mean) / sqrt(running_var + eps) * weight + bias; same shape and dtype."""
        _check_shape(input, self.num_features)
        return F.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight.detach(),
            self.bias.detach(),
            training=False,
            eps=self.eps,
        )


class BatchRenorm(_NormBase):
    """Batch Renormalization: Batch Norm, moved towards what the running statistics would give, within limits.

    In training x is normalized by the batch to (x - m_B) / s_B * r + d, where r = s_B / s within [1 / r_max, r_max]
    and d = (m_B - m) / s within [-d_max, d_max] take no gradient; m and s are the running statistics before the step.
    If neither reaches its limit that is (x - m) / s, as in evaluation; with r_max = 1 and d_max = 0 it is Batch Norm.
    s = sqrt(variance + eps).

    What is averaged is s, as in the source's Algorithm 1, not the variance as in Batch Norm: r compares values of s,
    and would lean below 1 against the root of an averaged variance. `running_var` holds s^2 - eps, so that evaluation
    is Batch Norm's, whose statistics can be loaded. It has no n / (n - 1), since s_B has none.

    The limits widen linearly from r_max = 1, d_max = 0 over `warmup_steps` steps after `warmup_start_steps`; the step
    is `num_batches_tracked`, which a checkpoint holds.

    Args:
        num_features: C.
        eps: Added to the variance.
        momentum: Weight of the newest batch in running averages; None for the plain average of all.
        r_max: Limit of r, 1 or more.
        d_max: Limit of d, 0 or more.
        warmup_start_steps: Training steps as plain Batch Norm.
        warmup_steps: Further training steps until the limits are reached.

    Raises:
        ValueError: for a value out of range.

    Source: Ioffe 2017 (arXiv:1702.03275), Algorithm 1. Its section 4 starts at step 5,000 and widens r to 3 until
    step 40,000 and d to 5 until 25,000; here the shorter interval serves both limits. r_max 1.5 and d_max 0.5
    are from Wu & He 2018 (arXiv:1803.08494), section 4.1, which names no warm-up.
    """

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        r_max: float = 1.5,
        d_max: float = 0.5,
        warmup_start_steps: float = 5000,
        warmup_steps: float = 20000,
    ) -> None:
        super().__init__(num_features, eps, momentum)
        if not 1 <= r_max < float("inf"):
            raise ValueError(f"r_max must be at least 1 and finite, got {r_max!r}. 1.5 is usual; 1 is Batch Norm.")
        if not 0 <= d_max < float("inf"):
            raise ValueError(f"d_max must be at least 0 and finite, got {d_max!r}. 0.5 is usual; 0 is Batch Norm.")
        for name, value in (("warmup_start_steps", warmup_start_steps), ("warmup_steps", warmup_steps)):
            if not (value >= 0 and value == value // 1):
                raise ValueError(f"{name} must be a whole number of at least 0, got {value!r}. 0 means no warm-up.")
        self.r_max, self.d_max = float(r_max), float(d_max)
        self.warmup_start_steps, self.warmup_steps = int(warmup_start_steps), int(warmup_steps)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalized over all but C; same shape and dtype."""
        _check_shape(input, self.num_features)
        if not self.training:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        mean_C, sigma_C, r_C, d_C = _taken_once(lambda: self._statistics(input.detach()))
        # ((x - m_B) / s_B * r + d) * weight + bias, by torch's kernel.
        weight_C, bias_C = self.weight * r_C, self.weight * d_C + self.bias
        normalized = F.batch_norm(input, None, None, weight_C, bias_C, training=True, eps=self.eps)
        if not _is_recomputing():
            factor = _next_factor(self)
            with torch.no_grad():
                sigma_C = self._running_sigma(sigma_C.dtype).lerp(sigma_C, factor)
                _move(self.running_mean, mean_C, factor)
                # At least eps went into both; rounding may leave a little less.
                self.running_var.copy_((sigma_C.square() - self.eps).clamp(min=0))  # type: ignore[union-attr]
        return normalized

    def limits(self, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
        """(r_max, d_max) of the next training step, scalars on the statistics' device, so that none is waited for."""
        assert self.num_batches_tracked is not None
        done = self.num_batches_tracked - self.warmup_start_steps
        part = (done.to(dtype) / self.warmup_steps).clamp(0, 1) if self.warmup_steps else (done >= 0).to(dtype)
        return 1 + part * (self.r_max - 1), part * self.d_max

    def extra_repr(self) -> str:
        """The sizes and the limits."""
        warmup = f"warmup_start_steps={self.warmup_start_steps}, warmup_steps={self.warmup_steps}"
        return f"{super().extra_repr()}, r_max={self.r_max:g}, d_max={self.d_max:g}, {warmup}"

    @torch.no_grad()
    def _statistics(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The batch's mean and sigma, r and d, each (C,) in float32 at least."""
        var_C, mean_C = torch.var_mean(widened(x), all_but_channels(x), correction=0)
        assert self.running_mean is not None
        sigma_C, running_C = (var_C + self.eps).sqrt(), self._running_sigma(var_C.dtype)
        r_max, d_max = self.limits(var_C.dtype)
        r_C = (sigma_C / running_C).clamp(1 / r_max, r_max)
        d_C = ((mean_C - self.running_mean) / running_C).clamp(-d_max, d_max)
        return mean_C, sigma_C, r_C, d_C

    def _running_sigma(self, dtype: torch.dtype) -> torch.Tensor:
        assert self.running_var is not None
        return (self.running_var.to(dtype) + self.eps).sqrt()


class ScaleShift(nn.Module):
    """No normalization: x * weight + bias for each channel, so that a network without norms has the same parameters."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """x * weight + bias; same shape and dtype."""
        _check_shape(input, self.num_features)
        # A copy of (C,) in the input's dtype, as autocast makes of a convolution's weight.
        weight, bias = (per_channel(p.to(input.dtype), input) for p in (self.weight, self.bias))
        return torch.addcmul(bias, input, weight)

    def extra_repr(self) -> str:
        """C."""
        return str(self.num_features)


# ---- statistics ----------------------------------------------------------------------------------------


def _check_shape(x: torch.Tensor, num_channels: int) -> None:
    if x.ndim < 2 or x.shape[1] != num_channels:
        raise ValueError(
            f"a norm's input must be of shape (N, {num_channels}, ...), got {tuple(x.shape)}. Put the channels second."
        )


def _next_factor(norm: _NormBase) -> float:
    """Count the newest batch and return its weight."""
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    return 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum


def _move(running_C: torch.Tensor | None, newest_C: torch.Tensor, factor: float) -> None:
    assert running_C is not None
    running_C.copy_(running_C.to(newest_C.dtype).lerp(newest_C, factor))
