"""Optimizer and learning-rate schedule: parameter groups, linear scaling, and a schedule that is a pure function.

A resumed run takes its learning rate, weight decay and the rest from the configuration it is resumed with, not
from the checkpoint; where the two differ, that is logged.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import warnings
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OptimizerConfig:
    """Which optimizer, and its settings.

    Source of the defaults: video-nonlocal-net's Kinetics runs (LR 0.01 at 8 GPUs x 8 clips).

    Args:
        name: a key of `OPTIMIZERS`.
        lr: learning rate at the reference batch size, above 0.
        reference_batch_size: global batch at which `lr` holds; for another it is scaled linearly. None: never scaled.
        momentum: in [0, 1).
        nesterov: Nesterov's momentum.
        weight_decay: of everything but the norms' scales and shifts (so of the classifier's bias too), 0 or more.
        norm_weight_decay: of the norms' scales and shifts, of whatever kind, 0 or more.

    Raises:
        ValueError: for a value out of range.
    """

    name: Literal["sgd"] = "sgd"
    lr: float = 0.01
    reference_batch_size: int | None = 64
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    norm_weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_choice("optimizer name", self.name, OPTIMIZERS)
        _check_range("lr", self.lr, self.lr > 0, "above 0", "Video nets take 0.01 for 64 clips.")
        if self.reference_batch_size is not None and self.reference_batch_size < 1:
            raise ValueError(
                f"reference_batch_size must be at least 1 or null, got {self.reference_batch_size!r}. "
                "Null keeps lr as it is at every batch size."
            )
        _check_range("momentum", self.momentum, 0 <= self.momentum < 1, "in [0, 1)", "The usual value is 0.9.")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov must be false where momentum is 0, got True. Set a momentum or nesterov: false.")
        for name in ("weight_decay", "norm_weight_decay"):
            value = getattr(self, name)
            _check_range(name, value, value >= 0, "0 or more", "The usual values are 1e-4, and 0 for norms.")


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate goes, as a factor of its base value.

    Warm-up rises linearly from `warmup_start_factor` to the value that the schedule has where the warm-up ends;
    the schedule itself is counted from the run's first step, as SlowFast counts it.

    Args:
        name: a key of `SCHEDULES`.
        unit: of `milestones` and `warmup`: "epoch" or (optimizer) "step". Fractions of an epoch are allowed.
        milestones: for "step": after how many epochs or steps the rate is multiplied by `gamma`; ascending.
        gamma: for "step": the multiplier, above 0.
        warmup: how many epochs or steps; 0 for none.
        warmup_start_factor: factor of the very first step, in [0, 1].
        final_lr_factor: for "cosine": factor where the run ends, in [0, 1].

    Raises:
        ValueError: for a value out of range.
    """

    name: Literal["constant", "step", "cosine"] = "step"
    unit: Literal["epoch", "step"] = "epoch"
    milestones: list[float] = field(default_factory=list)
    gamma: float = 0.1
    warmup: float = 0.0
    warmup_start_factor: float = 0.1
    final_lr_factor: float = 0.0

    def __post_init__(self) -> None:
        _check_choice("schedule name", self.name, SCHEDULES)
        _check_choice("unit", self.unit, ("epoch", "step"))
        positive = all(math.isfinite(m) and m > 0 for m in self.milestones)
        if not positive or any(a >= b for a, b in zip(self.milestones, self.milestones[1:], strict=False)):
            raise ValueError(
                f"milestones must be above 0 and ascending, got {self.milestones!r}. Give them in {self.unit}s."
            )
        _check_range("gamma", self.gamma, self.gamma > 0, "above 0", "The usual value is 0.1.")
        _check_range("warmup", self.warmup, self.warmup >= 0, "0 or more", f"Give it in {self.unit}s.")
        for name in ("warmup_start_factor", "final_lr_factor"):
            value = getattr(self, name)
            _check_range(name, value, 0 <= value <= 1, "in [0, 1]", "It is a factor of the base learning rate.")
        self._warn_of_ignored()

    def _warn_of_ignored(self) -> None:
        used = SCHEDULES[self.name].settings
        others = {name for schedule in SCHEDULES.values() for name in schedule.settings} - set(used)
        for f in dataclasses.fields(self):
            default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
            if f.name in others and getattr(self, f.name) != default:
                message = f"{f.name}={getattr(self, f.name)!r} is ignored by schedule {self.name!r}"
                warnings.warn(message, stacklevel=4)  # past __post_init__ and __init__, to who wrote the config


