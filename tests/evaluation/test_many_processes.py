"""A test on several processes: every video once, and the files of one process, byte for byte."""

import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from media import write_numbered_video
from runs import TINY, run, run_together, start, start_together
from small import assert_same

# The full count takes minutes; CI runs a tenth of it.
STOPS = int(os.environ.get("VIDEO_GN_KILLS", "3"))
NUM_VIDEOS = 499 if STOPS >= 20 else 49
FILES = ("metrics.json", "predictions.csv", "scores.npz")
CLASSES = ("one", "three", "two")
SMALL = ("--data.clip.stride=1", "--data.views.num_clips=2")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Nineteen files of 3 to 59 frames and one that is cut off: more names than files, as hard links."""
    root = tmp_path_factory.mktemp("videos")
    for number in range(19):
        write_numbered_video(root / f"source-{number:02d}.mp4", 3 + 3 * number + number % 3, size=(48, 40))
    broken = (root / "source-18.mp4").read_bytes()
    (root / "source-19.mp4").write_bytes(broken[: len(broken) // 3])
    return root


def listed(videos, path, numbers):
    """A list of videos, each with a name of its own."""
    rows = []
    for place, number in enumerate(numbers):
        name = path / f"{place:03d}.mp4"
        os.link(videos / f"source-{number:02d}.mp4", name)
        rows.append(f"{name} {CLASSES[place % 3]}\n")
    (path / "list.txt").write_text("".join(rows))
    return path / "list.txt"


@pytest.fixture(scope="module")
def checkpoint(videos, tmp_path_factory):
    """A net that was trained for some steps, so that scores differ."""
    path = tmp_path_factory.mktemp("trained")
    argv = ["fit", *TINY, *SMALL, f"--data.train={listed(videos, path, range(12))}", f"--run_dir={path / 'run'}"]
    argv += ["--model.optimizer.lr=0.02", "--trainer.max_steps=9", "--trainer.max_epochs=-1"]
    status, printed = run(argv, path)
    assert status == 0, printed
    return path / "run/checkpoints/last.ckpt"


def words(videos, checkpoint, path, *more):
    return ["test", *TINY, *SMALL, f"--data.test={videos}", f"--ckpt_path={checkpoint}", f"--run_dir={path}", *more]


def outcome(videos, checkpoint, path, num_processes, *more):
    """The files of a test, and what the processes printed.

    Returns:
        (exit status of each, contents by name, log of each).
    """
    found = run_together(words(videos, checkpoint, path / "run", *more), path, num_processes)
    directory = path / "run/test"
    present = {name: (directory / name).read_bytes() for name in FILES if (directory / name).is_file()}
    return [status for status, _ in found], present, [printed for _, printed in found]


@pytest.mark.slow
def test_any_number_of_processes_gives_the_files_of_one(videos, checkpoint, tmp_path):
    numbers = np.random.default_rng(0).integers(0, 19, NUM_VIDEOS)
    numbers[::7] = 19  # broken; every process comes to have some
    broken = len(numbers[::7])
    paths = listed(videos, tmp_path, numbers)
    (status,), alone, _ = outcome(paths, checkpoint, tmp_path / "1", 1)
    metrics = json.loads(alone["metrics.json"])
    assert status == 3 and metrics["num_videos"] == NUM_VIDEOS and metrics["num_failed"] == broken
    assert 0 < metrics["top1"] < 1
    lines = alone["predictions.csv"].decode().splitlines()
    assert len(lines) == 1 + NUM_VIDEOS - broken == len(set(lines))
    assert len({line.split(",")[3] for line in lines}) > 10, "scores must tell the videos apart"
    for num_processes in (2, 3, 8):
        statuses, together, logs = outcome(paths, checkpoint, tmp_path / str(num_processes), num_processes)
        assert statuses == [3] * num_processes, logs
        assert together.keys() == alone.keys()
        for name in FILES:
            assert together[name] == alone[name], (name, num_processes)


@pytest.mark.slow
def test_fewer_videos_than_processes_and_a_broken_one(videos, checkpoint, tmp_path):
    """The second process has a broken video alone, the third has none."""
    paths = listed(videos, tmp_path, [7, 19])
    (status,), alone, (log,) = outcome(paths, checkpoint, tmp_path / "1", 1)
    statuses, together, logs = outcome(paths, checkpoint, tmp_path / "3", 3)
    assert (status, statuses) == (3, [3, 3, 3]), logs
    assert together == alone
    (failed,) = json.loads(alone["metrics.json"])["failed"]
    assert failed["path"].endswith("001.mp4")
    line = f"test: {failed['path']} could not be read: {failed['reason']}"
    assert [line in text for text in (log, *logs)] == [True, False, True, False]


# ---- a test that is stopped ----------------------------------------------------------------------


def stopped(argv, path, seen, num_lines, number, num_processes=1):
    """Start a test; once enough is seen, send a signal to its first process, or SIGKILL to all.

    Returns:
        Exit status of each process.
    """
    if num_processes > 1:
        processes = start_together(argv, path, num_processes)
    else:
        processes = [start([*argv, "--trainer.devices=1"], path, path / "log-0.txt")]
    deadline = time.monotonic() + 120
    while len(lines_of(seen)) < num_lines:
        assert time.monotonic() < deadline, (path / "log-0.txt").read_text()
        if not any(process.is_alive() for process in processes):
            break
        time.sleep(0.005)
    for process in processes if number == signal.SIGKILL else processes[:1]:
        if process.is_alive():
            os.kill(process.pid, number)
    for process in processes:
        process.join(60)
        assert process.exitcode is not None
    return [process.exitcode for process in processes]


def lines_of(path):
    return path.read_text().split() if path.exists() else []


def logged(path, pause=0.05):
    return [
        "--trainer.callbacks+=runs.EvalLog",
        f"--trainer.callbacks.path={path}",
        f"--trainer.callbacks.pause={pause}",
    ]


@pytest.mark.slow
def test_a_stopped_test_goes_on(videos, checkpoint, tmp_path):
    """The files are those of a test that never stopped, and nothing is scored twice; another test starts anew."""
    paths = listed(videos, tmp_path, [3, 5, 19, 7, 9, 11, 2, 19, 13, 17])
    (status,), whole, _ = outcome(paths, checkpoint, tmp_path / "whole", 1)
    here, seen = tmp_path / "parts", tmp_path / "seen.txt"
    here.mkdir()
    argv = words(paths, checkpoint, here / "run", *logged(seen))
    assert stopped(argv, here, seen, 4, signal.SIGTERM) == [143]
    unfinished = here / "run/test/unfinished"
    log = (here / "log-0.txt").read_text()
    assert f"the scores so far are kept in {unfinished}; the same command resumes" in log
    assert "Traceback" not in log
    (lines,) = unfinished.glob("*.jsonl")
    done = {json.loads(line)["video"] for line in lines.read_text().splitlines()}
    assert 3 <= len(done) < 10
    seen.unlink()
    # Of another test: nothing of it is taken.
    other = here / "other"
    shutil.copytree(unfinished, other / "test/unfinished")
    (found,), _, (printed,) = outcome(paths, checkpoint, tmp_path / "new", 1, "--data.views.num_clips=1")
    assert found == 3 and "going on" not in printed
    printed = run([*words(paths, checkpoint, other, "--data.views.num_clips=1")], here)[1]
    assert "belongs to another test (settings.data.views.num_clips: 2 -> 1): starting anew" in printed
    # The same one.
    ((last, printed),) = run_together(argv, here, 1)
    assert (status, last) == (3, 3)
    assert f"resuming the test: {len(done)} of 10 videos are done" in printed
    assert {name: (here / "run/test" / name).read_bytes() for name in FILES} == whole
    assert {*map(int, lines_of(seen))} == {*range(10)} - done
    assert not unfinished.exists()


@pytest.mark.slow
def test_killed_again_and_again_on_other_numbers_of_processes(videos, checkpoint, tmp_path):
    numbers = np.random.default_rng(1).integers(0, 19, 12 * STOPS)
    numbers[::9] = 19
    paths = listed(videos, tmp_path, numbers)
    _, whole, _ = outcome(paths, checkpoint, tmp_path / "whole", 1)
    rng = np.random.default_rng(2)
    here, seen = tmp_path / "parts", tmp_path / "seen.txt"
    here.mkdir()
    argv = words(paths, checkpoint, here / "run", *logged(seen, pause=0.1))
    for _ in range(STOPS):
        number = signal.SIGKILL if rng.random() < 0.7 else signal.SIGUSR1
        stopped(argv, here, seen, len(lines_of(seen)) + int(rng.integers(0, 8)), number, int(rng.integers(1, 4)))
    found = run_together(argv, here, 2)
    assert [status for status, _ in found] == [3, 3], found
    assert "resuming the test" in found[0][1]
    assert {name: (here / "run/test" / name).read_bytes() for name in FILES} == whole


# ---- training --------------------------------------------------------------------------------------


def trained(videos, path, num_processes, *more):
    """(exit status, log) of each process of a training on a list, in batches of two clips."""
    argv = ["fit", *TINY, *SMALL, f"--data.train={videos}", f"--run_dir={path / 'run'}", "--data.batch_size=2"]
    return run_together([*argv, "--trainer.limit_val_batches=0", *more], path, num_processes)


@pytest.mark.slow
def test_three_processes_go_on_bit_for_bit(videos, tmp_path):
    """With three, the order in which a gradient's parts are added up matters, and DDP lays it out as it goes."""
    paths = listed(videos, tmp_path, [*range(4, 16)] * 2)
    ends = []
    for name, parts in (("whole", [2]), ("parts", [1, 2])):
        for epochs in parts:
            more = [f"--trainer.max_epochs={epochs}", "--ckpt_path=last", "--model.optimizer.lr=0.05"]
            found = trained(paths, tmp_path / name, 3, *more)
            assert [status for status, _ in found] == [0] * 3, found
        ends.append(torch.load(tmp_path / name / "run/checkpoints/last.ckpt", weights_only=True))
    assert ends[0]["global_step"] == ends[1]["global_step"] == 6
    assert_same(ends[0]["state_dict"], ends[1]["state_dict"])
    logs = [printed for _, printed in found]
    assert not any("strides" in text for text in logs)
    # What all know is said once.
    said = "global batch 6 = 3 process(es) x 2 clips x 1 accumulated; learning rate 0.05; 6 steps, 3 an epoch; seed 0"
    for line in (said, "list.txt: 24 videos of 3 classes", "num_classes: 3", "M parameters; "):
        assert [line in text for text in logs] == [True, False, False], line


