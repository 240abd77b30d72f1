"""The optimizer: kinds, parameter groups by norm and by depth, frozen stages, linear scaling of the learning rate.

A resumed run takes its learning rate, weight decay and so on from its config, not from the checkpoint, and logs
differences.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from video_gn.checks import check_choice, check_range
from video_gn.errors import CheckpointError
from video_gn.models.norms import is_norm
from video_gn.shown import count
from video_gn.training.checks import warn_of_ignored

log = logging.getLogger(__name__)

# What `layer_decay` and `frozen_stages` count, from the input on: the blocks of `models.I3D` that have parameters.
STAGES = ("stem", "res2", "res3", "res4", "res5", "head")


@dataclass(frozen=True)
class OptimizerConfig:
    """Which optimizer, and its settings.

    Source of the defaults: video-nonlocal-net's Kinetics runs (LR 0.01 at 8 GPUs x 8 clips); AdamW's are torch's.

    Args:
        name: Kind of optimizer, a key of `OPTIMIZERS`.
        lr: Learning rate at the reference batch size, above 0.
        reference_batch_size: Global batch size at which `lr` holds; others scale it linearly. None: no scaling.
        momentum: Momentum of "sgd", in [0, 1).
        nesterov: Nesterov's momentum, for "sgd".
        weight_decay: Weight decay of all parameters but the norms' scales and shifts, 0 or more. It includes the
            classifier's bias.
        norm_weight_decay: Weight decay of the norms' scales and shifts, of any kind, 0 or more.
        beta1: Decay of the running mean of gradients in "adamw", in [0, 1).
        beta2: Decay of the running mean of their squares in "adamw", in [0, 1).
        eps: Term added to the root of that mean in "adamw", above 0.
        layer_decay: Factor of the learning rate from one of `STAGES` to the next lower one, in (0, 1]; 1 for the
            same rate everywhere. The head has `lr` itself, the stem lr * layer_decay ** 5.
        frozen_stages: Number of `STAGES`, from the stem on, that keep their weights and statistics: 0 for none, 2 for
            the stem and res2, 5 for all but the head.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    reference_batch_size: int | None = 64
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    norm_weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    layer_decay: float = 1.0
    frozen_stages: int = 0

    def __post_init__(self) -> None:
        check_choice("optimizer name", self.name, OPTIMIZERS)
        check_range("lr", self.lr, self.lr > 0, "above 0", "Video nets take 0.01 for 64 clips.")
        if (size := self.reference_batch_size) is not None:
            check_range("reference_batch_size", size, size >= 1, "at least 1 or null", "Null scales nothing.")
        check_range("momentum", self.momentum, 0 <= self.momentum < 1, "in [0, 1)", "The usual value is 0.9.")
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("nesterov must be false if momentum is 0, got True. Set a momentum or nesterov: false.")
        for name in ("weight_decay", "norm_weight_decay"):
            value = getattr(self, name)
            check_range(name, value, value >= 0, "0 or more", "The usual values are 1e-4, and 0 for norms.")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            check_range(name, value, 0 <= value < 1, "in [0, 1)", "The usual values are 0.9 and 0.999.")
        check_range("eps", self.eps, self.eps > 0, "above 0", "The usual value is 1e-8.")
        check_range("layer_decay", self.layer_decay, 0 < self.layer_decay <= 1, "in (0, 1]", "1 turns it off.")
        most, advice = len(STAGES) - 1, f"They count from the stem on: {', '.join(STAGES[:-1])}."
        inside = 0 <= self.frozen_stages <= most
        check_range("frozen_stages", self.frozen_stages, inside, f"a whole number in [0, {most}]", advice)
        warn_of_ignored(self, "optimizer", {name: kind.settings for name, kind in OPTIMIZERS.items()})


def scaled_lr(lr: float, *, global_batch_size: int, reference_batch_size: int | None) -> float:
    """Scale the learning rate linearly with the global batch: ranks x clips of a rank x accumulated batches.

    `lr` holds at the reference batch size; None scales nothing.

    Source: Goyal et al. 2017 (arXiv:1706.02677), section 2.1; video-nonlocal-net: 0.01 at 64, 0.005 at 32.
    """
    return lr if reference_batch_size is None else lr * global_batch_size / reference_batch_size


# ---- parameter groups and frozen stages --------------------------------------------------------------


