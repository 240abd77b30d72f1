"""Lightning's trainer options and callbacks: each works, or is one line before training; and why a training ended."""

import pytest
from jsonargparse import ArgumentParser
from lightning import Callback, Trainer
from runs import TINY, run

from video_gn.commands._trainer import check_trainer
from video_gn.errors import ConfigError
from video_gn.run.metrics_file import read_metrics


def fit(videos, path, *more):
    words = ["fit", *TINY, f"--data.train={videos}", f"--run_dir={path / 'run'}", "--trainer.limit_train_batches=2"]
    return run([*words, *more], path)


def callback(name, **settings):
    return [f"--trainer.callbacks+={name}", *(f"--trainer.callbacks.{k}={v}" for k, v in settings.items())]


def parsed(words):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Trainer, "trainer", instantiate=False)
    return parser.parse_args([f"--trainer.{word}" for word in words]).trainer


# ---- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["max_epochs=0"], r"max_epochs must be at least 1, or -1 for no limit, got 0\."),
        (["max_epochs=-2"], r"max_epochs must be at least 1, or -1 for no limit, got -2"),
        (["max_steps=0"], r"max_steps must be at least 1, or -1"),
        (["max_epochs=-1"], r"max_epochs and max_steps are both -1\. Set one"),
        (["limit_train_batches=0"], r"limit_train_batches must be above 0"),
        (["check_val_every_n_epoch=0"], r"check_val_every_n_epoch must be at least 1, got 0\. For no validation"),
        (["val_check_interval=0"], r"val_check_interval must be above 0"),
        (["val_check_interval=3", "accumulate_grad_batches=2"], r"val_check_interval must be a multiple of accum"),
        (["accumulate_grad_batches=0"], r"accumulate_grad_batches must be at least 1"),
        (["gradient_clip_val=-1"], r"gradient_clip_val must be 0 or more, got -1\. Set null"),
        (["log_every_n_steps=0"], r"log_every_n_steps must be at least 1"),
        (["precision=64-true"], r"precision must be one of 32-true, 32, bf16-mixed, 16-mixed"),
        (
            ["accelerator=mps"],
            r"accelerator must be one that this machine has, got 'mps'\. No such GPU was found",
        ),
        (["enable_checkpointing=false"], r"enable_checkpointing must be true, got False\. A run is resumed"),
        (["barebones=true"], r"barebones must be false, got True"),
        (["sync_batchnorm=true"], r"sync_batchnorm must be false, got True\. Set model\.net\.norm to sync_batch"),
        (["num_nodes=2"], r"num_nodes is 2, and nothing says where their processes meet"),
    ],
    ids=str,
)
def test_values_that_no_run_can_honour(words, message, monkeypatch):
    for name in ("MASTER_PORT", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=rf"^trainer\.{message}"):
        check_trainer(parsed(words))


def test_values_that_runs_honour(caplog, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "29500")
    words = [
        "max_epochs=2", "max_steps=5", "min_epochs=1", "limit_train_batches=0.5", "limit_val_batches=0",
        "check_val_every_n_epoch=null", "val_check_interval=00:00:10:00", "gradient_clip_val=0", "num_nodes=2",
        "precision=bf16-mixed", "accelerator=auto", "profiler=simple", "max_time=00:12:00:00", "deterministic=warn",
    ]  # fmt: skip
    check_trainer(parsed(words))
    assert caplog.text == ""
    check_trainer(parsed(["default_root_dir=elsewhere"]))
    assert "trainer.default_root_dir is not used" in caplog.text


