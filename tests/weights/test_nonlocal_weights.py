"""Non-local blocks in weight files: recognized, loaded strictly or fresh, and carried to other formats."""

import pytest
import torch
import weight_files as files
from zoo_nets import copy_of, randomized, refused, same, small, write

from video_gn.errors import CheckpointError
from video_gn.weights import load_into
from video_gn.weights.build import load_net
from video_gn.weights.convert import convert
from video_gn.weights.inspect import inspect
from video_gn.weights.keymaps import KEYMAPS

ZOOS = ("slowfast", "pytorchvideo", "caffe2", "mmaction")


def with_blocks(weighting="softmax", *, layout="slowfast", seed=0):
    return randomized(small(layout=layout, nonlocal_blocks=weighting), seed)


def test_names_are_those_of_the_zoo_both_ways():
    for zoo in ZOOS:
        for name in with_blocks().state_dict():
            if not (zoo == "caffe2" and name.endswith("num_batches_tracked")):
                assert KEYMAPS[zoo].to_ours(KEYMAPS[zoo].to_theirs(name)) == name
    # Examples from SlowFast's c2_model_loading.py, and of mmcv's names.
    for zoo, theirs, ours in (
        ("caffe2", "nonlocal_conv3_1_theta_w", "blocks.3.nonlocal_blocks.1.conv_theta.weight"),
        ("caffe2", "nonlocal_conv4_5_bn_s", "blocks.4.nonlocal_blocks.5.norm.weight"),
        ("slowfast", "s3.pathway0_nonlocal3.conv_g.weight", "blocks.3.nonlocal_blocks.3.conv_g.weight"),
        ("slowfast", "s4.pathway0_nonlocal3.bn.weight", "blocks.4.nonlocal_blocks.3.norm.weight"),
        ("mmaction", "backbone.layer2.1.non_local_block.g.0.conv.bias", "blocks.3.nonlocal_blocks.1.conv_g.bias"),
    ):
        assert KEYMAPS[zoo].to_ours(theirs) == ours


@pytest.mark.parametrize(
    "zoo", ["slowfast", *(pytest.param(zoo, marks=pytest.mark.slow) for zoo in ("video_gn", *ZOOS[1:]))]
)
def test_every_tensor_is_needed(tmp_path, zoo):
    layout = "mmaction" if zoo == "mmaction" else "slowfast"
    source = with_blocks(layout=layout)
    names = []

    def drop(state):
        names.append([name for name in state if "phi" in name][1])
        del state[names[0]]

    if zoo == "caffe2":
        path = tmp_path / "w.pth"
        state = {KEYMAPS[zoo].to_theirs(name): tensor for name, tensor in source.state_dict().items()}
        state.pop(None)
        torch.save(state, path)
        drop(state)
        torch.save(state, tmp_path / "less.pth")
    else:
        path = write(tmp_path / "w.pth", source, zoo)
        write(tmp_path / "less.pth", source, zoo, drop)
    net = with_blocks(layout=layout, seed=1)
    load_into(net, path)
    assert all(torch.equal(net.state_dict()[k], v) for k, v in source.state_dict().items() if "tracked" not in k)
    refused(with_blocks(layout=layout), tmp_path / "less.pth", r"conv_phi\.(weight|bias): is missing in the file")


def test_weights_without_them_leave_them_fresh(tmp_path):
    """An ImageNet start, or I3D without them: the blocks are new, and the report says so."""
    path = write(tmp_path / "plain.pth", randomized(small()), "slowfast")
    net = with_blocks()
    before = copy_of(net)
    report = load_into(net, path)
    assert {left.target for left in report.remaining} == {name for name in before if "nonlocal" in name}
    assert all("fresh non-local block" in left.reason for left in report.remaining)
    assert all(torch.equal(v, before[name]) for name, v in net.state_dict().items() if "nonlocal" in name)


def test_another_network_is_refused(tmp_path):
    path = write(tmp_path / "nl.pth", with_blocks("dot_product"), "video_gn")
    words = r"has non-local blocks of weighting 'dot_product', the network has {}\. Set model\.net\.n"
    refused(small(), path, words.format("None"))
    refused(with_blocks(), path, words.format("'softmax'"))
    bare = write(tmp_path / "bare.pth", with_blocks(), "slowfast")
    refused(small(), bare, "has non-local blocks, the network has None")
    report = load_into(with_blocks("dot_product"), bare)
    assert any("does not say how its non-local blocks weigh" in note for note in report.notes)


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["softmax", "dot_product"])
def test_what_lies_beside_the_weights_says_the_weighting(tmp_path, weighting):
    def named(net, zoo):
        return {KEYMAPS[zoo].to_theirs(name): tensor for name, tensor in net.state_dict().items()}

    mode = {"softmax": "embedded_gaussian"}.get(weighting, weighting)
    net = with_blocks(weighting, layout="mmaction")
    path = files.mmaction_pth(tmp_path / "m.pth", named(net, "mmaction"))
    content = torch.load(path)
    content["meta"]["cfg"] = f"model = dict(backbone=dict(non_local_cfg=dict(sub_sample=True, mode='{mode}')))"
    torch.save(content, path)
    slowfast = with_blocks(weighting)
    cfg = f"NONLOCAL:\n  INSTANTIATION: {weighting}\n"
    torch.save({"model_state": named(slowfast, "slowfast"), "cfg": cfg}, tmp_path / "s.pyth")
    for name, source in (("m.pth", net), ("s.pyth", slowfast)):
        assert f"ResNet-50, 3-D, width 4, non-local blocks ({weighting})\n" in inspect(tmp_path / name)
        built, about = load_net(tmp_path / name)
        assert about["net"]["nonlocal_blocks"] == weighting and same(built.state_dict(), source.state_dict())


@pytest.mark.slow
def test_an_unknown_weighting_is_a_softmax_with_a_warning(tmp_path, caplog):
    path = write(tmp_path / "bare.pth", with_blocks(), "slowfast")
    assert "non-local blocks (softmax or dot_product)" in inspect(path)
    assert load_net(path)[0].arguments["nonlocal_blocks"] == "softmax"
    assert "does not say how its non-local blocks weigh positions: taking 'softmax'" in caplog.text


@pytest.mark.slow
def test_other_formats_carry_them(tmp_path):
    source = with_blocks("dot_product")
    write(tmp_path / "a.ckpt", source, "video_gn")
    convert(tmp_path / "a.ckpt", tmp_path / "b.safetensors")
    convert(tmp_path / "b.safetensors", tmp_path / "c.pyth")
    convert(tmp_path / "c.pyth", tmp_path / "d.ckpt")
    again = with_blocks("dot_product", seed=1)
    load_into(again, tmp_path / "d.ckpt")
    assert same(again.state_dict(), source.state_dict())
    with pytest.raises(CheckpointError, match=r"d\.pth: torchvision's names have none for non-local blocks\. Write"):
        convert(tmp_path / "a.ckpt", tmp_path / "d.pth")
    assert not (tmp_path / "d.pth").exists()
