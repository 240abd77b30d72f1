"""Exported files from elsewhere, damaged ones, and engines that are not there: a sentence each."""

import json

import pytest
import torch
from small import ABOUT

from video_gn.commands import weights
from video_gn.errors import CheckpointError, ConfigError
from video_gn.export import engine_of, load_engine
from video_gn.export.reading import INPUT, OUTPUTS, checksum, find_checksum, needed, read_onnx_about
from video_gn.models import i3d, x3d_s
from video_gn.weights.about import KEY
from video_gn.weights.files import CHECKSUM, NO_CHECKSUM

ENGINES = pytest.mark.needs_engines
TURNS = torch.arange(128) % 3  # as many features as the network of WORDS
WORDS = {"net": i3d(50, width=4, num_classes=3).arguments, **ABOUT}


def write(path, words, *, change=None, with_checksum=True):
    """An ONNX file in an exported one's form: scores are means of the pixels, features the scores in turns."""
    import onnx
    from onnx import TensorProto, helper

    sizes = ["batch", "time", "height", "width", 3]
    nodes = [
        helper.make_node("Cast", ["frames"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "axes"], ["scores"], keepdims=0),
        helper.make_node("Gather", ["scores", "turns"], ["features"], axis=1),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", None]) for name in OUTPUTS]
    numbers = {"axes": torch.tensor([1, 2, 3]), "turns": TURNS}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, sizes)],
        outputs,
        [onnx.numpy_helper.from_array(tensor.numpy(), name) for name, tensor in numbers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if change is not None:
        change(model)
    if words is not None:
        model.metadata_props.add(key=KEY, value=json.dumps(words))
    if with_checksum:
        model.metadata_props.add(key=CHECKSUM, value=NO_CHECKSUM)
    data = bytearray(model.SerializeToString())
    if with_checksum:
        place = find_checksum(bytes(data))
        data[place : place + 8] = b"%08x" % checksum(bytes(data), place)
    path.write_bytes(data)
    return path


@ENGINES
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_exported_file(tmp_path, engine):
    net, about = load_engine(write(tmp_path / "m.onnx", WORDS), engine)
    assert about == WORDS and (net.num_features, net.num_classes) == (128, 3)
    assert read_onnx_about(tmp_path / "m.onnx", labels=["x", "y", "z"])["classes"] == ["x", "y", "z"]
    frames_NTCHW = torch.randint(256, (2, 8, 3, 5, 6), dtype=torch.uint8)
    wanted = frames_NTCHW.float().mean((1, 3, 4))
    torch.testing.assert_close(net.forward(frames_NTCHW), wanted)
    torch.testing.assert_close(net.embed(frames_NTCHW), wanted[:, TURNS])


@ENGINES
def test_what_inspect_says(tmp_path, capsys):
    path = write(tmp_path / "m.onnx", WORDS)
    assert weights.main("weights", ["inspect", str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(path),
        "  format     exported by video_gn 0",
        "  container  onnx, opset 20",
        "  precision  float32",
        "  network    ResNet-50, width 4; 0 convolutions",
        "  norms      group, num_groups 2",
        "  layout     nonlocal",
        "  classes    3: a, b, ç, d",
        "  input      uint8, RGB; mean [0.1, 0.2, 0.3], std [0.4, 0.5, 0.6]",
        "  clip       8 frames at stride 2",
        "  views      2 clips, crops center of 32 px, short side 32 px",
    ]


@ENGINES
def test_a_network_of_the_hub(tmp_path, capsys):
    with torch.device("meta"):
        arguments = x3d_s(3, width=4).arguments
    path = write(tmp_path / "m.onnx", {**WORDS, "net": arguments})
    assert weights.main("weights", ["inspect", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[4:7] == [
        "  network    x3d_s of pytorchvideo, width 4; 0 convolutions",
        "  norms      group, num_groups 32",
        "  layout     none: layouts are I3D's",
    ]
    with pytest.raises(CheckpointError, match="m.onnx: is of x3d_s; layouts are I3D's own. Leave the layout out"):
        load_engine(path, "onnxruntime", layout="slowfast")
    net, _ = load_engine(path, "onnxruntime")
    assert net.num_features == 2048
    write(path, {**WORDS, "net": {**arguments, "width": 5}})
    with pytest.raises(CheckpointError, match=r"m.onnx: onnxruntime cannot run it \(width of x3d_s must be a multiple"):
        load_engine(path, "onnxruntime")


@ENGINES
def test_half_precision(tmp_path, monkeypatch):
    import openvino

    path = write(tmp_path / "m.onnx", WORDS)
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        net, _ = load_engine(path, "openvino-bf16")
        frames_NTCHW = torch.randint(256, (2, 8, 3, 5, 6), dtype=torch.uint8)
        torch.testing.assert_close(net.forward(frames_NTCHW), frames_NTCHW.float().mean((1, 3, 4)), rtol=2**-7, atol=0)
    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32"])
    with pytest.raises(ConfigError, match="engine openvino-bf16 must have a CPU with instructions for bfloat16"):
        load_engine(path, "openvino-bf16")


def external(model):
    model.graph.initializer[0].data_location = 1


def vendor(model):
    model.opset_import.add(domain="com.vendor", version=1)


@ENGINES
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"words": None}, r"metadata video_gn\). Write it with video-gn export CHECKPOINT m.onnx$"),
        ({"with_checksum": False}, r"metadata video_gn_crc32\). Write it"),
        ({"words": {k: v for k, v in WORDS.items() if k != "clip"}}, r"metadata video_gn.clip\)"),
        ({"words": {**WORDS, "mean": [1, 2]}}, "video_gn.mean must be three numbers"),
        ({"words": {**WORDS, "net": 3}}, "does not describe a network|net must be"),
        ({"change": external}, "keeps its tensors in other files. Export it anew"),
        ({"change": vendor}, "has operators of 'com.vendor', which no engine here knows"),
    ],
)
def test_a_file_of_another(tmp_path, settings, message):
    path = write(tmp_path / "m.onnx", **{"words": WORDS, **settings})
    with pytest.raises(CheckpointError, match=message):
        read_onnx_about(path)


