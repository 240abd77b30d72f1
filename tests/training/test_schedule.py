"""Schedules against hand-written lists, torch's own and the peers' formulas; resuming; runs that end early."""

import dataclasses
import io
import logging
import math
import warnings
from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from video_gn.models import i3d
from video_gn.models.norms import make_norm
from video_gn.training.optimizer import OptimizerConfig, build_optimizer
from video_gn.training.schedule import SCHEDULES, ScheduleConfig, build_scheduler, lr_factor

DEFAULT = ScheduleConfig()


def factors(config, *, steps_per_epoch, total_steps):
    return [lr_factor(config, step, steps_per_epoch, total_steps) for step in range(total_steps)]


def tiny_net(kind="batch"):
    return nn.Sequential(nn.Conv3d(3, 32, 1, bias=False), make_norm(kind, 32), nn.Flatten(), nn.Linear(32, 2))


def built(schedule=DEFAULT, *, net=None, steps_per_epoch=3, total_steps=12, batch=64, **settings):
    net = net if net is not None else tiny_net()
    optimizer = build_optimizer(net, OptimizerConfig(**settings), global_batch_size=batch)
    return optimizer, build_scheduler(optimizer, schedule, steps_per_epoch=steps_per_epoch, total_steps=total_steps)


def rates(optimizer, scheduler, num_steps):
    out = []
    for _ in range(num_steps):
        out.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return out


# ---- the factor ---------------------------------------------------------------------------------


def test_names_are_the_tables():
    assert set(get_args(get_type_hints(ScheduleConfig)["name"])) == set(SCHEDULES)


def test_constant():
    assert factors(ScheduleConfig("constant"), steps_per_epoch=2, total_steps=5) == [1, 1, 1, 1, 1]


def test_step_by_epochs():
    config = ScheduleConfig("step", milestones=[2, 3])
    expected = [1] * 6 + [0.1] * 3 + [0.1**2] * 3
    assert factors(config, steps_per_epoch=3, total_steps=12) == expected


def test_step_by_fractions_of_an_epoch():
    config = ScheduleConfig("step", milestones=[0.7, 1.25])
    expected = [1] * 7 + [0.1] * 5 + [0.1**2] * 2  # 7 of 10 steps, and 12 (12.5 rounds to even)
    assert factors(config, steps_per_epoch=10, total_steps=14) == expected


def test_the_papers_video_schedule():
    # 234,643 videos in batches of 64 are 3,666 steps; the rate falls after epochs 41 and 82 of 109.
    config, n = ScheduleConfig("step", milestones=[41, 82]), 3666
    at = {0: 1, 41 * n - 1: 1, 41 * n: 0.1, 82 * n - 1: 0.1, 82 * n: 0.1**2, 109 * n - 1: 0.1**2}
    assert {step: lr_factor(config, step, n, 109 * n) for step in at} == at


def test_nonlocal_schedule_in_steps():
    config = ScheduleConfig("step", unit="step", milestones=[150_000, 300_000])
    at = {0: 1, 149_999: 1, 150_000: 0.1, 299_999: 0.1, 300_000: 0.1**2, 399_999: 0.1**2}
    # The unit is the step: how long an epoch is does not matter.
    for steps_per_epoch in (1, 3666):
        assert {step: lr_factor(config, step, steps_per_epoch, 400_000) for step in at} == at


def test_cosine():
    half = math.sqrt(0.5)
    expected = [1, (1 + half) / 2, 0.5, (1 - half) / 2]
    assert factors(ScheduleConfig("cosine"), steps_per_epoch=1, total_steps=4) == pytest.approx(expected, abs=1e-15)
    assert lr_factor(ScheduleConfig("cosine"), 4, 1, 4) == 0
    assert lr_factor(ScheduleConfig("cosine"), 5, 1, 4) == 0  # it does not rise again
    assert lr_factor(ScheduleConfig("cosine", final_lr_factor=0.2), 2, 1, 4) == pytest.approx(0.6)
    assert lr_factor(ScheduleConfig("cosine", final_lr_factor=0.2), 4, 1, 4) == pytest.approx(0.2)


def test_linear_warmup():
    config = ScheduleConfig("constant", unit="step", warmup=4, warmup_start_factor=0.2)
    expected = [0.2, 0.4, 0.6, 0.8, 1, 1]
    assert factors(config, steps_per_epoch=1, total_steps=6) == pytest.approx(expected, abs=1e-15)
    config = ScheduleConfig("constant", unit="epoch", warmup=2, warmup_start_factor=0.0)
    assert factors(config, steps_per_epoch=2, total_steps=6) == [0, 0.25, 0.5, 0.75, 1, 1]


