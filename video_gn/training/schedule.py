"""The learning rate over a run: schedules that are pure functions of the step.

A resumed run takes its schedule from its config, not from the checkpoint, and logs differences.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from video_gn.checks import check_choice, check_range
from video_gn.training.checks import warn_of_ignored

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScheduleConfig:
    """Schedule of the learning rate, as a factor of its base value.

    Warm-up rises linearly from `warmup_start_factor` to the schedule's value at the end of the warm-up. The schedule
    counts from the run's first step, as SlowFast's does.

    Args:
        name: Kind of schedule, a key of `SCHEDULES`.
        unit: Unit of `milestones` and `warmup`: "epoch" or (optimizer) "step". Fractions of an epoch are allowed.
        milestones: Epochs or steps after which "step" multiplies the rate by `gamma`; ascending.
        gamma: Multiplier of "step", above 0.
        warmup: Length of the warm-up in epochs or steps; 0 for none.
        warmup_start_factor: Factor of the first step, in [0, 1].
        final_lr_factor: Factor of "cosine" at the end of the run, in [0, 1].
    """

    name: Literal["constant", "step", "cosine"] = "step"
    unit: Literal["epoch", "step"] = "epoch"
    milestones: list[float] = field(default_factory=list)
    gamma: float = 0.1
    warmup: float = 0.0
    warmup_start_factor: float = 0.1
    final_lr_factor: float = 0.0

    def __post_init__(self) -> None:
        check_choice("schedule name", self.name, SCHEDULES)
        check_choice("unit", self.unit, ("epoch", "step"))
        positive = all(math.isfinite(m) and m > 0 for m in self.milestones)
        if not positive or any(a >= b for a, b in zip(self.milestones, self.milestones[1:], strict=False)):
            raise ValueError(
                f"milestones must be above 0 and ascending, got {self.milestones!r}. Give them in {self.unit}s."
            )
        check_range("gamma", self.gamma, self.gamma > 0, "above 0", "The usual value is 0.1.")
        check_range("warmup", self.warmup, self.warmup >= 0, "0 or more", f"Give it in {self.unit}s.")
        for name in ("warmup_start_factor", "final_lr_factor"):
            value = getattr(self, name)
            check_range(name, value, 0 <= value <= 1, "in [0, 1]", "It is a factor of the base learning rate.")
        warn_of_ignored(self, "schedule", {name: schedule.settings for name, schedule in SCHEDULES.items()})


# ---- the learning rate as a function of the step -----------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """A row of `SCHEDULES`."""

    # (config, step, steps per epoch, total steps) -> factor, without warm-up
    factor: Callable[[ScheduleConfig, int, int, int], float]
    settings: tuple[str, ...]  # fields of `ScheduleConfig` that only this schedule reads


def _step(config: ScheduleConfig, step: int, steps_per_epoch: int, total_steps: int) -> float:
    milestones = [_to_steps(config, m, steps_per_epoch) for m in config.milestones]
    return config.gamma ** bisect_right(milestones, step)


def _cosine(config: ScheduleConfig, step: int, steps_per_epoch: int, total_steps: int) -> float:
    progress = min(step / total_steps, 1.0)
    return config.final_lr_factor + (1 - config.final_lr_factor) * 0.5 * (1 + math.cos(math.pi * progress))


SCHEDULES: dict[str, Schedule] = {
    "constant": Schedule(lambda *_: 1.0, settings=()),
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

    `step` counts the optimizer steps taken so far, 0 for the first; `total_steps` are those of the whole run, for
    "cosine", and for a warm-up that the run is too short for: it then takes the first half of the run.
    """
    factor = SCHEDULES[config.name].factor
    warmup_steps = _to_steps(config, config.warmup, steps_per_epoch)
    if warmup_steps >= total_steps:
        warmup_steps = total_steps // 2
    if step >= warmup_steps:
        return factor(config, step, steps_per_epoch, total_steps)
    end = factor(config, warmup_steps, steps_per_epoch, total_steps)
    return config.warmup_start_factor + (end - config.warmup_start_factor) * step / warmup_steps


def _to_steps(config: ScheduleConfig, value: float, steps_per_epoch: int) -> int:
    # Rounded, since 0.7 epochs of 10 steps are 7.000000000000001 in floating point.
    return round(value * (steps_per_epoch if config.unit == "epoch" else 1))


# ---- the scheduler -----------------------------------------------------------------------------------


class FactorLR(LambdaLR):
    """torch's LambdaLR whose state is only the step; the rates follow from the optimizer's settings.

    A run resumed with another learning rate, schedule or global batch uses the new one, and the same config gives the
    same rates bit for bit. The groups' "initial_lr" are the base rates. The state also keeps `settings`, the plain
    values that the factor was made from, so that a resumed run can log differences.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float], *, settings: Mapping[str, Any]) -> None:
        self.settings = dict(settings)
        super().__init__(optimizer, factor)

    def state_dict(self) -> dict[str, Any]:
        """The number of steps taken, as plain integers, and the settings."""
        return {"last_epoch": self.last_epoch, "_step_count": self._step_count, "schedule": dict(self.settings)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to a step and set its learning rates. Load the optimizer's state first.

        Settings that differ are logged; the state of an older version has none.
        """
        self.last_epoch = state_dict["last_epoch"]
        self._step_count = state_dict["_step_count"]
        rates = [base * factor(self.last_epoch) for base, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._last_lr = rates
        stored = state_dict.get("schedule", {})
        for name, value in self.settings.items():
            if name in stored and stored[name] != value:
                option = f"model.schedule.{name}" if name in _FIELDS else f"the schedule's {name}"
                words = "%s: %r in the checkpoint, %r in the config; the config's is used"
                log.warning(words, option, stored[name], value)


_FIELDS = tuple(f.name for f in dataclasses.fields(ScheduleConfig))


def build_scheduler(
    optimizer: Optimizer, config: ScheduleConfig, *, steps_per_epoch: int, total_steps: int, is_trial: bool = False
) -> FactorLR:
    """Build the schedule for what `build_optimizer` returned; step it after each optimizer step.

    What the run is too short for is logged, unless it is a trial: a warm-up that is shortened, milestones that are not
    reached. A number of steps below 1 is a ValueError.
    """
    for name, value in (("steps_per_epoch", steps_per_epoch), ("total_steps", total_steps)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value!r}. Count optimizer steps, not batches.")
    if not is_trial:
        _warn_of_end(config, steps_per_epoch, total_steps)
    settings = {
        **dataclasses.asdict(config),
        "milestones": list(config.milestones),
        "steps_per_epoch": steps_per_epoch,
        "total_steps": total_steps,
    }
    return FactorLR(optimizer, lambda step: lr_factor(config, step, steps_per_epoch, total_steps), settings=settings)


def _warn_of_end(config: ScheduleConfig, steps_per_epoch: int, total_steps: int) -> None:
    warmup = _to_steps(config, config.warmup, steps_per_epoch)
    if warmup >= total_steps:
        log.warning(
            "model.schedule.warmup (%g %ss) is %d steps, the run has %d: it is shortened to %d",
            config.warmup, config.unit, warmup, total_steps, total_steps // 2,
        )  # fmt: skip
    if "milestones" not in SCHEDULES[config.name].settings:
        return
    milestones = {m: _to_steps(config, m, steps_per_epoch) for m in config.milestones}
    late = [m for m, step in milestones.items() if step >= total_steps]
    if late:
        log.warning(
            "model.schedule.milestones %s (%ss) are not reached: the run ends at step %d, the first of them is step %d",
            late, config.unit, total_steps, milestones[late[0]],
        )  # fmt: skip
