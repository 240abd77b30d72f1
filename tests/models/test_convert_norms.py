"""Another kind of norm in a built network: what is kept, what is dropped, what is refused."""

import copy
import itertools

import pytest
import torch
from nets import clips, randomize, small
from torch import nn
from torchvision.models.video import r3d_18

from video_gn.models import convert_norms, i3d
from video_gn.models._batch_norms import BatchRenorm
from video_gn.models.norms import NORMS, is_norm, make_norm
from video_gn.models.tables import BATCH_FAMILY

GROUPS = {"group": {"num_groups": 2}}
WITH_STATISTICS = list(BATCH_FAMILY)


def stack(kind):
    """Random norms with a count; "torch" for torch's own Batch Norm."""
    torch.manual_seed(0)
    make = nn.BatchNorm3d if kind == "torch" else lambda c, **more: make_norm(kind, c, **GROUPS.get(kind, {}), **more)
    net = nn.Sequential(nn.Conv3d(3, 4, 1), make(4, eps=0.1), nn.Sequential(nn.Conv3d(4, 6, 1), make(6, eps=0.2)))
    for module in net.modules():
        if is_norm(module) and hasattr(module, "num_batches_tracked"):
            module.num_batches_tracked.fill_(7)
    return randomize(net)


def norms(net):
    return [module for module in net.modules() if is_norm(module)]


@pytest.mark.parametrize(("there", "here"), list(itertools.product([*NORMS, "torch"], NORMS)))
def test_what_is_kept(there, here):
    net = stack(there).eval()
    net[1].train()
    old = copy.deepcopy(norms(net))
    parameters = {name: id(p) for name, p in net.named_parameters()}
    x = clips(2, 3, 5)
    before = copy.deepcopy(net).eval()(x).detach()
    kept = there == "torch" or there in BATCH_FAMILY
    if here == "frozen_batch" and not kept:
        state = copy.deepcopy(net.state_dict())
        with pytest.raises(ValueError, match=r"must have running statistics to become 'frozen_batch', got \w+ as 1\."):
            convert_norms(net, here)
        assert [type(m) for m in norms(net)] == [type(m) for m in old]
        assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
        return
    assert convert_norms(net, here, **GROUPS.get(here, {})) is net
    assert {name: id(p) for name, p in net.named_parameters()} == parameters
    for was, norm, eps, training in zip(old, norms(net), (0.1, 0.2), (True, False), strict=True):
        assert type(norm) in NORMS[here].types
        assert torch.equal(norm.weight, was.weight) and torch.equal(norm.bias, was.bias)
        assert norm.training is training
        assert norm.weight.requires_grad is norm.bias.requires_grad is (here != "frozen_batch")
        if here != "none":
            assert norm.eps == (eps if there != "none" else 1e-5)
        if here in BATCH_FAMILY:
            for name in ("running_mean", "running_var"):
                fresh = torch.full_like(norm.weight, name == "running_var")
                assert torch.equal(getattr(norm, name), getattr(was, name) if kept else fresh)
            counts = kept and (here != "batch_renorm" or there == "batch_renorm")
            assert int(norm.num_batches_tracked) == (7 if counts else 0)
            assert norm.num_batches_tracked.dtype == torch.int64
    net.eval()
    if (kept and here in BATCH_FAMILY) or there == here:
        torch.testing.assert_close(net(x), before, rtol=1e-6, atol=1e-6)
    net.load_state_dict(convert_norms(stack(here), here, **GROUPS.get(here, {})).state_dict())


def test_numbers_of_the_old_norms():
    net = nn.Sequential(*(nn.BatchNorm3d(4, momentum=momentum) for momentum in (0.3, None)))
    net[0].weight.requires_grad_(False)
    net = convert_norms(net, "batch_renorm", norm_options={"r_max": 3}).double()
    assert [(type(n), n.momentum, n.r_max, n.d_max) for n in net] == [
        (BatchRenorm, 0.3, 3, 0.5),
        (BatchRenorm, None, 3, 0.5),
    ]
    assert not net[0].weight.requires_grad and net[0].bias.requires_grad
    net = convert_norms(net, "sync_batch")
    assert [n.momentum for n in net] == [0.3, None]
    assert not net[0].weight.requires_grad and net[0].bias.requires_grad
    # A frozen norm has no momentum.
    net = convert_norms(convert_norms(net, "frozen_batch"), "batch")
    assert [n.momentum for n in net] == [0.1, 0.1]
    assert all(p.requires_grad for p in net.parameters())
    # float64 goes to what is fresh, too.
    net = convert_norms(convert_norms(net, "group", channels_per_group=2), "batch")
    assert {t.dtype for t in net.state_dict().values()} == {torch.float64, torch.int64}
    assert net(clips(2, 3, 5, channels=4).double()).dtype == torch.float64