@ENGINES
def test_damage(tmp_path):
    path = write(tmp_path / "m.onnx", WORDS)
    data = path.read_bytes()
    for place in range(0, len(data), 7):
        for damaged in (data[:place], data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]):
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match="m.onnx: "):
                read_onnx_about(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_onnx_about(tmp_path / "none.onnx")


@ENGINES
def test_what_an_engine_cannot_run(tmp_path):
    def unknown(model):
        model.graph.node[2].op_type = "Nonsense"

    path = write(tmp_path / "m.onnx", WORDS, change=unknown)
    for engine in ("onnxruntime", "openvino"):
        with pytest.raises(CheckpointError, match=f"m.onnx: {engine} cannot run it .*Take another engine"):
            load_engine(path, engine)
    for lie, message in (
        ({"num_classes": 4}, r"an output of shape \(1, 3\), not \(1, 4\)"),
        ({"width": 8}, r"an output of shape \(1, 128\), not \(1, 256\)"),
    ):
        path = write(tmp_path / "m.onnx", {**WORDS, "classes": [], "net": {**WORDS["net"], **lie}})
        net, _ = load_engine(path, "onnxruntime")
        with pytest.raises(CheckpointError, match=message):
            net.forward(torch.zeros(1, 8, 3, 4, 4, dtype=torch.uint8))


@ENGINES
def test_a_file_that_claims_somebodys_own_network(tmp_path):
    path = write(tmp_path / "m.onnx", {**WORDS, "net": {"network": "own", "class": "my_net.MyNet"}})
    for read in (read_onnx_about, lambda path: weights.main("weights", ["inspect", str(path)])):
        with pytest.raises(CheckpointError, match=r"m\.onnx: is of my_net\.MyNet, a network of somebody's own"):
            read(path)


@ENGINES
def test_options_that_do_not_fit(tmp_path):
    path = write(tmp_path / "m.onnx", WORDS)
    with pytest.raises(CheckpointError, match="needs layout 'nonlocal', got 'mmaction'"):
        load_engine(path, "onnxruntime", layout="mmaction")
    with pytest.raises(CheckpointError, match="has 3 classes, but 2 labels are given"):
        load_engine(path, "onnxruntime", labels=["a", "b"])
    path = write(tmp_path / "fewer.onnx", {**WORDS, "classes": ["a", "b"]})
    with pytest.raises(CheckpointError, match="has 3 classes, but 2 labels are given"):
        load_engine(path, "onnxruntime")
    with pytest.raises(ConfigError, match="device must be cpu with engine openvino, got 'cuda'"):
        load_engine(path, "openvino", device="cuda")


def test_the_engine_of_a_file():
    assert engine_of("a.ckpt", None) == engine_of("a.ckpt", "torch") == "torch"
    assert engine_of("a.onnx", None) == "onnxruntime" and engine_of("a.onnx", "openvino") == "openvino"
    for path, engine, message in (
        ("a.onnx", "openvinno", "Did you mean openvino?"),
        ("a.ckpt", "openvino", "must have a .onnx file, got a.ckpt. Write one: video-gn export a.ckpt model.onnx"),
        ("a.onnx", "torch", "must be one of onnxruntime, openvino, openvino-bf16 for a.onnx, got torch"),
    ):
        with pytest.raises(ConfigError, match=message):
            engine_of(path, engine)
    with pytest.raises(ConfigError, match=r"nonsense is not installed. Install it: pip install 'video-gn\[onnx\]'"):
        needed("nonsense", extra="onnx")
