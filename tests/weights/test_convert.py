"""From one form to another and back: the same bits; and what `inspect` tells of each."""

import json
import zlib
from pathlib import Path

import pytest
import torch
import weight_files as files
from pytorchvideo.models.hub import i3d_r50
from safetensors import safe_open
from safetensors.torch import save_file
from small import ABOUT, assert_same
from torchvision.models import resnet50

from video_gn.errors import CheckpointError, UnwritableError
from video_gn.models import i3d
from video_gn.weights import load_into
from video_gn.weights.about import KEY
from video_gn.weights.build import build_net
from video_gn.weights.convert import convert
from video_gn.weights.files import CHECKSUM, read_file
from video_gn.weights.formats import recognize
from video_gn.weights.inspect import inspect
from video_gn.weights.keymaps import KEYMAPS


def build(path):
    return build_net(recognize(read_file(path)))[0].eval()


@pytest.fixture(scope="module", params=["batch", "group"])
def ours(request, tmp_path_factory):
    """(network, checkpoint of it as a run writes it)."""
    torch.manual_seed(3)
    groups = {"num_groups": 2} if request.param == "group" else {}
    net = i3d(50, layout="nonlocal", norm=request.param, width=4, num_classes=3, zero_init_last_norm=False, **groups)
    for name, tensor in net.state_dict().items():
        if "running" in name or ("norm" in name and tensor.is_floating_point()):
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    path = tmp_path_factory.mktemp("ours") / "best.ckpt"
    state = {f"net.{k}": v for k, v in net.state_dict().items()}
    torch.save({"video_gn": {"net": net.arguments, **ABOUT}, "state_dict": state, "global_step": 7, "epoch": 1}, path)
    return net.eval(), path


def test_a_checkpoint_to_safetensors_and_back_gives_the_same_bits(ours, tmp_path):
    net, path = ours
    x = torch.randn(2, 3, 8, 32, 32)
    with torch.no_grad():
        wanted = net(x)
        convert(path, tmp_path / "a.safetensors")
        convert(tmp_path / "a.safetensors", tmp_path / "b.ckpt")
        for name in ("a.safetensors", "b.ckpt"):
            again = build(tmp_path / name)
            assert again.arguments == net.arguments
            assert torch.equal(again(x), wanted)
    back = torch.load(tmp_path / "b.ckpt", weights_only=True)
    there = torch.load(path, weights_only=True)
    assert {k: v for k, v in back["video_gn"].items() if k != "version"} == {
        k: v for k, v in there["video_gn"].items() if k != "version"
    }
    assert back["state_dict"].keys() == there["state_dict"].keys()
    for key, tensor in there["state_dict"].items():
        assert torch.equal(back["state_dict"][key], tensor)
        assert back["state_dict"][key].dtype == tensor.dtype


def test_torchvisions_names_keep_what_the_network_is_in_safetensors(ours, tmp_path):
    net, path = ours
    convert(path, tmp_path / "tv.safetensors", names="torchvision")
    with safe_open(tmp_path / "tv.safetensors", "pt") as file:
        assert "layer1.0.downsample.1.weight" in file.keys()  # noqa: SIM118
    again = build(tmp_path / "tv.safetensors")
    assert again.arguments == net.arguments
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), net.state_dict().values(), strict=True))


def test_pytorchvideos_own_network_takes_a_converted_file(tmp_path):
    torch.manual_seed(0)
    net = i3d(50, layout="slowfast", norm="batch", width=4, num_classes=3, zero_init_last_norm=False).eval()
    torch.save({"video_gn": {"net": net.arguments, **ABOUT}, "state_dict": net.state_dict()}, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "b.pyth")
    peer = i3d_r50(model_num_class=3, stem_dim_out=4, head_pool_kernel_size=(4, 2, 2)).eval()
    peer.load_state_dict(torch.load(tmp_path / "b.pyth", weights_only=True)["model_state"], strict=True)
    x = torch.randn(1, 3, 8, 64, 64)
    with torch.no_grad():
        assert torch.allclose(peer(x), net.logits(x), rtol=1e-5, atol=1e-6)


