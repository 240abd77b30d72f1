"""A forked process that hangs before it begins, as Python before 3.11.10 has them now and then."""

import multiprocessing
import os
import subprocess
import sys

import pytest

from video_gn.data import loader as watch

# What is done after a fork in the child is done inside of `os.fork`, as the wait for the lock is.
PROGRAM = """
import os, sys, time
from pathlib import Path
from video_gn.data import loader as watch

pids = Path(sys.argv[1])
num_hanging, num_tries = int(sys.argv[2]), int(sys.argv[3])

def hang():
    with pids.open("a") as file:
        print(os.getpid(), file=file)
    if pids.read_text().count("\\n") <= num_hanging:
        time.sleep(1000)

os.register_at_fork(after_in_child=hang)
watch._PATIENCE_SECONDS, watch._TRIES = 0.5, num_tries
watch.fork_context = watch._BegunContext
loader = watch.WatchedLoader(range(6), num_workers=2, collate_fn=list)
print([int(batch[0]) for batch in loader])
"""


def run(path, num_hanging, num_tries):
    program = [sys.executable, "-c", PROGRAM, str(path), str(num_hanging), str(num_tries)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)
    return done, [int(pid) for pid in path.read_text().split()]


def test_another_one_is_started_and_nobody_is_left(tmp_path):
    done, pids = run(tmp_path / "pids", 2, 5)
    assert (done.returncode, done.stdout) == (0, "[0, 1, 2, 3, 4, 5]\n"), done.stderr
    assert len(pids) == 4
    assert done.stderr.count("a loading process did not begin in 0.5 s; starting another one") == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_where_none_begins_it_is_told(tmp_path):
    done, pids = run(tmp_path / "pids", 99, 3)
    assert done.returncode == 1 and len(pids) == 3
    assert "RunError: no loading process has begun in 3 tries of 0.5 s. Is the machine that busy?" in done.stderr


@pytest.mark.parametrize(("version", "is_mended"), [((3, 11, 9), False), ((3, 11, 10), True), ((3, 12, 0), True)])
def test_only_where_python_needs_it(monkeypatch, version, is_mended):
    monkeypatch.setattr(sys, "version_info", version)
    context = watch.fork_context()
    assert isinstance(context, watch._BegunContext) != is_mended
    assert context.get_start_method() == "fork"


def test_where_nothing_can_be_forked(monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    assert watch.fork_context() is None
