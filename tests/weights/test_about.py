"""What a checkpoint or a zoo's config says of itself is checked before it is used."""

import json
import subprocess
import sys

import pytest
import torch
from small import ABOUT
from zoo_nets import randomized, refused, small

from video_gn import sampling
from video_gn.data.crops import TestCrops
from video_gn.data.dataset import ClipConfig
from video_gn.errors import CheckpointError
from video_gn.evaluation.predictor import Predictor
from video_gn.sampling import SPACINGS
from video_gn.weights import load_into
from video_gn.weights.about import KEY, MOST_VIEW_BYTES, read_about
from video_gn.weights.build import build_net
from video_gn.weights.files import FileContent, read_file
from video_gn.weights.formats import recognize
from video_gn.weights.inspect import inspect
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
        ({"mean": "abc"}, r"video_gn.mean must be three numbers from -1e\+06 to 1e\+06, got 'abc'"),
        ({"mean": [0.1]}, "video_gn.mean must be three numbers"),
        ({"mean": [0.1, 0.2, float("nan")]}, "video_gn.mean must be three numbers"),
        ({"std": [0.1, 0.2, 0.0]}, "video_gn.std must be three numbers above 0"),
        ({"mean": None}, "video_gn.mean must be three numbers"),
        ({"classes": "abcde"}, "video_gn.classes must be a list of names"),
        ({"classes": {"a": 0}}, "video_gn.classes must be a list of names"),
        ({"clip": "8x2"}, "video_gn.clip must be a table"),
        ({"clip": {"num_frames": 8}}, "video_gn.clip lacks stride"),
        ({"clip": {**ABOUT["clip"], "speed": 2}}, r"video_gn.clip has unknown entries \['speed'\]"),
        (
            {"clip": {**ABOUT["clip"], "stride": 0}},
            "video_gn.clip.stride must be a number of frames from 1 to 100,000, got '0'",
        ),
        ({"views": {}}, "video_gn.views lacks num_clips"),
        ({"views": {**ABOUT["views"], "spacing": "random"}}, "video_gn.views.spacing must be one of"),
        ({"net": 5}, "does not describe a network"),
        ({"net": {"depth": 50}}, "video_gn.net lacks width"),
        ({"net": {"num_groups": "x"}}, "video_gn.net.num_groups must be a number of groups from 1 to 65,536, or none"),
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


NESTED = [1, 2]
for _ in range(60):
    NESTED = [NESTED, NESTED]
HOSTILE = (
    *(0, -1, 2**31, 10**9, 10**400, 10**5000, -(10**5000), True, None, 1e-300, 1e300, float("nan"), float("inf")),
    *(
        "",
        "x",
        "x" * 1_000_000,
        b"x",
        1j,
        [],
        [1, 2],
        ["x" * 5000] * 3,
        [10**5000] * 3,
        [1e-300] * 3,
        [float("nan")] * 3,
    ),
    *({}, {"a": NESTED}, {1: 2}, {"x" * 5000: 1}, NESTED, (NESTED,) * 3, torch.ones(2), torch.float32),
)


@pytest.mark.parametrize("place", [None, "net", "clip", "views"])
def test_every_word_of_a_checkpoint_has_its_limits(tmp_path, place):
    """Any value is refused with a short sentence that names it, or is one that a network and its clips can take."""
    good = {**ABOUT, "net": small().arguments, "environment": {"cpu": "a"}}
    table = good if place is None else good[place]
    for name in {**table, "decode_short_side_px": None, "val": None, "more": None}:
        for value in HOSTILE:
            words = {**good, **({name: value} if place is None else {place: {**table, name: value}})}
            content = FileContent("w.ckpt", "torch", {KEY: words})
            about, refusal = {}, ""
            try:
                about = read_about(content)
            except CheckpointError as error:
                refusal = str(error)
            if refusal:
                assert refusal.startswith("w.ckpt: ") and len(refusal) < 400
                assert name in refusal or "net" in refusal
                continue
            TestCrops(*(about["views"][key] for key in ("crops", "short_side_px", "crop_px")))
            for spacing in SPACINGS:
                clip = ClipConfig(**about["clip"])
                drawn = sampling.test_clips(
                    300, num_clips=about["views"]["num_clips"], spacing=spacing, **clip.timing(30.0)
                )
                assert drawn.size * 3 * about["views"]["crop_px"] ** 2 <= MOST_VIEW_BYTES
            assert torch.isfinite(255 / torch.tensor(about["std"]) + torch.tensor(about["mean"])).all()
            assert json.loads(json.dumps(about, allow_nan=False))["classes"] == list(about["classes"])


