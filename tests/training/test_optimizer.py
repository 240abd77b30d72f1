"""Groups of parameters by norm and by depth, frozen stages, the optimizers' steps by hand, loading their state."""

import copy
import io
import logging
import math
import re
import warnings
from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn

from video_gn.errors import CheckpointError
from video_gn.models import i3d
from video_gn.models.norms import NORMS, is_norm, make_norm
from video_gn.training.optimizer import (
    OPTIMIZERS,
    STAGES,
    OptimizerConfig,
    build_optimizer,
    freeze_stages,
    parameter_groups,
    scaled_lr,
)


def tiny_net(kind="batch"):
    return nn.Sequential(nn.Conv3d(3, 32, 1, bias=False), make_norm(kind, 32), nn.Flatten(), nn.Linear(32, 2))


def through_a_file(state):
    """As a checkpoint goes: written, and read with weights_only=True."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_names_are_the_tables():
    assert set(get_args(get_type_hints(OptimizerConfig)["name"])) == set(OPTIMIZERS)


# ---- groups and the optimizer -------------------------------------------------------------------


@pytest.mark.parametrize("kind", NORMS)
def test_groups_hold_every_parameter_once_for_every_kind(kind):
    net = tiny_net(kind)
    decay, norm = parameter_groups(net, weight_decay=0.1, norm_weight_decay=0.2)
    assert (decay["name"], decay["weight_decay"]) == ("decay", 0.1)
    assert (norm["name"], norm["weight_decay"]) == ("norm", 0.2)
    assert [id(p) for p in decay["params"]] == [id(net[0].weight), id(net[3].weight), id(net[3].bias)]
    assert [id(p) for p in norm["params"]] == [id(net[1].weight), id(net[1].bias)]


def test_shared_parameters_come_once():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.LayerNorm(2), nn.LayerNorm(2))
    net[1].weight = net[0].weight
    net[3].weight = net[2].weight
    groups = parameter_groups(net, weight_decay=0, norm_weight_decay=0)
    assert [len(group["params"]) for group in groups] == [3, 3]


def test_a_net_without_norms_has_both_groups():
    optimizer = build_optimizer(nn.Linear(2, 2), OptimizerConfig(), global_batch_size=64)
    assert [(g["name"], len(g["params"])) for g in optimizer.param_groups] == [("decay", 2), ("norm", 0)]


def test_linear_rule():
    assert scaled_lr(0.01, global_batch_size=64, reference_batch_size=64) == 0.01
    assert scaled_lr(0.01, global_batch_size=32, reference_batch_size=64) == 0.005
    assert scaled_lr(0.01, global_batch_size=1024, reference_batch_size=64) == 0.16
    assert scaled_lr(0.01, global_batch_size=7, reference_batch_size=None) == 0.01


def test_sgd_takes_nesterovs_step():
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.LayerNorm(1, bias=False)).double()
    config = OptimizerConfig(lr=0.2, reference_batch_size=64, momentum=0.9, weight_decay=0.1, norm_weight_decay=0.0)
    optimizer = build_optimizer(net, config, global_batch_size=32)
    weights, velocities, decays = [3.0, 1.0], [0.0, 0.0], [0.1, 0.0]
    parameters = [net[0].weight, net[1].weight]
    parameters[0].data.fill_(3.0)
    for step in range(3):
        for i, parameter in enumerate(parameters):
            gradient = 0.5 + step + i
            parameter.grad = torch.full_like(parameter, gradient)
            gradient += decays[i] * weights[i]
            velocities[i] = 0.9 * velocities[i] + gradient
            weights[i] -= 0.1 * (gradient + 0.9 * velocities[i])
        optimizer.step()
        assert [float(p.detach()) for p in parameters] == pytest.approx(weights, rel=1e-12)


# ---- groups by depth ----------------------------------------------------------------------------


def small_net(norm="group", **arguments):
    torch.manual_seed(0)
    groups = {"num_groups": 2} if norm == "group" else {}
    return i3d(50, norm=norm, width=4, num_classes=5, **groups, **arguments)


# Hand-written: blocks.N of the network, from the head down, and how far each is from it.
DEPTHS = {6: 0, 5: 1, 4: 2, 3: 3, 1: 4, 0: 5}


@pytest.mark.parametrize("norm", ["group", "batch", "none"])
def test_rates_fall_with_depth(norm):
    net = small_net(norm)
    config = OptimizerConfig(lr=0.08, layer_decay=0.75, weight_decay=0.1, norm_weight_decay=0.2)
    optimizer = build_optimizer(net, config, global_batch_size=32)
    expected = [f"{kind} of blocks.{index}" for index in DEPTHS for kind in ("decay", "norm")]
    assert [group["name"] for group in optimizer.param_groups] == expected
    modules = dict(net.named_modules())
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(found) == sum(len(g["params"]) for g in optimizer.param_groups) == len(list(net.parameters()))
    for name, parameter in net.named_parameters():
        group, index = found[id(parameter)], int(name.split(".")[1])
        of_norm = is_norm(modules[name.rpartition(".")[0]])
        assert group["name"] == f"{'norm' if of_norm else 'decay'} of blocks.{index}", name
        assert group["weight_decay"] == (0.2 if of_norm else 0.1)
        assert group["lr"] == group["initial_lr"] == pytest.approx(0.04 * 0.75 ** DEPTHS[index], rel=1e-12)
    assert optimizer.param_groups[0]["lr"] == 0.04, "the first is the head's: the rate that is logged"


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_layer_decay_of_1_makes_the_two_groups_that_checkpoints_have(name):
    net = small_net()
    optimizer = build_optimizer(net, OptimizerConfig(name, layer_decay=1.0), global_batch_size=64)
    assert [group["name"] for group in optimizer.param_groups] == ["decay", "norm"]
    assert [len(group["params"]) for group in optimizer.param_groups] == [55, 106]
    assert "lr_scale" not in optimizer.param_groups[0]


def test_each_depth_takes_its_own_step():
    net = small_net(dropout=0.0)
    config = OptimizerConfig(lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0, layer_decay=0.5)
    optimizer = build_optimizer(net, config, global_batch_size=64)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    for name, p in net.named_parameters():
        expected = before[name] - 0.1 * 0.5 ** DEPTHS[int(name.split(".")[1])]
        torch.testing.assert_close(p.detach(), expected, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("net", [tiny_net(), nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(1, 1)])})])
def test_other_networks_have_no_depths(net):
    message = r"net must be an I3D, whose blocks are stem, res2, .*, for {}, got \w+\. Leave model\.optimizer\.{} out"
    with pytest.raises(ValueError, match=message.format("layer_decay", "layer_decay")):
        parameter_groups(net, weight_decay=0, norm_weight_decay=0, layer_decay=0.5)
    with pytest.raises(ValueError, match=message.format("frozen_stages", "frozen_stages")):
        freeze_stages(net, 1)


def test_parameters_beside_the_blocks_have_no_depth():
    net = small_net()
    net.extra = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="net must be an I3D"):
        parameter_groups(net, weight_decay=0, norm_weight_decay=0, layer_decay=0.5)


# ---- frozen stages ------------------------------------------------------------------------------


@pytest.mark.parametrize("num_stages", range(6))
def test_frozen_stages_are_the_first(num_stages):
    net = small_net("batch")
    frozen = freeze_stages(net, num_stages)
    blocks = [0, 1, 3, 4, 5][:num_stages]
    assert [id(m) for m in frozen] == [id(net.blocks[index]) for index in blocks]
    assert len(STAGES) == 6
    for name, p in net.named_parameters():
        assert p.requires_grad is (int(name.split(".")[1]) not in blocks), name
    for index, block in enumerate(net.blocks):
        assert all(m.training is (index not in blocks) for m in block.modules())


@pytest.mark.parametrize("settings", [{"name": "sgd"}, {"name": "adamw"}, {"name": "sgd", "layer_decay": 0.5}])
@pytest.mark.parametrize("norm", ["batch", "batch_renorm"])
def test_frozen_stages_stay_bit_for_bit(norm, settings):
    net = small_net(norm, dropout=0.0, drop_path=0.5)
    config = OptimizerConfig(lr=0.1, weight_decay=0.5, norm_weight_decay=0.5, frozen_stages=2, **settings)
    optimizer = build_optimizer(net, config, global_batch_size=64)

    def step():
        optimizer.zero_grad(set_to_none=False)  # a gradient of zeros would still decay weights
        net(torch.randn(2, 3, 8, 32, 32)).square().sum().backward()
        optimizer.step()

    step()  # not frozen yet: there is momentum to go on with
    frozen = freeze_stages(net, 2)
    before = copy.deepcopy(net.state_dict())
    for _ in range(3):
        net.train()
        for module in frozen:
            module.eval()
        step()
    for name, value in net.state_dict().items():
        if name.startswith(("blocks.0.", "blocks.1.")):
            assert torch.equal(value, before[name]), name
        else:
            assert not torch.equal(value, before[name]), name


def test_no_frozen_stage_changes_nothing():
    net = tiny_net()
    assert freeze_stages(net, 0) == []
    assert all(p.requires_grad for p in net.parameters()) and net.training


# ---- AdamW, and loading states ------------------------------------------------------------------


def test_adamw_takes_its_step():
    """Loshchilov & Hutter 2019 (arXiv:1711.05101), Algorithm 2, by hand."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.LayerNorm(1, bias=False)).double()
    config = OptimizerConfig("adamw", lr=0.2, beta1=0.8, beta2=0.9, eps=0.01, weight_decay=0.1, norm_weight_decay=0.0)
    optimizer = build_optimizer(net, config, global_batch_size=32)
    weights, means, squares, decays = [3.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.1, 0.0]
    parameters = [net[0].weight, net[1].weight]
    parameters[0].data.fill_(3.0)
    for step in range(1, 4):
        for i, parameter in enumerate(parameters):
            gradient = 0.5 * step - i
            parameter.grad = torch.full_like(parameter, gradient)
            means[i] = 0.8 * means[i] + 0.2 * gradient
            squares[i] = 0.9 * squares[i] + 0.1 * gradient**2
            move = means[i] / (1 - 0.8**step) / (math.sqrt(squares[i] / (1 - 0.9**step)) + 0.01)
            weights[i] -= 0.1 * (move + decays[i] * weights[i])
        optimizer.step()
        assert [float(p.detach()) for p in parameters] == pytest.approx(weights, rel=1e-12)


