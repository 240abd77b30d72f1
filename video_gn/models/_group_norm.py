"""Group normalization that is fast where torch's own is not: its backward pass on CPUs, and autocast on GPUs.

torch's backward kernel for channels_last_3d works along the channels of one group: with fewer of them than a
vector register holds it falls to single numbers. Seen with torch 2.15 on an AMD EPYC (AVX-512; AVX2 is alike), one
thread, nanoseconds of CPU time a value, backward of (1, C, 8, 55, 55) with 32 groups:

    dtype      C/G   torch   here   batch norm
    bfloat16     2    14.6    1.3          0.7
    bfloat16     8     3.9    1.1          0.7
    float32      2     4.8    1.3          0.7
    float32      8     0.9      -          0.9

A whole training step in bfloat16 (ResNet-50 I3D, two clips of 32 x 224 x 224) took 1.27 times Batch Norm's with
torch's backward pass and 0.99 times with this one; in float32 both took 0.92 times.

The forward kernel has no such gap and is torch's in every case.

On CUDA, torch's autocast widens `group_norm` to float32, and with it all that follows up to the next convolution: a
norm's input and output take 8 bytes a value instead of Batch Norm's 4, and every sum and ReLU works on twice the bytes.
Here it stays in 16 bits. Its kernels (torch 2.15) add up in float32, but want scale and shift in x's dtype, and keep
the statistics for the backward pass in it. Imitated on a CPU, a width 16 net, 2 clips of 32 x 48 x 48, relative error
of a bfloat16 step's gradient against float32's, four seeds:

    group norm in float32, as torch     0.20  0.21  0.19  0.15
    16 bits, all else float32           0.21  0.22  0.19  0.15
    16 bits, as here                    0.22  0.21  0.21  0.16

Shape letters: N batch, C channels, G groups, T frames, H, W; S = T x H x W; R rows of several positions, K values of
such a row.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

_NARROW = (torch.bfloat16, torch.float16)
# Channels per group below which the backward pass here beats torch's. Timed at 2, 4, 8, 16 and 32 channels: in
# bfloat16 8 gains (2 to 3 times) and 16 loses; in float32 4 gains (2 times) and 8 does not.
# A whole float32 step is no faster for that, so there torch's own stays.
_PAYS_BELOW = {torch.bfloat16: 16}
# Values in x from which it pays: below, the calls' own cost, about half a millisecond, is more than what is gained.
_PAYS_FROM = 1 << 17
# Values of a slice that is worked on at once: its two float32 copies stay in a core's cache. The fastest of 2^14 to
# 2^19, or within the noise of it; below, the calls' own cost shows.
_SLICE = 1 << 18
# Values that torch gives to a thread at least (at::internal::GRAIN_SIZE): with more threads a slice is larger.
_GRAIN = 1 << 15
# Scale and shift are repeated along a row until it is about as long: short rows cost more than what is in them.
_ROW = 512


def group_norm_reference(
    x: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """torch's own, to compare `group_norm` with; the same arguments, result and errors."""
    # Not F.group_norm: it refuses a single value a group, but of a single sample alone.
    return torch.group_norm(x, num_groups, weight, bias, eps)


