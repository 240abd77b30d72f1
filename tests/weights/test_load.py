"""The strict merge: every name of the file and of the network is accounted for, or the load is an error."""

import json
import random

import pytest
import torch
from small import ABOUT
from torchvision.models import resnet18
from torchvision.models.video import r2plus1d_18

from video_gn.errors import CheckpointError
from video_gn.models import BATCH_FAMILY, NORMS, i3d
from video_gn.weights import FORMATS, load_into
from video_gn.weights.build import build_net
from video_gn.weights.files import read_file
from video_gn.weights.formats import norm_family, recognize
from video_gn.weights.inspect import inspect
from video_gn.weights.keymaps import KEYMAPS
from video_gn.weights.load import _is_norm_name as is_norm_name

LAYOUTS = {"pytorchvideo": "slowfast", "slowfast": "slowfast", "mmaction": "mmaction"}


def small(norm="batch", *, layout="slowfast", num_classes=5, **more):
    if norm == "group":
        more.setdefault("num_groups", 2)
    return i3d(50, layout=layout, norm=norm, width=4, num_classes=num_classes, **more)


def randomized(net, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return net


def write(path, net, zoo, change=lambda state: None):
    """Under a zoo's names; "video_gn" is a checkpoint of ours. Caffe2's names know no counts of batches."""
    if zoo == "video_gn":
        state = {f"net.{name}": tensor.clone() for name, tensor in net.state_dict().items()}
        change(state)
        torch.save({"video_gn": {"net": net.arguments}, "state_dict": state}, path)
        return path
    named = {KEYMAPS[zoo].to_theirs(name): tensor.clone() for name, tensor in net.state_dict().items()}
    state = {name: tensor for name, tensor in named.items() if name is not None}
    assert len(state) == len(net.state_dict()) - (53 if zoo == "caffe2" else 0)
    change(state)
    torch.save({"state_dict": state}, path)
    return path


def copy_of(net):
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def refused(net, path, match, **options):
    """The load is refused with these words, and the network is as it was."""
    before = copy_of(net)
    with pytest.raises(CheckpointError, match=match) as caught:
        load_into(net, path, **options)
    assert str(path) in str(caught.value)
    assert same(before, net.state_dict())
    return caught.value


def accounted(report, state, net):
    """Every name of the file stands in the report once, and so does every name of the network."""
    assert sorted(e.key for e in report.entries) == sorted(state)
    given = [e.target for e in report.entries if e.status == "taken" or e.status in ("misshapen", "unfit")]
    names = [*given, *(r.target for r in report.remaining)]
    assert sorted(names) == sorted(net.state_dict())


@pytest.mark.parametrize("zoo", ["pytorchvideo", "slowfast", "mmaction", "torchvision"])
def test_names_are_those_of_the_zoo_both_ways(zoo):
    table = KEYMAPS[zoo]
    for name in i3d(152, layout="nonlocal", norm="batch", width=4, num_classes=3).state_dict():
        assert table.to_ours(table.to_theirs(name)) == name
    for wrong in ("", "x", "blocks.2.conv.weight", "s9.pathway0_res0.branch1.weight", "layer5.0.conv1.weight"):
        assert table.to_ours(wrong) is None
        assert table.to_theirs(wrong) is None


def to_ours(zoo, key):
    return key.removeprefix("net.") if zoo == "video_gn" else KEYMAPS[zoo].to_ours(key)


@pytest.mark.parametrize("zoo", FORMATS)
@pytest.mark.parametrize("seed", range(3))
def test_every_key_that_is_added_removed_or_misshapen_is_named(tmp_path, zoo, seed):
    rng = random.Random(seed)
    # Detectron's Group Norm networks have 32 groups, for which the stem needs as many channels.
    arguments = (
        {"width": 32, "norm": "group", "num_groups": 32} if zoo == "detectron" else {"width": 4, "norm": "batch"}
    )

    def make():
        return i3d(50, layout=LAYOUTS.get(zoo, "nonlocal"), num_classes=5, **arguments)

    source = randomized(make(), seed)
    done = {"removed": [], "added": [], "misshapen": [], "nan": [], "integers": []}

    def change(state):
        keys = [k for k in rng.sample(sorted(state), 15) if not k.endswith("num_batches_tracked")]
        for key, how in zip(keys, ["removed", "misshapen", "nan", "integers"] * 9, strict=False):
            done[how].append(key)
            if how == "removed":
                del state[key]
            elif how == "misshapen":
                state[key] = torch.zeros(*state[key].shape, 2)
            elif how == "nan":
                state[key].view(-1)[-1] = float("nan")
            else:
                state[key] = state[key].to(torch.int32)
        for number in range(3):
            done["added"].append(f"extra.{number}.weight")
            state[f"extra.{number}.weight"] = torch.zeros(2)
        done["state"] = list(state)

    path = write(tmp_path / "w.pth", source, zoo, change)
    net = make()
    error = refused(net, path, "does not fit the network")
    report = error.report
    assert report.format == zoo
    accounted(report, done["state"], net)

    def ours(key):
        return to_ours(zoo, key)

    assert sorted(report.missing) == sorted(ours(k) for k in done["removed"])
    statuses = {e.key: e.status for e in report.entries}
    assert [k for k, s in statuses.items() if s == "unexpected"] == done["added"]
    assert {k for k, s in statuses.items() if s == "misshapen"} == set(done["misshapen"])
    assert {k for k, s in statuses.items() if s == "unfit"} == {*done["nan"], *done["integers"]}
    assert len(report.problems) == sum(len(done[k]) for k in ("removed", "added", "misshapen", "nan", "integers"))
    text = "\n".join(report.problems)
    for key in (*done["added"], *done["misshapen"], *done["nan"], *done["integers"], *map(ours, done["removed"])):
        assert key in text


def test_a_report_tells_what_was_done(tmp_path):
    source = randomized(small(layout="nonlocal", num_classes=7))

    def as_2d(state):
        for key, tensor in state.items():
            if tensor.ndim == 5:
                state[key] = tensor.sum(2).half() if key == "conv1.weight" else tensor.sum(2)
        state["fc.weight"] = state["fc.weight"].reshape(7, -1, 1, 1)

    path = write(tmp_path / "w.pth", source, "torchvision", as_2d)
    net = small(layout="nonlocal", num_classes=7)
    report = load_into(net, str(path))
    assert (report.format, report.depth, report.norm, report.layout) == ("torchvision", 50, "batch", None)
    assert len(report.taken) == len(report.renamed) == 320
    assert len(report.inflated) == 53
    assert report.reshaped == ("fc.weight",)
    assert report.entries[0].changes == ("renamed", "converted from float16", "inflated")
    assert not report.left
    assert not report.problems
    weight = net.state_dict()["blocks.1.res_blocks.0.branch2.conv_a.weight"]
    wanted = source.state_dict()["blocks.1.res_blocks.0.branch2.conv_a.weight"].sum(2) / 3
    assert weight.shape[2] == 3
    for t in range(3):
        assert torch.equal(weight[:, :, t], wanted)
    assert torch.equal(net.state_dict()["blocks.6.proj.weight"], source.state_dict()["blocks.6.proj.weight"])
    text = report.text()
    for word in ("torchvision, ResNet-50, norm batch, 7 classes", "inflated", "53", "reshaped", "fc.weight"):
        assert word in text
    report.write(tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())
    assert len(written["entries"]) == 320
    assert written["preprocessing"] == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


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


def test_layout_depth_and_width_are_compared(tmp_path):
    path = write(tmp_path / "w.pyth", randomized(small()), "slowfast")
    refused(small(layout="nonlocal"), path, "needs layout 'slowfast', the network has 'nonlocal'")
    assert len(load_into(small(layout="nonlocal"), path, layout_mismatch="allow").taken) == 320
    deep = i3d(101, layout="slowfast", norm="batch", width=4, num_classes=5)
    refused(deep, path, "depth: 50 there, 101 here")
    wide = i3d(50, layout="slowfast", norm="batch", width=8, num_classes=5)
    refused(wide, path, "width: 4 there, 8 here")


def test_the_classifier_of_other_classes_is_dropped_and_said_so(tmp_path):
    path = write(tmp_path / "w.pyth", randomized(small(num_classes=9)), "pytorchvideo")
    net = small(num_classes=5)
    before = net.state_dict()["blocks.6.proj.weight"].clone()
    report = load_into(net, path)
    assert report.dropped["blocks.6.proj.weight"] == "it has 9 classes, the network 5"
    assert report.left_classifier
    assert torch.equal(net.state_dict()["blocks.6.proj.weight"], before)


def test_classes_by_name_are_reordered_or_dropped(tmp_path):
    source = randomized(small(num_classes=3))
    about = {"net": source.arguments, "classes": ["a", "b", "c"]}
    path = tmp_path / "a.ckpt"
    torch.save({"video_gn": about, "state_dict": {f"net.{k}": v for k, v in source.state_dict().items()}}, path)
    net = small(num_classes=3)
    report = load_into(net, path, classes=["c", "a", "b"])
    given = source.state_dict()["blocks.6.proj.weight"]
    assert torch.equal(net.state_dict()["blocks.6.proj.weight"], given[[2, 0, 1]])
    assert "reordered" in report.entries[-1].changes
    report = load_into(net, path, classes=["a", "b", "d"])
    assert "its classes are others" in report.dropped["net.blocks.6.proj.weight"]
    report = load_into(net, path)
    assert torch.equal(net.state_dict()["blocks.6.proj.weight"], given)


def test_a_file_without_a_classifier_leaves_a_fresh_one(tmp_path):
    def headless(state):
        del state["fc.weight"], state["fc.bias"]

    path = write(tmp_path / "w.pth", randomized(small(layout="nonlocal")), "torchvision", headless)
    report = load_into(small(layout="nonlocal"), path)
    assert report.left_classifier
    assert "the file has none" in report.left["blocks.6.proj.bias"]

    def half(state):
        del state["fc.bias"]

    path = write(tmp_path / "half.pth", randomized(small(layout="nonlocal")), "torchvision", half)
    refused(small(layout="nonlocal"), path, r"blocks\.6\.proj\.bias: is missing in the file")


def test_what_the_user_ignores_is_dropped(tmp_path):
    def more(state):
        state["aux_head.conv.weight"] = torch.zeros(3)
        state["aux_head.conv.bias"] = torch.zeros(3)

    path = write(tmp_path / "w.pth", randomized(small(layout="mmaction")), "mmaction", more)
    refused(small(layout="mmaction"), path, r"aux_head\.conv\.weight: the network has no place for it")
    report = load_into(small(layout="mmaction"), path, ignore=["aux_head.*"])
    assert report.dropped == {
        "aux_head.conv.weight": "ignored as asked",
        "aux_head.conv.bias": "ignored as asked",
    }


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "model.module.", "net._orig_mod."])
def test_wrappers_names_are_seen_through(tmp_path, prefix):
    source = randomized(small())
    torch.save({f"{prefix}{k}": v for k, v in source.state_dict().items()}, tmp_path / "w.pth")
    net = small()
    assert len(load_into(net, tmp_path / "w.pth").taken) == 320
    assert same(net.state_dict(), source.state_dict())


