"""Inference: a copy of a network that computes the same scores in less time and memory, and how many views it takes.

- A norm that is a fixed scale and shift in evaluation (Batch Norm and its relatives) becomes part of the weights of the
  convolution before it. Group Norm's statistics are the clip's own: it stays.
- Sums and activations write into their input. After a convolution with a folded norm, oneDNN adds while the output is
  in the cache.
- On a CPU every convolution is oneDNN's. With a single thread torch would take its own for kernels of 1x1 in space,
  which takes 1.4 times as long for a whole I3D, 2.2 times for X3D-S (torch 2.15, `ConvParams::use_mkldnn`).

Shape letters: N batch, K views of a video, C channels, T frames, H, W.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from video_gn.models import _residual as ptv
from video_gn.models._batch_norms import BatchRenorm, FrozenBatchNorm, ScaleShift
from video_gn.models._nonlocal import NonlocalBlock
from video_gn.models._residual import Stage, Stem
from video_gn.models.video_net import VideoNet

# Network input, float32, that a CPU computes at a time: one view of 32 x 224 x 224. Ten of them one by one took 4.5 s,
# all at once 5.1 s (width 64, two cores), as they outgrow the caches; small views are faster together.
_CPU_INPUT_BYTES = 20_000_000


def for_inference(net: VideoNet) -> VideoNet:
    """A copy in eval mode, on the same device, for scores without gradients.

    Its scores are the network's to the rounding of its dtype. Its parameters have other names. Of somebody's own
    network (`OwnNet`) it is a mere copy.
    """
    net = copy.deepcopy(net).eval()
    if isinstance(net, ptv.Net):
        net.blocks = nn.ModuleList(map(_faster, net.blocks))  # a new network would draw new weights
    return net.requires_grad_(False)


def _faster(block: Any) -> nn.Module:
    """A block of `Net.blocks`, or one of its parts; it may write into what the block before it returns."""
    if isinstance(block, Stage):
        return nn.Sequential(*map(_faster, block.all_blocks()))
    if isinstance(block, ptv.ResBlock):
        return _Block(block)
    if isinstance(block, NonlocalBlock):
        block.conv_out = _layer(block.conv_out, block.norm)  # type: ignore[assignment]
        block.norm = nn.Identity()
    elif isinstance(block, Stem | ptv.ResNetBasicStem):
        return nn.Sequential(_layer(block.conv, block.norm, block.activation), block.pool or nn.Identity())
    elif isinstance(pool := getattr(block, "pool", None), ptv.ProjectedPool):  # of X3D's head
        block.pool = nn.Sequential(
            _layer(pool.pre_conv, pool.pre_norm, pool.pre_act),
            pool.pool,
            _layer(pool.post_conv, pool.post_norm, pool.post_act),
        )
    return block


class _Block(nn.Module):
    """A residual block; it may write into its input."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        branch = block.branch2
        self.a = _layer(branch.conv_a, branch.norm_a, branch.act_a)
        self.b = _layer(branch.conv_b, branch.norm_b, branch.act_b)
        self.c = _Layer(branch.conv_c, branch.norm_c, block.activation)
        has_conv = block.branch1_conv is not None
        self.shortcut = _layer(block.branch1_conv, block.branch1_norm) if has_conv else nn.Identity()

    def forward(self, x_NCTHW: torch.Tensor) -> torch.Tensor:
        branch_NCTHW = self.b(self.a(x_NCTHW))
        summed: torch.Tensor = self.c(branch_NCTHW, self.shortcut(x_NCTHW))
        return summed


def _layer(conv: nn.Module, norm: nn.Module | None, activation: nn.Module | None = None) -> nn.Module:
    if isinstance(conv, ptv.Conv2plus1d):
        first = _Layer(conv.conv_t, conv.norm, conv.activation)
        return nn.Sequential(first, _Layer(conv.conv_xy, norm, activation))
    return _Layer(conv, norm, activation)


