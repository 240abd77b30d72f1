"""Files that keep one waiting: each ends in a DecodeError that says so, and nothing is left behind."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tarfile
import threading
import time
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import pytest
from media import read_number, read_numbers, write_numbered_video

from video_gn.decoding import open_video
from video_gn.decoding._decoder import PacketDecoder
from video_gn.decoding._pyav import PyAVReader
from video_gn.decoding.opening import timeout_seconds
from video_gn.decoding.probe import packets_of
from video_gn.decoding.tar_members import list_members
from video_gn.errors import ConfigError, DecodeError

VARIABLE = "VIDEO_GN_DECODE_TIMEOUT_SECONDS"


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_numbered_video(tmp_path / "video.mp4", 60)


def test_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert timeout_seconds() == 60
    monkeypatch.setenv(VARIABLE, "")
    assert timeout_seconds() == 60
    monkeypatch.setenv(VARIABLE, "2.5")
    assert timeout_seconds() == 2.5


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan", "inf"])
def test_a_limit_that_is_none(video: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(ConfigError, match=f"{VARIABLE} must be a number of seconds above 0, got '{text}'"):
        open_video(video)


@pytest.mark.parametrize("backend", ["pyav", "decord"])
@pytest.mark.parametrize("kind", ["directory", "pipe", "link to a pipe", "device"])
def test_what_is_no_file_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, backend: str
) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "link.mp4").symlink_to("pipe.mp4")
    name = {"directory": "", "pipe": "pipe.mp4", "link to a pipe": "link.mp4", "device": "/dev/zero"}[kind]
    monkeypatch.setattr(av, "open", lambda *args, **kwargs: pytest.fail("opened"))
    with pytest.raises(DecodeError, match="not a video file"):
        open_video(tmp_path / name, backend)


def test_a_first_look_that_does_not_return(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stale.mp4"
    os.mkfifo(path)  # opening it sleeps in the kernel, as on a stale mount
    monkeypatch.setattr(stat, "S_ISREG", lambda mode: True)
    monkeypatch.setattr(Path, "stat", lambda self: SimpleNamespace(st_mode=stat.S_IFREG, st_size=1))
    monkeypatch.setenv(VARIABLE, "0.2")
    with pytest.raises(DecodeError, match=rf"stale\.mp4: no data for 0\.2 seconds at the first look.*{VARIABLE}"):
        open_video(path)
    os.close(os.open(path, os.O_WRONLY))  # lets the thread go
    for thread in threading.enumerate():
        if thread.daemon and thread.name.startswith("video_gn"):
            thread.join(10)
            assert not thread.is_alive()


@pytest.mark.parametrize("how", ["appended to", "replaced", "written over", "in a tar"])
def test_a_file_that_changes_while_it_is_read(video: Path, tmp_path: Path, how: str) -> None:
    target = video
    if how == "in a tar":
        target = tmp_path / "shard.tar"
        with tarfile.open(target, "w") as tar:
            tar.add(video, "video.mp4")
    reader = PyAVReader(f"{target}::video.mp4" if how == "in a tar" else str(video))
    assert read_numbers(reader.frames_at([50, 0])) == [50, 0]
    if how == "replaced":
        write_numbered_video(tmp_path / "other.mp4", 60, first_number=7).replace(video)
    else:
        with target.open("ab" if how == "appended to" else "r+b") as file:
            file.write(bytes(100))
    with pytest.raises(DecodeError, match="the file was changed while it was read. Read it again"):
        reader.frames_at([0])
    reader.close()


def test_pipes_beside_a_tar(video: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(video, "video.mp4")
    os.mkfifo(tmp_path / "shard.tar.idx")
    with open_video(tmp_path / "shard.tar::video.mp4") as reader:
        assert reader.info.num_frames == 60
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(DecodeError, match="not a tar file"):
        list_members(str(tmp_path / "pipe.tar"))


def test_opening_that_is_interrupted(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Shorter than any opening takes; the first look is left out, since it would not be in time either.
    monkeypatch.setattr("video_gn.decoding.opening._check_within", lambda path, limit: None)
    monkeypatch.setenv(VARIABLE, "1e-9")
    with pytest.raises(DecodeError, match="no data for 1e-09 seconds while opening it"):
        open_video(video)


class EndlessContainer:
    """Packets without content, for ever."""

    read_timeout = 0.1

    def demux(self, stream: Any) -> Any:
        return repeat(av.Packet(0))


def test_empty_packets_for_ever() -> None:
    with pytest.raises(DecodeError, match=r"a\.mp4: no data for 0\.1 seconds while reading its packets"):
        next(packets_of("a.mp4", EndlessContainer(), None))


class InterruptedContainer:
    read_timeout = 5

    def demux(self, stream: Any) -> Any:
        raise av.error.ExitError(-1, "Immediate exit requested")


def test_packets_that_are_interrupted() -> None:
    with pytest.raises(DecodeError, match="no data for 5 seconds while reading its packets"):
        next(packets_of("a.mp4", InterruptedContainer(), None))


def feed_for_ever(decoder: PacketDecoder) -> None:
    while True:
        decoder.feed()


def test_packets_for_ever_but_no_frame(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "0.2")
    decoder = PacketDecoder(str(video))
    decoder.reopen()
    decoder._packets = repeat(av.Packet(b"\0\0\0\1\xff"))  # does not decode
    with pytest.raises(DecodeError, match=r"no data for 0\.2 seconds while decoding: packets come, but no frame"):
        feed_for_ever(decoder)
    decoder.close()


@pytest.mark.parametrize("threads", [1, 2])
def test_the_callers_own_time_does_not_count(video: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    clock, waited = time.monotonic, 0
    monkeypatch.setattr(time, "monotonic", lambda: clock() + waited)  # PyAV's own clock too
    with PyAVReader(str(video), num_threads=threads) as reader:
        for index in (2, 4, 50, 52, 14, 0, 59):  # on the way, seeking on, seeking back, from the start, to the end
            waited += 1000
            assert read_number(reader.frames_at([index])[0]) == index
        # No seek has failed: PyAV's clock, which runs while packets are asked for, was off.
        assert reader.doubt is None and len(reader._restart_rows) == 5


def test_seeking_leaves_the_clock_running(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packets of before a seek that are forgotten after it would switch off the clock of those after it."""
    events: list[str] = []
    real = packets_of

    def recorded(path: str, container: Any, stream: Any) -> Any:
        packets = real(path, container, stream)
        events.append("begin")
        try:
            yield from packets
        finally:
            events.append("end")

    monkeypatch.setattr("video_gn.decoding._decoder.packets_of", recorded)
    with PyAVReader(str(video)) as reader:
        for first in (30, 2, 50, 14):
            assert read_numbers(reader.frames_at([first, first + 1])) == [first, first + 1]
    began = events.count("begin")
    assert began >= 5 and events == ["begin", "end"] * began