def test_two_names_for_one_tensor_are_an_error(tmp_path):
    state = randomized(small()).state_dict()
    torch.save({**state, "model.blocks.0.conv.weight": state["blocks.0.conv.weight"] + 1}, tmp_path / "w.pth")
    refused(small(), tmp_path / "w.pth", r"model\.blocks\.0\.conv\.weight: means the same tensor as blocks\.0\.conv")


@pytest.mark.parametrize(
    ("state", "match"),
    [
        (lambda: resnet18().state_dict(), "ResNet of basic blocks, such as ResNet-18"),
        (lambda: r2plus1d_18().state_dict(), r"R\(2\+1\)D"),
        (
            lambda: {
                "s1.pathway0_stem.conv.weight": torch.zeros(64, 3, 1, 7, 7),
                "s1.pathway1_stem.conv.weight": torch.zeros(8, 3, 5, 7, 7),
            },
            r"a SlowFast network of two pathways \(s1\.pathway1_stem\.conv\.weight\)",
        ),
        (
            lambda: {"conv1_w": torch.zeros(64, 3, 5, 7, 7), "nonlocal_conv3_1_theta_w": torch.zeros(3)},
            "non-local blocks",
        ),
        (lambda: {"blocks.0.attn.qkv.weight": torch.zeros(3)}, "a transformer"),
        (lambda: {"features.0.weight": torch.zeros(3)}, "no tensor has a name of any known zoo"),
        (lambda: {"a": 1, "b": "text"}, "holds no tensors"),
        (lambda: [torch.zeros(3)], "not a table of tensors"),
    ],
)
def test_weights_of_other_networks_are_refused(tmp_path, state, match):
    torch.save(state(), tmp_path / "w.pth")
    refused(small(), tmp_path / "w.pth", match)


