"""`video-gn plan`, against hand counts of its run, and against the run itself."""

import csv
import json

import pytest
from runs import TINY, run

from video_gn.__main__ import main

# 24 training and 6 validation videos, in batches of 4 on two processes: 3 steps an epoch.
ON_GPUS = ["--gpus=2", "--gpu_memory_gb=8", "--clips_per_second=100"]


@pytest.fixture
def plan(tiny_videos, tmp_path, monkeypatch, capsys):
    """Runs the command: (exit status, json, text)."""
    monkeypatch.chdir(tmp_path)

    def call(*more, words=TINY):
        words = [*words, "--trainer.max_epochs=5", "--sample=2", *more]
        status = main(["plan", f"--data.train={tiny_videos}", "--output=plan.json", *words])
        found = json.loads((tmp_path / "plan.json").read_text()) if status < 2 else None
        return status, found, "".join(capsys.readouterr())

    return call


def test_figures_and_page(plan, tiny_videos):
    status, found, page = plan(*ON_GPUS, "--num_cores=4")
    assert status == 0 and found["fits"] and found["problems"] == []
    values = {name: figure["value"] for name, figure in found["figures"].items()}
    bases = {figure["basis"] for figure in found["figures"].values()}
    assert bases == {"counted", "measured", "assumed", "follows"}
    assert (values["steps"], values["epochs"], values["clips"], values["clips_of_step"]) == (15, 5, 120, 8)
    assert values["computed_clips_per_second"] == pytest.approx(200)
    assert values["cores_to_feed"] == pytest.approx(200 * values["loading_core_seconds"])
    assert values["training_hours"] == pytest.approx(120 / values["clips_per_second"] / 3600)
    assert values["hours"] == values["training_hours"] + values["validation_hours"]
    assert values["memory_limit_bytes"] == pytest.approx(0.95 * 8e9 - 1e9)
    assert values["checkpoint_bytes"] == values["weights_bytes"] + values["optimizer_bytes"]
    # The first, the middle and the last of the training videos, which hold out a fifth of each class.
    sizes = [path.stat().st_size for path in tiny_videos.rglob("*.mp4")]
    assert min(sizes) <= values["video_bytes"] <= max(sizes)
    assert values["data_bytes"] == pytest.approx(30 * values["video_bytes"])
    assert found["alternatives"][0]["change"] == "as it is"
    assert found["alternatives"][0]["step_bytes"] == values["step_bytes"]
    assert "It fits." in page and "hours to the end" in page and "assumed: as given" in page


OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes: int, looks: bool = False):
        super().__init__()
        self.conv = nn.Conv3d(3, 5, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm3d(5)
        self.linear = nn.Linear(5, num_classes)
        self.looks = looks

    def forward(self, x):
        if self.looks and x.sum().item() == 0:
            return None
        return self.linear(self.norm(self.conv(x)).relu().mean((2, 3, 4)))

class Lazy(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.linear = nn.LazyLinear(num_classes)

    def forward(self, x):
        return self.linear(x.mean((2, 3, 4)))

class Means(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.shift = nn.Parameter(nn.Linear(1, num_classes).bias.detach())

    def forward(self, x):
        return x.mean((1, 2, 3, 4))[:, None] + self.shift
"""


@pytest.mark.slow
def test_a_network_of_ones_own(plan, tmp_path):
    (tmp_path / "planned_net.py").write_text(OWN)
    words = [*(word for word in TINY if not word.startswith("--model.net")), "--model.net=planned_net.Net"]
    status, found, page = plan("--gpu_memory_gb=8", words=words)
    values = {name: figure["value"] for name, figure in found["figures"].items()}
    assert status == 0 and "planned_net.Net; clips of 8 x 32 x 32" in page
    # The convolution with its bias, Batch Norm, a classifier of the three classes of the data.
    assert values["num_parameters"] == (3 * 27 * 5 + 5) + 2 * 5 + (5 * 3 + 3)
    assert values["clip_forward_macs"] == 3 * 27 * 5 * 4 * 16 * 16 + 5 * 3
    assert values["gradients_bytes"] == 4 * values["num_parameters"]
    # Frames in float32, and the maps of the convolution, the norm and the ReLU, are held for the backward pass.
    held = 4 * (4 * 3 * 8 * 32 * 32 + 3 * 4 * 5 * 4 * 16 * 16)
    assert held <= values["activations_bytes"] <= 3 * held
    assert list(values["largest_batches"]) == ["float32"]
    for more, message in (
        ("--trainer.precision=bf16-mixed", "counts float32 without activation checkpointing. Add --trainer.precision"),
        ("--model.net.looks=true", "planned_net.Net must run on tensors without data (torch's device meta)"),
    ):
        status, _, page = plan("--gpu_memory_gb=8", more, words=words)
        assert status == 2 and message in page and "Traceback" not in page
    for name, message in (
        ("Lazy", "planned_net.Lazy must run on tensors without data (torch's device meta)"),
        ("Means", "planned_net.Means must have convolutions or linear layers to be planned for"),
    ):
        status, _, page = plan("--gpu_memory_gb=8", words=[*words[:-1], f"--model.net=planned_net.{name}"])
        assert status == 2 and message in page and "Traceback" not in page


@pytest.mark.slow
def test_too_little_memory(plan):
    status, found, page = plan("--gpu_memory_gb=1.0568", "--clips_per_second=100", "--data.batch_size=12")
    values = {name: figure["value"] for name, figure in found["figures"].items()}
    assert status == 1 and not found["fits"]
    assert values["step_bytes"] > values["memory_limit_bytes"]
    largest = values["largest_batches"]["float32"]
    assert f"It fits with data.batch_size {largest} in float32" in " ".join(page.split()) and 0 < largest < 12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.net.norm=batch_renorm", "--model.net.num_groups=null", "--data.batch_size=1"], "single clips"),
        (["--model.net.norm=sync_batch", "--model.net.num_groups=null"], "must not be 'sync_batch' in one process"),
        (["--data.batch_size=25"], "24 training videos do not fill one batch of 25 on 1 process"),
    ],
)
@pytest.mark.slow
def test_norms_and_batches_that_do_not_fit(plan, words, message):
    status, found, page = plan("--gpu_memory_gb=8", "--clips_per_second=100", *words)
    assert status == 1 and not found["fits"] and message in " ".join(page.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu_memory_gb=0"], "--gpu_memory_gb must be a number above 0, got '0'"),
        (["--gpus=none"], "--gpus must be an integer, got 'none'"),
        (["--gpus=2"], "--gpu_memory_gb must be given, got none: this machine has no GPU to ask"),
        (["--data.batch_sice=2"], "there is no option --data.batch_sice. Did you mean --data.batch_size?"),
        pytest.param(["--trainer.precision=64-true"], "trainer.precision must be", marks=pytest.mark.slow),
        pytest.param(["--data.augment.crop_px=64"], "crop_px must be", marks=pytest.mark.slow),
        pytest.param(["--data.train=nowhere"], "nowhere: the list or folder must be there", marks=pytest.mark.slow),
    ],
)
def test_bad_words(plan, monkeypatch, words, message):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    status, _, page = plan(*words)
    assert status == 2 and message in page


@pytest.mark.slow
def test_the_run_itself(plan, tiny_videos, tmp_path):
    words = ["--model.net.width=16", "--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=2"]
    _, found, page = plan(*words)
    values = {name: figure["value"] for name, figure in found["figures"].items()}
    assert "on this machine's CPU" in page and found["figures"]["compute_seconds"]["basis"] == "measured"
    status, printed = run(["fit", *TINY, *words, f"--data.train={tiny_videos}", "--run_dir=runs/a"], tmp_path)
    assert status == 0, printed
    rows = list(csv.DictReader((tmp_path / "runs/a/metrics.csv").open()))
    assert int(rows[-1]["step"]) in (values["steps"], values["steps"] - 1)
    assert sum(1 for row in rows if row["val/top1"]) == 1
    size = (tmp_path / "runs/a/checkpoints/last.ckpt").stat().st_size
    assert size == pytest.approx(values["checkpoint_bytes"], rel=0.05)
    assert run(["test", "--run_dir=runs/a"], tmp_path)[0] == 0
    used = {path.stat().st_ino: path.stat().st_size for path in (tmp_path / "runs/a").rglob("*") if path.is_file()}
    assert sum(used.values()) < 1.1 * values["run_dir_bytes"]
