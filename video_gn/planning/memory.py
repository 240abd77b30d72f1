"""Memory and arithmetic of a training step, counted on the meta device: tensors without data, nothing is computed.

A tensor's bytes count from the operation that makes it until nothing holds it any more, as autograd holds what the
backward pass needs. What kernels allocate for themselves (a convolution's workspace) is not seen.

Shape letters: N clips, C channels, T frames, H, W, Y classes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from video_gn.evaluation.scores import normalize_clips
from video_gn.models import OwnNet, VideoNet, build_network
from video_gn.training.optimizer import OptimizerConfig, build_optimizer, freeze_stages

# Modules that autocast runs in float32 whatever comes in; convolutions and linear layers run in half precision, and
# all others in what comes in, Group Norm on GPUs too (`models._group_norm`, which keeps autocast from widening it).
# Source: torch's aten/src/ATen/autocast_mode.h.
FLOAT32_IN_AUTOCAST: dict[str, tuple[type[nn.Module], ...]] = {"cuda": (), "cpu": (nn.MaxPool3d,)}


@dataclass(frozen=True)
class Step:
    """What a training step is made of."""

    net: Mapping[str, Any]  # its `VideoNet.arguments`
    clip_THW: tuple[int, int, int]  # frames, height and width of a clip
    optimizer: OptimizerConfig  # its kind and settings
    half: bool = False  # whether convolutions compute in half precision, by autocast
    checkpointed: bool = False  # whether activations are computed again in the backward pass
    device: str = "cuda"  # "cuda" or "cpu", whose rules of autocast and of the optimizer hold
    own: Callable[[], nn.Module] | None = None  # builds somebody's own net, of which `net` says but few things


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step, once optimizer state and gradients exist."""

    weights: int  # parameters and buffers
    gradients: int  # gradients, of parameters that are trained
    optimizer: int  # state of the optimizer
    # sum of what is alive at each of the M moments of a step, without the batch's share
    fixed_M: npt.NDArray[np.float64]
    per_clip_M: npt.NDArray[np.float64]  # what each clip of the batch adds to that

    def peak(self, batch_size: int) -> int:
        """The highest sum in a step."""
        return int((self.fixed_M + self.per_clip_M * batch_size).max())

    def activations(self, batch_size: int) -> int:
        """What the batch adds at the highest point."""
        return self.peak(batch_size) - self.weights - self.gradients - self.optimizer

    def largest_batch(self, limit_bytes: float, *, multiple: int = 1) -> int:
        """The largest batch whose step takes at most so many bytes; 0 if no batch does."""
        if self.peak(multiple) > limit_bytes:
            return 0
        grows = self.per_clip_M > 0
        most = ((limit_bytes - self.fixed_M[grows]) / self.per_clip_M[grows]).min()
        return int(most // multiple) * multiple


# ---- counting ------------------------------------------------------------------------------------


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make inside it and that something still holds."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0  # bytes now
        self.course: list[int] = []  # bytes after each tensor that was made
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in tree_leaves(found):
            if isinstance(value, torch.Tensor):
                self._add(value.untyped_storage())
        return found

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known:  # a view, or a change in place
            return

        def forget(_: Any) -> None:
            del self._known[key]
            self.live -= size

        self._known[key] = weakref.ref(storage, forget)
        self.live += size
        self.course.append(self.live)


def build_net(step: Step, device: str | torch.device) -> VideoNet | OwnNet:
    """The step's net, in training mode on a device."""
    with torch.device(device):
        net = build_network(step.net) if step.own is None else OwnNet(step.own())
        net.to(memory_format=torch.channels_last_3d)
    net.train().activation_checkpointing = step.checkpointed
    for module in freeze_stages(net, step.optimizer.frozen_stages):
        module.eval()
    return net


def build_meta_net(step: Step) -> VideoNet | OwnNet:
    """The step's net, in training mode on the meta device."""
    net = build_net(step, "meta")
    if step.half:
        _imitate_autocast(net, step.device)
    return net


def _imitate_autocast(net: nn.Module, device: str) -> None:
    """Let modules compute as under autocast, which the meta device has not."""
    for module in net.modules():
        if isinstance(module, nn.Conv3d | nn.Linear):
            module.forward = _halved(module)  # type: ignore[method-assign, assignment]
        elif isinstance(module, FLOAT32_IN_AUTOCAST[device]):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))


def _halved(module: nn.Conv3d | nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        x, weight = x.bfloat16(), module.weight.bfloat16()
        bias = None if module.bias is None else module.bias.bfloat16()
        if isinstance(module, nn.Linear):
            return F.linear(x, weight, bias)
        return F.conv3d(x, weight, bias, module.stride, module.padding, module.dilation, module.groups)

    return forward


def _forward(net: VideoNet | OwnNet, batch_size: int, clip_THW: tuple[int, int, int]) -> torch.Tensor:
    """The loss of a batch, from the uint8 frames on, as `VideoClassifier.training_step` computes it."""
    frames, height, width = clip_THW
    frames_NTCHW = torch.empty((batch_size, frames, 3, height, width), dtype=torch.uint8, device="meta")
    labels_N = torch.empty(batch_size, dtype=torch.long, device="meta")
    pixels_C = torch.empty(3, device="meta")
    logits_NY = net(normalize_clips(frames_NTCHW, pixels_C, pixels_C))
    return F.cross_entropy(logits_NY.float(), labels_N)


def count_memory(step: Step) -> StepMemory:
    """Memory of a training step on any batch.

    All batches go through the same moments, and what is alive at each grows linearly with the batch: two batches give
    all others.
    """
    weights, gradients, state, first_M = _count(step, 2)
    per_clip_M = (_count(step, 4)[3] - first_M) / 2
    return StepMemory(weights, gradients, state, first_M - 2 * per_clip_M, per_clip_M)


def _count(step: Step, batch_size: int) -> tuple[int, int, int, npt.NDArray[np.float64]]:
    """Weights, gradients, optimizer state, and what is alive at each moment of a step in Lightning's order.

    Lightning drops the gradients of the step before only when the forward pass is over.
    """
    with LiveBytes() as counted:
        net = build_meta_net(step)
        weights = counted.live
        optimizer = build_optimizer(net, step.optimizer, global_batch_size=batch_size)
        if step.device == "cuda":  # torch's default there: all parameters at once, and as many temporary tensors
            for group in optimizer.param_groups:
                group["foreach"] = True
        for parameter in net.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        gradients = counted.live - weights
        optimizer.step()
        state = counted.live - weights - gradients
        counted.course = [counted.live]
        loss = _forward(net, batch_size, step.clip_THW)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return weights, gradients, state, np.array(counted.course, dtype=np.float64)


# ---- arithmetic ----------------------------------------------------------------------------------


def count_training_macs(step: Step) -> tuple[int, int]:
    """Multiply-adds of a clip's forward pass, and of its whole training step; of convolutions and linear layers."""
    net = build_meta_net(replace(step, half=False))
    with FlopCounterMode(display=False) as counted:
        loss = _forward(net, 2, step.clip_THW)  # of one clip Batch Norm would refuse maps of a single value
        forward = counted.get_total_flops()
        loss.backward()
    return forward // 4, counted.get_total_flops() // 4  # of two clips; two operations are a multiply-add


def count_view_macs(step: Step, view_THW: tuple[int, int, int]) -> int:
    """Multiply-adds of a test view's forward pass."""
    net = build_meta_net(replace(step, half=False, checkpointed=False)).eval()
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        net(torch.empty((1, 3, *view_THW), device="meta"))
    return counted.get_total_flops() // 2
