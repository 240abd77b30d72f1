"""A worker that dies or hangs is told with the file that it was at."""

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from runs import TINY, run

from video_gn.data import dataset as dataset_module
from video_gn.data.crops import TestCrops
from video_gn.data.dataset import ClipConfig, EvalDataset
from video_gn.data.layout import collate
from video_gn.data.loader import ReadingBoard, WatchedLoader, explain
from video_gn.errors import DecodeError, RunError
from video_gn.lists.read import find_videos


def loader(videos, **more):
    records = find_videos([str(videos)]).records
    data = EvalDataset(
        records, clip=ClipConfig(8, 2), crops=TestCrops("center", short_side_px=32, crop_px=32), num_clips=1
    )
    return WatchedLoader(data, batch_size=1, num_workers=2, collate_fn=collate, **more)


def opening(monkeypatch, action):
    """Something else happens when the seventh video is opened in a worker."""
    real = dataset_module.open_video

    def open_video(path, **options):
        if path.endswith("06.mp4"):
            action(path)
        return real(path, **options)

    monkeypatch.setattr(dataset_module, "open_video", open_video)


def test_every_batch_comes_through(tiny_videos):
    assert sum(len(batch) for batch in loader(tiny_videos)) == 30


def _read_until_a_worker_dies(videos, queue):
    try:
        list(loader(videos))
    except (RunError, RuntimeError) as error:
        # torch's handler may raise outside of the loader, and again: the command line translates that in the same way.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        queue.put(str(error if isinstance(error, RunError) else explain(error)))
    os._exit(0)


def test_a_worker_that_dies_is_told_with_its_file(tiny_videos, monkeypatch):
    """In a process of its own: torch raises wherever its main thread is, be that in the midst of another test."""
    opening(monkeypatch, lambda path: os.kill(os.getpid(), signal.SIGSEGV))
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=_read_until_a_worker_dies, args=(tiny_videos, queue))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert not queue.empty()
    told = queue.get()
    assert "a loading worker died" in told
    assert "06.mp4 (for " in told


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), EOFError(), FileNotFoundError(2, "socket")])
def test_a_batch_of_a_dead_worker_is_told_with_its_file(error):
    def iterator():
        raise error
        yield

    with pytest.raises(RunError, match=r"a loading worker died \(DataLoader worker gone: "):
        next(WatchedLoader([0])._watched(iterator()))


def test_a_worker_that_hangs_is_told_with_its_file(tiny_videos, monkeypatch):
    opening(monkeypatch, lambda path: time.sleep(60))
    with pytest.raises(RunError, match=r"no batch came within data\.loader\.timeout_seconds.*06\.mp4 \(for [1-9]"):
        list(loader(tiny_videos, timeout=3))


def test_another_error_is_not_touched():
    assert explain(RuntimeError("shapes do not fit")) is None


_SHM = "RuntimeError: unable to allocate shared memory(shm) for file </torch_7_8_0>: No space left on device (28)\n"
_IN_WORKER = (
    "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File\n"
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (_IN_WORKER + _SHM, r"shared memory is full.*--shm-size 8g\), or .*loader\.num_workers.* No space left"),
        (_SHM, r"shared memory is full"),
        ("DataLoader worker (pid 7) is killed by signal: Bus error. It is", r"shared memory is full"),
        ("unable to mmap 9 bytes from file </torch_7_8_0>: Cannot allocate memory (12)", r"the memory is full\."),
        (_IN_WORKER + "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried", r"the memory is full\."),
        ("received 0 items of ancdata", r"too many files are open\. Allow more \(ulimit -n 65536\), or take"),
        ("unable to open shared memory object </torch_7> in read-write mode: Too many open files (24)", "too many"),
    ],
)  # fmt: skip
def test_a_shortage_of_the_machine_is_no_videos_fault(text, told):
    with pytest.raises(RunError, match=f"(?s)^{told}") as caught:
        raise explain(RuntimeError(text))
    assert "were reading" not in str(caught.value)


