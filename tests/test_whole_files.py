"""A file is written whole or not at all; a full or read-only disk is an error that says what to do."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import disks
import pytest
import torch
from runs import TINY, run
from small import assert_same

from video_gn import files
from video_gn.errors import DiskFullError, RefusedError, RunError, StoppedError, UnwritableError
from video_gn.files import naming_full_disk, remove_temporary, whole_file, whole_path, write_json, write_text
from video_gn.run import checkpoints
from video_gn.run.checkpoints import AtomicCheckpointIO, link
from video_gn.run.metrics_csv import MetricsCSV
from video_gn.run.metrics_file import read_metrics


@pytest.fixture
def small_disk(tmp_path):
    with disks.small_disk(tmp_path / "disk", 2) as path:
        yield path


def test_a_file_is_there_only_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "deep" / "x.txt"
    with whole_file(path) as file:
        file.write("one\r\ntwo\n\udcff")
        assert [p.name for p in path.parent.iterdir()] == [f".x.txt.{os.getpid()}.tmp"]
    assert path.read_bytes() == b"one\r\ntwo\n\xff", "line ends and bytes of names that are no text stay"
    assert os.listdir(path.parent) == ["x.txt"]
    with whole_file(path, "wb") as file:
        file.write(b"\x00")
    assert path.read_bytes() == b"\x00"
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    with whole_path(path) as part:
        part.unlink()  # a library may replace it
        part.write_text("other")
    assert path.read_text() == "other"
    write_text(path, "é")
    assert path.read_bytes() == "é".encode()
    write_json(path, {"é": [1]})
    assert path.read_text(encoding="utf-8") == '{\n  "é": [\n    1\n  ]\n}\n'
    assert os.listdir(path.parent) == ["x.txt"]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, StoppedError("stop", status=1)])
def test_an_error_leaves_the_old_file_and_no_other(tmp_path, error):
    path = tmp_path / "x.txt"
    path.write_text("old")

    def write():
        with whole_file(path) as file:
            file.write("new" * 100_000)
            raise error

    with pytest.raises(error if isinstance(error, type) else type(error)):
        write()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, synced = tmp_path / "x.txt", []

    def fsync(descriptor):
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink(), os.fstat(descriptor).st_size, path.exists()))

    monkeypatch.setattr(files.os, "fsync", fsync)
    write_text(path, "abc")
    assert synced == [(tmp_path / f".x.txt.{os.getpid()}.tmp", 3, False)]


KILLED = """
import os, signal, sys
from video_gn.files import whole_file
with whole_file(sys.argv[1]) as file:
    file.write("new")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_leaves_the_old_file_and_what_it_left_can_be_removed(tmp_path):
    path = tmp_path / "below" / "x.txt"
    write_text(path, "old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    left = [name for name in os.listdir(path.parent) if name != "x.txt"]
    assert len(left) == 1
    (path.parent / ".mine.tmp").touch()
    (path.parent / ".y.txt.7.tmp").touch()
    remove_temporary(tmp_path)
    assert len(os.listdir(path.parent)) == 4
    remove_temporary(path.parent, name="x.txt")
    assert sorted(os.listdir(path.parent)) == [".mine.tmp", ".y.txt.7.tmp", "x.txt"]
    remove_temporary(tmp_path, recursive=True)
    assert sorted(os.listdir(path.parent)) == [".mine.tmp", "x.txt"], "a user's own file stays"
    remove_temporary(tmp_path / "nowhere")


def test_the_next_write_removes_what_a_kill_has_left(tmp_path):
    """Never the file of a process that lives, here or, by its lock, on another machine."""
    path = tmp_path / "x.txt"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    (left,) = os.listdir(tmp_path)
    dead = left.split(".")[-2]
    assert killed.returncode == -signal.SIGKILL
    stay = [f".x.txt.{os.getppid()}.tmp", f".y.txt.{dead}.tmp", ".x.txt.tmp", f".x.txt.{10**30}.tmp"]
    for name in stay:
        (tmp_path / name).touch()
    with (tmp_path / left).open() as elsewhere:
        fcntl.flock(elsewhere, fcntl.LOCK_EX)
        write_text(path, "new")
        assert sorted(os.listdir(tmp_path)) == sorted([left, *stay, "x.txt"])
    write_text(path, "newer")
    assert sorted(os.listdir(tmp_path)) == sorted([*stay, "x.txt"])


def test_a_temporary_file_is_locked_while_it_is_written(tmp_path):
    with whole_path(tmp_path / "x.txt") as part, part.open("r+b") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_read_only_disk_is_named_before_the_work(tmp_path):
    with disks.small_disk(tmp_path / "disk", 1) as disk:
        path = disk / "x.txt"
        path.write_text("old")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        wanted = (
            rf"x\.txt could not be written: Read-only file system \({disk}\)\. Choose a directory that this user may "
            r"write to, or change its permissions\."
        )
        with pytest.raises(UnwritableError, match=wanted), whole_path(path):
            pytest.fail("the block must not run")
        with pytest.raises(RefusedError, match=r"deep/x\.txt could not be written: Read-only file system"):
            write_text(disk / "deep" / "x.txt", "new")
        assert path.read_text() == "old"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_directory_that_forbids_it_is_named(tmp_path, monkeypatch, number):
    """Tests may run as root, whom no permissions stop."""

    def refuse(path, *_, **__):
        raise OSError(number, os.strerror(number), str(path))

    for method in ("mkdir", "open", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(Path, method, refuse)
            with pytest.raises(UnwritableError, match=rf"x\.txt could not be written: {os.strerror(number)} \("):
                write_text(tmp_path / "x.txt", "new")
        assert not list(tmp_path.iterdir())


def test_an_error_that_may_pass_is_no_refusal(tmp_path, monkeypatch):
    """A refused job is not started again; after an error of a file server it should be."""

    def fail(path, *_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(RunError, match=r"x\.txt could not be written: Input/output error .* Run .* again") as found:
        write_text(tmp_path / "x.txt", "new")
    assert not isinstance(found.value, RefusedError)
    assert not list(tmp_path.iterdir())


def test_a_directory_that_is_none_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UnwritableError, match=r"x\.txt could not be written: [^:]+/file is no directory\."):
        write_text(tmp_path / "file/a/b/x.txt", "new")
    (tmp_path / "there").mkdir()
    with pytest.raises(UnwritableError, match=r"there could not be written: Is a directory"):
        write_text(tmp_path / "there", "new")


def test_other_files_errors_in_the_block_pass(tmp_path):
    """What cannot be read says nothing of the file that is written."""
    with pytest.raises(FileNotFoundError), whole_path(tmp_path / "x.txt"):
        (tmp_path / "source").read_bytes()
    with pytest.raises(PermissionError), whole_path(tmp_path / "x.txt"):
        raise PermissionError(errno.EACCES, "Permission denied", "source")


def test_a_full_disk_leaves_the_old_file(small_disk):
    path = small_disk / "x.txt"
    write_text(path, "old")
    with pytest.raises(DiskFullError, match=r"x\.txt could not be written: No space left on device\. .* MB are free"):
        write_text(path, "new" * 1_000_000)
    assert path.read_text() == "old"
    assert os.listdir(small_disk) == ["x.txt"]


def test_a_full_disk_is_seen_in_the_words_of_libraries(small_disk):
    """What the writers of tensors and videos raise."""
    import av
    from safetensors.torch import save_file

    path = small_disk / "x"
    with pytest.raises(DiskFullError, match=r"x could not be written: No space left on device"), whole_path(path) as p:
        save_file({"weights": torch.ones(1_000_000)}, p)
    with pytest.raises(DiskFullError, match=r"x could not be written: No space left on device"), whole_path(path) as p:
        raise av.FFmpegError(errno.ENOSPC, "No space left on device", str(p))
    assert not os.listdir(small_disk)


def test_a_checkpoint_on_a_full_disk(small_disk):
    path = small_disk / "checkpoints/last.ckpt"
    content = {"step": 1, "weights": torch.ones(200_000)}
    AtomicCheckpointIO().save_checkpoint(content, path)
    wanted = (
        r"checkpoints/last\.ckpt could not be written: No space left on device\. 1\.\d of 2\.1 MB are free there\. "
        r"What was saved before is whole\. Make room, .*--ckpt_path last"
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
    assert status == 2, printed
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


@pytest.mark.parametrize("first", [DiskFullError("first"), RefusedError("first")])
def test_what_was_told_is_told_through_what_comes_after(tmp_path, first):
    """A logger that is closed on the way out fails on the full disk too: the first file or refusal is named."""

    def fail_twice():
        try:
            raise first
        finally:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(type(first), match="^first$") as found, naming_full_disk(tmp_path):
        fail_twice()
    assert found.value is first
    with pytest.raises(DiskFullError, match="^/nowhere/x could not be written"), naming_full_disk(Path("/nowhere/x")):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")
    with pytest.raises(StoppedError), naming_full_disk(tmp_path):  # says itself what to do
        raise StoppedError("stopped", status=1) from OSError(errno.ENOSPC, "No space left on device")