def test_an_image_networks_file_is_inflated_into_torchvisions_names(tmp_path):
    state = resnet50().state_dict()
    torch.save(state, tmp_path / "r50.pth")
    report = convert(tmp_path / "r50.pth", tmp_path / "i3d.pth", layout="nonlocal")
    assert len(report.inflated) == 53
    flat = torch.load(tmp_path / "i3d.pth", weights_only=True)
    assert flat.keys() == state.keys()
    assert torch.allclose(flat["conv1.weight"].sum(2), state["conv1.weight"], rtol=0, atol=1e-7)
    assert torch.equal(flat["layer1.0.conv2.weight"][:, :, 0], state["layer1.0.conv2.weight"])
    again = recognize(read_file(tmp_path / "i3d.pth"))
    assert (again.format, again.is_2d, again.depth) == ("torchvision", False, 50)


def test_what_cannot_be_converted(ours, tmp_path):
    path = ours[1]
    with pytest.raises(CheckpointError, match=r"x\.onnx: must end in \.safetensors, \.ckpt, \.pyth, \.pth"):
        convert(path, tmp_path / "x.onnx")
    (tmp_path / "there.ckpt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"there\.ckpt: exists already"):
        convert(path, tmp_path / "there.ckpt")
    assert (tmp_path / "there.ckpt").read_text() == "mine"
    convert(path, tmp_path / "there.ckpt", overwrite=True)
    build(tmp_path / "there.ckpt")
    with pytest.raises(ValueError, match="names must be one of video_gn, pytorchvideo, torchvision"):
        convert(path, tmp_path / "y.ckpt", names="caffe2")
    with pytest.raises(CheckpointError, match="has 3 classes, but 2 labels are given"):
        convert(path, tmp_path / "y.ckpt", labels=["one", "two"])
    with pytest.raises(CheckpointError, match="needs layout 'nonlocal', got 'slowfast'"):
        convert(path, tmp_path / "y.ckpt", layout="slowfast")
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7), "layer1.0.conv1.weight": torch.zeros(4)}, tmp_path / "s.pth")
    with pytest.raises(CheckpointError, match=r"s\.pth: is of another network"):
        convert(tmp_path / "s.pth", tmp_path / "y.ckpt")
    with pytest.raises(CheckpointError, match=r"z\.pth: \.pth holds tensors alone, so labels would be lost"):
        convert(path, tmp_path / "z.pth", labels=["one", "two", "three"])
    with pytest.raises(UnwritableError, match=r"y\.ckpt could not be written: [^:]+ is no directory"):
        convert(path, tmp_path / "there.ckpt/y.ckpt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.pth", "there.ckpt"]


