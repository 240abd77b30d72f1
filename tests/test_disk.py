"""A disk that is full: the old file stays whole, and the error says which file, what is free, and what to do."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import disks
import pytest
import torch
from runs import TINY, run
from small import assert_same

from video_gn.errors import DiskFullError
from video_gn.files import full_disk, naming_full_disk
from video_gn.run import checkpoints
from video_gn.run.checkpoints import AtomicCheckpointIO, link
from video_gn.run.metrics_csv import MetricsCSV, read_metrics


@pytest.fixture
def small_disk(tmp_path):
    with disks.small_disk(tmp_path / "disk", 2) as path:
        yield path


def test_a_checkpoint_on_a_full_disk(small_disk):
    path = small_disk / "checkpoints/last.ckpt"
    content = {"step": 1, "weights": torch.ones(200_000)}
    AtomicCheckpointIO().save_checkpoint(content, path)
    wanted = (
        r"checkpoints/last\.ckpt could not be written: No space left on device\. 1\.\d of 2\.1 MB are free there\. "
        r"What was saved before is whole: make room, .*--ckpt_path last"
    )
    # Also where the tensors begin to be written, and where torch fails on the file's end.
    for size in (400_000, 330_000, 1_000_000):
        with pytest.raises(DiskFullError, match=wanted):
            AtomicCheckpointIO().save_checkpoint({"step": 2, "weights": torch.ones(size)}, path)
        assert_same(torch.load(path, weights_only=True), content)
        assert os.listdir(path.parent) == ["last.ckpt"], "half a file would take the room that is missing"
    AtomicCheckpointIO().save_checkpoint({"step": 3}, path)
    assert torch.load(path, weights_only=True) == {"step": 3}


def test_a_second_name_on_a_full_disk_without_links(small_disk, monkeypatch):
    def no_links(*_):
        raise OSError("not supported")

    last, best = small_disk / "last.ckpt", small_disk / "best.ckpt"
    last.write_bytes(bytes(1_200_000))
    best.write_bytes(b"old")
    monkeypatch.setattr(checkpoints.os, "link", no_links)
    with pytest.raises(DiskFullError, match=r"best\.ckpt could not be written: No space left"):
        link(last, best)
    assert best.read_bytes() == b"old"
    assert sorted(os.listdir(small_disk)) == ["best.ckpt", "last.ckpt"]


def test_metrics_on_a_full_disk(small_disk):
    table = MetricsCSV(small_disk / "metrics.csv")
    progress = SimpleNamespace(current=SimpleNamespace(ready=1))
    trainer = SimpleNamespace(
        is_global_zero=True, global_step=0, current_epoch=0, world_size=1,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
    )  # fmt: skip
    table.on_train_start(trainer, None)
    disks.fill(small_disk, leave=4096)

    def write_on():
        for step in range(1, 1000):
            trainer.global_step = step
            table._write(trainer, {"lr": 0.1, "train/loss": 1.0})

    with pytest.raises(DiskFullError, match=r"metrics\.csv could not be written: No space left"):
        write_on()
    rows = read_metrics(small_disk / "metrics.csv")
    assert [row["step"] for row in rows] == list(range(1, trainer.global_step))
    # Going on needs room for the table, and says so too.
    with pytest.raises(DiskFullError, match=r"metrics\.csv could not be written"):
        MetricsCSV(small_disk / "metrics.csv").on_train_start(trainer, None)
    assert sorted(os.listdir(small_disk)) == ["filler", "metrics.csv"]
    assert read_metrics(small_disk / "metrics.csv") == rows


@pytest.mark.slow
def test_a_training_whose_disk_fills_up_goes_on(tiny_videos, tmp_path):
    """A limit on the files' size stands for the disk: the checkpoints alone are above it."""

    def words(path, *more):
        return [
            "fit", *TINY, f"--data.train={tiny_videos}", f"--run_dir={path / 'run'}", "--trainer.max_epochs=2",
            "--trainer.limit_train_batches=3", "--trainer.limit_val_batches=1", "--ckpt_path=last", *more,
        ]  # fmt: skip

    whole = tmp_path / "whole"
    whole.mkdir()
    assert run(words(whole), whole)[0] == 0
    status, printed = run(words(tmp_path, "--trainer.max_epochs=1"), tmp_path)
    assert status == 0, printed
    last = tmp_path / "run/checkpoints/last.ckpt"
    before = last.read_bytes()
    limit = ["--trainer.callbacks+=runs.FileLimit", "--trainer.callbacks.num_bytes=100000"]
    status, printed = run(words(tmp_path, *limit), tmp_path)
    assert status == 1, printed
    assert f"video-gn: error: {last} could not be written: File too large. " in printed
    assert "Traceback" not in printed
    assert last.read_bytes() == before
    assert not list(last.parent.glob(".*"))
    status, printed = run(words(tmp_path), tmp_path)
    assert status == 0, printed
    ours, wanted = (torch.load(p / "run/checkpoints/last.ckpt", weights_only=True) for p in (tmp_path, whole))
    for key in ("state_dict", "optimizer_states", "global_step"):
        assert_same(ours[key], wanted[key])
    assert (tmp_path / "run/metrics.csv").read_text() == (whole / "run/metrics.csv").read_text()


def test_other_errors_go_on_as_they_are(tmp_path):
    with pytest.raises(PermissionError), naming_full_disk(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(RuntimeError, match="something else"), naming_full_disk(tmp_path):
        raise RuntimeError("something else")


def test_what_was_told_is_told_through_what_comes_after(tmp_path):
    """A logger that is closed on the way out fails on the full disk too: the first file is named."""
    first = DiskFullError("first")

    def fail_twice():
        try:
            raise first
        finally:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskFullError, match="^first$") as found, naming_full_disk(tmp_path):
        fail_twice()
    assert found.value is first
    assert full_disk(OSError(errno.EDQUOT, "Disk quota exceeded"), Path("/nowhere/x")) is not None