def test_words_that_ended_in_hangs_tracebacks_and_no_labels(tmp_path, tiny_videos):
    source = randomized(small(num_classes=3))
    clip, views = ABOUT["clip"], ABOUT["views"]
    for change, match in (
        ({"clip": {**clip, "num_frames": 10**9}}, "clip.num_frames must be a number of frames from 1 to 10,000"),
        ({"views": {**views, "num_clips": 10**9}}, "views.num_clips must be a number of clips from 1 to 100,000"),
        (
            {"views": {**views, "num_clips": 99_999}, "clip": {**clip, "num_frames": 9999}},
            "must ask for at most 17 GB of a video, got 99999 views of 9999 frames of 32 px: 3072",
        ),
        ({"views": {**views, "crop_px": 10**6}}, "views.crop_px must be a length in px from 1 to 16,384"),
        ({"views": {**views, "crop_px": 64}}, r"views.crop_px must be at most short_side_px \(32\), got 64"),
        ({"std": [1e-300] * 3}, r"std must be three numbers above 0, from 1e-06 to 1e\+06"),
        ({"mean": NESTED}, "mean must be three numbers"),
    ):
        words = {"net": dict(source.arguments), **ABOUT, **change}
        torch.save({"video_gn": words, "state_dict": source.state_dict()}, tmp_path / "w.ckpt")
        for read in (Predictor.from_checkpoint, inspect):
            with pytest.raises(CheckpointError, match=f"w.ckpt: video_gn.*{match}"):
                read(str(tmp_path / "w.ckpt"))
    # Beside what is known of a checkpoint a file may hold anything.
    torch.save({"video_gn": {"net": source.arguments, **ABOUT}, "state_dict": source.state_dict(), "more": NESTED,
                "x" * 10_000: NESTED}, tmp_path / "w.ckpt")  # fmt: skip
    assert "also has" in inspect(tmp_path / "w.ckpt") and len(inspect(tmp_path / "w.ckpt")) < 2500
    # Weights whose numbers fit, and whose scores do not.
    for weight in source.parameters():
        weight.data.fill_(1e30)
    torch.save({"video_gn": {"net": source.arguments, **ABOUT}, "state_dict": source.state_dict()}, tmp_path / "w.ckpt")
    with pytest.raises(CheckpointError, match=r"w\.ckpt: its scores of .*00\.mp4 are not finite"):
        Predictor.from_checkpoint(str(tmp_path / "w.ckpt")).predict(tiny_videos / "one" / "00.mp4")


def test_names_and_keys_are_bounded(tmp_path):
    torch.save({"state_dict": {"x" * 5000: torch.ones(1)}}, tmp_path / "w.pth")
    refused(small(), tmp_path / "w.pth", "a tensor's name must have at most 1000 characters, got 5000: 'xxx")
    wide = ("a",) * 200
    for key in (10**30, (((wide,) * 200,) * 200), tuple(range(17))):
        torch.save({"state_dict": {"conv1.weight": torch.ones(1)}, "more": {key: 1}}, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match="a key of type"):
            read_file(tmp_path / "w.pth")


def test_a_slowfast_config_that_doubles_itself_costs_nothing(tmp_path):
    state = {KEYMAPS["slowfast"].to_theirs(k): v for k, v in randomized(small()).state_dict().items()}
    doubled = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40))
    aliases = "a0: &a0 [1, 1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    for cfg in (doubled, aliases, "a: [" * 100_000, "x" * 2_000_000):
        torch.save({"model_state": state, "cfg": cfg}, tmp_path / "w.pyth")
        assert load_into(small(), tmp_path / "w.pyth").preprocessing.mean == (0.45, 0.45, 0.45)


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
