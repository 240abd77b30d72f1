"""Every kind of norm against loops over plain numbers, and the errors."""

import itertools
import logging
import warnings
from typing import get_args

import pytest
import torch
from torch import nn

from video_gn.models._batch_norms import BatchRenorm
from video_gn.models.norms import (
    NORMS,
    check_norm_training,
    group_count,
    has_statistics,
    is_norm,
    make_norm,
    norm_kind,
)
from video_gn.models.tables import BATCH_FAMILY, NormName

SHAPE = (3, 4, 3, 1, 5)  # N, C, T, H, W
GROUPS = {"group": {"num_groups": 2}}
# With fresh statistics and before its warm-up Batch Renorm is Batch Norm, and so is Sync Batch Norm in one process;
# test_batch_norms.py has the rest.
LIKE_BATCH = ("batch", "sync_batch", "batch_renorm")


def members(kind, n, c, shape, num_groups):
    """Indices of the values that share a mean with (n, c), as the paper's sets S_i, with T."""
    num_samples, num_channels, *positions = shape
    per_group = num_channels // num_groups
    samples, channels = {
        **dict.fromkeys(LIKE_BATCH, (range(num_samples), [c])),
        "layer": ([n], range(num_channels)),
        "instance": ([n], [c]),
        "group": ([n], range(c // per_group * per_group, (c // per_group + 1) * per_group)),
    }[kind]
    return list(itertools.product(samples, channels, *(range(size) for size in positions)))


def naive(kind, x, weight, bias, *, num_groups=2, eps=1e-5):
    """The definition, one value at a time, in Python's float64."""
    weight, bias = weight.detach(), bias.detach()
    out = torch.empty_like(x)
    for n, c, *position in itertools.product(*(range(size) for size in x.shape)):
        if kind == "none":
            out[n, c, *position] = float(x[n, c, *position]) * float(weight[c]) + float(bias[c])
            continue
        if kind == "frozen_batch":
            mean, variance = 0.0, 1.0  # a fresh one's
        else:
            values = [float(x[index]) for index in members(kind, n, c, x.shape, num_groups)]
            mean = sum(values) / len(values)
            variance = sum((v - mean) ** 2 for v in values) / len(values)
        normalized = (float(x[n, c, *position]) - mean) / (variance + eps) ** 0.5
        out[n, c, *position] = normalized * float(weight[c]) + float(bias[c])
    return out


def build(kind, num_channels=SHAPE[1], **options):
    norm = make_norm(kind, num_channels, **GROUPS.get(kind, {}), **options).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in norm.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return norm


def clip(shape=SHAPE, seed=0):
    # Off center and of unequal scale per channel, so that wrong sets show.
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x * torch.arange(1, shape[1] + 1).view(1, -1, 1, 1, 1) + torch.arange(shape[0]).view(-1, 1, 1, 1, 1)


def test_names_are_the_tables():
    assert set(get_args(NormName)) == set(NORMS)


@pytest.mark.parametrize("kind", NORMS)
def test_forward_is_the_definition(kind):
    norm = build(kind)
    x = clip()
    # float64 against float64: rounding of sums of at most 60 values.
    torch.testing.assert_close(norm(x), naive(kind, x, norm.weight, norm.bias), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eps", [1e-5, 0.5])
@pytest.mark.parametrize("kind", NORMS)
def test_eps_is_added_to_the_variance(kind, eps):
    norm = build(kind, eps=eps)
    x = clip() * 1e-2
    torch.testing.assert_close(norm(x), naive(kind, x, norm.weight, norm.bias, eps=eps), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", NORMS)
def test_gradient_is_the_definitions(kind):
    shape = (2, 4, 2, 2, 1)
    norm = build(kind)
    x = clip(shape).requires_grad_()
    upstream = clip(shape, seed=3)
    (norm(x) * upstream).sum().backward()
    step = 1e-6
    numeric = torch.empty_like(x)
    with torch.no_grad():
        for index in itertools.product(*(range(size) for size in shape)):
            sides = []
            for sign in (1, -1):
                moved = x.detach().clone()
                moved[index] += sign * step
                sides.append((naive(kind, moved, norm.weight, norm.bias) * upstream).sum())
            numeric[index] = (sides[0] - sides[1]) / (2 * step)
    # Central differences: an error of the order of step^2 and of rounding / step, about 1e-9 of values near 10.
    torch.testing.assert_close(x.grad, numeric, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", NORMS)
def test_gradcheck(kind):
    norm = build(kind)
    x = clip((2, 4, 2, 2, 1)).requires_grad_()

    def function(x, weight, bias):
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (x,))

    if kind == "frozen_batch":  # its scale and shift are no variables
        assert torch.autograd.gradcheck(lambda x: function(x, norm.weight, norm.bias), (x,))
    else:
        assert torch.autograd.gradcheck(function, (x, norm.weight, norm.bias))


@pytest.mark.parametrize("kind", NORMS)
def test_parameters_are_one_scale_and_one_shift_per_channel(kind):
    norm = make_norm(kind, 32)
    assert {name: tuple(p.shape) for name, p in norm.named_parameters()} == {"weight": (32,), "bias": (32,)}
    assert torch.equal(norm.weight, torch.ones(32)) and torch.equal(norm.bias, torch.zeros(32))


def test_running_averages_of_batch_norm():
    norm = build("batch", momentum=0.3)
    batches = [clip(seed=seed) for seed in range(3)]
    mean, variance = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    for x in batches:
        norm(x)
        count = x.numel() // 4
        batch_mean = torch.stack([x[:, c].sum() / count for c in range(4)])
        # The running variance is the unbiased one, unlike the one that normalizes.
        batch_variance = torch.stack([((x[:, c] - batch_mean[c]) ** 2).sum() / (count - 1) for c in range(4)])
        mean = 0.7 * mean + 0.3 * batch_mean
        variance = 0.7 * variance + 0.3 * batch_variance
    norm.eval()
    x = clip(seed=9)
    expected = torch.empty_like(x)
    for c in range(4):
        expected[:, c] = (x[:, c] - mean[c]) / (variance[c] + 1e-5) ** 0.5 * norm.weight[c] + norm.bias[c]
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", NORMS)
def test_the_table_says_what_depends_on_the_batch_and_what_is_kept(kind):
    norm = build(kind)
    x = clip()
    alone, together = norm(x[:1]), norm(x)[:1]
    assert torch.allclose(alone, together, rtol=1e-12, atol=1e-12) is not NORMS[kind].depends_on_batch
    training = norm(x)
    norm.eval()
    # What does not depend on the batch has nothing to do otherwise at test.
    assert torch.equal(training, norm(x)) is not NORMS[kind].depends_on_batch
    buffers = {name for name, _ in norm.named_buffers()}
    wanted = {"running_mean", "running_var", "num_batches_tracked"} if kind in BATCH_FAMILY else set()
    assert buffers == wanted


def test_names_in_a_state_dict_are_batch_norms():
    names = list(nn.BatchNorm3d(4).state_dict())
    for kind in NORMS:
        wanted = names if kind in BATCH_FAMILY else ["weight", "bias"]
        assert list(make_norm(kind, 32).state_dict()) == wanted
    assert set(BATCH_FAMILY) == {
        "batch",
        "sync_batch",
        "frozen_batch",
        "batch_renorm",
    }


@pytest.mark.parametrize("kind", NORMS)
def test_channels_last_is_kept(kind):
    norm = build(kind)
    x = clip()
    out = norm(x.to(memory_format=torch.channels_last_3d))
    assert out.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(out, norm(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["group", "layer", "instance"])
def test_statistics_of_low_precision_input_are_taken_in_float32(kind):
    # A mean of 64 in bfloat16 would be off by up to 0.25; the result has only the input's rounding.
    x = (torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0)) + 64).bfloat16()
    norm = make_norm(kind, 4, **GROUPS.get(kind, {}))
    expected = norm(x.float())
    got = norm.bfloat16()(x).float()
    # bfloat16 has 8 bits: the output, up to 4, is rounded by at most 2**-7 of it.
    torch.testing.assert_close(got, expected, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize(
    "norm",
    [
        *(make_norm(kind, 32) for kind in NORMS),
        nn.SyncBatchNorm(4),
        nn.BatchNorm2d(4),
        nn.InstanceNorm3d(4, affine=True),
        nn.LayerNorm(4),
        nn.RMSNorm(4),
        nn.LocalResponseNorm(2),
        nn.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm3d(4)),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_is_norm(norm):
    assert is_norm(norm)


@pytest.mark.parametrize("module", [nn.Conv3d(3, 4, 1), nn.Linear(3, 4), nn.ReLU(), nn.Sequential(nn.BatchNorm3d(4))])
def test_is_no_norm(module):
    assert not is_norm(module)


def test_groups():
    assert make_norm("group", 64).num_groups == 32
    assert make_norm("group", 64, num_groups=8).num_groups == 8
    assert make_norm("group", 64, channels_per_group=16).num_groups == 4
    assert make_norm("group", 2048, channels_per_group=16).num_groups == 128
    assert make_norm("layer", 64).num_groups == 1
    assert make_norm("instance", 64).num_groups == 64
    assert group_count(16, channels_per_group=16) == 1


def test_groups_that_nobody_chose_divide_the_channels_and_are_told(caplog):
    caplog.set_level(logging.INFO, "video_gn")
    counts = {1: 1, 2: 1, 7: 1, 8: 4, 16: 8, 24: 12, 32: 32, 40: 20, 48: 24, 64: 32, 96: 32, 100: 25, 2048: 32}
    assert {c: make_norm("group", c).num_groups for c in counts} == counts
    assert {c: group_count(c) for c in counts} == counts
    told = [m for m in caplog.messages if m.startswith("num_groups: ")]
    assert len(told) == sum(g != 32 for g in counts.values())
    assert "num_groups: 12, since 32 do not divide 24 channels" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("group", 16, {"num_groups": 32}),
            r"num_groups must divide the 16 channels of this layer, got 32\. Use num_groups=16 or set chan",
        ),
        (("group", 48, {"num_groups": 32}), r"num_groups must divide the 48 channels .* got 32\. Use num_groups=24 or"),
        (
            ("group", 24, {"channels_per_group": 16}),
            r"channels_per_group must divide the 24 channels .* Use channels_per",
        ),
        (("group", 32, {"num_groups": 8, "channels_per_group": 4}), r"num_groups and channels_per_group must not both"),
        (("group", 32, {"num_groups": 0}), r"num_groups must be a whole number of at least 1, got 0"),
        (("group", 32, {"num_groups": 2.0}), r"num_groups must be a whole number of at least 1, got 2\.0"),
        (("group", 32, {"channels_per_group": -1}), r"channels_per_group must be a whole number of at least 1, got -1"),
        (("batch", 0), r"num_channels must be at least 1, got 0 for this layer"),
        (("batch", 4, {"eps": 0.0}), r"eps must be above 0, got 0\.0"),
        (("batch", 4, {"eps": float("nan")}), r"eps must be above 0, got nan"),
        (("batch", 4, {"momentum": 1.5}), r"momentum must be in \[0, 1\], got 1\.5"),
        (
            ("goup", 4),
            r"norm must be one of \['batch', 'batch_renorm', 'frozen_batch', 'group', 'instance', 'layer', 'none', "
            r"'sync_batch'\], got 'goup'",
        ),
        (
            ("batch_renorm", 4, {"norm_options": {"rmax": 2}}),
            r"norm_options must hold only r_max, d_max, warmup_start_steps, warmup_steps for norm 'batch_renorm', "
            r"got 'rmax'",
        ),
        (
            ("batch", 4, {"norm_options": {"r_max": 2}}),
            r"norm_options must be empty for norm 'batch', got 'r_max'\. Remove",
        ),
        (("batch_renorm", 4, {"norm_options": {"r_max": 0.9}}), r"r_max must be at least 1 and finite, got 0\.9"),
        (("batch_renorm", 4, {"norm_options": {"d_max": float("nan")}}), r"d_max must be at least 0 .*, got nan"),
        (
            ("batch_renorm", 4, {"norm_options": {"warmup_steps": 0.5}}),
            r"warmup_steps must be a whole number of at least 0, got 0\.5",
        ),
        (
            ("batch_renorm", 4, {"norm_options": {"warmup_start_steps": -1}}),
            r"warmup_start_steps must be a whole number of at least 0, got -1",
        ),
    ],
)
def test_errors(arguments, message):
    kind, num_channels, *options = arguments
    with pytest.raises(ValueError, match=message):
        make_norm(kind, num_channels, **(options[0] if options else {}))


def test_unknown_kind():
    with pytest.raises(ValueError, match=r"norm must be one of .*, got 'bn'"):
        norm_kind("bn")


@pytest.mark.parametrize("kind", [kind for kind in NORMS if kind != "group"])
@pytest.mark.parametrize("name", ["num_groups", "channels_per_group"])
def test_groups_that_mean_nothing_warn(kind, name):
    with pytest.warns(UserWarning, match=rf"{name}=4 is ignored: norm '{kind}' has no groups to choose"):
        make_norm(kind, 16, **{name: 4})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_norm(kind, 16)


def test_options_reach_the_norm():
    norm = make_norm("batch_renorm", 4, norm_options={"r_max": 3, "d_max": 5.0, "warmup_start_steps": 7.0})
    assert isinstance(norm, BatchRenorm)
    assert (norm.r_max, norm.d_max, norm.warmup_start_steps, norm.warmup_steps) == (3.0, 5.0, 7, 20000)
    assert "r_max=3, d_max=5, warmup_start_steps=7, warmup_steps=20000" in repr(norm)
    norm = make_norm("batch_renorm", 4, norm_options={})
    assert (norm.r_max, norm.d_max, norm.warmup_start_steps, norm.warmup_steps) == (1.5, 0.5, 5000, 20000)
    for kind, row in NORMS.items():
        assert row.options == (
            () if kind != "batch_renorm" else ("r_max", "d_max", "warmup_start_steps", "warmup_steps")
        )


def test_has_statistics():
    assert not has_statistics(nn.Sequential(nn.Conv3d(3, 4, 1), make_norm("group", 32)))
    net = nn.Sequential(nn.Conv3d(3, 4, 1), make_norm("frozen_batch", 4), nn.BatchNorm3d(4))
    assert not has_statistics(net)
    for name in ("running_mean", "running_var"):
        for norm in net[1:]:
            kept = getattr(norm, name)[3].clone()
            getattr(norm, name)[3] = 0.5
            assert has_statistics(net)
            getattr(norm, name)[3] = kept
    assert not has_statistics(net)


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (
            "sync_batch",
            {"world_size": 1},
            r"model\.net\.norm must not be 'sync_batch' in one process, got world_size 1",
        ),
        (
            "batch_renorm",
            {"batch_size": 1},
            r"model\.net\.norm must not be 'batch_renorm' .* got batch size 1\. Set it",
        ),
        ("frozen_batch", {"has_statistics": False}, r"must not be 'frozen_batch' without .*model\.weights to a file"),
        ("bn", {}, "norm must be one of"),
    ],
)
def test_training_that_means_something_else(kind, wrong, message):
    right = {"batch_size": 2, "world_size": 2, "has_statistics": True}
    with pytest.raises(ValueError, match=message):
        check_norm_training(kind, **right | wrong)
    for other in NORMS:
        check_norm_training(other, **right)
        if other != kind:
            check_norm_training(other, **right | wrong)