def test_types_and_shapes_are_checked_before_memory_is_taken(tmp_path):
    def change(state):
        state["blocks.0.norm.weight"] = torch.zeros(10**5)
        state["blocks.0.norm.bias"] = torch.zeros(4).to_sparse()
        state["blocks.6.proj.bias"] = torch.zeros(5, dtype=torch.complex64)
        state["blocks.0.norm.num_batches_tracked"] = torch.zeros(10**3, dtype=torch.int64)

    path = write(tmp_path / "w.pyth", randomized(small()), "pytorchvideo", change)
    error = refused(small(), path, r"blocks\.0\.norm\.weight: has shape \(100000,\)")
    for words in ("bias: is sparse or quantized", "proj.bias: is torch.complex64", "is a count, but has shape"):
        assert words in str(error)
    torch.save({"blocks.0.norm.weight": torch.zeros(1).expand(10**12)}, path)
    refused(small(), path, "a tensor of shape .1000000000000,. that repeats 4 bytes")


def test_half_precision_is_converted_and_said_so(tmp_path):
    source = randomized(small()).half()
    torch.save({"model_state": source.state_dict()}, tmp_path / "w.pyth")
    net = small()
    report = load_into(net, tmp_path / "w.pyth")
    assert {c for e in report.entries for c in e.changes} == {"converted from float16"}
    assert net.blocks[0].conv.weight.dtype == torch.float32
    assert torch.equal(net.blocks[0].conv.weight, source.blocks[0].conv.weight.float())