def test_warmup_ends_at_the_schedules_value():
    config = ScheduleConfig("step", unit="step", milestones=[2], warmup=4, warmup_start_factor=0.0)
    expected = [0, 0.025, 0.05, 0.075, 0.1, 0.1]
    assert factors(config, steps_per_epoch=1, total_steps=6) == pytest.approx(expected, abs=1e-15)


def slowfast_rate(epoch, *, base=0.1, max_epoch=196, warmup=34, start=0.01):
    """SlowFast's rate at a (fractional) epoch, from its description: cosine over all epochs, warm-up into it."""

    def cosine(e):
        return base * (math.cos(math.pi * e / max_epoch) + 1) / 2

    return start + (cosine(warmup) - start) * epoch / warmup if epoch < warmup else cosine(epoch)


def test_slowfasts_schedule_from_scratch():
    config = ScheduleConfig("cosine", warmup=34, warmup_start_factor=0.1)
    n = 7
    got = [0.1 * f for f in factors(config, steps_per_epoch=n, total_steps=196 * n)]
    expected = [slowfast_rate(step / n) for step in range(196 * n)]
    assert got == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert got[0] == pytest.approx(0.01)
    # cos(pi 34 / 196) = 0.8551428 by its power series.
    assert got[34 * n] == pytest.approx(0.1 * (1 + 0.8551428) / 2, abs=1e-8)
    assert max(got) == got[34 * n]


def test_slowfasts_schedule_from_imagenet():
    config = ScheduleConfig("step", milestones=[44, 88, 118])
    got = factors(config, steps_per_epoch=1, total_steps=118)
    assert got == [1] * 44 + [0.1] * 44 + [0.1**2] * 30


# ---- the scheduler ------------------------------------------------------------------------------


def test_scheduler_is_torchs_multi_step():
    ours = rates(*built(ScheduleConfig("step", milestones=[1, 3]), lr=0.02), 12)
    reference = torch.optim.SGD(tiny_net().parameters(), lr=0.02)
    theirs = rates(reference, MultiStepLR(reference, [3, 9]), 12)
    assert ours == [[pytest.approx(rate[0], rel=1e-12)] * 2 for rate in theirs]


def test_scheduler_is_torchs_cosine():
    ours = rates(*built(ScheduleConfig("cosine", final_lr_factor=0.05), lr=0.02), 12)
    reference = torch.optim.SGD(tiny_net().parameters(), lr=0.02)
    theirs = rates(reference, CosineAnnealingLR(reference, 12, eta_min=0.001), 12)
    # torch multiplies from step to step: rounding of 12 products.
    assert ours == [[pytest.approx(rate[0], rel=1e-12)] * 2 for rate in theirs]


def test_scheduler_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rates(*built(ScheduleConfig("cosine", warmup=1)), 3)


