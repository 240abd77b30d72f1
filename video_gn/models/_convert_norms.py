"""Swaps the norms of an existing network for another kind.

Shape letters: C channels, G groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from video_gn.models._batch_norms import BatchRenorm, FrozenBatchNorm
from video_gn.models.norms import check_norm_options, is_norm, make_norm, true_groups
from video_gn.models.tables import BATCH_FAMILY

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def convert_norms(
    net: nn.Module,
    kind: str,
    *,
    num_groups: int | None = None,
    channels_per_group: int | None = None,
    norm_options: Mapping[str, float] | None = None,
) -> nn.Module:
    """Swap every norm of a network for one of another kind, in place; if one does not fit, nothing is changed.

    - Scale and shift stay the same parameters, so that an optimizer that holds them still works. A norm without them
      gets 1 and 0.
    - `requires_grad` is kept, except that "frozen_batch" clears it, and a conversion from it sets it.
    - Statistics are kept between the kinds that have them (the batch family), so that evaluation computes the same.
      Other kinds drop them, and a conversion from those starts at mean 0 and variance 1. The count of batches is kept
      too, except for "batch_renorm", whose warm-up it counts: it is 0 unless the norm was one before.
    - eps, device, dtype and training mode are kept; so is momentum, if both have one.
    - A layer that occurs twice becomes one new layer that occurs twice. Hooks are not carried over.
    - `net.arguments` of an `I3D` name the new kind, and `i3d(**net.arguments)` builds it.

    Args:
        net: Network whose norms scale each channel: Batch Norm of 1 to 3 dimensions, Sync Batch Norm, Group Norm,
            Instance Norm and what `make_norm` builds.
        kind: Name in `NORMS`.
        num_groups: G, for "group"; if neither is given, 32, or fewer where 32 do not divide every layer's channels.
        channels_per_group: C/G instead, for "group".
        norm_options: As in `make_norm`.

    Returns:
        `net`, or the new norm if `net` is a norm itself.

    Raises:
        ValueError: naming the layer, for groups that do not divide its channels, for "frozen_batch" without
            statistics, or for a norm that does not scale each channel (such as Layer Norm of positions).
    """
    check_norm_options(kind, norm_options)
    old = {name: module for name, module in net.named_modules() if is_norm(module)}
    shared = math.gcd(*(_num_channels(name or "net", module) for name, module in old.items()))
    groups = true_groups(kind, shared, num_groups=num_groups, channels_per_group=channels_per_group)
    arguments: dict[str, Any] | None = getattr(net, "arguments", None)
    usual = {"eps": (arguments or {}).get("norm_eps", 1e-5), "momentum": (arguments or {}).get("norm_momentum", 0.1)}
    # Build all before any is swapped.
    new: dict[int, nn.Module] = {}
    for name, module in old.items():
        with torch.device("meta"):  # the old norm's tensors replace them
            fresh = make_norm(
                kind,
                _num_channels(name or "net", module),
                **groups,
                **usual | _own_numbers(module),
                norm_options=norm_options,
                layer=name or "net",
                shared=shared,
            )
        _check_statistics(name or "net", module, fresh)
        new[id(module)] = fresh
    for module in old.values():
        _take_over(module, new[id(module)], keeps_statistics=kind in BATCH_FAMILY)
    if arguments is not None:
        arguments |= {"norm": kind, **groups}
        if norm_options or "norm_options" in arguments:
            arguments["norm_options"] = dict(norm_options or {}) or None
    for parent in list(net.modules()):
        for name, child in list(parent._modules.items()):  # named_children lists a module that occurs twice once
            if id(child) in new:
                setattr(parent, name, new[id(child)])
    return new.get(id(net), net)


def _num_channels(name: str, norm: nn.Module) -> int:
    channels = getattr(norm, "num_channels" if isinstance(norm, nn.GroupNorm) else "num_features", None)
    if channels is None:
        raise ValueError(
            f"the norms of a network must scale each channel, got {type(norm).__name__} as {name}. "
            "Swap it by hand, or convert a part of the network without it."
        )
    return int(channels)


def _own_numbers(norm: nn.Module) -> dict[str, float]:
    """Its eps and momentum, if it has them. A momentum of None, for a plain average, is set later."""
    names = ("eps",) if isinstance(norm, FrozenBatchNorm) else ("eps", "momentum")
    return {name: getattr(norm, name) for name in names if getattr(norm, name, None) is not None}


def _in_batch_family(norm: nn.Module) -> bool:
    """Whether its running statistics, if it has any, are over the batch: Instance Norm's are not."""
    return isinstance(norm, _BatchNorm | FrozenBatchNorm | BatchRenorm)


def _statistics(norm: nn.Module) -> dict[str, torch.Tensor]:
    """Its statistics by name in a state dict; empty unless it has a mean and a variance."""
    found = {name: getattr(norm, name, None) for name in _STATISTICS}
    if not _in_batch_family(norm) or found["running_mean"] is None or found["running_var"] is None:
        return {}
    return {name: value for name, value in found.items() if value is not None}


def _check_statistics(name: str, old: nn.Module, new: nn.Module) -> None:
    if isinstance(new, FrozenBatchNorm) and not _statistics(old):
        raise ValueError(
            f"a norm must have running statistics to become 'frozen_batch', got {type(old).__name__} as {name}. "
            "Convert a network with Batch Norm, or to another kind."
        )


def _take_over(old: nn.Module, new: nn.Module, *, keeps_statistics: bool) -> None:
    """Give the new norm, which is on the meta device, the old one's tensors, and fresh ones if it lacks them."""
    held = [*old.parameters(recurse=False), *(b for b in old.buffers(recurse=False) if b.is_floating_point())]
    like = held[0] if held else torch.empty(0)
    for name, start in (("weight", 1.0), ("bias", 0.0)):
        mine = getattr(old, name, None)
        if mine is None:
            mine = nn.Parameter(torch.full_like(getattr(new, name), start, device=like.device, dtype=like.dtype))
        frozen = isinstance(new, FrozenBatchNorm)
        if frozen or isinstance(old, FrozenBatchNorm):
            mine.requires_grad_(not frozen)
        setattr(new, name, mine)
    if keeps_statistics:
        taken = _statistics(old)
        if isinstance(new, BatchRenorm) and not isinstance(old, BatchRenorm):
            taken.pop("num_batches_tracked", None)
        for name in _STATISTICS:
            dtype = torch.int64 if name == "num_batches_tracked" else like.dtype
            fresh = torch.full_like(getattr(new, name), name == "running_var", device=like.device, dtype=dtype)
            setattr(new, name, taken.get(name, fresh))
    if isinstance(new, _BatchNorm | BatchRenorm) and isinstance(old, _BatchNorm | BatchRenorm):
        new.momentum = old.momentum
    new.train(old.training)