def test_settings_are_checked(tmp_path):
    path = write(tmp_path / "w.pyth", small(), "pytorchvideo")
    for options, match in (
        ({"norm_mismatch": "warn"}, r"norm_mismatch must be one of \['error', 'reinit'\], got 'warn'"),
        ({"layout_mismatch": "warn"}, r"layout_mismatch must be one of \['allow', 'error'\], got 'warn'"),
        ({"format": "onnx"}, f"format must be auto, {', '.join(FORMATS)}"),
    ):
        with pytest.raises(ValueError, match=match):
            load_into(small(), path, **options)
    refused(small(), path, "no key 'video_gn'", format="video_gn")
    refused(small(), path, "no tensor has a name of the zoo 'slowfast'", format="slowfast")


def test_slowfasts_own_words_are_heard(tmp_path):
    source = randomized(small())
    state = {KEYMAPS["slowfast"].to_theirs(k): v for k, v in source.state_dict().items()}
    words = "DATA:\n  MEAN: [0.1, 0.2, 0.3]\n  STD: [0.4, 0.5, 0.6]\n  REVERSE_INPUT_CHANNEL: true\n"
    torch.save({"model_state": state, "cfg": words, "epoch": 3}, tmp_path / "w.pyth")
    net = small()
    report = load_into(net, tmp_path / "w.pyth")
    assert report.preprocessing.mean == (0.3, 0.2, 0.1), "RGB, where its network is given BGR"
    assert report.preprocessing.std == (0.6, 0.5, 0.4)
    assert torch.equal(net.blocks[0].conv.weight, source.blocks[0].conv.weight.flip(1))
    assert report.outside == {"cfg": "str", "epoch": "int"}


