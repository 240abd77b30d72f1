"""Weights of one kind of norm for a network of another: what fits, what is folded, what is an error."""

import pytest
import torch
from zoo_nets import accounted, copy_of, randomized, refused, same, small, write

from video_gn.models import BATCH_FAMILY, NORMS
from video_gn.weights import load_into
from video_gn.weights.build import build_net
from video_gn.weights.files import read_file
from video_gn.weights.formats import norm_family, recognize
from video_gn.weights.inspect import inspect
from video_gn.weights.load import _is_norm_name as is_norm_name


@pytest.mark.parametrize(("there", "here"), [("batch", "group"), ("group", "batch"), ("batch", "layer")])
def test_other_norms_are_an_error_until_the_user_says_reinit(tmp_path, there, here):
    source = randomized(small(there))
    path = write(tmp_path / "w.pyth", source, "pytorchvideo")
    net = small(here)
    refused(net, path, f"its norms are '{there}', the network's '{here}'.*norm_mismatch to 'reinit'")
    before = copy_of(net)
    report = load_into(net, path, norm_mismatch="reinit")
    after, given = net.state_dict(), source.state_dict()
    for name in after:
        if is_norm_name(name):
            assert torch.equal(after[name], before[name])
            assert "norm_mismatch is 'reinit'" in report.left[name]
        else:
            assert torch.equal(after[name], given[name])
    assert {k for k in given if is_norm_name(k)} == set(report.dropped)
    accounted(report, given, net)


