"""The networks of pytorchvideo's hub: its scores, any norm, its names."""

from collections import Counter

import pytest
import torch
from nets import clips, randomize
from pytorchvideo.models import hub
from torch import nn

from video_gn.models import HUB_NETWORKS, NETWORKS, NORMS, build_network, for_inference, is_norm
from video_gn.planning.memory import Step, count_view_macs
from video_gn.training.optimizer import OptimizerConfig
from video_gn.weights import load_into

# Of the hub's networks: what their widths are counted from, and a clip that leaves the head several positions.
SMALL = {
    "x3d_s": ({"stem_dim_in": 4}, (14, 192)),
    "r2plus1d_r50": ({"stem_dim_out": 4}, (20, 256)),
    "slow_r50": ({"stem_dim_out": 4, "head_activation": nn.Softmax}, (9, 256)),
}


def peer_of(network, **more):
    return getattr(hub, network)(pretrained=False, **more)


# X3D-S every day; the others, which share all but the builder's call, with the slow tests.
NETWORKS_BY_COST = [n if n == "x3d_s" else pytest.param(n, marks=pytest.mark.slow) for n in HUB_NETWORKS]


@pytest.mark.parametrize("network", NETWORKS_BY_COST)
def test_weights_of_the_hub_give_the_hubs_scores(network, tmp_path):
    settings, (frames, px) = SMALL[network]
    torch.manual_seed(0)
    peer = randomize(peer_of(network, model_num_class=5, **settings)).eval()
    torch.save({"model_state": peer.state_dict()}, tmp_path / "hub.pyth")
    net = NETWORKS[network](5, norm="batch", width=4).eval()
    report = load_into(net, tmp_path / "hub.pyth")
    assert report.format == "pytorchvideo" and not report.left and not report.problems
    x_NCTHW = clips(1, frames, px)
    with torch.no_grad():
        net.classifier.weight.mul_(2 / net.position_logits(x_NCTHW).std())
        peer.blocks[-1].proj.load_state_dict(net.classifier.state_dict())
        wanted_NY = peer(x_NCTHW)
        assert net.position_logits(x_NCTHW).shape[1] > 1
        for found_NY in (net(x_NCTHW), for_inference(net)(x_NCTHW), net.scores_and_embedding(x_NCTHW)[0]):
            torch.testing.assert_close(found_NY, wanted_NY, rtol=0, atol=1e-5)
    assert 0.01 < wanted_NY.max() < 0.99


@pytest.mark.parametrize("network", NETWORKS_BY_COST)
def test_all_tensors_have_the_hubs_names_and_shapes(network):
    with torch.device("meta"):
        wanted, found = (net.state_dict() for net in (peer_of(network), NETWORKS[network](norm="batch")))
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in wanted.items()}


@pytest.mark.slow
@pytest.mark.parametrize("network", HUB_NETWORKS)
def test_every_norm_is_in_its_place_and_learns(network):
    with torch.device("meta"):
        number = sum(isinstance(module, nn.BatchNorm3d) for module in peer_of(network).modules())
    for kind, row in NORMS.items():
        net = NETWORKS[network](5, norm=kind, width=4)
        assert Counter(type(m) for m in net.modules() if is_norm(m)) == {row.types[0]: number}, kind
        logits_NY = net(clips(2, 4, 32))
        logits_NY.logsumexp(1).sum().backward()
        assert logits_NY.shape == (2, 5) and logits_NY.isfinite().all(), kind
        trained = [p for p in net.parameters() if p.requires_grad]
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trained), kind
        assert any(bool((p.grad != 0).any()) for p in net.blocks[1].parameters() if p.requires_grad), kind
        with torch.device("meta"):
            again = build_network(net.arguments)
        assert again.arguments == net.arguments and again.state_dict().keys() == net.state_dict().keys()


def groups_of(net):
    return {module.num_channels: module.num_groups for module in net.modules() if is_norm(module)}


def test_groups_divide_the_channels_of_each_layer():
    with torch.device("meta"):
        most_of_32 = {24: 12, 48: 24, 54: 27, 96: 32, 108: 27, 192: 32, 216: 27, 432: 27}
        assert groups_of(NETWORKS["x3d_s"]()) == most_of_32
        assert groups_of(NETWORKS["x3d_s"](num_groups=8)) == dict.fromkeys(most_of_32, 8) | {
            54: 6, 108: 6, 216: 8, 432: 8
        }  # fmt: skip
        assert groups_of(NETWORKS["x3d_s"](channels_per_group=6)) == {c: c // 6 for c in most_of_32}
        assert set(groups_of(NETWORKS["slow_r50"]()).values()) == {32}
        for arguments, words in (
            ({"channels_per_group": 16}, "channels_per_group must divide the 24 channels of a layer of x3d_s"),
            # 4 divides the stem's 8 channels, but not the 18 after it.
            ({"channels_per_group": 5, "width": 4}, "divide the 8 .* got 5. Use channels_per_group=2 or"),
            ({"num_groups": 0}, "num_groups must be a whole number of at least 1"),
            ({"num_groups": 8, "channels_per_group": 2}, "must not both be set"),
            ({"width": 10}, "width of x3d_s must be a multiple of 4"),
            ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ):
            with pytest.raises(ValueError, match=words):
                NETWORKS["x3d_s"](**arguments)


@pytest.mark.slow
def test_a_clip_of_x3d_s_costs_a_tenth_of_i3ds():
    i3d, x3d = (
        count_view_macs(Step(net, clip, OptimizerConfig()), clip)
        for net, clip in (({"depth": 50}, (32, 224, 224)), ({"network": "x3d_s"}, (13, 160, 160)))
    )
    assert x3d <= i3d / 10
    # Source: SlowFast's model zoo, 1.96 G for X3D-S.
    assert x3d == pytest.approx(1.96e9, rel=0.01)