def test_a_checkpoint_that_does_not_describe_its_network(tmp_path):
    torch.save({"video_gn": {"net": {"depth": 50}}, "state_dict": small().state_dict()}, tmp_path / "w.ckpt")
    refused(small(), tmp_path / "w.ckpt", "video_gn.net does not tell width")


def test_an_ignored_classifier_of_as_many_classes_stays_fresh(tmp_path):
    path = write(tmp_path / "w.pth", randomized(small(layout="nonlocal")), "torchvision")
    net = small(layout="nonlocal")
    report = load_into(net, path, ignore=["fc.*", "gone.*"])
    assert report.left_classifier
    assert report.dropped == {"fc.weight": "ignored as asked", "fc.bias": "ignored as asked"}
    assert "`ignore` names nothing in the file with gone.*" in report.notes


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
    for words in ("taken as Group Norm's", "does not tell the groups", "does not tell its layout"):
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
    assert "the file does not tell the groups of its norms; the network has none" in report.notes


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
    assert "the file does not tell its layout: the network has 'nonlocal'" in report.notes
    torch.save(randomized(small()).state_dict(), tmp_path / "w.pth")
    refused(small(layout="nonlocal"), tmp_path / "w.pth", r"a bare state_dict\(\) of such a network")


def test_detectrons_plain_networks_are_not_taken_for_non_locals(tmp_path):
    from weight_files import caffe2_pkl

    state = randomized(small(layout="nonlocal")).state_dict()
    blobs = {KEYMAPS["caffe2"].to_theirs(k): v.sum(2) if v.ndim == 5 else v for k, v in state.items()}
    kept = {k: v.numpy() for k, v in blobs.items() if k is not None and not k.endswith(("_rm", "_riv"))}
    path = caffe2_pkl(tmp_path / "R-50.pkl", kept)
    refused(small(layout="nonlocal"), path, "as Detectron's R-50.pkl")
    assert len(load_into(small(layout="nonlocal"), path, format="caffe2").inflated) == 53