def test_a_network_that_cannot_be_built_is_named(tmp_path):
    net = i3d(50, layout="nonlocal", norm="batch", width=4, num_classes=3)
    about = {"net": {**net.arguments, "dropout": 1.0}, **ABOUT}
    torch.save({"video_gn": about, "state_dict": net.state_dict()}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a\.ckpt: describes a network that cannot be built: dropout must be"):
        build(tmp_path / "a.ckpt")


def test_inspect_tells_what_a_file_is(ours, tmp_path):
    net, path = ours
    text = inspect(path)
    for words in (
        "format     video_gn\n",
        "ResNet-50, 3-D, width 4",
        "norms      " + ("group, 2 groups" if net.arguments["norm"] == "group" else "batch"),
        "layout     nonlocal",
        "3: a, b, ç, d",
        "RGB; mean [0.1, 0.2, 0.3], std [0.4, 0.5, 0.6]",
        "8 frames at stride 2",
        "global_step",
    ):
        assert words in text
    assert "blocks.0.conv.weight" not in text
    assert "net.blocks.0.conv.weight" in inspect(path, tensors=True)


def test_inspect_of_zoos(tmp_path):
    source = i3d(101, layout="mmaction", norm="batch", width=4, num_classes=400)
    state = {KEYMAPS["mmaction"].to_theirs(k): v for k, v in source.state_dict().items()}
    text = inspect(files.mmaction_training_pth(tmp_path / "m.pth", {**state, "cls_head.extra": torch.zeros(2)}))
    for words in (
        "mmaction2 (mmaction)",
        "ResNet-101, 3-D",
        "layout     mmaction",
        "400",
        "[0.485, 0.456, 0.406]",
        "32 frames at stride 2",
        "not known  1: cls_head.extra",
        "throwaway_history_buffer.HistoryBuffer (not built)",
    ):
        assert words in text, text
    torch.save({k: v for k, v in resnet50().state_dict().items() if "running" not in k}, tmp_path / "gn.pth")
    text = inspect(tmp_path / "gn.pth")
    for words in ("2-D, to be inflated", "group, 32 groups", "any: an image network", "classes    1000"):
        assert words in text, text


def test_inspect_reads_the_header_of_a_large_file_alone(tmp_path):
    names = list(i3d(50, layout="nonlocal", norm="group", num_groups=2, width=4, num_classes=3).state_dict())
    header, at = {}, 0
    for name in names:
        header[name] = {"dtype": "F32", "shape": [4096, 2048], "data_offsets": [at, at + 4096 * 2048 * 4]}
        at += 4096 * 2048 * 4
    text = json.dumps(header).encode()
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    assert path.stat().st_size > 5e9
    assert "1350.57 M numbers" in inspect(path)
    before = files_read()
    inspect(path)
    assert files_read() - before < 2e6


def files_read():
    with Path("/proc/self/io").open() as file:
        return int(next(line for line in file if line.startswith("rchar")).split()[1])


def test_slowfasts_caffe2_files_are_tested_with_its_own_clip(tmp_path):
    from video_gn.evaluation.predictor import Predictor

    source = i3d(50, layout="slowfast", norm="batch", width=4, num_classes=400)
    named = {KEYMAPS["caffe2"].to_theirs(k): v.numpy() for k, v in source.state_dict().items()}
    path = files.caffe2_pkl(tmp_path / "I3D_8x8_R50.pkl", {k: v for k, v in named.items() if k is not None})
    for layout, clip in (("slowfast", (8, 8, 30.0)), ("nonlocal", (32, 2, None))):
        found = Predictor.from_checkpoint(str(path), layout=layout, device="cpu").clip
        assert (found.num_frames, found.stride, found.target_fps) == clip


def test_a_port_without_statistics_is_not_guessed(tmp_path):
    source = i3d(50, layout="nonlocal", norm="group", num_groups=2, width=4, num_classes=3)
    torch.save({KEYMAPS["torchvision"].to_theirs(k): v for k, v in source.state_dict().items()}, tmp_path / "p.pth")
    assert "Group Norm, or Batch Norm folded into them" in inspect(tmp_path / "p.pth")
    with pytest.raises(CheckpointError, match="which Group Norm and folded Batch Norm have alike"):
        build(tmp_path / "p.pth")


def test_classes_of_a_converted_zoo_are_kinetics(tmp_path):
    source = i3d(50, layout="slowfast", norm="batch", width=4, num_classes=400)
    files.pytorchvideo_pyth(tmp_path / "p.pyth", source.state_dict())
    convert(tmp_path / "p.pyth", tmp_path / "p.ckpt")
    about = torch.load(tmp_path / "p.ckpt", weights_only=True)["video_gn"]
    assert about["classes"][0] == "abseiling"
    assert about["classes"][399] == "zumba"
    assert about["clip"] == {"num_frames": 8, "stride": 8, "target_fps": 30.0, "past_end": "last"}
    assert about["views"]["spacing"] == "slowfast"
    net = i3d(50, layout="slowfast", norm="batch", width=4, num_classes=400)
    assert load_into(net, tmp_path / "p.ckpt").preprocessing.mean == (0.45, 0.45, 0.45)


def test_safetensors_of_ours_have_a_checksum(ours, tmp_path):
    path, old = tmp_path / "a.safetensors", tmp_path / "old.safetensors"
    convert(ours[1], path)
    data, content = path.read_bytes(), read_file(path)
    digits = content.metadata[CHECKSUM].encode()
    assert int(digits, 16) == zlib.crc32(data.replace(digits, b"0" * 8))
    for place in (data.index(b"mean") + 10, data.index(b"weight"), data.index(digits), len(data) // 2, len(data) - 1):
        damaged = bytearray(data)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"a\.safetensors: damaged: its checksum is wrong"):
            read_file(path)
    save_file(content.content, old, metadata={KEY: content.metadata[KEY]})  # as earlier versions wrote it
    assert_same(read_file(old).content, content.content)
    assert "3: a, b, ç, d" in inspect(old)