def through_a_file(state):
    """As a checkpoint goes: written, and read with weights_only=True."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_resume_is_exact():
    schedule = ScheduleConfig("cosine", warmup=1)
    straight = rates(*built(schedule), 12)
    optimizer, scheduler = built(schedule)
    first = rates(optimizer, scheduler, 5)
    state = through_a_file({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()})
    settings = {**dataclasses.asdict(schedule), "steps_per_epoch": 3, "total_steps": 12}
    assert state["scheduler"] == {"last_epoch": 5, "_step_count": 6, "schedule": settings}
    optimizer, scheduler = built(schedule)
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    assert scheduler.get_last_lr() == straight[5]
    assert first + rates(optimizer, scheduler, 7) == straight


def test_resume_with_another_config_uses_it_and_says_so(caplog):
    optimizer, scheduler = built(ScheduleConfig("step", milestones=[1]), lr=0.01)
    net = tiny_net()
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        p.grad = torch.ones_like(p)
    rates(optimizer, scheduler, 4)
    state = through_a_file({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()})
    changed = {"lr": 0.03, "weight_decay": 0.5, "norm_weight_decay": 0.25, "momentum": 0.5, "nesterov": False}
    optimizer, scheduler = built(ScheduleConfig("step", milestones=[1], gamma=0.5), net=net, batch=32, **changed)
    with caplog.at_level(logging.WARNING, logger="video_gn.training.optimizer"):
        optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    for group, decay in zip(optimizer.param_groups, (0.5, 0.25), strict=True):
        assert group["lr"] == pytest.approx(0.03 / 2 * 0.5)
        assert (group["weight_decay"], group["momentum"], group["nesterov"]) == (decay, 0.5, False)
        assert all("momentum_buffer" in optimizer.state[p] for p in group["params"])  # what was learned is kept
    assert (
        "weight_decay of group decay: 0.0001 in the checkpoint, 0.5 in the config; the config's is used" in caplog.text
    )
    assert "initial_lr of group norm: 0.01 in the checkpoint, 0.015 in the config" in caplog.text
    assert [rate[0] for rate in rates(optimizer, scheduler, 2)] == pytest.approx([0.0075, 0.0075])


def test_resume_with_the_same_config_is_silent(caplog):
    optimizer, _ = built()
    state = through_a_file(optimizer.state_dict())
    optimizer, _ = built()
    optimizer.load_state_dict(state)
    assert caplog.text == ""


def loaded(state, schedule, caplog, **steps):
    """Rates of a scheduler that has loaded a state, and the lines that it logged."""
    caplog.clear()
    _, scheduler = built(schedule, **steps)
    with caplog.at_level(logging.WARNING, logger="video_gn.training.schedule"):
        scheduler.load_state_dict(through_a_file(state))
    return scheduler.get_last_lr(), [record.getMessage() for record in caplog.records]


def test_a_resumed_schedule_that_differs_is_named(caplog):
    _, scheduler = built(ScheduleConfig("step", milestones=[1, 2], warmup=0.5))
    state = scheduler.state_dict()
    changed = ScheduleConfig("step", unit="step", milestones=[3, 4], gamma=0.5, warmup=1, warmup_start_factor=0.2)
    rates, lines = loaded(state, changed, caplog, steps_per_epoch=4, total_steps=20)
    assert rates == [pytest.approx(0.01 * 0.2)] * 2, "the config's is used"
    both = "{} in the checkpoint, {} in the config; the config's is used"
    assert lines == [
        "model.schedule.unit: " + both.format("'epoch'", "'step'"),
        "model.schedule.milestones: " + both.format("[1, 2]", "[3, 4]"),
        "model.schedule.gamma: " + both.format("0.1", "0.5"),
        "model.schedule.warmup: " + both.format("0.5", "1"),
        "model.schedule.warmup_start_factor: " + both.format("0.1", "0.2"),
        "the schedule's steps_per_epoch: " + both.format("3", "4"),
        "the schedule's total_steps: " + both.format("12", "20"),
    ]
    _, lines = loaded(state, ScheduleConfig("cosine", warmup=0.5, final_lr_factor=0.1), caplog)
    assert [line.partition(":")[0].rpartition(".")[2] for line in lines] == ["name", "milestones", "final_lr_factor"]


def test_a_resumed_schedule_that_is_the_same_or_of_an_older_version_is_silent(caplog):
    schedule = ScheduleConfig("step", milestones=[1, 2])
    _, scheduler = built(schedule)
    assert loaded(scheduler.state_dict(), schedule, caplog)[1] == []
    old = {"last_epoch": 6, "_step_count": 7}
    rates, lines = loaded(old, ScheduleConfig("step", milestones=[1, 2], gamma=0.5), caplog)
    assert (rates, lines) == ([pytest.approx(0.0025)] * 2, [])


def test_rates_of_a_layer_decay_follow_the_schedule_and_resume():
    def deep(**settings):
        torch.manual_seed(0)
        net = i3d(50, width=4, num_groups=2, num_classes=3)
        return built(ScheduleConfig("step", milestones=[1]), net=net, layer_decay=0.5, lr=0.02, **settings)

    optimizer, scheduler = deep()
    first = rates(optimizer, scheduler, 4)
    assert first[0] == [0.02 * 0.5 ** (i // 2) for i in range(12)]
    assert first[3] == [pytest.approx(0.002 * 0.5 ** (i // 2)) for i in range(12)]
    state = through_a_file({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()})
    again, other = deep()
    again.load_state_dict(state["optimizer"])
    other.load_state_dict(state["scheduler"])
    assert other.get_last_lr() == [group["lr"] for group in again.param_groups] == scheduler.get_last_lr()


def test_resume_without_a_schedule_uses_the_configs_rate():
    state = build_optimizer(tiny_net(), OptimizerConfig(lr=1.0), global_batch_size=64).state_dict()
    optimizer = build_optimizer(tiny_net(), OptimizerConfig(lr=0.5), global_batch_size=64)
    optimizer.load_state_dict(state)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "poly"}, r"schedule name must be one of \['constant', 'cosine', 'step'\], got 'poly'"),
        ({"unit": "iteration"}, r"unit must be one of \['epoch', 'step'\], got 'iteration'"),
        ({"milestones": [3, 2]}, r"milestones must be above 0 and ascending, got \[3, 2\]\. Give them in epochs"),
        ({"milestones": [2, 2]}, r"milestones must be above 0 and ascending, got \[2, 2\]"),
        ({"milestones": [0]}, r"milestones must be above 0 and ascending, got \[0\]"),
        ({"milestones": [float("nan")]}, r"milestones must be above 0 and ascending, got \[nan\]"),
        ({"gamma": 0.0}, r"gamma must be above 0, got 0\.0"),
        ({"warmup": -1.0, "unit": "step"}, r"warmup must be 0 or more, got -1\.0\. Give it in steps"),
        ({"warmup_start_factor": 1.1}, r"warmup_start_factor must be in \[0, 1\], got 1\.1"),
        ({"final_lr_factor": -0.1}, r"final_lr_factor must be in \[0, 1\], got -0\.1"),
    ],
)
def test_schedule_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        ScheduleConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "ignored"),
    [
        ({"name": "cosine", "milestones": [3]}, r"milestones=\[3\] is ignored by schedule 'cosine'"),
        ({"name": "constant", "gamma": 0.5}, r"gamma=0\.5 is ignored by schedule 'constant'"),
        ({"name": "step", "final_lr_factor": 0.5}, r"final_lr_factor=0\.5 is ignored by schedule 'step'"),
    ],
)
def test_ignored_settings_warn_at_who_wrote_them(settings, ignored):
    with pytest.warns(UserWarning, match=ignored) as caught:
        ScheduleConfig(**settings)
    assert caught[0].filename == __file__


def test_used_settings_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ScheduleConfig("step", milestones=[1], gamma=0.5, warmup=1, warmup_start_factor=0.5)
        ScheduleConfig("cosine", final_lr_factor=0.5, warmup=1)


@pytest.mark.parametrize("name", ["steps_per_epoch", "total_steps"])
def test_step_count_errors(name):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    with pytest.raises(ValueError, match=rf"{name} must be at least 1, got 0\. Count optimizer steps, not batches"):
        build_scheduler(optimizer, ScheduleConfig(), **{"steps_per_epoch": 1, "total_steps": 1, name: 0})


# ---- schedules that the run is too short for ----------------------------------------------------


def short(schedule, caplog, *, total_steps, steps_per_epoch=8):
    """Rates of a run's steps by a base rate of 1, and what was logged."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="video_gn.training.schedule"):
        found = rates(*built(schedule, steps_per_epoch=steps_per_epoch, total_steps=total_steps, lr=1.0), total_steps)
    return [rate[0] for rate in found], [record.getMessage() for record in caplog.records]


