"""The strict merge: every name of the file and of the network is accounted for, or the load is an error."""

import json
import random

import pytest
import torch
from torchvision.models import resnet18
from torchvision.models.video import r2plus1d_18
from zoo_nets import LAYOUTS, accounted, randomized, refused, same, small, to_ours, write

from video_gn.models import i3d
from video_gn.weights import FORMATS, load_into
from video_gn.weights.keymaps import KEYMAPS


@pytest.mark.parametrize("zoo", ["pytorchvideo", "slowfast", "mmaction", "torchvision"])
def test_names_are_those_of_the_zoo_both_ways(zoo):
    table = KEYMAPS[zoo]
    for name in i3d(152, layout="nonlocal", norm="batch", width=4, num_classes=3).state_dict():
        assert table.to_ours(table.to_theirs(name)) == name
    for wrong in ("", "x", "blocks.2.conv.weight", "s9.pathway0_res0.branch1.weight", "layer5.0.conv1.weight"):
        assert table.to_ours(wrong) is None
        assert table.to_theirs(wrong) is None


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
    about = {"net": source.arguments, "classes": ["a", "ride bike", "c"]}
    path = tmp_path / "a.ckpt"
    torch.save({"video_gn": about, "state_dict": {f"net.{k}": v for k, v in source.state_dict().items()}}, path)
    net = small(num_classes=3)
    report = load_into(net, path, classes=["c", "a", "ride_bike"])
    given = source.state_dict()["blocks.6.proj.weight"]
    assert torch.equal(net.state_dict()["blocks.6.proj.weight"], given[[2, 0, 1]])
    assert "reordered" in report.entries[-1].changes
    report = load_into(net, path, classes=["a", "ride_bike", "d"])
    assert "its classes differ from the network" in report.dropped["net.blocks.6.proj.weight"]
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


def test_an_ignored_classifier_of_as_many_classes_stays_fresh(tmp_path):
    path = write(tmp_path / "w.pth", randomized(small(layout="nonlocal")), "torchvision")
    net = small(layout="nonlocal")
    report = load_into(net, path, ignore=["fc.*", "gone.*"])
    assert report.left_classifier
    assert report.dropped == {"fc.weight": "ignored as asked", "fc.bias": "ignored as asked"}
    assert "`ignore` names nothing in the file with gone.*" in report.notes


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


def test_names_that_steer_a_terminal_are_made_harmless(tmp_path):
    def change(state):
        state["\x1b[31mred\udcff"] = torch.zeros(1)

    path = write(tmp_path / "w.pyth", randomized(small()), "pytorchvideo", change)
    error = refused(small(), path, r"\\x1b\[31mred\\xff: the network has no place for it")
    assert "\x1b" not in str(error) + error.report.text()


def test_the_section_with_the_networks_names_is_taken(tmp_path):
    source = randomized(small())
    torch.save({"model": {"x": torch.zeros(1)}, "net": source.state_dict(), "epoch": 1}, tmp_path / "w.pth")
    report = load_into(small(), tmp_path / "w.pth")
    assert len(report.taken) == 320
    assert report.outside == {"model": "1 entries with 1 tensors", "epoch": "int"}
    torch.save({"state_dict_ema": source.state_dict()}, tmp_path / "w.pth")
    refused(small(), tmp_path / "w.pth", "holds state_dict_ema: 320 entries with 320 tensors")