def parameter_groups(
    net: nn.Module, *, weight_decay: float, norm_weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Groups that hold every parameter exactly once: "decay" and "norm", for each of `STAGES` if rates differ.

    Empty groups are kept, so that a checkpoint's groups fit any norm. Frozen parameters are included: the optimizer
    skips parameters without a gradient.

    Returns:
        For torch.optim: dicts with "name", "params", "weight_decay"; parameters in the network's order. If
        `layer_decay` is not 1 there are two for each stage, from the head down, named "decay of blocks.6" and so
        on, and with "lr_scale", the factor of the learning rate.

    Raises:
        ValueError: if the network has no parameters, or lacks the `STAGES` that a layer decay needs.

    Source of the layer decay: discriminative fine-tuning, Howard & Ruder 2018 (arXiv:1801.06146), section 3.2.
    """
    norm_ids = {id(p) for module in net.modules() if is_norm(module) for p in module.parameters(recurse=False)}
    parameters = list(net.parameters())  # a shared parameter comes once
    if not parameters:
        raise ValueError(f"net must have parameters, got {type(net).__name__} with none. Give the whole network.")
    if layer_decay == 1:
        return _two_groups("", parameters, norm_ids, weight_decay, norm_weight_decay)
    groups: list[dict[str, Any]] = []
    seen: set[int] = set()
    for distance, (index, stage) in enumerate(reversed(_stages(net, "layer_decay").items())):
        own = [p for p in stage.parameters() if id(p) not in seen]
        seen.update(map(id, own))
        for group in _two_groups(f" of blocks.{index}", own, norm_ids, weight_decay, norm_weight_decay):
            groups.append({**group, "lr_scale": layer_decay**distance})
    return groups


def _two_groups(
    where: str, parameters: list[nn.Parameter], norm_ids: set[int], weight_decay: float, norm_weight_decay: float
) -> list[dict[str, Any]]:
    rest = [p for p in parameters if id(p) not in norm_ids]
    norms = [p for p in parameters if id(p) in norm_ids]
    return [
        {"name": f"decay{where}", "params": rest, "weight_decay": weight_decay},
        {"name": f"norm{where}", "params": norms, "weight_decay": norm_weight_decay},
    ]


def _stages(net: nn.Module, option: str) -> dict[int, nn.Module]:
    """The blocks that `STAGES` names, by number; the pools between them have no parameters."""
    blocks = getattr(net, "blocks", None)
    found = {}
    if isinstance(blocks, nn.ModuleList):
        found = {index: block for index, block in enumerate(blocks) if any(True for _ in block.parameters())}
    inside = {id(p) for block in found.values() for p in block.parameters()}
    if len(found) != len(STAGES) or any(id(p) not in inside for p in net.parameters()):
        raise ValueError(
            f"net must be an I3D, whose blocks are {', '.join(STAGES)}, for {option}, got {type(net).__name__}. "
            f"Leave model.optimizer.{option} out for other networks."
        )
    return found


def freeze_stages(net: nn.Module, num_stages: int) -> list[nn.Module]:
    """Freeze the first stages: no gradients, and evaluation mode, which keeps running statistics.

    Call it before the network is wrapped for several processes: the wrapper waits for every gradient it expects.

    Returns the frozen modules. `net.train()` puts them back into training mode: call `eval()` on each after that. A
    network without the `STAGES` is a ValueError.
    """
    if num_stages == 0:
        return []
    frozen = list(_stages(net, "frozen_stages").values())[:num_stages]
    for module in frozen:
        module.eval()
        for parameter in module.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None  # a gradient from before would still move it
    return frozen


# ---- the optimizer -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class OptimizerKind:
    """A row of `OPTIMIZERS`."""

    # (groups, config) -> optimizer; each group has its learning rate
    build: Callable[[list[dict[str, Any]], OptimizerConfig], Optimizer]
    settings: tuple[str, ...]  # fields of `OptimizerConfig` that only this kind reads
    mark: str  # entry of its state's groups that no other kind has
    state: tuple[str, ...]  # entries of a parameter's state that have its shape


def _sgd(groups: list[dict[str, Any]], config: OptimizerConfig) -> Optimizer:
    return SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)


def _adamw(groups: list[dict[str, Any]], config: OptimizerConfig) -> Optimizer:
    return AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps)


OPTIMIZERS: dict[str, OptimizerKind] = {
    "sgd": OptimizerKind(_sgd, settings=("momentum", "nesterov"), mark="momentum", state=("momentum_buffer",)),
    "adamw": OptimizerKind(_adamw, settings=("beta1", "beta2", "eps"), mark="betas", state=("exp_avg", "exp_avg_sq")),
}


def build_optimizer(net: nn.Module, config: OptimizerConfig, *, global_batch_size: int) -> Optimizer:
    """Build the optimizer, with the learning rate scaled to the global batch.

    Loading a checkpoint's state into it restores the momentum but keeps the config's settings. It raises
    CheckpointError for a state of another kind of optimizer, of other groups, or of parameters of other shapes. A
    network without parameters, or a layer decay of one that is no I3D, is a ValueError.
    """
    decays = {name: getattr(config, name) for name in ("weight_decay", "norm_weight_decay", "layer_decay")}
    groups = parameter_groups(net, **decays)
    lr = scaled_lr(config.lr, global_batch_size=global_batch_size, reference_batch_size=config.reference_batch_size)
    for group in groups:
        group["lr"] = lr * group.pop("lr_scale", 1.0)
    optimizer = OPTIMIZERS[config.name].build(groups, config)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]  # the schedule's base
    settings = [_settings(group) for group in optimizer.param_groups]

    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in net.named_parameters()}

    def keep_settings(loaded: Optimizer) -> None:
        _check_tensors(loaded, OPTIMIZERS[config.name].state, names)
        for group, ours in zip(loaded.param_groups, settings, strict=True):
            _log_differences(group, ours)
            # With a schedule, loading its state then sets the step's rate.
            group.update(ours, lr=ours["initial_lr"])

    optimizer.register_load_state_dict_pre_hook(
        lambda _, state: _check_state(state["param_groups"], config.name, settings)
    )
    optimizer.register_load_state_dict_post_hook(keep_settings)
    return optimizer


def _check_state(stored: list[dict[str, Any]], name: str, ours: list[dict[str, Any]]) -> None:
    """Refuse another kind's state, which torch would accept and fail with at the first step."""
    theirs = next((kind for kind, row in OPTIMIZERS.items() if stored and row.mark in stored[0]), "unknown")
    if theirs != name:
        raise CheckpointError(
            f"the checkpoint's optimizer is of kind {theirs!r}, the config's of kind {name!r}. Set "
            "model.optimizer.name as it was, or start a new run from the checkpoint's weights (model.weights)."
        )
    if len(stored) != len(ours):
        raise CheckpointError(
            f"the checkpoint's optimizer has {count(len(stored), 'group')} of parameters, the config's {len(ours)}: "
            "one has a layer decay, the other none. Set model.optimizer.layer_decay as it was, or start a new run from "
            "the checkpoint's weights (model.weights)."
        )


def _check_tensors(loaded: Optimizer, entries: Sequence[str], names: Mapping[torch.Tensor, str]) -> None:
    """Refuse a state that torch would accept and fail with at the first step; warn of parameters that have none."""
    parameters = [p for group in loaded.param_groups for p in group["params"] if p.requires_grad]
    for parameter, state in loaded.state.items():
        shapes = dict.fromkeys(entries, parameter.shape) | ({"step": torch.Size()} if "step" in state else {})
        for name, shape in shapes.items():
            value = state.get(name)
            if value is None and name == "momentum_buffer":  # trained without momentum
                continue
            if not isinstance(value, torch.Tensor) or value.shape != shape:
                got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
                raise CheckpointError(
                    f"the checkpoint's optimizer must have {name} of shape {tuple(shape)} for {names[parameter]}, got "
                    f"{got}. Take another checkpoint, or start a new run from its weights (model.weights)."
                )
    without = [p for p in parameters if not loaded.state.get(p)]
    if 0 < len(without) < len(parameters):  # none has a state before the first step, or without momentum
        log.warning(
            "the checkpoint's optimizer has no state for %d of %d parameters (%s, ...): theirs starts afresh",
            len(without), len(parameters), names[without[0]],
        )  # fmt: skip


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name not in ("params", "lr")}


def _log_differences(group: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for name, value in ours.items():
        if name in group and group[name] != value:
            words = "%s of group %s: %r in the checkpoint, %r in the config; the config's is used"
            log.warning(words, name, ours["name"], group[name], value)