def test_values_that_overflow_or_cannot_be_are_named(tmp_path):
    def change(state):
        state["blocks.0.norm.weight"] = torch.full((4,), 1e300, dtype=torch.float64)
        state["blocks.0.norm.running_var"] = torch.full((4,), -1.0)
        state["blocks.0.norm.running_mean"] = torch.zeros(4, device="meta")

    path = write(tmp_path / "w.pyth", randomized(small()), "pytorchvideo", change)
    error = refused(small(), path, "blocks.0.norm.weight: has values that are not finite .* in float32")
    assert "blocks.0.norm.running_var: is a variance below 0" in str(error)
    assert "blocks.0.norm.running_mean: has a shape and no values" in str(error)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"mean": "abc"}, "video_gn.mean must be three numbers, got 'abc'"),
        ({"mean": [0.1]}, "video_gn.mean must be three numbers"),
        ({"mean": [0.1, 0.2, float("nan")]}, "video_gn.mean must be three numbers"),
        ({"std": [0.1, 0.2, 0.0]}, "video_gn.std must be three numbers above 0"),
        ({"mean": None}, "video_gn.mean must be three numbers"),
        ({"classes": "abcde"}, "video_gn.classes must be a list of names"),
        ({"classes": {"a": 0}}, "video_gn.classes must be a list of names"),
        ({"clip": "8x2"}, "video_gn.clip must be a table"),
        ({"clip": {"num_frames": 8}}, "video_gn.clip does not tell stride"),
        ({"clip": {**ABOUT["clip"], "speed": 2}}, r"video_gn.clip has unknown entries \['speed'\]"),
        ({"clip": {**ABOUT["clip"], "stride": 0}}, "video_gn.clip.stride must be a number of frames, got '0'"),
        ({"views": {}}, "video_gn.views does not tell num_clips"),
        ({"views": {**ABOUT["views"], "spacing": "random"}}, "video_gn.views.spacing must be one of"),
        ({"net": 5}, "does not describe a network"),
        ({"net": {"depth": 50}}, "video_gn.net does not tell width"),
        ({"net": {"num_groups": "x"}}, "video_gn.net.num_groups must be a number of groups or none"),
        ({"net": {"width": 25600}}, r"width: 25600 there|says that its width is 25600"),
    ],
)
def test_what_a_checkpoint_says_of_itself_is_checked(tmp_path, change, match):
    from video_gn.weights.build import build_net
    from video_gn.weights.files import read_file
    from video_gn.weights.formats import recognize

    source = randomized(small())
    about = {"net": dict(source.arguments), **ABOUT, "classes": list("abcde"), **change}
    if isinstance(about["net"], dict) and change.get("net") not in (None, {"depth": 50}):
        about["net"] = {**source.arguments, **change["net"]}
    torch.save({"video_gn": about, "state_dict": source.state_dict()}, tmp_path / "w.ckpt")
    with pytest.raises(CheckpointError, match=match):
        build_net(recognize(read_file(tmp_path / "w.ckpt")))
    if "width" not in str(change):
        refused(small(), tmp_path / "w.ckpt", match)


@pytest.mark.parametrize(
    ("cfg", "match"),
    [
        ("DATA:\n  MEAN: [0.1]\n", "cfg.DATA.MEAN must be three numbers"),
        ("DATA:\n  STD: [0, 1, 1]\n", "cfg.DATA.STD must be three numbers above 0"),
        ("DATA:\n  NUM_FRAMES: .inf\n", "cfg.DATA.NUM_FRAMES must be a number of frames"),
    ],
)
def test_a_slowfast_config_that_cannot_be(tmp_path, cfg, match):
    state = {KEYMAPS["slowfast"].to_theirs(k): v for k, v in randomized(small()).state_dict().items()}
    torch.save({"model_state": state, "cfg": cfg}, tmp_path / "w.pyth")
    refused(small(), tmp_path / "w.pyth", match)
    for harmless in ("[" * 5000, "a: !!python/object:os.system {}", "DATA: 5", ""):
        torch.save({"model_state": state, "cfg": harmless}, tmp_path / "w.pyth")
        assert load_into(small(), tmp_path / "w.pyth").preprocessing.mean == (0.45, 0.45, 0.45)


def test_names_that_steer_a_terminal_are_made_harmless(tmp_path):
    def change(state):
        state["\x1b[31mred\udcff"] = torch.zeros(1)

    path = write(tmp_path / "w.pyth", randomized(small()), "pytorchvideo", change)
    error = refused(small(), path, r"\?\[31mred\?: the network has no place for it")
    assert "\x1b" not in str(error) + error.report.text()


def test_the_section_with_the_networks_names_is_taken(tmp_path):
    source = randomized(small())
    torch.save({"model": {"x": torch.zeros(1)}, "net": source.state_dict(), "epoch": 1}, tmp_path / "w.pth")
    report = load_into(small(), tmp_path / "w.pth")
    assert len(report.taken) == 320
    assert report.outside == {"model": "1 entries with 1 tensors", "epoch": "int"}
    torch.save({"state_dict_ema": source.state_dict()}, tmp_path / "w.pth")
    refused(small(), tmp_path / "w.pth", "holds state_dict_ema: 320 entries with 320 tensors")