@pytest.mark.slow
def test_broken_videos_are_counted_over_all_processes(videos, tmp_path):
    """Two of them, one in each process: neither alone is above the ceiling, and all stop together."""
    numbers = [7] * 20
    order = np.random.default_rng([0, 0]).permutation(20)  # seed 0, epoch 0: see TrainSampler
    for place in (0, 3):  # of the first step, the first process's first clip and the second one's second
        numbers[order[place]] = 19
    more = ["--trainer.max_epochs=1", "--data.max_broken_fraction=0.05"]
    paths = listed(videos, tmp_path, numbers)
    found = trained(paths, tmp_path / "two", 2, *more, f"--data.val={paths}")
    broken = [tmp_path / f"{order[place]:03d}.mp4" for place in (0, 3)]
    for rank, (status, printed) in enumerate(found):
        assert status == 1, printed
        assert "2 of 20 training videos could not be read, more than data.max_broken_fraction = 0.05" in printed
        assert (f"rank {rank}: training: {broken[rank]} could not be read" in printed) == (rank > 0), printed
        assert f"training: {broken[rank]} could not be read" in printed
        assert f"training: {broken[1 - rank]} could not be read" not in printed
    table = (tmp_path / "two/run/failures.csv").read_text()
    assert all(str(path) in table for path in broken)
