"""`model.net` of fit and test: networks of the package other than I3D, and anybody's own."""

import csv
import importlib
import json

import pytest
from runs import TINY, run
from torchvision.models.video import r2plus1d_18

import video_gn
from video_gn.run.metrics_file import read_metrics

SMALL = [word for word in TINY if not word.startswith("--model.net")]
OWN = """
import torch
from torch import nn

class MyNet(nn.Module):
    def __init__(self, num_classes: int, width: int = 8):
        super().__init__()
        self.conv = nn.Conv3d(3, width, 3, stride=2, padding=1)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.linear(self.conv(x).relu().mean((2, 3, 4)))

class Maps(MyNet):
    def forward(self, x):
        return self.conv(x)

class Few(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = MyNet(2)

    def forward(self, x):
        return self.net(x)

class Breaks(MyNet):
    def __init__(self, num_classes: int):
        super().__init__(num_classes, width="wide" + 1)

class NoModule:
    pass
"""


@pytest.fixture
def here(tmp_path):
    (tmp_path / "my_net.py").write_text(OWN)
    return tmp_path


def assert_loads(run_dir, net):
    """The checkpoint alone, in the network, labels each tested video as its test did."""
    predictor = video_gn.load(run_dir, net=net, device="cpu")
    with (run_dir / "test/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows
    for row, found in zip(rows, predictor.predict_many([row["video"] for row in rows], num_workers=0), strict=True):
        best = found["top"][0]
        assert best["label"] == row["pred"] and best["score"] == pytest.approx(float(row["score"]), abs=2e-6)


def fit(here, videos, *more, run_dir="run"):
    words = ["fit", *SMALL, f"--data.train={videos}", f"--run_dir={run_dir}", *more]
    return run(words, here)


@pytest.mark.slow
def test_a_network_of_ones_own_tests_and_resumes_to_the_same_losses(here, tiny_videos, monkeypatch):
    net = "--model.net=my_net.MyNet"
    status, printed = fit(here, tiny_videos, net, "--trainer.max_steps=4", run_dir="whole")
    assert status == 0, printed
    assert "my_net.MyNet, 0.00 M parameters" in printed and "num_classes: 3, from the data" in printed
    status, printed = run(["test", "--run_dir=whole"], here)
    assert status == 0, printed
    metrics = json.loads((here / "whole/test/metrics.json").read_text())
    assert metrics["num_videos"] == 6 and 0 <= metrics["top1"] <= 1
    assert "my_net.MyNet" in (here / "whole/report.html").read_text()
    monkeypatch.syspath_prepend(here)
    assert_loads(here / "whole", importlib.import_module("my_net").MyNet(3))
    assert fit(here, tiny_videos, net, "--trainer.max_steps=2")[0] == 0
    assert fit(here, tiny_videos, net, "--trainer.max_steps=4", "--ckpt_path=last")[0] == 0
    losses = [
        [row["train/loss"] for row in read_metrics(here / name / "metrics.csv") if row.get("train/loss") is not None]
        for name in ("whole", "run")
    ]
    assert len(losses[0]) == 4 and losses[0] == losses[1]
    status, printed = run(["infer", str(tiny_videos / "one/00.mp4"), "--checkpoint=run", "--output=a.json"], here)
    assert status != 0 and "is of my_net.MyNet, a network of somebody's own" in printed
    status, printed = run(["test", "-c", "run/config.yaml", "--run_dir=run", "--model.net=my_net.Few"], here)
    assert status != 0 and "the checkpoint is of another network (class: 'my_net.MyNet' there" in printed


@pytest.mark.slow
def test_a_network_of_torchvision_from_training_to_python(here, tiny_videos):
    net = ["--model.net=torchvision.models.video.r2plus1d_18", "--trainer.max_steps=2", "--data.batch_size=2"]
    status, printed = fit(here, tiny_videos, *net, "--data.views.num_clips=1", "--trainer.limit_val_batches=0")
    assert status == 0, printed
    status, printed = run(["test", "--run_dir=run"], here)
    assert status == 0, printed
    assert_loads(here / "run", r2plus1d_18(num_classes=3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my_net.Maps", "must return logits of shape (4, 3), one for each clip and class, got (4, 8, 4, 16, 16)"),
        ("my_net.Few", "must return logits of shape (4, 3), one for each clip and class, got (4, 2)"),
        ("my_net.Breaks", "model.net my_net.Breaks, my_net.py, line 28: TypeError: can only concatenate str"),
        ("my_net.NoModule", "model.net must be a class of torch.nn.Module, or a function annotated to return one"),
        ("no_net.MyNet", "model.net must be the import path of a class, got 'no_net.MyNet': no module no_net is here"),
        ("my_net.Other", "model.net must be the import path of a class, got 'Other'"),
    ],
)
def test_what_is_no_network_is_refused_in_a_sentence(here, tiny_videos, name, words):
    status, printed = fit(here, tiny_videos, f"--model.net={name}", "--trainer.max_steps=1")
    assert status == 2, printed
    assert words in printed and "Traceback" not in printed


@pytest.mark.slow
def test_what_is_i3ds_own_says_so(here, tiny_videos):
    net = ["--model.net=my_net.MyNet", "--trainer.max_steps=1"]
    for more, words in (
        ("--model.activation_checkpointing=true", "model.activation_checkpointing must be false for my_net.MyNet"),
        ("--model.weights=timm:resnet50", "model.weights must be null for my_net.MyNet"),
        ("--model.optimizer.frozen_stages=1", "for frozen_stages, got OwnNet"),
    ):
        status, printed = fit(here, tiny_videos, *net, more)
        assert status == 2 and words in printed, printed


@pytest.mark.slow
def test_x3d_s_from_training_to_labels(here, tiny_videos):
    video = str(tiny_videos / "one/00.mp4")
    net = ["--model.net=video_gn.models.x3d_s", "--model.net.width=4", "--model.activation_checkpointing=true"]
    status, printed = fit(here, tiny_videos, *net, "--trainer.max_steps=7")
    assert status == 0, printed
    assert "x3d_s of pytorchvideo, group norm" in printed
    for words in (
        ["test", "--run_dir=run"],
        ["infer", video, "--checkpoint=run", "--output=a.json", "--embeddings=e.parquet"],
        ["weights", "inspect", "run"],
    ):
        status, printed = run(words, here)
        assert status == 0, printed
    labels = [entry["label"] for entry in json.loads((here / "a.json").read_text())["videos"][0]["top"]]
    assert sorted(labels) == ["one", "three", "two"]
