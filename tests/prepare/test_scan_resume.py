"""A scan whose workers die, or that is stopped itself: what is known is kept, the rest is probed."""

import csv
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from media import write_numbered_video

from video_gn import processes
from video_gn.errors import RunError
from video_gn.files import hold
from video_gn.prepare import scan as scan_module
from video_gn.prepare.probe import probe
from video_gn.prepare.scan import probe_if_changed, scan


def read_rows(path):
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def lines_of(journal):
    return [json.loads(line) for line in Path(journal).read_bytes().splitlines()[1:]]


# ---- crashes ---------------------------------------------------------------------------------


def misbehave(task, beat):
    """Stands in for a decoder that takes its process with it."""
    path = task[0]
    name = Path(path).name
    if name == "005.mp4":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "017.mp4":
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does it when memory runs out
    if name == "029.mp4":
        time.sleep(1000)
    if name == "031.mp4":
        raise ZeroDivisionError
    mark = Path(path).with_suffix(".crashed")
    if name == "007.mp4" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return probe_if_changed(task, beat)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_what_a_worker_dies_of_is_named_and_the_scan_goes_on(many, monkeypatch, caplog, num_workers):
    monkeypatch.setattr(scan_module, "WORK", misbehave)
    scan(many / "list.csv", many / "out.csv", num_workers=num_workers, timeout_seconds=8)
    errors = {row["path"][5:8]: row["error"] for row in read_rows(many / "out.csv") if row["error"]}
    usual = ("003", "013", "023", "033", "040", "041")
    assert {name: error for name, error in errors.items() if name not in usual} == {
        "005": "its worker process crashed (SIGSEGV)",
        "017": "its worker process crashed (SIGKILL: out of memory?)",
        "029": "no progress for 8 seconds, so its worker process was ended",
        "031": "its worker process ended with exit status 1 (its error is in the log)",
    }
    assert set(usual) <= set(errors) and "007" not in errors  # a crash that does not come again is forgiven
    assert "029.mp4: no progress for 8 seconds" in caplog.text


# ---- going on --------------------------------------------------------------------------------


def start_and_kill(listed, target, log_path, num_probes):
    """Scan in a process of its own, which is killed once it has probed that many files; None lets it live.

    Returns:
        Whether it came to its end.

    Forked workers outlive it for a moment and hold its lock.
    """
    pid = os.fork()
    if pid == 0:
        processes.START_METHOD = "fork"  # a server would import torch anew in each run
        log_file = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def counted(path, depth):
            os.write(log_file, f"{Path(path).name}\n".encode())
            time.sleep(0.004)
            return probe(path, depth)

        scan_module.probe = counted
        try:
            scan(listed, target, num_workers=2)
            os._exit(0)
        finally:
            os._exit(1)
    if num_probes is not None:
        while not log_path.exists() or log_path.read_bytes().count(b"\n") < num_probes:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return status == 0
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1] == 0


def test_kills_at_random_moments(tmp_path, one_video):
    names = [f"{i:03d}.mp4" for i in range(400)]
    for name in names:
        (tmp_path / name).write_bytes(b"bad" if name.endswith("7.mp4") else one_video.read_bytes())
    listed, target = tmp_path / "list.csv", tmp_path / "out.csv"
    listed.write_text("path\n" + "\n".join(names) + "\n")
    scan(listed, tmp_path / "unbroken.csv", num_workers=2)
    journal = tmp_path / ".out.csv.partial"
    draw = random.Random(os.environ.get("VIDEO_GN_KILLS_SEED", "0"))
    known, num_continued = set(), 0
    for number in range(int(os.environ.get("VIDEO_GN_KILLS", "5"))):
        log_path = tmp_path / f"log{number}"
        start_and_kill(listed, target, log_path, draw.randint(1, 120))
        probed = Counter(log_path.read_text().split()) if log_path.exists() else Counter()
        assert not known & set(probed), "what was known has been probed again"
        if target.exists():  # killed after its end, or not at all: from the beginning, then
            assert target.read_bytes() == (tmp_path / "unbroken.csv").read_bytes()
            target.unlink()
            journal.unlink(missing_ok=True)
            known = set()
            continue
        num_continued += bool(known and probed)
        if journal.exists():
            lines = [line for line in journal.read_bytes().split(b"\n")[1:-1] if line]
            paths = [Path(json.loads(line)[0]).name for line in lines]
            assert len(paths) == len(set(paths)), "written down twice"
            assert known <= set(paths), "forgotten"
            known = set(paths)
    assert start_and_kill(listed, target, tmp_path / "last", None)
    assert set((tmp_path / "last").read_text().split()) == set(names) - known
    assert target.read_bytes() == (tmp_path / "unbroken.csv").read_bytes()
    assert not journal.exists() and not list(tmp_path.glob(".*"))
    assert num_continued, "no run resumed where another had stopped"


@pytest.fixture
def stopped(many):
    """A scan of `many` that was stopped after its 20th file."""

    def stop(steps):
        for number, step in enumerate(steps, start=1):
            yield step
            if number == 20:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(many / "list.csv", many / "out.csv", num_workers=1, progress=stop)
    assert len(lines_of(many / ".out.csv.partial")) == 20
    return many


def probes_of(many, **kwargs):
    scan(many / "list.csv", many / "unbroken.csv", overwrite=True)
    summary = scan(many / "list.csv", many / "out.csv", **kwargs)
    assert (many / "out.csv").read_bytes() == (many / "unbroken.csv").read_bytes()
    assert not (many / ".out.csv.partial").exists()
    return summary.num_probed


def test_a_second_run_resumes(stopped):
    assert probes_of(stopped) == 22


def test_files_that_changed_are_probed_again(stopped, one_video):
    write_numbered_video(stopped / "many" / "004.mp4", 9, size=(48, 40))
    os.utime(stopped / "many" / "005.mp4", (1, 1))
    shutil.copyfile(one_video, stopped / "many" / "003.mp4")
    (stopped / "many" / "006.mp4").unlink()
    assert probes_of(stopped) == 22 + 4


def test_damaged_journals(stopped, caplog):
    journal = stopped / ".out.csv.partial"
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[3] = b"{nonsense\n"
    lines[4] = b'["many/x.mp4", 1]\n'
    lines[20] = lines[20][:30]  # half a line
    journal.write_bytes(b"".join(lines))
    assert probes_of(stopped) == 22 + 3
    assert "2 damaged lines are left out" in caplog.text


def test_journal_of_another_kind_of_scan(stopped, caplog):
    assert scan(stopped / "list.csv", stopped / "out.csv", headers_only=True).num_probed == 42
    assert ".out.csv.partial was made with other settings, or is damaged: starting anew" in caplog.text


def test_two_scans_of_one_target(stopped, monkeypatch):
    monkeypatch.setattr("video_gn.files.LEFT_OVER_SECONDS", 0.1)
    with (
        hold(stopped / ".out.csv.partial.lock"),
        pytest.raises(RunError, match=r"out.csv.partial is being written by another run \(process \d+"),
    ):
        scan(stopped / "list.csv", stopped / "out.csv")
