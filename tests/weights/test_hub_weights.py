"""Files of pytorchvideo's hub and checkpoints of networks other than I3D."""

import sys

import pytest
import torch
from small import ABOUT
from zoo_nets import copy_of, randomized, same, small, write

from video_gn.errors import CheckpointError
from video_gn.models import HUB_NETWORKS, NETWORKS, OwnNet
from video_gn.weights import load_into
from video_gn.weights.build import load_net, load_own, look_into
from video_gn.weights.convert import convert
from video_gn.weights.inspect import inspect


def hub_net(network, norm="batch"):
    return randomized(NETWORKS[network](5, norm=norm, width=4))


@pytest.mark.parametrize(
    "network", [n if n == "slow_r50" else pytest.param(n, marks=pytest.mark.slow) for n in HUB_NETWORKS]
)
def test_a_file_says_which_network_it_is(network, tmp_path):
    net = hub_net(network)
    file = tmp_path / "hub.pyth"
    torch.save({"model_state": net.state_dict()}, file)
    found, about = load_net(file)
    assert found.arguments == net.arguments and same(copy_of(found), copy_of(net))
    frames = {"x3d_s": (13, 6, 182), "r2plus1d_r50": (16, 4, 224), "slow_r50": (8, 8, 224)}[network]
    assert (about["clip"]["num_frames"], about["clip"]["stride"], about["views"]["crop_px"]) == frames
    for target in (tmp_path / "ours.ckpt", tmp_path / "ours.safetensors"):
        convert(file, target)
        again, says = load_net(target)
        assert says == about and same(copy_of(again), copy_of(net))
        assert f"{network} of pytorchvideo, width 4" in inspect(target)
    with pytest.raises(CheckpointError, match="torchvision has no names for"):
        convert(file, tmp_path / "theirs.pth")
    with pytest.raises(CheckpointError, match="layouts are I3D's own"):
        load_net(file, layout="nonlocal")


def test_a_checkpoint_rebuilds_its_norm(tmp_path):
    net = hub_net("x3d_s", "group")
    state = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"video_gn": {**ABOUT, "classes": list("abcde"), "net": net.arguments}, "state_dict": state},
               tmp_path / "a.ckpt")  # fmt: skip
    found, _ = load_net(tmp_path / "a.ckpt")
    assert found.arguments == net.arguments and same(copy_of(found), copy_of(net))
    lies = net.arguments | {"width": 65536}
    torch.save({"video_gn": {**ABOUT, "net": lies}, "state_dict": state}, tmp_path / "lies.ckpt")
    with pytest.raises(CheckpointError, match="says that its width is 65536, but its tensors are of 4"):
        load_net(tmp_path / "lies.ckpt")


def test_weights_of_another_network_are_refused(tmp_path):
    x3d, slow, i3d = hub_net("x3d_s"), hub_net("slow_r50"), small()
    files = {}
    for name, net in (("x3d_s", x3d), ("slow_r50", slow), ("i3d", i3d)):
        files[name] = tmp_path / f"{name}.pyth"
        torch.save({"model_state": net.state_dict()}, files[name])
    for net, name, words in (
        (x3d, "slow_r50", "is of another network: slow_r50, not x3d_s. Set model.net"),
        (slow, "i3d", "is of another network: i3d, not slow_r50"),
        (i3d, "slow_r50", "is of another network: pytorchvideo's slow_r50. It cannot be loaded into an I3D"),
    ):
        before = copy_of(net)
        with pytest.raises(CheckpointError, match=words):
            load_into(net, files[name])
        assert same(copy_of(net), before)
    image = write(tmp_path / "2d.pth", i3d, "torchvision", lambda state: state.update(
        {name: tensor.sum(2) for name, tensor in state.items() if tensor.ndim == 5}))  # fmt: skip
    with pytest.raises(CheckpointError, match="an image network, which only an I3D is inflated from"):
        load_into(slow, image)


def test_norms_of_another_kind_are_left_and_all_else_is_taken(tmp_path):
    net = hub_net("x3d_s", "group")
    torch.save({"model_state": hub_net("x3d_s").state_dict()}, tmp_path / "hub.pyth")
    before = copy_of(net)
    with pytest.raises(CheckpointError, match="its norms are 'batch', the network's 'group'"):
        load_into(net, tmp_path / "hub.pyth")
    there = torch.load(tmp_path / "hub.pyth")["model_state"]
    load_into(net, tmp_path / "hub.pyth", norm_mismatch="reinit")
    for name, tensor in net.state_dict().items():
        is_norm = "norm" in name and "norm_b.1." not in name  # that is squeeze-and-excitation
        assert torch.equal(tensor, (before if is_norm else there)[name]), name


def test_a_checkpoint_never_imports_the_class_that_it_names(tmp_path, monkeypatch):
    (tmp_path / "foreign_code.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    own = OwnNet(torch.nn.Linear(3, 3))
    state = {f"net.{name}": tensor for name, tensor in own.state_dict().items()}
    for net, words in (
        ({"network": "own", "class": "foreign_code.Net"}, "is of foreign_code.Net, a network of somebody's own"),
        ({"network": "foreign_code.Net"}, "net.network must be one of i3d, x3d_s, r2plus1d_r50, slow_r50, own"),
        ({"network": ["x3d_s"]}, "net.network must be one of"),
    ):
        torch.save({"video_gn": {**ABOUT, "net": net}, "state_dict": state}, tmp_path / "own.ckpt")
        for read in (load_net, lambda path: load_into(small(), path)):
            with pytest.raises(CheckpointError, match=words):
                read(tmp_path / "own.ckpt")
        if net["network"] == "own":
            load_own(tmp_path / "own.ckpt", torch.nn.Linear(3, 3))
            assert look_into(tmp_path / "own.ckpt")[1] == 12 and "foreign_code.Net" in inspect(tmp_path / "own.ckpt")
            convert(tmp_path / "own.ckpt", tmp_path / "own.safetensors")
    assert "foreign_code" not in sys.modules
