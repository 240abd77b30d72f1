"""Normalization layers: one table, every kind, over N, T, H and W alike.

Every kind learns one scale (`weight`) and one shift (`bias`) per channel; they differ in the set of values that share
a mean and a variance. To add a kind, add a row to `NORMS` and its name to `tables.NormName`: the network's builder, its
initialization and the optimizer's groups read that table. The relatives of Batch Norm have its names in a state dict
(`_batch_norms`).

Shape letters: N batch, C channels, G groups, T frames, H, W.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from video_gn.checks import check_choice
from video_gn.models._batch_norms import BatchNorm3d, BatchRenorm, FrozenBatchNorm, ScaleShift, SyncBatchNorm
from video_gn.models._group_norm import GroupNorm
from video_gn.models.tables import DEFAULT_NUM_GROUPS

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NormOptions:
    """What a layer is built with; each builder takes what its kind has.

    Args:
        num_groups: G, which divides the channels; 1 for kinds without groups.
        eps: Added to the variance.
        momentum: Weight of the newest batch in running averages, as in torch.
        own: Options of this kind alone, by the names in its row's `options`.
    """

    num_groups: int
    eps: float
    momentum: float
    own: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NormKind:
    """A row of the table.

    Args:
        build: (num_channels, options) -> module with `weight` and `bias` of shape (C,), or None for either.
        depends_on_batch: Whether in training a sample's output depends on its neighbours.
        types: Classes that `build` may return, for `is_norm`.
        has_groups: Whether it takes `num_groups` and `channels_per_group`.
        options: Keys that `norm_options` may hold.
    """

    build: Callable[[int, NormOptions], nn.Module]
    depends_on_batch: bool
    types: tuple[type[nn.Module], ...]
    has_groups: bool = False
    options: tuple[str, ...] = ()


def _batch(num_channels: int, options: NormOptions) -> nn.Module:
    return BatchNorm3d(num_channels, eps=options.eps, momentum=options.momentum)


def _group(num_channels: int, options: NormOptions) -> nn.Module:
    return GroupNorm(options.num_groups, num_channels, eps=options.eps)


def _layer(num_channels: int, options: NormOptions) -> nn.Module:
    # Not nn.LayerNorm, whose scale and shift have one entry for each of C x T x H x W and fix the clip's size.
    return GroupNorm(1, num_channels, eps=options.eps)


def _instance(num_channels: int, options: NormOptions) -> nn.Module:
    # Not nn.InstanceNorm3d, which by default has no scale and shift.
    return GroupNorm(num_channels, num_channels, eps=options.eps)


def _sync_batch(num_channels: int, options: NormOptions) -> nn.Module:
    return SyncBatchNorm(num_channels, eps=options.eps, momentum=options.momentum)


def _frozen_batch(num_channels: int, options: NormOptions) -> nn.Module:
    return FrozenBatchNorm(num_channels, eps=options.eps)


def _batch_renorm(num_channels: int, options: NormOptions) -> nn.Module:
    return BatchRenorm(num_channels, eps=options.eps, momentum=options.momentum, **options.own)


def _none(num_channels: int, options: NormOptions) -> nn.Module:
    return ScaleShift(num_channels)


_RENORM_OPTIONS = ("r_max", "d_max", "warmup_start_steps", "warmup_steps")

# Source: Wu & He 2018, section 3.1 (the sets S_i), each extended to T.
NORMS: dict[str, NormKind] = {
    "batch": NormKind(_batch, depends_on_batch=True, types=(BatchNorm3d,)),
    "group": NormKind(_group, depends_on_batch=False, types=(GroupNorm,), has_groups=True),
    "layer": NormKind(_layer, depends_on_batch=False, types=(GroupNorm,)),
    "instance": NormKind(_instance, depends_on_batch=False, types=(GroupNorm,)),
    "sync_batch": NormKind(_sync_batch, depends_on_batch=True, types=(SyncBatchNorm,)),
    "frozen_batch": NormKind(_frozen_batch, depends_on_batch=False, types=(FrozenBatchNorm,)),
    "batch_renorm": NormKind(_batch_renorm, depends_on_batch=True, types=(BatchRenorm,), options=_RENORM_OPTIONS),
    "none": NormKind(_none, depends_on_batch=False, types=(ScaleShift,)),
}

# torch's own norms that are in no row: `_NormBase` is the base of its batch and instance norms and of what
# `SyncBatchNorm.convert_sync_batchnorm` puts in their place.
_TORCH_TYPES: tuple[type[nn.Module], ...] = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.RMSNorm)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalization layer of any kind: a row of `NORMS` or one of torch's own."""
    return isinstance(module, (*_TORCH_TYPES, *(t for kind in NORMS.values() for t in kind.types)))


