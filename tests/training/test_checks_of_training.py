"""Trainings that cannot be what their config says are refused before anything is written."""

import pytest
import torch
from runs import TINY, run, run_with, start

from video_gn.models import OwnNet, i3d
from video_gn.run.metrics_file import read_metrics
from video_gn.training.checks import check_batches


def fit(videos, path, *more):
    words = ["fit", *TINY, f"--data.train={videos}", f"--run_dir={path / 'run'}"]
    return run(
        [*words, "--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", *more],
        path,
    )


BATCH = ["--model.net.num_groups=null"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([*BATCH, "--model.net.norm=sync_batch"], "model.net.norm"),
        ([*BATCH, "--model.net.norm=frozen_batch"], "model.net.norm"),
        ([*BATCH, "--model.net.norm=batch_renorm", "--data.batch_size=1"], "model.net.norm"),
        (["--model.net.num_groups=3"], "num_groups must divide"),
        (["--precise_bn.num_batches=2"], "precise_bn.num_batches must be 0"),
        (["--model.mixing.mixup_alpha=0.2", "--data.source.only_classes=[one]"], "model.mixing.mixup_alpha"),
        (
            [*BATCH, "--model.net.norm=batch", "--data.batch_size=1", "--data.augment.crop_px=16"],
            "model.net.norm must not be 'batch' with data.batch_size 1",
        ),
        (["--data.clip.num_frames=4"], "a clip must have at least 8 frames"),
        (["--averaging.kind=ema", "--averaging.decay=1.5"], "averaging.decay"),
        (["--trainer.precision=bf16-mixed"], "bfloat16"),
        (["--model.optimizer.frozen_stages=9"], "frozen_stages"),
        (["--checkpoint.monitor=val/loss"], "checkpoint.monitor must be one of val/top1, val/top5, got 'val/loss'"),
    ],
    ids=lambda value: value[-1].removeprefix("--") if isinstance(value, list) else "",
)
def test_refused_before_anything_is_written(tiny_videos, tmp_path, settings, message):
    status, printed = fit(tiny_videos, tmp_path, *settings)
    assert status == 2, printed
    assert "Traceback" not in printed
    assert message in printed.splitlines()[-1], printed
    assert not (tmp_path / "run/checkpoints").exists()


def test_slow_bfloat16_is_warned_of_before_anything_else(tiny_videos, tmp_path):
    words = ["fit", *TINY, f"--data.train={tiny_videos}", f"--run_dir={tmp_path / 'run'}", "--trainer.max_epochs=1"]
    mixed = "--trainer.precision=16-mixed"  # Lightning makes it bf16-mixed on a CPU
    status, printed = run_with(start, [*words, mixed], tmp_path, ONEDNN_MAX_CPU_ISA="AVX2")
    assert status == 2, printed  # these clips are too short for bfloat16 on any CPU
    assert "warning: bfloat16 is 10 to 50 times slower" in printed
    assert "Set --trainer.precision 32-true." in printed


@pytest.mark.parametrize(
    "settings",
    [
        ["--trainer.limit_train_batches=5", "--trainer.val_check_interval=0.6"],
        ["--trainer.limit_train_batches=5", "--trainer.val_check_interval=4", "--trainer.check_val_every_n_epoch=null"],
    ],
    ids=["a fraction", "over the epochs"],
)
def test_no_validation_inside_an_accumulation_window(tiny_videos, tmp_path, settings):
    """5 batches, windows of 2, 2 and 1: after 3 batches, or after 8 of two epochs, a window is open."""
    status, printed = fit(tiny_videos, tmp_path, "--trainer.accumulate_grad_batches=2", *settings)
    assert status == 2, printed
    assert "must fall between two optimizer steps" in printed.splitlines()[-2] + printed.splitlines()[-1]


