"""People read epochs from 1, whoever prints them."""

from types import SimpleNamespace

import torch

from video_gn.run.batch_change import BatchChange, Cut
from video_gn.run.progress import LineProgress, TerminalProgress


def test_the_lines_of_a_log(caplog):
    caplog.set_level("INFO")
    progress = LineProgress(every_seconds=0.0)
    trainer = SimpleNamespace(
        current_epoch=0, global_step=1, estimated_stepping_batches=20, world_size=1, is_global_zero=True,
        callback_metrics={"train/loss": torch.tensor(2.0)},
    )  # fmt: skip
    progress.on_train_start(trainer, None)
    progress.on_train_batch_end(trainer, None, None, SimpleNamespace(num_clips=4), 0)
    assert "epoch 1, step 1 of 20" in caplog.text


def test_the_bar():
    bar = TerminalProgress()
    for max_epochs, texts in ((10, ("Epoch 1/10", "Epoch 10/10")), (-1, ("Epoch 1   ", "Epoch 10  ")), (None, None)):
        bar._trainer = SimpleNamespace(max_epochs=max_epochs, sanity_checking=False)
        for epoch, text in zip((0, 9), texts or ("Epoch 1   ", "Epoch 10  "), strict=True):
            assert bar._get_train_description(epoch) == text


def test_a_change_of_the_batch_size():
    change = BatchChange(Cut(4, 1, 10), Cut(8, 1, 5), 0, 12, 1, 3)
    assert "resuming in epoch 1 after 8 of the 12 clips seen" in change.text()