class _Layer(nn.Module):
    """Convolution, norm, the sum with another tensor if one is given, activation."""

    def __init__(self, conv: Any, norm: nn.Module | None, activation: nn.Module | None) -> None:
        super().__init__()
        # X3D's is a sequence of the norm and squeeze-and-excitation.
        norms = list(norm) if isinstance(norm, nn.Sequential) else [norm]
        if norms[0] is None or _fold(norms[0], into=conv):
            norms = norms[1:]
        self.norm = nn.Sequential(*norms) if norms else None
        self.conv = conv
        self.activation = activation
        if isinstance(activation, nn.ReLU | nn.SiLU):
            activation.inplace = True

    def forward(self, x_NCTHW: torch.Tensor, other_NCTHW: torch.Tensor | None = None) -> torch.Tensor:
        """The result, of the convolution's shape; `other_NCTHW` is of that shape and may be written into."""
        conv = self.conv
        if not _is_for_onednn(x_NCTHW):
            y_NCTHW: torch.Tensor = conv(x_NCTHW)
        else:
            given = x_NCTHW, conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups
            if self.norm is None and other_NCTHW is not None:
                y_NCTHW = torch.ops.mkldnn._convolution_pointwise_.binary(other_NCTHW, *given, "add", 1.0, None, [], "")
                other_NCTHW = None
            else:
                y_NCTHW = torch.ops.mkldnn._convolution_pointwise(*given, "none", [], "")
        if self.norm is not None:
            y_NCTHW = self.norm(y_NCTHW)
        if other_NCTHW is not None:
            y_NCTHW += other_NCTHW
        # torch's ReLU, since oneDNN's makes 0 of NaN: a network that has diverged would give labels.
        return y_NCTHW if self.activation is None else self.activation(y_NCTHW)


def _is_for_onednn(x: torch.Tensor) -> bool:
    # These operators are torch.compile's, without gradients; builds without oneDNN lack them, and so do other engines.
    is_plain = not torch.compiler.is_exporting() and not x.requires_grad
    return is_plain and x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()


def _fold(norm: nn.Module, *, into: nn.Conv3d) -> bool:
    """Make a norm part of the convolution before it, in float64; False if it is no fixed scale and shift."""
    if isinstance(norm, ScaleShift):
        mean_C, var_C, eps = torch.zeros_like(norm.weight), torch.ones_like(norm.weight), 0.0
    elif isinstance(norm, _BatchNorm | FrozenBatchNorm | BatchRenorm) and norm.running_mean is not None:
        assert norm.running_var is not None
        mean_C, var_C, eps = norm.running_mean, norm.running_var, norm.eps
    else:
        return False
    with torch.no_grad():
        mean_C, var_C, scale_C, shift_C = (t.double() for t in (mean_C, var_C, norm.weight, norm.bias))
        bias_C = None if into.bias is None else into.bias.double()
        weight, bias = fuse_conv_bn_weights(into.weight.double(), bias_C, mean_C, var_C, eps, scale_C, shift_C)
        into.weight, into.bias = (nn.Parameter(t.to(into.weight.dtype)) for t in (weight, bias))
    return True


def map_views(
    function: Callable[[torch.Tensor], torch.Tensor], frames_KTCHW: torch.Tensor, *, views_per_forward: int = 10
) -> torch.Tensor:
    """What a function makes of one video's views.

    The views go through the network in chunks that hold views of this video alone, so that they do
    not depend on a video's neighbours, the batch size or the number of ranks.
    `views_per_forward` is the largest number of views at a time, which bounds memory; see `views_at_a_time`.

    Returns:
        float32 (K, ...), for uint8 frames.
    """
    num_views = views_at_a_time(views_per_forward, frames_KTCHW.shape[1:], frames_KTCHW.device)
    return torch.cat([function(chunk).float() for chunk in frames_KTCHW.split(num_views)])


def views_at_a_time(most: int, view_shape: Sequence[int], device: torch.device) -> int:
    """How many views of a shape go through the network at a time: `most`, on a CPU fewer if they are large."""
    if device.type != "cpu":
        return most
    return min(most, max(1, _CPU_INPUT_BYTES // (4 * math.prod(view_shape))))
