"""What a checkpoint or a zoo's config says of itself is checked before it is used."""

import subprocess
import sys

import pytest
import torch
from small import ABOUT
from zoo_nets import randomized, refused, small

from video_gn.errors import CheckpointError
from video_gn.weights import load_into
from video_gn.weights.build import build_net
from video_gn.weights.files import read_file
from video_gn.weights.formats import recognize
from video_gn.weights.keymaps import KEYMAPS


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
    refused(small(), tmp_path / "w.ckpt", "video_gn.net lacks width")


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
        ({"clip": {"num_frames": 8}}, "video_gn.clip lacks stride"),
        ({"clip": {**ABOUT["clip"], "speed": 2}}, r"video_gn.clip has unknown entries \['speed'\]"),
        ({"clip": {**ABOUT["clip"], "stride": 0}}, "video_gn.clip.stride must be a number of frames, got '0'"),
        ({"views": {}}, "video_gn.views lacks num_clips"),
        ({"views": {**ABOUT["views"], "spacing": "random"}}, "video_gn.views.spacing must be one of"),
        ({"net": 5}, "does not describe a network"),
        ({"net": {"depth": 50}}, "video_gn.net lacks width"),
        ({"net": {"num_groups": "x"}}, "video_gn.net.num_groups must be a number of groups or none"),
        ({"net": {"width": 25600}}, r"width: 25600 there|says that its width is 25600"),
    ],
)
def test_what_a_checkpoint_says_of_itself_is_checked(tmp_path, change, match):

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


def test_a_checkpoint_of_ours_is_read_without_the_zoos(tmp_path):
    source = randomized(small())
    about = {**ABOUT, "net": source.arguments, "classes": list("abcde")}
    state = {f"net.{name}": tensor for name, tensor in source.state_dict().items()}
    torch.save({"video_gn": about, "state_dict": state}, tmp_path / "a.ckpt")
    code = """
import sys
from video_gn.weights.build import load_net
load_net(sys.argv[1])
assert not {f"video_gn.weights.{name}" for name in ("zoos", "keymaps", "convert")} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.ckpt"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
