"""A journal: whole lines come back, what a kill has cut off is dropped, and one process holds it."""

import json
import os
import resource
import signal
import subprocess
import sys

import pytest

from video_gn import journal
from video_gn.errors import DiskFullError, RunError, UnwritableError
from video_gn.journal import Journal, append, decode, encode, whole_lines

HEADER = {"scan": 1, "depth": "packets"}
ENTRIES = [["a.mp4", 1], ["line\nbreak é \u2028.mp4", None], [os.fsdecode(b"caf\xe9.mp4"), 2.5]]


def fill(path, entries=ENTRIES, header=None):
    with Journal(path, header=header) as book:
        book.start()
        for entry in entries:
            book.add(entry)
    return path.read_bytes()


def resumed(path, header=None):
    with Journal(path, header=header) as book:
        return [decode(line) for line in book.resume()]


def test_a_line_is_an_entry():
    for entry in ENTRIES:
        line = encode(entry)
        assert line.count(b"\n") == 1 and line.endswith(b"\n")
        assert decode(line) == entry
    assert b"caf\xe9.mp4" in encode(ENTRIES[2]), "bytes of a name that are no text stay as they are"
    # As other programs write them, in ASCII.
    assert [decode(json.dumps(entry).encode() + b"\n") for entry in ENTRIES] == ENTRIES
    assert decode(b'["a", \n') is None and decode(b"\xff\n") is None and decode(b"\n") is None


@pytest.mark.parametrize("header", [None, HEADER])
def test_every_place_where_a_kill_can_cut(tmp_path, header):
    path = tmp_path / "new/x.jsonl"
    whole = fill(path, header=header)
    wanted = ENTRIES if header is None else [header, *ENTRIES]
    assert [decode(line) for line in whole.splitlines(keepends=True)] == wanted
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        num_whole = whole[:size].count(b"\n")
        assert [decode(line) for line in whole_lines(path)] == wanted[:num_whole]
        with Journal(path, header=header) as book:
            found = [decode(line) for line in book.resume()]
            assert found == ENTRIES[: len(found)] and len(found) == max(0, num_whole - (header is not None))
            for entry in ENTRIES[len(found) :]:
                book.add(entry)
            book.sync()
        assert path.read_bytes() == whole


@pytest.mark.parametrize("content", [b'{"scan": 2}\n["a.mp4", 1]\n', b"broken\n", b"\0\0\0\n", b'["a.mp4", 1]\n'])
def test_another_header_starts_anew(tmp_path, caplog, content):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    assert resumed(path, HEADER) == []
    assert "x.jsonl was made with other settings, or is damaged: starting anew" in caplog.text
    assert path.read_bytes() == encode(HEADER)


def test_a_file_that_is_not_taken_whole_stays(tmp_path):
    path = tmp_path / "x.jsonl"
    whole = fill(path) + b"torn"
    path.write_bytes(whole)
    with Journal(path) as book:
        next(book.resume())
    assert path.read_bytes() == whole
    with Journal(path) as book:
        book.start()
    assert path.read_bytes() == b""
    assert list(whole_lines(tmp_path / "nowhere")) == []


def test_a_line_outlives_a_kill(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from video_gn.journal import Journal\n"
        "book = Journal(Path(sys.argv[1])); book.start(); book.add(['a', 1]); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.jsonl")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert resumed(tmp_path / "x.jsonl") == [["a", 1]]


def test_one_process_holds_it(tmp_path, monkeypatch):
    monkeypatch.setattr("video_gn.files.LEFT_OVER_SECONDS", 0.05)
    path, lock = tmp_path / "x.jsonl", tmp_path / ".x.jsonl.lock"
    with Journal(path, lock=lock) as first:
        with pytest.raises(RunError, match=rf"x\.jsonl is being written by another run \(process {os.getpid()} on "):
            Journal(path, lock=lock)
        first.start()
        first.add(1)
    with Journal(path, lock=lock) as second:
        assert list(second.resume()) == [b"1\n"]
        second.remove()
    assert not list(tmp_path.iterdir())


def test_several_processes_append(tmp_path):
    path = tmp_path / "x.jsonl"
    code = (
        "import sys; from pathlib import Path; from video_gn.journal import append\n"
        "for i in range(200): append(Path(sys.argv[1]), [int(sys.argv[2]), i, 'x' * 100])"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(path), str(n)]) for n in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    found = sorted(decode(line)[:2] for line in whole_lines(path))
    assert found == [[n, i] for n in range(3) for i in range(200)]


def test_errors_of_the_disk_say_what_to_do(tmp_path, monkeypatch):
    path = tmp_path / "x.jsonl"
    (tmp_path / "file").touch()
    with pytest.raises(UnwritableError, match=r"file/x\.jsonl could not be written"):
        Journal(tmp_path / "file/x.jsonl")
    with pytest.raises(UnwritableError, match=r"nowhere/x\.jsonl could not be written: No such file"):
        append(tmp_path / "nowhere/x.jsonl", 1)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with Journal(path) as book:
            book.start()
            book.add(["a"])
            with pytest.raises(DiskFullError, match=r"x\.jsonl could not be written: File too large\. .* Make room"):
                book.add(["bcd"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert resumed(path) == [["a"]]

    def fail(descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(journal.os, "fsync", fail)
    with Journal(path) as book:
        book.start()
        with pytest.raises(RunError, match=r"x\.jsonl could not be written: Input/output"):
            book.sync()
