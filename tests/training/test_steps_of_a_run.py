"""The steps of an epoch and the batch behind the learning rate, against rates written by hand."""

import logging

import pytest
from lightning import Callback, Trainer
from small import data_module

from video_gn.errors import ConfigError
from video_gn.models import i3d
from video_gn.training.module import VideoClassifier
from video_gn.training.optimizer import OptimizerConfig
from video_gn.training.schedule import ScheduleConfig


class Rates(Callback):
    """Keeps the learning rate of each optimizer step, and the clips of each epoch."""

    def __init__(self):
        self.rates, self.clips = [], []

    def on_train_epoch_start(self, trainer, pl_module):
        self.clips.append([])

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.clips[-1].append((batch.video_ids.tolist(), int(batch.frames_NKTCHW.long().sum())))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])


def trained(videos, schedule, *, reference=None, callbacks=(), batch_size=4, **settings):
    """24 videos in batches of 4 are 6 an epoch; the base rate is 1e-30, for which no weight changes."""
    kept = Rates()
    net = i3d(50, norm="group", num_groups=2, width=4, num_classes=3)
    module = VideoClassifier(
        net, optimizer=OptimizerConfig(lr=1e-30, reference_batch_size=reference, weight_decay=0.0), schedule=schedule
    )
    trainer = Trainer(
        accelerator="cpu",
        limit_val_batches=settings.pop("limit_val_batches", 0),
        callbacks=[kept, *callbacks],
        logger=False,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module, datamodule=data_module(videos, batch_size=batch_size))
    return kept


STEP = ScheduleConfig("step", milestones=[1, 2])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_steps": 14}, [1] * 6 + [0.1] * 6 + [0.01] * 2),
        ({"max_steps": 8, "max_epochs": 3}, [1] * 6 + [0.1] * 2),  # the first that is reached ends the run
        ({"max_steps": 8, "max_epochs": 1}, [1] * 6),
        ({"max_steps": 5, "limit_train_batches": 2}, [1, 1, 0.1, 0.1, 0.01]),
        ({"max_steps": 5, "limit_train_batches": 0.5, "accumulate_grad_batches": 2}, [1, 1, 0.1, 0.1, 0.01]),
        ({"max_epochs": 2, "accumulate_grad_batches": 10}, [1, 0.1]),
        ({"fast_dev_run": True}, [1]),
    ],
    ids=str,
)
def test_milestones_in_epochs_fall_at_the_ends_of_epochs(tiny_videos, settings, expected):
    rates = trained(tiny_videos, STEP, **settings).rates
    assert rates == pytest.approx([1e-30 * factor for factor in expected], rel=1e-9, abs=0)


def test_cosine_ends_with_whatever_ends_the_run(tiny_videos):
    schedule = ScheduleConfig("cosine", unit="step")
    for settings in ({"max_steps": 4, "max_epochs": 9}, {"max_steps": 9, "limit_train_batches": 2, "max_epochs": 2}):
        rates = trained(tiny_videos, schedule, **settings).rates
        expected = [1e-30 * factor for factor in (1, 0.8535533906, 0.5, 0.1464466094)]
        assert rates == pytest.approx(expected, rel=1e-9, abs=0)


@pytest.mark.parametrize(("accumulate", "clips"), [(2, 8), (6, 24), (10, 24)])
def test_the_rate_is_scaled_to_the_clips_of_a_step(tiny_videos, caplog, accumulate, clips):
    """An epoch has 6 batches: no step has more."""
    with caplog.at_level(logging.INFO, logger="video_gn"):
        kept = trained(
            tiny_videos, ScheduleConfig("constant"), reference=8, max_epochs=1, accumulate_grad_batches=accumulate
        )
    assert kept.rates == pytest.approx([1e-30 * clips / 8] * (24 // clips), rel=1e-9, abs=0)
    assert f"global batch {clips} = 1 process(es) x 4 clips" in caplog.text
    assert ("accumulate_grad_batches is 10, an epoch has 6 batches" in caplog.text) == (accumulate == 10)


class Changes(Callback):
    """Changes the batch in the midst of a run."""

    def __init__(self, name):
        self.name = name

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            setattr(trainer.datamodule if self.name == "batch_size" else trainer, self.name, 2)


@pytest.mark.parametrize("name", ["batch_size", "accumulate_grad_batches"])
def test_a_batch_that_a_callback_changes_is_refused(tiny_videos, name):
    with pytest.raises(ConfigError, match=rf"{name} must stay [14] during a run, got 2 from a callback"):
        trained(tiny_videos, STEP, callbacks=[Changes(name)], max_epochs=2, limit_train_batches=1)


def test_overfitting_has_the_same_clips_in_each_epoch(tiny_videos):
    kept = trained(tiny_videos, STEP, overfit_batches=2, max_epochs=3)
    usual = trained(tiny_videos, STEP, max_epochs=2, limit_train_batches=2)
    assert kept.clips == [usual.clips[0]] * 3
    assert usual.clips[1] != usual.clips[0]
    assert len(kept.rates) == 6
