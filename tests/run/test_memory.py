"""Freed memory that the process keeps: the page faults of the next allocation tell."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from runs import TINY, run

from video_gn.run import memory
from video_gn.run.memory import keep_freed_memory

HAS_MALLOPT = sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "mallopt")
PROGRAM = """
import resource
import numpy as np
from video_gn.run.memory import keep_freed_memory

def faults_of_two_blocks():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [np.full(10_000_000, 1.0) for _ in range(2)]  # of 80 MB: above what glibc may learn to keep
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(keep_freed_memory(), faults_of_two_blocks(), faults_of_two_blocks())
"""


def second_faults(**environment):
    """What was told, and the page faults of allocating what has just been freed."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    # In huge pages there would be few of them.
    plain |= {"NUMPY_MADVISE_HUGEPAGE": "0", "VIDEO_GN_KEEP_MEMORY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=plain | environment, capture_output=True, text=True, check=True, timeout=60
    )
    told, first, second = done.stdout.split()
    assert int(first) > 30_000
    return told == "True", int(second)


@pytest.mark.skipif(not HAS_MALLOPT, reason="glibc's alone")
def test_what_is_freed_is_there_for_the_next_one():
    told, faults = second_faults()
    assert told and faults < 100


@pytest.mark.parametrize(
    "environment",
    [
        {"VIDEO_GN_KEEP_MEMORY": "0"},
        {"MALLOC_TRIM_THRESHOLD_": "131072"},
        {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"},
    ],
    ids=lambda e: next(iter(e)),
)
@pytest.mark.skipif(not HAS_MALLOPT, reason="glibc's alone")
def test_whoever_sets_it_knows_better(environment):
    told, faults = second_faults(**environment)
    assert not told and faults > 30_000


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(memory, "ctypes", SimpleNamespace(CDLL=lambda _: SimpleNamespace()))
    assert not keep_freed_memory({})


@pytest.mark.skipif(not HAS_MALLOPT, reason="glibc's alone")
def test_a_training_on_a_cpu_keeps_it(tiny_videos, tmp_path):
    words = ["fit", *TINY, f"--data.train={tiny_videos}", f"--run_dir={tmp_path / 'run'}", "--trainer.max_steps=1"]
    status, printed = run([*words, "--trainer.callbacks+=runs.Faults"], tmp_path)
    assert status == 0, printed
    assert int(Path(tmp_path / "faults.txt").read_text()) < 100
