"""Opening and reading again and again neither grows the process nor keeps files open."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from media import write_numbered_video

_PROGRAM = """
import os, sys
import psutil
from video_gn.decoding import open_video
from video_gn.errors import DecodeError

good, bad, backend = sys.argv[1:4]
process = psutil.Process()

def work(times):
    for i in range(times):
        with open_video(good, backend) as reader:
            reader.frames_at([11, 3, 7])
        reader = open_video(good, backend)  # left to the garbage collector
        reader.frames_at([i % 12])
        del reader
        try:
            open_video(bad, backend)
        except DecodeError:
            pass

rounds = int(sys.argv[4])
work(20)
before, files = process.memory_info().rss, process.num_fds()
work(rounds)
print(process.memory_info().rss - before, process.num_fds() - files)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "rounds"), [("pyav", 100), ("decord", 25)])
def test_nothing_leaks(tmp_path: Path, backend: str, rounds: int) -> None:
    # Frames of 0.3 MB: one kept for each reader would show as 15 MB at least.
    good = write_numbered_video(tmp_path / "good.mp4", 12, size=(384, 288))
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(good.read_bytes()[:2000])
    command = [sys.executable, "-c", _PROGRAM, str(good), str(bad), backend, str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    grown, files = map(int, done.stdout.split())
    assert files == 0
    assert grown < 6e6