def test_a_refused_training_leaves_the_earlier_run_in_its_place(tiny_videos, tmp_path):
    status, printed = fit(tiny_videos, tmp_path)
    assert status == 0, printed
    before = {p.relative_to(tmp_path): p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    status, printed = fit(
        tiny_videos, tmp_path, "--trainer.accumulate_grad_batches=2", "--trainer.limit_train_batches=5",
        "--trainer.val_check_interval=0.6",
    )  # fmt: skip
    assert status == 2, printed
    assert "is back in its place" in printed
    after = {p.relative_to(tmp_path): p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert {k: v for k, v in after.items() if k.name != ".lock"} == {
        k: v for k, v in before.items() if k.name != ".lock"
    }


def test_options_of_a_recipe_train(tiny_videos, tmp_path):
    """All at once: adamw, frozen stages, rates by depth, drop path, checkpointing, averaging, precise BN, the guard."""
    status, printed = fit(
        tiny_videos, tmp_path, *BATCH, "--model.net.norm=batch", "--model.net.drop_path=0.1",
        "--model.optimizer.name=adamw", "--model.optimizer.lr=1e-3", "--model.optimizer.layer_decay=0.75",
        "--model.optimizer.frozen_stages=2", "--model.activation_checkpointing=true", "--averaging.kind=mean",
        "--precise_bn.num_batches=2", "--guard.action=skip", "--trainer.gradient_clip_val=1",
        "--model.mixing.label_smoothing=0.1", "--model.mixing.cutmix_alpha=1",
    )  # fmt: skip
    assert status == 0, printed
    assert "stay at their random values" in printed
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["current_model_state"]
    fresh, moved = (
        state["net.blocks.0.norm.running_mean"],
        state["net.blocks.3.res_blocks.0.branch2.norm_a.running_mean"],
    )
    assert fresh.abs().max() == 0, "a frozen stage keeps its statistics"
    assert moved.abs().max() > 0
    assert read_metrics(tmp_path / "run/metrics.csv")[-1]["step"] == 2


@pytest.mark.slow
def test_a_compiled_step_trains_and_its_checkpoint_is_like_any_other(tiny_videos, tmp_path):
    # A compiled dropout draws other masks.
    status, printed = fit(tiny_videos, tmp_path, "--model.compile=true", "--model.net.dropout=0")
    assert status == 0, printed
    compiled = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    (tmp_path / "eager").mkdir()
    status, printed = fit(tiny_videos, tmp_path / "eager", "--model.net.dropout=0")
    assert status == 0, printed
    eager = torch.load(tmp_path / "eager/run/checkpoints/last.ckpt", weights_only=True)
    assert compiled["state_dict"].keys() == eager["state_dict"].keys()
    ours, wanted = (read_metrics(path / "run/metrics.csv")[0]["train/loss"] for path in (tmp_path, tmp_path / "eager"))
    assert ours == pytest.approx(wanted, rel=1e-5)  # the first step's, in float32 with sums of another order


@pytest.mark.slow
def test_compiled_gradients_are_those_without():
    """In float64, where no ReLU flips for the order of a sum."""
    torch.manual_seed(0)
    net = i3d(50, width=4, num_groups=2, num_classes=5, dropout=0.0, zero_init_last_norm=False).double().train()
    x_NCTHW = torch.randn(2, 3, 8, 32, 32, dtype=torch.float64)
    found = []
    for compiled in (False, True):
        if compiled:
            net.compile()
        gradients = torch.autograd.grad(net(x_NCTHW).logsumexp(1).sum(), list(net.parameters()))
        found.append(torch.cat([g.flatten() for g in gradients]))
    assert found[0].norm() > 0
    assert (found[1] - found[0]).norm() < 1e-10 * found[0].norm()


class Own(torch.nn.Module):
    def __init__(self, number=0.0):
        super().__init__()
        self.conv = torch.nn.Conv3d(3, 8, (3, 1, 1), padding=(1, 0, 0))
        self.number = number

    def forward(self, x):
        return self.conv(x).mean((2, 3, 4)) + self.number


def test_a_network_of_ones_own_is_checked_for_bfloat16_too(caplog):
    def check(number=0.0, *, frames):
        net = OwnNet(Own(number))
        check_batches(net, (2, 3, frames, 8, 8), world_size=1, has_statistics=False, is_bfloat16_on_cpu=True)

    with pytest.raises(ValueError, match=r"at least 3 frames before module\.conv \(3x1x1\) .* got 2 of a clip's 2"):
        check(frames=2)
    check(frames=3)
    assert not caplog.text
    check(torch.ones(8), frames=3)  # such a tensor on the CPU does not go with those without data
    assert "could not be checked" in caplog.text
