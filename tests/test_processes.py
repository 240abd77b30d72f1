"""The process pool: crashes, hangs, starts that fail, a parent that is killed."""

import errno
import faulthandler
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from video_gn import processes
from video_gn.errors import DiskFullError, RefusedError, RunError
from video_gn.processes import Lost, run_tasks


def _act(task, beat):
    faulthandler.disable()  # it would fill the log
    name, _, rest = task.partition(" ")
    if name == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does it when memory runs out
    if name == "hang":
        time.sleep(600)
    if name == "slow":  # longer than the limit, but it makes progress
        for _ in range(15):
            time.sleep(0.2)
            beat()
    if name == "exit":
        raise SystemExit(3)
    if name == "error":
        raise OSError("no answer")
    if name == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), rest)
    if name == "refused":
        raise DiskFullError(rest)
    if name == "once" and not Path(rest).exists():
        Path(rest).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return task.upper()


def outcomes(tasks, **kwargs):
    kwargs = {"num_workers": 2, "stall_seconds": 2.0, "preload": "video_gn.processes", **kwargs}
    found = list(run_tasks(tasks, _act, **kwargs))
    assert Counter(task for task, _ in found) == Counter(tasks)
    return dict(found)


@pytest.mark.parametrize(("num_workers", "tasks_at_once"), [(1, 4), (3, 1)])
def test_a_task_that_crashes_or_hangs_is_named_and_the_others_are_done(tmp_path, num_workers, tasks_at_once):
    once = f"once {tmp_path / 'once'}"
    tasks = ["a", "crash", "b", "hang", "c", "exit", "d", "killed", once, "slow", "error", *map(str, range(20))]
    found = outcomes(tasks, num_workers=num_workers, tasks_at_once=tasks_at_once)
    lost = {task: result.reason for task, result in found.items() if isinstance(result, Lost)}
    assert lost == {
        "crash": "its worker process crashed (SIGSEGV)",
        "killed": "its worker process crashed (SIGKILL: out of memory?)",
        "hang": "no progress for 2 seconds, so its worker process was ended",
        "exit": "its worker process ended with exit status 3 (its error is in the log)",
        "error": "its worker process ended with exit status 1 (its error is in the log)",
    }
    assert all(result == task.upper() for task, result in found.items() if task not in lost)


@pytest.mark.parametrize(
    ("task", "error", "words"),
    [
        ("full /nowhere/x", DiskFullError, "/nowhere/x could not be written: No space left on device"),
        ("refused x is full", DiskFullError, "^x is full$"),
    ],
)
def test_a_full_disk_ends_all_and_is_no_tasks_fault(task, error, words):
    with pytest.raises(error, match=words):
        outcomes(["a", task, "b"], num_workers=1, tasks_at_once=3)


def test_too_few_open_files_are_an_error_before_the_work(monkeypatch):
    from video_gn.data.loader import WatchedLoader

    def refuse(_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(processes.os, "dup", refuse)
    words = r"need \d+ more open files, got Too many open files\. Allow more \(ulimit -n 65536\), or take fewer workers"
    with pytest.raises(RefusedError, match=words):
        outcomes(["a"])
    with pytest.raises(RefusedError, match=words):
        iter(WatchedLoader([1], num_workers=1))


def test_tasks_are_taken_up_as_workers_become_free():
    taken = []

    def tasks():
        for number in range(100):
            taken.append(number)
            yield str(number)

    results = run_tasks(tasks(), _act, num_workers=1, stall_seconds=5, preload="video_gn.processes")
    assert next(results) == ("0", "0") and len(taken) <= 2
    results.close()
    assert outcomes([]) == {}


def test_who_waits_for_the_caller_is_not_late():
    results = run_tasks(["a", "b", "c"], _act, num_workers=2, stall_seconds=0.5, preload="video_gn.processes")
    found = []
    for result in results:
        found.append(result)
        time.sleep(1)
    assert sorted(found) == [("a", "A"), ("b", "B"), ("c", "C")]


def test_a_worker_that_dies_while_idle_costs_no_task(monkeypatch):
    monkeypatch.setattr(processes._Worker, "end", lambda self: None)
    pool = processes._Pool(iter(["a", "b"]), _act, 1, 5.0, 1, "video_gn.processes")
    found = []
    while pool.feed():
        for task, result in pool.collect():
            found.append((task, result))
            for worker in pool.workers:
                worker.process.kill()
                worker.process.join()
    assert found == [("a", "A"), ("b", "B")]


def _die_at_once(*args):
    os._exit(7)


def test_workers_that_cannot_start_are_an_error(monkeypatch):
    monkeypatch.setattr(processes, "START_METHOD", "fork")
    monkeypatch.setattr(processes, "_serve", _die_at_once)
    with pytest.raises(RunError, match=r"must start, got 3 that died at once, .* exit status 7 .*__main__"):
        outcomes(["a"])
    monkeypatch.setattr(processes, "_serve", lambda *args: time.sleep(600))
    monkeypatch.setattr(processes, "_START_SECONDS", 0.1)
    with pytest.raises(RunError, match=r"must start within 0.1 s"):
        outcomes(["a"])


PARENT = """
import os, sys, time
from pathlib import Path
from video_gn.processes import run_tasks

def work(task, beat):
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(600 if task else 0)

if __name__ == "__main__":
    for _ in run_tasks([0, 0, 1, 1], work, num_workers=2, stall_seconds=600, preload="video_gn.processes"):
        pass
"""


def _is_alive(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(tmp_path, number):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    marks = tmp_path / "pids"
    marks.mkdir()
    # A session of its own: a Ctrl-C at a terminal reaches all processes of the group.
    parent = subprocess.Popen([sys.executable, script, marks], start_new_session=True, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(list(marks.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    pids = [int(path.name) for path in marks.iterdir()]
    assert len(pids) == 2
    if number == signal.SIGINT:
        os.killpg(parent.pid, number)
    else:
        parent.kill()
    parent.wait(30)
    while any(map(_is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_is_alive, pids))
    # One traceback, the parent's own.
    assert parent.stderr.read().count(b"KeyboardInterrupt\n") == (number == signal.SIGINT)
    parent.stderr.close()