# ---- callbacks and Lightning's own refusals -----------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (callback("EarlyStopping", monitor="val_loss"), "EarlyStopping's monitor must be a figure of this run"),
        (callback("EarlyStopping", monitor="val/top5", mode="max"), "lr, val/loss, val/top1), got 'val/top5'"),
        (
            [*callback("ModelCheckpoint", monitor="val/loss"), "--trainer.limit_val_batches=0"],
            "ModelCheckpoint's monitor must be a figure of this run (train/loss, lr), got 'val/loss'",
        ),
        (callback("EarlyStopping", monitor="val/top1"), "EarlyStopping's mode must be max for val/top1, got 'min'"),
        (callback("BatchSizeFinder"), "trainer.callbacks must not hold BatchSizeFinder: the learning rate"),
        (callback("GradientAccumulationScheduler", scheduling="{0: 2}"), "Set trainer.accumulate_grad_batches"),
        (callback("LearningRateFinder"), "trainer.callbacks must not hold LearningRateFinder"),
        (callback("StochasticWeightAveraging", swa_lrs="0.1"), "Set averaging.kind"),
        (["--trainer.strategy=ddp_spawn"], "trainer.strategy must not spawn its processes"),
        (["--trainer.limit_train_batches=0.01"], "Please increase the `limit_train_batches`"),  # Lightning's own words
        (["--seed_everything=-5"], "seed_everything must be in [0, 2**32), got -5"),
    ],
    ids=lambda value: value[0].removeprefix("--trainer.") if isinstance(value, list) else "",
)
def test_refused_in_a_line_before_training(tiny_videos, tmp_path, words, message):
    status, printed = fit(tiny_videos, tmp_path, "--trainer.max_epochs=2", *words)
    assert status == 2, printed
    assert "Traceback" not in printed
    assert message in printed.splitlines()[-1], printed
    assert not list(tmp_path.glob("run/checkpoints/*"))


class OwnFigure(Callback):
    """Logs a figure of its own, as a user's callback may."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pl_module.log("own/figure", float(batch_idx))


# ---- why a training ended, and what was asked for is printed ------------------------------------


def test_an_end_says_why(tiny_videos, tmp_path):
    """EarlyStopping on a callback's own figure; then resumes with nothing to do, with too little, with more."""
    status, printed = fit(
        tiny_videos, tmp_path, "--trainer.max_epochs=9", "--trainer.limit_val_batches=1",
        "--trainer.callbacks+=test_trainer_settings.OwnFigure",
        *callback("EarlyStopping", monitor="own/figure", patience=1),
        *callback("ModelSummary", max_depth=2), "--trainer.profiler=simple",
    )  # fmt: skip
    assert status == 0, printed
    assert "training ended at step 4: EarlyStopping: Monitored metric own/figure did not improve" in printed
    assert "Signaling" not in printed
    assert "Trainable params" in printed, "ModelSummary"
    assert "FIT Profiler Report" in printed
    words = ["--ckpt_path=last", "--trainer.limit_val_batches=1"]
    status, printed = fit(tiny_videos, tmp_path, "--trainer.max_epochs=2", *words)
    assert status == 0, printed
    assert "nothing was trained: the checkpoint is of step 4, and trainer.max_epochs is 2" in printed
    status, printed = fit(tiny_videos, tmp_path, "--trainer.max_epochs=1", *words)
    assert status == 2, printed
    assert "max_epochs must be at least 2, the epochs that the checkpoint has, got 1. Set" in printed.splitlines()[-1]
    for more in ("--trainer.max_steps=3", "--trainer.fast_dev_run=1"):
        status, printed = fit(tiny_videos, tmp_path, "--trainer.max_epochs=9", more, *words)
        assert status == 0, printed
        assert "nothing was trained: the checkpoint is of step 4, and trainer.max_steps is" in printed
    status, printed = fit(tiny_videos, tmp_path, "--trainer.max_epochs=9", "--trainer.max_steps=5", *words)
    assert status == 0, printed
    assert "training ended at step 5: trainer.max_steps is 5" in printed
    status, printed = fit(tiny_videos, tmp_path, "--trainer.max_epochs=9", "--trainer.max_time=00:00:00:00", *words)
    assert status == 0, printed
    assert "nothing was trained: the checkpoint is of step 5, and the time of trainer.max_time is over" in printed


def test_a_small_trial_of_a_long_recipe(tiny_videos, tmp_path):
    """A warm-up and milestones beyond its end, a fraction of the clips again and again, a bar of the user's own."""
    status, printed = fit(
        tiny_videos, tmp_path, "--trainer.max_epochs=3", "--trainer.max_steps=4", "--trainer.overfit_batches=0.34",
        "--model.schedule.name=step", "--model.schedule.warmup=5", "--model.schedule.milestones=[41, 82]",
        "--trainer.limit_train_batches=1.0", *callback("TQDMProgressBar"),
    )  # fmt: skip
    assert status == 0, printed
    assert "warmup (5 epochs) is 10 steps, the run has 4: it is shortened to 2" in printed
    assert "milestones [41.0, 82.0] (epochs) are not reached" in printed
    rows = read_metrics(tmp_path / "run/metrics.csv")
    assert [row["lr"] for row in rows] == pytest.approx([0.001, 0.0055, 0.01, 0.01])
    assert [row["step"] for row in rows if "val/loss" in row] == [2, 4]