def group_norm(
    x: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Group normalization over (C/G, T, H, W) for each sample and group.

    It is torch's function wherever the backward pass here is not the faster one: other devices, memory formats and
    dtypes, many channels per group, compiled or traced code, no gradient needed. Under CUDA's autocast it is torch's
    kernel in x's own dtype.

    Args:
        x: (N, C, ...). Statistics are computed in float32 at least.
        num_groups: G, which divides C.
        weight: Scale, (C,).
        bias: Shift, (C,).
        eps: Added to the variance.

    Returns:
        Same shape, dtype and memory format as the input.

    Raises:
        RuntimeError: if num_groups does not divide C; torch's own error.

    Source: Wu & He 2018 (arXiv:1803.08494), Eq. 7.
    """
    # The type comes first: a tracer's stand-in for a tensor cannot answer the other questions.
    if type(x) is torch.Tensor and weight is not None and bias is not None and _pays(x, num_groups, weight, bias):
        y: torch.Tensor = _ChannelsLastGroupNorm.apply(x, num_groups, weight, bias, eps)
        return y
    if torch.is_autocast_enabled("cuda") and isinstance(x, torch.Tensor) and x.is_cuda and x.dtype in _NARROW:
        return _narrow_group_norm(x, num_groups, weight, bias, eps)
    return group_norm_reference(x, num_groups, weight, bias, eps)


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm`, of the same parameters and names, computed by `group_norm`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The normalized input; see `group_norm`."""
        return group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


def _pays(x: torch.Tensor, num_groups: int, weight: torch.Tensor, bias: torch.Tensor) -> bool:
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not torch.is_grad_enabled():
        return False
    if not (x.requires_grad or weight.requires_grad or bias.requires_grad):
        return False
    if x.device.type != "cpu" or x.dim() != 5 or x.numel() < max(1, _PAYS_FROM):
        return False
    if num_groups < 1 or x.shape[1] % num_groups or x.shape[1] // num_groups >= _PAYS_BELOW.get(x.dtype, 0):
        return False
    # With a scale in bfloat16 torch would keep the statistics in it, too.
    if weight.dtype != torch.float32 or bias.dtype != torch.float32:
        return False
    # Strides of a dimension of size 1 count as well: torch's forward kernel goes by them.
    C, T, H, W = x.shape[1:]
    if x.is_contiguous() or x.stride() != (C * T * H * W, 1, C * H * W, C * W, C):
        return False
    # torch.func's transforms need rules that this autograd.Function does not have.
    return not torch._C._are_functorch_transforms_active()


def _narrow_group_norm(
    x: torch.Tensor, num_groups: int, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """torch's kernel in x's own dtype, by the function that autocast does not widen."""
    scale, shift = (None if p is None else p.to(x.dtype) for p in (weight, bias))
    N, C = x.shape[:2]
    return torch.native_group_norm(x, scale, shift, N, C, math.prod(x.shape[2:]), num_groups, eps)[0]


class _ChannelsLastGroupNorm(torch.autograd.Function):
    """torch's forward pass and a backward pass of our own, for a channels_last_3d input on a CPU."""

    @staticmethod
    def forward(
        ctx: Any, x_NCTHW: torch.Tensor, num_groups: int, weight_C: torch.Tensor, bias_C: torch.Tensor, eps: float
    ) -> torch.Tensor:
        N, C = x_NCTHW.shape[:2]
        num_positions = x_NCTHW[0, 0].numel()
        y_NCTHW, mean_NG, rstd_NG = torch.native_group_norm(
            x_NCTHW, weight_C, bias_C, N, C, num_positions, num_groups, eps
        )
        ctx.save_for_backward(x_NCTHW, weight_C, bias_C, mean_NG, rstd_NG)
        ctx.eps = eps
        return y_NCTHW

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, bias, mean_NG, rstd_NG = ctx.saved_tensors
        for_x, _, for_weight, for_bias, _ = ctx.needs_input_grad
        if torch.is_grad_enabled():  # create_graph=True: the gradient is to be differentiated again
            wanted = [t for t, needed in zip((x, weight, bias), (for_x, for_weight, for_bias), strict=True) if needed]
            y = group_norm_reference(x, mean_NG.shape[1], weight, bias, ctx.eps)
            found = iter(torch.autograd.grad(y, wanted, gradients[0], create_graph=True))
            dx, dweight, dbias = (next(found) if needed else None for needed in (for_x, for_weight, for_bias))
            return dx, None, dweight, dbias, None
        dy = gradients[0].contiguous(memory_format=torch.channels_last_3d)
        per_group = x.shape[1] // mean_NG.shape[1]
        mean_NC, rstd_NC = (t.repeat_interleave(per_group, 1) for t in (mean_NG, rstd_NG))
        dweight_NC, dbias_NC = _sums(dy, x, weight, mean_NC, rstd_NC)
        dx = _input_gradient(dy, x, weight, mean_NC, rstd_NC, (dweight_NC, dbias_NC), per_group) if for_x else None
        return dx, None, dweight_NC.sum(0) if for_weight else None, dbias_NC.sum(0) if for_bias else None, None


def _sums(
    dy_NCTHW: torch.Tensor,
    x_NCTHW: torch.Tensor,
    weight_C: torch.Tensor,
    mean_NC: torch.Tensor,
    rstd_NC: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over the positions of dy times the normalized x, and of dy, each (N, C): a sample's share of the gradients.

    They are what batch norm's backward pass sums over a batch of one, whatever mean and deviation it is given.
    """
    found = [
        torch.ops.aten.native_batch_norm_backward(
            dy_NCTHW[n : n + 1],
            x_NCTHW[n : n + 1],
            weight_C,
            None,
            None,
            mean_NC[n],
            rstd_NC[n],
            True,
            0.0,
            [False, True, True],
        )
        for n in range(len(x_NCTHW))
    ]
    return torch.stack([dweight_C for _, dweight_C, _ in found]), torch.stack([dbias_C for _, _, dbias_C in found])


def _input_gradient(
    dy_NCTHW: torch.Tensor,
    x_NCTHW: torch.Tensor,
    weight_C: torch.Tensor,
    mean_NC: torch.Tensor,
    rstd_NC: torch.Tensor,
    sums_NC: tuple[torch.Tensor, torch.Tensor],
    per_group: int,
) -> torch.Tensor:
    """rstd (w dy - m(w dy) - xhat m(w dy xhat)), m the mean over a group: for each channel a dy + b x + c."""
    N, C = x_NCTHW.shape[:2]
    size = per_group * x_NCTHW[0, 0].numel()

    def group_mean(sum_NC: torch.Tensor) -> torch.Tensor:
        mean_NG = (sum_NC * weight_C).view(N, -1, per_group).sum(2) / size
        return mean_NG.repeat_interleave(per_group, 1)

    slope_NC, level_NC = (group_mean(sum_NC) for sum_NC in sums_NC)
    a_NC = rstd_NC * weight_C
    b_NC = -rstd_NC * rstd_NC * slope_NC
    c_NC = -rstd_NC * level_NC - b_NC * mean_NC

    dx_NCTHW = torch.empty(x_NCTHW.shape, dtype=x_NCTHW.dtype, memory_format=torch.channels_last_3d)
    num_positions = size // per_group
    repeats = next(r for r in range(max(1, _ROW // C), 0, -1) if num_positions % r == 0)
    K = repeats * C
    views = (t.movedim(1, -1).view(N, num_positions // repeats, K) for t in (x_NCTHW, dy_NCTHW, dx_NCTHW))
    coefficients = (t.repeat(1, repeats) for t in (a_NC, b_NC, c_NC))
    for x_RK, dy_RK, dx_RK, a_K, b_K, c_K in zip(*views, *coefficients, strict=True):
        _combine(x_RK, dy_RK, dx_RK, a_K, b_K, c_K)
    return dx_NCTHW


def _combine(
    x_RK: torch.Tensor,
    dy_RK: torch.Tensor,
    dx_RK: torch.Tensor,
    a_K: torch.Tensor,
    b_K: torch.Tensor,
    c_K: torch.Tensor,
) -> None:
    """Write a dy + b x + c into dx, in the coefficients' dtype and rounded once."""
    rows = max(1, max(_SLICE, _GRAIN * torch.get_num_threads()) // x_RK.shape[1])
    slices = zip(x_RK.split(rows), dy_RK.split(rows), dx_RK.split(rows), strict=True)
    if x_RK.dtype == a_K.dtype:
        for x, dy, dx in slices:
            torch.addcmul(c_K, x, b_K, out=dx)
            dx.addcmul_(dy, a_K)
        return
    # Operations on mixed dtypes would make whole float32 copies, and bfloat16 ones would round at each step.
    first = x_RK.new_empty((min(rows, len(x_RK)), x_RK.shape[1]), dtype=a_K.dtype)
    second = torch.empty_like(first)
    for x, dy, dx in slices:
        total, other = first[: len(x)], second[: len(x)]
        total.copy_(x)
        other.copy_(dy)
        torch.addcmul(c_K, total, b_K, out=total)
        dx.copy_(total.addcmul_(other, a_K))
