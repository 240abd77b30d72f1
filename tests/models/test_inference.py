"""The copy of a network for inference: the same scores in every layout and with every kind of norm."""

import copy
from itertools import chain, cycle

import pytest
import torch
from nets import clips, randomize, small, spread
from torch import nn

from video_gn.models import (
    HUB_NETWORKS,
    LAYOUTS,
    NETWORKS,
    NORMS,
    OwnNet,
    for_inference,
    is_norm,
    make_norm,
    map_views,
    views_at_a_time,
)

STAYING = ("group", "layer", "instance", "own statistics")


def mixed(layout):
    """A network with norms of every kind in turns, and how many of them have statistics of the clips at hand."""
    net, kinds, staying = small(layout=layout, norm="batch"), cycle([*NORMS, "own statistics"]), 0
    places = [(m, name) for m in net.modules() for name, child in m.named_children() if is_norm(child)]
    for (parent, name), kind in zip(places, kinds, strict=False):
        num_channels = getattr(parent, name).num_features
        staying += kind in STAYING
        if kind == "own statistics":
            norm = nn.BatchNorm3d(num_channels, track_running_stats=False)
        else:
            norm = make_norm(kind, num_channels, **{"num_groups": 2} if kind == "group" else {})
        setattr(parent, name, norm)
    return net, staying


def check_scores(net, x, *, rtol=1e-5):
    """The copy's scores are the network's: in float64, and in float32 within `rtol`, some hundred roundings of 6e-8."""
    exact = copy.deepcopy(net).double()(x.double())
    assert exact.std() > 0.01
    torch.testing.assert_close(for_inference(copy.deepcopy(net).double())(x.double()), exact, rtol=1e-12, atol=0)
    # oneDNN's order of additions is another.
    fast = for_inference(net)
    for given in (x, x.contiguous(memory_format=torch.channels_last_3d)):
        before = given.clone()
        torch.testing.assert_close(fast(given), exact.float(), rtol=rtol, atol=0)
        assert torch.equal(given, before)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.inference_mode()
def test_equal_scores(layout):
    x = clips(2, 8, 33)
    net, staying = mixed(layout)
    net = spread(randomize(net).eval(), x, training=False)
    fast = for_inference(net)
    assert sum(map(is_norm, fast.modules())) == staying
    assert fast.arguments == net.arguments
    check_scores(net, x)


# X3D-S every day, whose parts the others have but for convolutions in space and time, one after the other.
@pytest.mark.parametrize(
    "network", [n if n == "x3d_s" else pytest.param(n, marks=pytest.mark.slow) for n in HUB_NETWORKS]
)
@pytest.mark.parametrize("norm", ["batch", "group"])
@torch.inference_mode()
def test_equal_scores_of_the_hubs_networks(network, norm):
    x = clips(2, 8, 33)
    net = spread(randomize(NETWORKS[network](5, norm=norm, width=4)).eval(), x, training=False)
    norms, left = (sum(map(is_norm, one.modules())) for one in (net, for_inference(net)))
    assert left == (norms if norm == "group" else 0)
    # torch's Group Norm in channels_last_3d, and 50 of them in a row: up to 4e-4 in 30 draws of weights.
    check_scores(net, x, rtol=1e-3 if norm == "group" else 1e-5)


def test_a_network_of_ones_own_is_copied_as_it_is():
    """Names as pytorchvideo's mean nothing there: this norm comes before the convolution."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm_a, self.conv_a = nn.BatchNorm3d(3), nn.Conv3d(3, 5, 3)

        def forward(self, x):
            return self.conv_a(self.norm_a(x)).mean((2, 3, 4))

    net, x = OwnNet(randomize(Own())).eval(), clips(2, 4, 8)
    fast = for_inference(net)
    assert torch.equal(fast(x), net(x)) and fast.state_dict().keys() == net.state_dict().keys()


@pytest.mark.parametrize("norm", ["batch", "group"])
@torch.inference_mode()
def test_a_network_that_has_diverged_has_no_scores(norm):
    """What is not finite must reach the scores, as in the network itself: there it is refused."""
    for value in (float("nan"), 1e30):
        net = randomize(small(norm=norm)).eval()
        for weight in net.parameters():
            weight.fill_(value)
        x = clips(1, 8, 33)
        assert net(x).isnan().all() and for_inference(net)(x).isnan().all()


def test_the_network_itself_is_left_alone():
    net = randomize(small(norm="batch")).train()
    before = copy.deepcopy(net.state_dict())
    fast = for_inference(net)
    assert net.training and not fast.training
    assert not any(p.requires_grad for p in fast.parameters()) and all(p.requires_grad for p in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    own = {t.data_ptr() for t in chain(net.parameters(), net.buffers())}
    assert not own & {t.data_ptr() for t in chain(fast.parameters(), fast.buffers())}


@pytest.mark.parametrize(
    ("most", "view", "device", "number"),
    [
        (10, (32, 3, 224, 224), "cpu", 1),  # 19.3 MB of float32
        (10, (8, 3, 224, 224), "cpu", 4),
        (2, (8, 3, 224, 224), "cpu", 2),
        (10, (8, 3, 112, 112), "cpu", 10),
        (10, (64, 3, 256, 340), "cpu", 1),  # larger than all that is wanted at a time
        (10, (64, 3, 256, 340), "cuda", 10),
    ],
)
def test_large_views_go_through_a_cpu_few_at_a_time(most, view, device, number):
    assert views_at_a_time(most, view, torch.device(device)) == number


def test_views_are_mapped_in_parts_of_that_size():
    views, sizes = torch.arange(9).view(9, 1, 1, 1, 1).expand(9, 8, 3, 224, 224), []

    def function(part):
        sizes.append(len(part))
        return part[:, 0, 0, 0, :1]

    assert map_views(function, views).flatten().tolist() == list(range(9))
    assert sizes == [4, 4, 1]