def norm_kind(kind: str) -> NormKind:
    """The table's row; ValueError for a name that is not in it."""
    check_choice("norm", kind, NORMS)
    return NORMS[kind]


def make_norm(
    kind: str,
    num_channels: int,
    *,
    num_groups: int | None = None,
    channels_per_group: int | None = None,
    eps: float = 1e-5,
    momentum: float = 0.1,
    norm_options: Mapping[str, float] | None = None,
    layer: str = "this layer",
    shared: int | None = None,
) -> nn.Module:
    """A normalization layer for (N, C, T, H, W) or any other (N, C, ...) that its class takes.

    Args:
        kind: Name in `NORMS`.
        num_channels: C.
        num_groups: G, for "group"; `default_groups` of C when `channels_per_group` is not given either.
        channels_per_group: C/G instead, for "group".
        eps: Added to the variance, above 0.
        momentum: Weight of the newest batch in running averages, in [0, 1] (Caffe2's 0.9 is 0.1 here).
        norm_options: Options of the kind alone: "batch_renorm" takes the arguments of `BatchRenorm`, others none.
        layer: Name of the layer in errors.
        shared: What divides the channels of all layers of its network, so that an error advises what all of them take.

    Returns:
        A module with `weight` and `bias` of shape (C,).

    Raises:
        ValueError: for an unknown kind, groups that do not divide C, both group arguments, or norm_options that the
            kind lacks or that are out of range.
    """
    row = norm_kind(kind)
    check_norm_numbers(eps=eps, momentum=momentum)
    own = check_norm_options(kind, norm_options)
    if num_channels < 1:
        raise ValueError(f"num_channels must be at least 1, got {num_channels!r} for {layer}. Give the layer channels.")
    groups = true_groups(kind, num_channels, num_groups=num_groups, channels_per_group=channels_per_group)
    count = group_count(num_channels, **groups, layer=layer, shared=shared) if row.has_groups else 1
    return row.build(num_channels, NormOptions(count, eps, momentum, own))


def group_count(
    num_channels: int,
    *,
    num_groups: int | None = None,
    channels_per_group: int | None = None,
    layer: str = "this layer",
    shared: int | None = None,
) -> int:
    """G for a layer of C channels; arguments as `make_norm`.

    Raises:
        ValueError: when both are given, one is below 1, or the channels do not divide evenly.
    """
    if num_groups is not None and channels_per_group is not None:
        raise ValueError(
            f"num_groups and channels_per_group must not both be set, got {num_groups!r} and {channels_per_group!r}. "
            "Set one of them to null (None)."
        )
    name, value = "num_groups", default_groups(num_channels) if num_groups is None else num_groups
    if channels_per_group is not None:
        name, value = "channels_per_group", channels_per_group
    if not isinstance(value, int) or value < 1:
        raise ValueError(
            f"{name} must be a whole number of at least 1, got {value!r}. Usual: 32 groups, or 16 channels each."
        )
    if num_channels % value:
        divisible = shared or num_channels
        smaller = max(d for d in range(1, min(value, divisible) + 1) if divisible % d == 0)
        other = "channels_per_group" if name == "num_groups" else "num_groups"
        raise ValueError(
            f"{name} must divide the {num_channels} channels of {layer}, got {value!r}. "
            f"Use {name}={smaller} or set {other} instead."
        )
    return value if name == "num_groups" else num_channels // value