def test_a_worker_that_the_kernel_killed():
    said = str(explain(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")))
    assert "Is the memory full? Then take fewer workers (data.loader.num_workers" in said and "were reading" in said


class Failing:
    """A data set whose first item is an error."""

    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise self.error


def test_an_error_in_a_worker_keeps_its_words():
    with pytest.raises(RuntimeError, match=r"(?s)Caught RuntimeError in .*shapes do not fit"):
        list(WatchedLoader(Failing(RuntimeError("shapes do not fit")), num_workers=1))
    with pytest.raises(RunError, match=r"^nor could any of 10 videos\. Is the file system there\?$"):
        list(WatchedLoader(Failing(RunError("nor could any of 10 videos. Is the file system there?")), num_workers=1))


def test_a_small_dev_shm():
    """In a name space of its own, where /dev/shm has 1 MB: as in a container, there of 64 MB."""
    code = (
        "import torch\n"
        "from video_gn.data.loader import WatchedLoader\n"
        "try:\n"
        "    list(WatchedLoader(list(torch.zeros(4, 1_000_000, dtype=torch.uint8)), batch_size=2, num_workers=1))\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"', "-"]
    if shutil.which("unshare") is None or subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("needs unshare and its permission to mount")
    done = subprocess.run([*mount, sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "RunError shared memory is full" in done.stdout, done.stdout + done.stderr
    assert "(/dev/shm has 1 MB)" in done.stdout and "No space left on device" in done.stdout


def test_shared_memory_that_takes_no_lock(monkeypatch):
    def refuse(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("multiprocessing.context.BaseContext.Lock", refuse)
    with pytest.raises(RunError, match=r"cannot start: No space left on device\. Is /dev/shm full .* none with 0\."):
        iter(WatchedLoader([1], num_workers=1))


def test_a_board_is_shared_with_forked_processes(monkeypatch):
    board = ReadingBoard(2)

    class Info:
        id = 1

    def write(path):
        process = multiprocessing.get_context("fork").Process(target=board.write, args=(path,))
        process.start()
        process.join()

    monkeypatch.setattr("video_gn.data.loader.get_worker_info", lambda: Info)
    write("/videos/\udcff é.mp4")
    assert [path for path, _ in board.reading()] == ["/videos/\udcff é.mp4"]
    write("x" * 10000)
    assert len(board.reading()[0][0]) > 4000
    write("")
    assert board.reading() == []


def test_a_video_is_read_again_once(tiny_videos, monkeypatch):
    real, opened = dataset_module.open_video, []

    def open_video(path, **options):
        opened.append(path)
        if len(opened) == 1:
            raise DecodeError(path, "the file system was away")
        return real(path, **options)

    monkeypatch.setattr(dataset_module, "open_video", open_video)
    data = loader(tiny_videos).dataset
    assert data[0].failures == ()
    assert len(opened) == 2
    monkeypatch.setattr(
        dataset_module,
        "open_video",
        lambda path, **o: opened.append(path) or (_ for _ in ()).throw(DecodeError(path, "gone")),
    )
    assert data[1].failures[0].reason == "gone"
    assert len(opened) == 4


def test_broken_training_videos_are_kept_in_a_table(tiny_videos, tmp_path):
    import csv
    import shutil

    videos = tmp_path / "videos"
    shutil.copytree(tiny_videos, videos)
    for name in ("one/00.mp4", "two/01.mp4"):
        (videos / name).write_text("<html>")
    words = ["fit", *TINY, f"--data.train={videos}", f"--data.val={tiny_videos}", f"--run_dir={tmp_path / 'run'}"]
    words += ["--trainer.max_epochs=2", "--trainer.limit_val_batches=1", "--data.max_broken_fraction=0.1"]
    status, printed = run(words, tmp_path)
    assert status == 0, printed
    with (tmp_path / "run/failures.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(r["path"] for r in rows) == [str(videos / "one/00.mp4"), str(videos / "two/01.mp4")]
    assert all(r["reason"] for r in rows)
    status, printed = run([*words, "--ckpt_path=last", "--trainer.max_epochs=3"], tmp_path)
    assert status == 0, printed
    with (tmp_path / "run/failures.csv").open() as file:
        assert list(csv.DictReader(file)) == rows