@pytest.mark.parametrize("settings", [{}, {"layer_decay": 0.5}])
def test_adamw_resumes_with_the_configs_settings(settings, caplog):
    def built(**changes):
        net = small_net()
        config = OptimizerConfig("adamw", **{**settings, **changes})
        optimizer = build_optimizer(net, config, global_batch_size=64)
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        return optimizer

    optimizer = built()
    optimizer.step()
    state = through_a_file(optimizer.state_dict())
    with caplog.at_level(logging.WARNING, logger="video_gn.training.optimizer"):
        built().load_state_dict(state)
        assert caplog.text == "", "the same config is silent"
        other = built(beta2=0.99, eps=1e-6, lr=0.5)
        other.load_state_dict(state)
    name = other.param_groups[0]["name"]
    assert f"betas of group {name}: (0.9, 0.999) in the checkpoint, (0.9, 0.99) in the config" in caplog.text
    assert f"eps of group {name}: 1e-08 in the checkpoint, 1e-06 in the config" in caplog.text
    assert f"initial_lr of group {name}: 0.01 in the checkpoint, 0.5 in the config" in caplog.text
    assert {group["betas"] for group in other.param_groups} == {(0.9, 0.99)}
    assert other.param_groups[0]["lr"] == 0.5
    assert all("exp_avg" in other.state[p] for group in other.param_groups for p in group["params"])
    other.step()