def test_another_number_of_groups_is_another_norm(tmp_path):
    from video_gn.weights.convert import convert

    source = randomized(small("group"))
    about = {"net": source.arguments}
    torch.save(
        {"video_gn": about, "state_dict": {f"net.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "a.ckpt"
    )
    convert(tmp_path / "a.ckpt", tmp_path / "a.safetensors")
    for name in ("a.ckpt", "a.safetensors"):
        path = tmp_path / name
        refused(small("group", num_groups=4), path, "its norms have 2 groups, the network's 4 groups")
        refused(small("layer"), path, "its norms have 2 groups, the network's 1 groups")
        refused(small("instance"), path, "its norms have 2 groups, the network's 1 channels a group")
        refused(
            small("group", num_groups=None, channels_per_group=2), path, "2 groups, the network's 2 channels a group"
        )
        report = load_into(small("group"), path)
        assert (report.format, len(report.taken)) == ("video_gn", len(source.state_dict()))
        assert not report.renamed or name == "a.safetensors"


def test_scale_and_shift_alone_may_be_of_either_norm(tmp_path):
    def affine(state):
        for key in [k for k in state if "running" in k or "num_batches" in k]:
            del state[key]

    path = write(tmp_path / "w.pth", randomized(small(layout="nonlocal")), "torchvision", affine)
    net = small(layout="nonlocal")
    report = load_into(net, path)
    assert report.norm == "unknown"
    assert "Batch Norms folded into them" in " ".join(report.notes)
    assert torch.allclose(net.state_dict()["blocks.0.norm.running_var"], torch.full((4,), 1 - 1e-5))
    assert torch.equal(net.state_dict()["blocks.0.norm.running_mean"], torch.zeros(4))
    report = load_into(small("group", layout="nonlocal"), path)
    text = " ".join(report.notes)
    for words in ("taken as Group Norm's", "does not say the groups", "does not say its layout"):
        assert words in text


def test_families_are_those_of_the_table():
    for kind in NORMS:
        family = "none" if kind == "none" else "batch" if kind in BATCH_FAMILY else "group"
        assert norm_family(kind) == family


@pytest.mark.parametrize("here", BATCH_FAMILY)
def test_statistics_fit_every_kind_that_keeps_them(tmp_path, here):
    source = randomized(small())
    for name, tensor in source.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(7)
    path = write(tmp_path / "w.pth", source, "pytorchvideo")
    net = small(here)
    report = load_into(net, path)
    given = source.state_dict()
    for name, tensor in net.state_dict().items():
        if name.endswith("num_batches_tracked") and here == "batch_renorm":
            assert int(tensor) == 0
            assert report.left[name] == "the warm-up of batch renorm counts the steps of its own training"
        else:
            assert torch.equal(tensor, given[name])
    assert not report.problems and len(report.taken) == (320 if here != "batch_renorm" else 267)
    accounted(report, dict.fromkeys(e.key for e in report.entries), net)
    for other in ("none", "group", "instance"):
        refused(small(other), path, f"its norms are 'batch', the network's '{other}'.*norm_mismatch to 'reinit'")


def test_batch_renorm_goes_on_with_its_own_count(tmp_path):
    source = randomized(small("batch_renorm"))
    source.state_dict()["blocks.0.norm.num_batches_tracked"].fill_(7)
    path = write(tmp_path / "w.ckpt", source, "video_gn")
    net = small("batch_renorm")
    assert len(load_into(net, path).taken) == 320
    assert same(net.state_dict(), source.state_dict())
    built, _ = build_net(recognize(read_file(path)))
    assert same(built.state_dict(), source.state_dict())


@pytest.mark.parametrize("kind", [*BATCH_FAMILY, "none"])
def test_a_checkpoint_of_every_kind_is_built_again(tmp_path, kind):
    source = randomized(small(kind))
    path = write(tmp_path / "w.ckpt", source, "video_gn")
    built, _ = build_net(recognize(read_file(path)))
    assert same(built.state_dict(), source.state_dict())
    assert built.arguments == source.arguments
    assert dict(r for r in map(str.split, inspect(path).splitlines()) if r[0] == "norms") == {"norms": kind}


def test_weights_without_norms_are_another_kind(tmp_path):
    source = randomized(small("none"))
    path = write(tmp_path / "w.ckpt", source, "video_gn")
    for other in ("group", "batch"):
        refused(small(other), path, f"its norms are 'none', the network's '{other}'")
    refused(small("none"), write(tmp_path / "g.ckpt", small("group"), "video_gn"), "its norms are 'group', the network")
    # A bare state tells neither groups nor that there are none.
    torch.save(source.state_dict(), tmp_path / "bare.pth")
    net = small("none")
    report = load_into(net, tmp_path / "bare.pth")
    assert same(net.state_dict(), source.state_dict())
    assert "the file does not say the groups of its norms; the network has none" in report.notes


@pytest.mark.parametrize("zoo", ["torchvision", "caffe2"])
@pytest.mark.parametrize("kind", ["frozen_batch", "none", "batch_renorm"])
def test_folded_norms_fit_what_computes_the_same(tmp_path, kind, zoo):
    def affine(state):
        for key in [k for k in state if k.endswith(("running_mean", "running_var", "_tracked", "_rm", "_riv"))]:
            del state[key]

    path = write(tmp_path / "w.pth", randomized(small(layout="nonlocal")), zoo, affine)
    net = small(kind, layout="nonlocal").train()
    notes = " ".join(load_into(net, path).notes)
    assert ("training would normalize" in notes) is (kind == "batch_renorm")
    assert ("no norm's" in notes) is (kind == "none" and zoo == "torchvision")
    if kind != "batch_renorm":
        norm, x = net.blocks[0].norm, torch.randn(2, 4, 2, 2, 2)
        shaped = (-1, 1, 1, 1)
        # The variance is 1 - eps in float32.
        torch.testing.assert_close(norm(x), x * norm.weight.view(shaped) + norm.bias.view(shaped), rtol=1e-6, atol=1e-6)


def test_a_bare_state_of_our_own_group_norm_network_fits_any_layout_and_says_so(tmp_path):
    torch.save(randomized(small("group")).state_dict(), tmp_path / "w.pth")
    report = load_into(small("group", layout="nonlocal"), tmp_path / "w.pth")
    assert report.layout is None
    assert "the file does not say its layout: the network has 'nonlocal'" in report.notes
    torch.save(randomized(small()).state_dict(), tmp_path / "w.pth")
    refused(small(layout="nonlocal"), tmp_path / "w.pth", r"a bare state_dict\(\) of such a network")