def default_groups(num_channels: int, most: int = DEFAULT_NUM_GROUPS) -> int:
    """G for C channels if nobody chooses it: `most` where that divides C, or the most below with C/G of at least 2.

    16 -> 8, 24 -> 12, 32 -> 32, 48 -> 24, 54 -> 27, 64 -> 32. The paper's narrowest layers have 2 channels a group;
    one channel a group is Instance Norm.
    """
    if num_channels % most == 0:
        return most
    most = min(most, num_channels // 2)
    return max((g for g in range(1, most + 1) if num_channels % g == 0), default=1)


def true_groups(
    kind: str, num_channels: int, *, num_groups: int | None, channels_per_group: int | None
) -> dict[str, Any]:
    """Both group arguments as a kind takes them: `default_groups` if neither is given, None if it has no groups.

    `num_channels` is C of a layer, or what divides C of every layer of a network.
    """
    given = {"num_groups": num_groups, "channels_per_group": channels_per_group}
    if norm_kind(kind).has_groups:
        is_chosen = num_groups is not None or channels_per_group is not None
        if is_chosen:
            return given
        count = default_groups(num_channels)
        if count != DEFAULT_NUM_GROUPS:
            log.info("num_groups: %d, since %d do not divide %d channels", count, DEFAULT_NUM_GROUPS, num_channels)
        return given | {"num_groups": count}
    for name, value in given.items():
        if value is not None:
            warnings.warn(f"{name}={value!r} is ignored: norm {kind!r} has no groups to choose", stacklevel=3)
    return dict.fromkeys(given)


def check_norm_numbers(*, eps: float, momentum: float) -> None:
    """Raise ValueError for an eps that is not above 0 or a momentum outside [0, 1]."""
    if not eps > 0:
        raise ValueError(f"eps must be above 0, got {eps!r}. The usual value is 1e-5.")
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must be in [0, 1], got {momentum!r}. It is the weight of the newest batch: 0.1.")


def check_norm_options(kind: str, norm_options: Mapping[str, float] | None) -> dict[str, float]:
    """The options as a dict, if the kind has them all; the layer checks their values.

    Raises:
        ValueError: for a key that is not in the row's `options`.
    """
    allowed = norm_kind(kind).options
    for key in norm_options or {}:
        if key not in allowed:
            rule = f"hold only {', '.join(allowed)}" if allowed else "be empty"
            raise ValueError(
                f"norm_options must {rule} for norm {kind!r}, got {key!r}. Remove it, or set another norm."
            )
    return dict(norm_options or {})


def has_statistics(net: nn.Module) -> bool:
    """Whether any norm holds running statistics other than a fresh one's mean 0 and variance 1."""
    for module in net.modules():
        mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        if is_norm(module) and mean is not None and var is not None and (bool((mean != 0).any() | (var != 1).any())):
            return True
    return False


def check_norm_training(kind: str, *, batch_size: int, world_size: int, has_statistics: bool) -> None:
    """Check that training with a kind of norm means what its name says.

    Args:
        kind: Name in `NORMS`.
        batch_size: Clips of one process in one forward.
        world_size: Number of processes.
        has_statistics: Result of `has_statistics`, once weights are loaded.

    Raises:
        ValueError: for "sync_batch" in one process, "batch_renorm" with single clips, or "frozen_batch" without
            pretrained statistics.
    """
    norm_kind(kind)
    if kind == "sync_batch" and world_size < 2:
        raise ValueError(
            f"model.net.norm must not be 'sync_batch' in one process, got world_size {world_size!r}. Set it to "
            "'batch', which is the same there, or train with trainer.devices of 2 or more."
        )
    if kind == "batch_renorm" and batch_size < 2:
        raise ValueError(
            f"model.net.norm must not be 'batch_renorm' with single clips, got batch size {batch_size!r}. Set it to "
            "'group', which needs no batch, or raise the batch size of each process to 2 or more."
        )
    if kind == "frozen_batch" and not has_statistics:
        raise ValueError(
            "model.net.norm must not be 'frozen_batch' without pretrained statistics, got running means of 0 and "
            "variances of 1. Set model.weights to a file with Batch Norm's statistics, or the norm to another kind."
        )
