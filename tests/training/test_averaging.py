"""Averaged weights against an average by hand; validation and checkpoints use them from the first averaged step on."""

import pytest
import torch
from lightning import Callback
from runs import TINY, run

from video_gn.training.averaging import Averaging, AveragingConfig


def average_by_hand(weights, config):
    average = None
    for step, value in enumerate(weights):
        if step < config.start_step or (step - config.start_step) % config.every_n_steps:
            continue
        if average is None:
            average, count = value.double(), 1
        elif config.kind == "ema":
            average = config.decay * average + (1 - config.decay) * value.double()
        else:
            average, count = (average * count + value.double()) / (count + 1), count + 1
    return average


class Module(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(4))
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("constant", torch.tensor([0.45, 0.1, 1 / 3]), persistent=False)


@pytest.mark.parametrize(
    "config",
    [
        AveragingConfig("ema", decay=0.9),
        AveragingConfig("ema", decay=0.5, start_step=3, every_n_steps=2),
        AveragingConfig("mean", start_step=1, every_n_steps=3),
    ],
    ids=str,
)
def test_the_average_is_that_by_hand(config):
    callback, module = config.build(), Module()
    callback._average_model = torch.optim.swa_utils.AveragedModel(
        module, use_buffers=True, avg_fn=callback._kwargs["avg_fn"]
    )
    generator, seen, means = torch.Generator().manual_seed(0), [], []
    for step in range(12):
        with torch.no_grad():
            module.weight.copy_(torch.randn(4, generator=generator))
            module.running_mean.copy_(torch.randn(4, generator=generator))
            module.count.add_(1)
        seen.append(module.weight.detach().clone())
        means.append(module.running_mean.clone())
        trainer = type("Trainer", (), {"global_step": step + 1})
        callback.on_train_batch_end(trainer, module, None, None, step)
    average = callback._average_model.module
    torch.testing.assert_close(average.weight.double(), average_by_hand(seen, config), rtol=0, atol=1e-6)
    torch.testing.assert_close(average.running_mean.double(), average_by_hand(means, config), rtol=0, atol=1e-6)
    assert torch.equal(average.constant, module.constant), "what never changes must not drift"
    last = max(s for s in range(12) if callback.should_update(step_idx=s))
    assert int(average.count) == last + 1


class Weights(Callback):
    """Keeps one weight after each step, and in each validation."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.seen = []

    def _note(self, kind, trainer, pl_module):
        self.seen.append(
            (kind, trainer.global_step, pl_module.net.blocks[0].conv.weight.detach().flatten()[:5].clone())
        )

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._note("step", trainer, pl_module)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self._note("validation", trainer, pl_module)

    def on_train_end(self, trainer, pl_module):
        torch.save(self.seen, self.path)


def test_a_run_validates_and_saves_the_average(tiny_videos, tmp_path):
    """Also before the first step that is averaged: then it is the present weights, not those of the start."""
    words = [
        "fit", *TINY, f"--data.train={tiny_videos}", f"--run_dir={tmp_path / 'run'}", "--trainer.max_epochs=2",
        "--trainer.limit_train_batches=3", "--trainer.limit_val_batches=1", "--checkpoint.keep_steps=9",
        "--averaging.kind=ema", "--averaging.decay=0.5", "--averaging.start_step=3",
        "--trainer.callbacks+=test_averaging.Weights", f"--trainer.callbacks.path={tmp_path / 'seen.pt'}",
    ]  # fmt: skip
    status, printed = run(words, tmp_path)
    assert status == 0, printed
    seen = torch.load(tmp_path / "seen.pt", weights_only=True)
    steps = [weight for kind, _, weight in seen if kind == "step"]
    validated = {step: weight for kind, step, weight in seen if kind == "validation"}
    config = AveragingConfig("ema", decay=0.5, start_step=3)
    average = average_by_hand(steps, config).float()
    assert torch.equal(validated[3], steps[2]), "nothing averaged yet"
    torch.testing.assert_close(validated[6], average, rtol=0, atol=1e-7)
    assert not torch.allclose(average, steps[5])
    content = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    name = "net.blocks.0.conv.weight"
    torch.testing.assert_close(content["state_dict"][name].flatten()[:5], average, rtol=0, atol=1e-7)
    assert torch.equal(content["current_model_state"][name].flatten()[:5], steps[5])
    early = torch.load(tmp_path / "run/checkpoints/step-00000003.ckpt", weights_only=True)
    assert torch.equal(early["state_dict"][name].flatten()[:5], steps[2])


def test_going_on_without_averaging_goes_on_with_the_weights_in_training(tiny_videos, tmp_path):
    words = [
        "fit", *TINY, f"--data.train={tiny_videos}", f"--run_dir={tmp_path / 'run'}", "--trainer.max_epochs=1",
        "--trainer.limit_train_batches=3", "--trainer.limit_val_batches=1",
    ]  # fmt: skip
    status, printed = run([*words, "--averaging.kind=ema", "--averaging.decay=0.9"], tmp_path)
    assert status == 0, printed
    name = "net.blocks.0.conv.weight"
    before = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert not torch.equal(before["current_model_state"][name], before["state_dict"][name])
    status, printed = run(
        [*words, "--ckpt_path=last", "--trainer.max_epochs=2", "--model.optimizer.lr=1e-30"], tmp_path
    )
    assert status == 0, printed
    assert "it resumes from those in training" in printed
    after = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert torch.equal(after["state_dict"][name], before["current_model_state"][name])


def test_nothing_is_averaged_by_default():
    assert AveragingConfig().build() is None
    assert isinstance(AveragingConfig("mean").build(), Averaging)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "swa"}, "averaging.kind must be one of"),
        ({"decay": 1.0}, r"averaging.decay must be in \[0, 1\)"),
        ({"start_step": -1}, "averaging.start_step must be 0 or more"),
        ({"every_n_steps": 0}, "every_n_steps at least 1"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        AveragingConfig(**settings)
