"""Checkpoints of somebody's own network: what they hold, and their weights in a module that is given."""

import logging

import pytest
import torch
from own_net import MyNet, own_run
from shared_runs import make_run

import video_gn
from video_gn.errors import CheckpointError, ConfigError
from video_gn.weights.convert import convert
from video_gn.weights.inspect import inspect


class Renamed(MyNet):
    pass


def test_every_tensor_and_the_scores_come_back_from_every_file(tmp_path, caplog):
    module = own_run(tmp_path / "run")
    for name in ("a.safetensors", "b.ckpt"):
        convert(tmp_path / "run/checkpoints/best.ckpt", tmp_path / name)
    convert(tmp_path / "a.safetensors", tmp_path / "c.ckpt")
    frames_VTCHW = torch.randint(256, (2, 8, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]))
    x_NCTHW = ((frames_VTCHW.double() / 255 - mean) / std).transpose(1, 2)
    with torch.no_grad():
        expected = module.double()(x_NCTHW).softmax(1)
    assert expected.std() > 0.01
    for name in ("run", "a.safetensors", "b.ckpt", "c.ckpt"):
        given = MyNet(3).double()
        predictor = video_gn.load(tmp_path / name, net=given, device="cpu")
        assert predictor.net.module is given and not given.training
        state = given.state_dict()
        assert all(torch.equal(tensor.to(state[key]), state[key]) for key, tensor in module.state_dict().items())
        torch.testing.assert_close(
            torch.from_numpy(predictor.scores(frames_VTCHW)).double(), expected, rtol=1e-5, atol=0
        )
        assert predictor.classes == ["a", "b", "\u00e7, d"] and predictor.num_clips == 2
    with pytest.raises(ConfigError, match=r"embed must have a network of video_gn\.models, got own_net\.MyNet"):
        predictor.features(frames_VTCHW)
    assert not caplog.records or "trained as" not in caplog.text


def test_a_class_of_another_name_is_warned_of(tmp_path, caplog):
    own_run(tmp_path)
    with caplog.at_level(logging.WARNING):
        video_gn.load(tmp_path, net=Renamed(3))
    assert "was trained as own_net.MyNet, and net is a test_own_networks.Renamed" in caplog.text


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (MyNet(5), r"linear\.weight: .*\[3, 4\].*\[5, 4\](.|\n)*linear\.bias(.|\n)*as it was trained for 3 classes"),
        (
            torch.nn.Linear(4, 3),
            r'Missing key.*"weight", "bias"(.|\n)*Unexpected key.*"conv\.weight", .*"linear\.bias"',
        ),
        (MyNet, r"net must be a torch\.nn\.Module, got the class MyNet\. Build it: net=MyNet\(\.\.\.\)"),
        (None, r"is of own_net\.MyNet, a network of somebody's own.*--run_dir RUN .* video_gn\.load\(PATH, net=MyNet"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, net, words):
    own_run(tmp_path)
    with pytest.raises((CheckpointError, TypeError), match=words):
        video_gn.load(tmp_path, net=net)


def test_what_a_net_is_not_given_with(tmp_path):
    own_run(tmp_path / "own")
    make_run(tmp_path / "ours")
    for path, more, words in (
        ("ours", {}, "is not of somebody's own network, so it is loaded by itself. Leave net out."),
        ("own", {"layout": "nonlocal"}, "layout and engine must be left out beside net"),
        ("own", {"labels": ["a"]}, "has 3 classes, but 1 labels are given"),
    ):
        with pytest.raises((CheckpointError, ConfigError), match=words):
            video_gn.load(tmp_path / path, net=MyNet(3), **more)
    with pytest.raises(CheckpointError, match=r"pytorchvideo has no names for somebody's own network\. Write"):
        convert(tmp_path / "own/checkpoints/best.ckpt", tmp_path / "a.pyth")


def test_what_inspect_shows(tmp_path):
    own_run(tmp_path)
    text = inspect(tmp_path / "checkpoints/best.ckpt", tensors=True)
    for words in (
        "own_net.MyNet, somebody's own; load it: video_gn.load(FILE, net=...)",
        "3: a, b, \u00e7, d",
        "8 frames at stride 2",
        "net.module.norm.running_mean         float32   (4,)",
        "-> linear.bias",
    ):
        assert words in text, text