_LEAKS = """
import os, sys, threading
import psutil
from video_gn.decoding import open_video
from video_gn.errors import DecodeError

paths, rounds = sys.argv[2:], int(sys.argv[1])
process = psutil.Process()

def work(times):
    for _ in range(times):
        for path in paths:
            try:
                open_video(path, "pyav").close()
            except DecodeError:
                continue
            raise AssertionError(path)

work(10)
before, files = process.memory_info().rss, process.num_fds()
work(rounds)
print(process.memory_info().rss - before, process.num_fds() - files, threading.active_count())
"""


def test_failing_opens_leave_nothing_behind(tmp_path: Path) -> None:
    # Frames of 0.3 MB: one kept for each open would show as 15 MB.
    whole = write_numbered_video(
        tmp_path / "whole.mp4", 8, size=(384, 288), container_options={"movflags": "faststart"}
    )
    data = whole.read_bytes()
    media = data.index(b"mdat") + 4
    contents = {
        "empty.mp4": b"",
        "page.mp4": b"<html>" * 1000,
        "head.mp4": data[:200],
        "no_packets.mp4": data[:media],
        "no_frames.mp4": data[:media] + bytes(len(data) - media),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe.mp4")
    paths = [str(tmp_path / name) for name in (*contents, "pipe.mp4", "missing.mp4", "")]
    command = [sys.executable, "-c", _LEAKS, "50", *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    grown, files, threads = map(int, done.stdout.split())
    assert files == 0 and threads == 1
    assert grown < 6e6