def test_a_norm_without_scale_gets_one_and_instance_statistics_are_not_taken():
    net = nn.Sequential(nn.BatchNorm3d(4, affine=False), nn.InstanceNorm3d(4, track_running_stats=True))
    net[1].running_mean.fill_(5)
    convert_norms(net, "batch")
    for norm in net:
        assert torch.equal(norm.weight, torch.ones(4)) and torch.equal(norm.bias, torch.zeros(4))
        assert norm.weight.requires_grad and not bool(norm.running_mean.any())


def test_one_layer_in_two_places_stays_one():
    norm = nn.BatchNorm3d(4)
    net = nn.Sequential(norm, nn.Sequential(norm), nn.Identity(), norm)
    convert_norms(net, "group", num_groups=2)
    assert isinstance(net[0], nn.GroupNorm)
    assert net[0] is net[1][0] is net[3]


def test_a_norm_itself():
    norm = nn.BatchNorm3d(4)
    new = convert_norms(norm, "none")
    assert new is not norm and new.weight is norm.weight


def test_networks_of_others():
    with torch.device("meta"):
        net = r3d_18()
    count, names = len(norms(net)), set(net.state_dict())
    convert_norms(net, "frozen_batch")
    assert set(net.state_dict()) == names
    assert len(norms(net)) == count == sum(type(m) in NORMS["frozen_batch"].types for m in net.modules())
    assert all(p.is_meta for p in net.state_dict().values())
    # Batch Norm of images.
    image = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    x = torch.randn(2, 3, 5, 5)
    wanted = copy.deepcopy(image)(x)
    torch.testing.assert_close(convert_norms(image, "batch")(x), wanted)


@pytest.mark.parametrize("kind", NORMS)
def test_i3d_is_what_its_arguments_build(kind):
    net = randomize(small(norm="batch", norm_eps=1e-3, norm_momentum=0.2))
    options = {"norm_options": {"r_max": 2.0}} if kind == "batch_renorm" else {}
    convert_norms(net, kind, **GROUPS.get(kind, {}), **options)
    fresh = i3d(**net.arguments)
    assert fresh.arguments == net.arguments == small(norm=kind, norm_eps=1e-3, norm_momentum=0.2, **options).arguments
    assert [repr(m) for m in norms(fresh)] == [repr(m) for m in norms(net)]
    fresh.load_state_dict(net.state_dict())
    x = clips(1, 8, 64)  # a map of one position is no instance to normalize
    assert torch.equal(fresh.eval()(x), net.eval()(x))
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in small(norm="batch").parameters())


def test_default_groups_of_i3d():
    net = small(norm="batch", width=32)
    convert_norms(net, "group")
    assert net.arguments["num_groups"] == 32 and net.arguments["channels_per_group"] is None
    convert_norms(net, "group", channels_per_group=16)
    assert net.arguments["num_groups"] is None and net.arguments["channels_per_group"] == 16
    with pytest.warns(UserWarning, match="num_groups=4 is ignored: norm 'layer' has no groups"):
        convert_norms(net, "layer", num_groups=4)
    assert net.arguments["num_groups"] is None
    narrow = convert_norms(small(norm="batch", width=24), "group")
    assert narrow.arguments["num_groups"] == 12
    assert {m.num_groups for m in narrow.modules() if is_norm(m)} == {12}


@pytest.mark.parametrize(
    ("net", "kind", "options", "message"),
    [
        (stack("batch"), "group", {"num_groups": 4}, r"num_groups must divide the 6 channels of 2\.1, got 4\. Use num"),
        # What all layers take, not 4 of the 4 channels alone.
        (
            nn.Sequential(nn.BatchNorm3d(4), nn.BatchNorm3d(6)),
            "group",
            {"num_groups": 5},
            "the 4 .* Use num_groups=2 or",
        ),
        (stack("batch"), "group", {"num_groups": 2, "channels_per_group": 2}, "must not both be set"),
        (stack("batch"), "goup", {}, "norm must be one of"),
        (stack("batch"), "none", {"norm_options": {"r_max": 2}}, "norm_options must be empty for norm 'none'"),
        (nn.Sequential(nn.LayerNorm(4)), "none", {}, r"norms .* must scale each channel, got LayerNorm as 0\. Swap"),
        (
            nn.Sequential(nn.BatchNorm3d(4), nn.BatchNorm3d(4, track_running_stats=False)),
            "frozen_batch",
            {},
            "must have running statistics to become 'frozen_batch', got BatchNorm3d as 1",
        ),
    ],
)
def test_refused_and_unchanged(net, kind, options, message):
    before = copy.deepcopy(net)
    with pytest.raises(ValueError, match=message):
        convert_norms(net, kind, **options)
    assert repr(net) == repr(before)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), before.state_dict().values(), strict=True))
    assert all(a.requires_grad is b.requires_grad for a, b in zip(net.parameters(), before.parameters(), strict=True))