# ---- the learning rate as a function of the step -----------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """A row of `SCHEDULES`.

    Args:
        factor: (config, step, steps per epoch, total steps) -> factor, without warm-up.
        settings: the fields of `ScheduleConfig` that this schedule alone reads.
    """

    factor: Callable[[ScheduleConfig, int, int, int], float]
    settings: tuple[str, ...]


def _constant(config: ScheduleConfig, step: int, steps_per_epoch: int, total_steps: int) -> float:
    return 1.0


def _step(config: ScheduleConfig, step: int, steps_per_epoch: int, total_steps: int) -> float:
    milestones = [_to_steps(config, m, steps_per_epoch) for m in config.milestones]
    return config.gamma ** bisect_right(milestones, step)


def _cosine(config: ScheduleConfig, step: int, steps_per_epoch: int, total_steps: int) -> float:
    progress = min(step / total_steps, 1.0)
    return config.final_lr_factor + (1 - config.final_lr_factor) * 0.5 * (1 + math.cos(math.pi * progress))


SCHEDULES: dict[str, Schedule] = {
    "constant": Schedule(_constant, settings=()),
    "step": Schedule(_step, settings=("milestones", "gamma")),
    "cosine": Schedule(_cosine, settings=("final_lr_factor",)),
}


def lr_factor(config: ScheduleConfig, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """The learning rate's factor at an optimizer step.

    ```
    milestones [2] epochs of 3 steps, gamma 0.1
    step    0    1    2    3    4    5    6    7
    factor  1    1    1    1    1    1    0.1  0.1
    ```

    Args:
        config: the schedule.
        step: how many optimizer steps have been taken: 0 for the first.
        steps_per_epoch: optimizer steps in an epoch.
        total_steps: of the whole run; only "cosine" looks at it.

    Returns:
        A factor of the base learning rate, 0 or more.
    """
    factor = SCHEDULES[config.name].factor
    warmup_steps = _to_steps(config, config.warmup, steps_per_epoch)
    if step >= warmup_steps:
        return factor(config, step, steps_per_epoch, total_steps)
    end = factor(config, warmup_steps, steps_per_epoch, total_steps)
    return config.warmup_start_factor + (end - config.warmup_start_factor) * step / warmup_steps


def _to_steps(config: ScheduleConfig, value: float, steps_per_epoch: int) -> int:
    # Rounded, since 0.7 epochs of 10 steps are 7.000000000000001 in floating point.
    return round(value * (steps_per_epoch if config.unit == "epoch" else 1))


def scaled_lr(lr: float, *, global_batch_size: int, reference_batch_size: int | None) -> float:
    """The linear rule: the learning rate grows with the global batch.

    Args:
        lr: at the reference batch size.
        global_batch_size: clips of an optimizer step: processes x clips of a process x accumulated batches.
        reference_batch_size: where `lr` holds; None for no scaling.

    Raises:
        ValueError: for a batch size below 1.

    Source: Goyal et al. 2017 (arXiv:1706.02677), section 2.1; video-nonlocal-net: 0.01 at 64, 0.005 at 32.
    """
    for name, value in (("global_batch_size", global_batch_size), ("reference_batch_size", reference_batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value!r}. Count the clips of one optimizer step.")
    return lr if reference_batch_size is None else lr * global_batch_size / reference_batch_size


# ---- parameter groups and the optimizer --------------------------------------------------------------


def parameter_groups(
    net: nn.Module,
    *,
    weight_decay: float,
    norm_weight_decay: float,
    is_norm: Callable[[nn.Module], bool],
) -> list[dict[str, Any]]:
    """Two groups, "decay" and "norm", that hold every parameter exactly once.

    Both are always there, be they empty, so that a checkpoint's groups fit whatever the norm. Frozen parameters
    are in them too: the optimizer passes over what has no gradient.

    Args:
        net: the network.
        weight_decay: of the group "decay".
        norm_weight_decay: of the group "norm".
        is_norm: tells a normalization layer, of any kind, by its module.

    Returns:
        For torch.optim: dicts with "name", "params", "weight_decay"; parameters in the network's order.

    Raises:
        ValueError: if the network has no parameters.
    """
    norm_ids = {id(p) for module in net.modules() if is_norm(module) for p in module.parameters(recurse=False)}
    parameters = list(net.parameters())  # a shared parameter comes once
    if not parameters:
        raise ValueError(f"net must have parameters, got {type(net).__name__} with none. Give the whole network.")
    return [
        {"name": "decay", "params": [p for p in parameters if id(p) not in norm_ids], "weight_decay": weight_decay},
        {"name": "norm", "params": [p for p in parameters if id(p) in norm_ids], "weight_decay": norm_weight_decay},
    ]


def _sgd(groups: list[dict[str, Any]], config: OptimizerConfig, lr: float) -> Optimizer:
    return SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.nesterov)


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], OptimizerConfig, float], Optimizer]] = {"sgd": _sgd}


def build_optimizer(
    net: nn.Module,
    config: OptimizerConfig,
    *,
    global_batch_size: int,
    is_norm: Callable[[nn.Module], bool],
) -> Optimizer:
    """The optimizer, its learning rate scaled to the global batch.

    Loading a checkpoint's state into it brings back the momentum, not the settings: those stay the config's.

    Args:
        net: the network.
        config: which, and its settings.
        global_batch_size: clips of an optimizer step.
        is_norm: tells a normalization layer, of any kind, by its module.

    Raises:
        ValueError: for a batch size below 1 or a network without parameters.
    """
    groups = parameter_groups(
        net, weight_decay=config.weight_decay, norm_weight_decay=config.norm_weight_decay, is_norm=is_norm
    )
    lr = scaled_lr(config.lr, global_batch_size=global_batch_size, reference_batch_size=config.reference_batch_size)
    optimizer = OPTIMIZERS[config.name](groups, config, lr)
    for group in optimizer.param_groups:
        group["initial_lr"] = lr  # the schedule's base
    settings = [_settings(group) for group in optimizer.param_groups]

    def keep_settings(loaded: Optimizer) -> None:
        for group, ours in zip(loaded.param_groups, settings, strict=True):
            _log_differences(group, ours)
            # Without a schedule, that is all; with one, its own loading sets the step's rate.
            group.update(ours, lr=ours["initial_lr"])

    optimizer.register_load_state_dict_post_hook(keep_settings)
    return optimizer


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name not in ("params", "lr")}


def _log_differences(group: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for name, value in ours.items():
        if name in group and group[name] != value:
            log.warning(
                "%s of group %s: %r in the checkpoint, %r in the config; the config's is used",
                name,
                ours["name"],
                group[name],
                value,
            )


class FactorLR(LambdaLR):
    """torch's LambdaLR, but its state is the step alone; the rates follow from the optimizer's settings.

    So a run resumed with another learning rate, schedule or global batch uses the new one, and the same
    configuration gives the same rates bit for bit.
    """

    def state_dict(self) -> dict[str, Any]:
        """The number of steps taken, as plain integers."""
        return {"last_epoch": self.last_epoch, "_step_count": self._step_count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to a step and set its learning rates; load the optimizer's state first."""
        self.last_epoch = state_dict["last_epoch"]
        self._step_count = state_dict["_step_count"]
        rates = [base * factor(self.last_epoch) for base, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._last_lr = rates


def build_scheduler(
    optimizer: Optimizer,
    config: ScheduleConfig,
    *,
    steps_per_epoch: int,
    total_steps: int,
) -> FactorLR:
    """The schedule, to be stepped after each optimizer step.

    Args:
        optimizer: from `build_optimizer`.
        config: the schedule.
        steps_per_epoch: optimizer steps in an epoch.
        total_steps: of the whole run.

    Raises:
        ValueError: for a number of steps below 1.
    """
    for name, value in (("steps_per_epoch", steps_per_epoch), ("total_steps", total_steps)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value!r}. Count optimizer steps, not batches.")
    return FactorLR(optimizer, lambda step: lr_factor(config, step, steps_per_epoch, total_steps))


def _check_choice(name: str, value: str, choices: Mapping[str, Any] | tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {sorted(choices)}, got {value!r}. Choose one of these.")


def _check_range(name: str, value: float, inside: bool, rule: str, advice: str) -> None:
    if not inside or not math.isfinite(value):
        raise ValueError(f"{name} must be {rule}, got {value!r}. {advice}")