def test_a_state_of_another_kind_or_of_other_groups_is_refused():
    def built(**settings):
        return build_optimizer(small_net(), OptimizerConfig(**settings), global_batch_size=64)

    sgd, adamw, deep = built().state_dict(), built(name="adamw").state_dict(), built(layer_decay=0.5).state_dict()
    message = (
        "the checkpoint's optimizer is of kind '{}', the config's of kind '{}'. Set model.optimizer.name as it was"
    )
    with pytest.raises(CheckpointError, match=message.format("sgd", "adamw")):
        built(name="adamw").load_state_dict(sgd)
    with pytest.raises(CheckpointError, match=message.format("adamw", "sgd")):
        built().load_state_dict(adamw)
    with pytest.raises(CheckpointError, match=message.format("unknown", "sgd")):
        built().load_state_dict({"state": {}, "param_groups": []})
    for optimizer, state, words in (
        (built(), deep, "12 groups .* config's 2"),
        (built(layer_decay=0.5), sgd, "2 groups"),
    ):
        with pytest.raises(CheckpointError, match=f"{words}.*Set model.optimizer.layer_decay as it was"):
            optimizer.load_state_dict(state)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_state_that_the_first_step_would_fail_with_is_refused(name, caplog):
    def built(**settings):
        return build_optimizer(small_net(), OptimizerConfig(name, **settings), global_batch_size=64)

    optimizer = built()
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step()
    entry = {"sgd": "momentum_buffer", "adamw": "exp_avg_sq"}[name]
    for value, got in ((torch.zeros(9, 9), r"\(9, 9\)"), (3, "int")):
        state = copy.deepcopy(optimizer.state_dict())
        state["state"][0][entry] = value
        words = rf"must have {entry} of shape \(.*\) for \S+, got {got}.*new run from its weights \(model\.weights\)"
        with pytest.raises(CheckpointError, match=words):
            built().load_state_dict(state)
    state = copy.deepcopy(optimizer.state_dict())
    built().load_state_dict(state)
    assert not caplog.text
    del state["state"][0]  # as after other frozen stages
    built().load_state_dict(state)
    assert re.search(r"no state for 1 of \d+ parameters \(\S+, \.\.\.\): theirs starts afresh", caplog.text)
    caplog.clear()
    if name == "sgd":
        built().load_state_dict(built(momentum=0, nesterov=False).state_dict())
        assert "no state" not in caplog.text


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "lamb"}, r"optimizer name must be one of \['adamw', 'sgd'\], got 'lamb'"),
        ({"lr": 0.0}, r"lr must be above 0, got 0\.0"),
        ({"lr": float("nan")}, r"lr must be above 0, got nan"),
        ({"lr": float("inf")}, r"lr must be above 0, got inf"),
        ({"reference_batch_size": 0}, r"reference_batch_size must be at least 1 or null, got 0"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1\.0"),
        ({"momentum": -0.1}, r"momentum must be in \[0, 1\), got -0\.1"),
        ({"momentum": 0.0}, r"nesterov must be false if momentum is 0, got True"),
        ({"weight_decay": -1e-4}, r"weight_decay must be 0 or more, got -0\.0001"),
        ({"norm_weight_decay": -1.0}, r"norm_weight_decay must be 0 or more, got -1\.0"),
        ({"beta1": 1.0}, r"beta1 must be in \[0, 1\), got 1\.0"),
        ({"beta2": -0.1}, r"beta2 must be in \[0, 1\), got -0\.1"),
        ({"eps": 0.0}, r"eps must be above 0, got 0\.0"),
        ({"layer_decay": 0.0}, r"layer_decay must be in \(0, 1\], got 0\.0\. 1 turns it off"),
        ({"layer_decay": 1.5}, r"layer_decay must be in \(0, 1\], got 1\.5"),
        ({"frozen_stages": 6}, r"frozen_stages must be a whole number in \[0, 5\], got 6\. They count from the"),
        ({"frozen_stages": -1}, r"frozen_stages must be a whole number in \[0, 5\], got -1"),
    ],
)
def test_optimizer_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "ignored"),
    [
        ({"name": "adamw", "momentum": 0.5}, r"momentum=0\.5 is ignored by optimizer 'adamw'"),
        ({"name": "adamw", "nesterov": False}, r"nesterov=False is ignored by optimizer 'adamw'"),
        ({"name": "sgd", "beta1": 0.5}, r"beta1=0\.5 is ignored by optimizer 'sgd'"),
        ({"beta2": 0.5}, r"beta2=0\.5 is ignored by optimizer 'sgd'"),
        ({"eps": 0.5}, r"eps=0\.5 is ignored by optimizer 'sgd'"),
    ],
)
def test_ignored_settings_warn_at_who_wrote_them(settings, ignored):
    with pytest.warns(UserWarning, match=ignored) as caught:
        OptimizerConfig(**settings)
    assert caught[0].filename == __file__


def test_used_settings_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OptimizerConfig("adamw", beta1=0.8, beta2=0.99, eps=1e-6, layer_decay=0.5, frozen_stages=1)
        OptimizerConfig("sgd", momentum=0.0, nesterov=False)


def test_a_net_without_parameters():
    with pytest.raises(ValueError, match="net must have parameters, got ReLU with none"):
        parameter_groups(nn.ReLU(), weight_decay=0, norm_weight_decay=0)