def test_a_warmup_longer_than_the_run_is_shortened_to_its_first_half(caplog):
    epochs = ScheduleConfig("constant", warmup=2, warmup_start_factor=0.2)
    found, lines = short(epochs, caplog, total_steps=8)
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1])
    assert lines == ["model.schedule.warmup (2 epochs) is 16 steps, the run has 8: it is shortened to 4"]
    steps = ScheduleConfig("step", unit="step", warmup=5, warmup_start_factor=0.0, milestones=[3])
    found, lines = short(steps, caplog, total_steps=5)
    assert found == pytest.approx([0, 0.5, 1, 0.1, 0.1])
    assert lines == ["model.schedule.warmup (5 steps) is 5 steps, the run has 5: it is shortened to 2"]
    assert short(steps, caplog, total_steps=1)[0] == [1]


def test_milestones_that_are_not_reached_are_named(caplog):
    schedule = ScheduleConfig("step", milestones=[1, 2, 3])
    line = (
        "model.schedule.milestones {} (epochs) are not reached: the run ends at step {}, the first of them is step {}"
    )
    assert short(schedule, caplog, total_steps=16) == (
        [1] * 8 + [pytest.approx(0.1)] * 8,
        [line.format([2, 3], 16, 16)],
    )
    assert short(schedule, caplog, total_steps=3) == ([1] * 3, [line.format([1, 2, 3], 3, 8)])


def test_schedules_that_fit_are_silent(caplog):
    for schedule in (
        ScheduleConfig("step"),
        ScheduleConfig("step", milestones=[1, 3.6], warmup=3.6),
        ScheduleConfig("cosine", unit="step", warmup=11),
    ):
        built(schedule)
    assert caplog.text == ""
