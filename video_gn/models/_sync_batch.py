"""Batch Norm's statistics and gradient over several processes.

Shape letters: N batch, C channels, T frames, H, W, R processes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def all_but_channels(x: torch.Tensor) -> list[int]:
    """The dimensions of (N, C, ...) that Batch Norm reduces over."""
    return [0, *range(2, x.ndim)]


def per_channel(values_C: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(C,) in a shape that broadcasts against x, (N, C, ...)."""
    return values_C.view(-1, *[1] * (x.ndim - 2))


def widened(x: torch.Tensor) -> torch.Tensor:
    """x in float32 at least, as statistics are computed in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@torch.no_grad()
def pooled_statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean (C,), biased variance (C,) and count () over all processes.

    Deviations from a process's own mean are summed up, and what its mean is off from everybody's is added: nothing
    is lost where the mean is large against the spread, as it is in a mean of squares less the square of a mean.

    Source: Chan, Golub & LeVeque 1983 (The American Statistician 37(3)), pairwise updating, for R parts at once.
    """
    wide, num_channels = widened(x), x.shape[1]
    count = x.numel() // num_channels
    own = torch.zeros(2 * num_channels + 1, dtype=wide.dtype, device=x.device)
    if count:
        var_C, mean_C = torch.var_mean(wide, all_but_channels(x), correction=0)
        own = torch.cat([mean_C, var_C * count, torch.full_like(own[:1], count)])
    everybodys = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(everybodys, own)
    mean_RC, squares_RC, count_R1 = torch.stack(everybodys).double().split([num_channels, num_channels, 1], dim=1)
    total = count_R1.sum()
    mean_C = (mean_RC * count_R1).sum(0) / total
    squares_C = (squares_RC + count_R1 * (mean_RC - mean_C).square()).sum(0)
    return mean_C.to(wide.dtype), (squares_C / total).to(wide.dtype), total.to(wide.dtype)


class SyncNormalize(torch.autograd.Function):
    """Batch Norm by given statistics of all processes' batches, with the gradient through those statistics."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight_C: torch.Tensor,
        bias_C: torch.Tensor,
        mean_C: torch.Tensor,
        var_C: torch.Tensor,
        count: torch.Tensor,
        eps: float,
    ) -> torch.Tensor:
        """x (N, C, ...) by mean, biased variance (C,) and count () of all processes; same shape and dtype."""
        ctx.save_for_backward(x, weight_C, mean_C, var_C, count)
        ctx.eps = eps
        if not x.numel():
            return torch.empty_like(x)
        return F.batch_norm(x, mean_C, var_C, weight_C.to(mean_C.dtype), bias_C.to(mean_C.dtype), eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The input's gradient from all processes' sums; weight's and bias's from this process's samples."""
        x, weight_C, mean_C, var_C, count = ctx.saved_tensors
        wide, grad_wide, dims = widened(x), widened(grad), all_but_channels(x)
        scale_C = (var_C + ctx.eps).rsqrt()
        x_hat = (wide - per_channel(mean_C, x)) * per_channel(scale_C, x)
        own_bias_C, own_weight_C = grad_wide.sum(dims), (grad_wide * x_hat).sum(dims)
        grad_x = None
        if ctx.needs_input_grad[0]:
            sums_2C = torch.cat([own_bias_C, own_weight_C])
            dist.all_reduce(sums_2C)
            bias_C, along_C = (sums_2C / count).chunk(2)
            grad_x = grad_wide - per_channel(bias_C, x) - x_hat * per_channel(along_C, x)
            grad_x = (grad_x * per_channel(scale_C * weight_C, x)).to(x.dtype)
        return grad_x, own_weight_C.to(weight_C.dtype), own_bias_C.to(weight_C.dtype), None, None, None, None
