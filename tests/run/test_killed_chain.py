"""Real videos: scanned, prepared into shards and trained on, each killed again and again, with the same end."""

import csv
import json
import os
import random
import re
import time
from pathlib import Path

import pytest
from plain_resume import assert_equals_the_whole_run, fit_words, steps_of
from runs import run, start

KILLS = int(os.environ.get("VIDEO_GN_KILLS", "3"))

# What each command takes without a kill.
SECONDS = {}

pytestmark = [pytest.mark.slow, pytest.mark.needs_real_videos, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def whole(real_videos, tmp_path_factory):
    """The chain without any kill, over 30 videos of actions and all of the other clips."""
    here = tmp_path_factory.mktemp("whole")
    with (real_videos / "weizmann" / "labels.csv").open(newline="") as file:
        rows = [(real_videos / "weizmann" / row["path"], row["label"]) for row in csv.DictReader(file)][::3]
    rows += [(path, "bend") for path in sorted((real_videos / "clips").iterdir())]
    with (here / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("path", "label"), *rows])
    run(["data", "--help"], here)  # the first run waits for the imports
    for words in (scan_words(here, here), prepare_words(here, here), fit_words(shards(here), here)):
        began = time.monotonic()
        status, printed = run(words, here)
        assert status == 0, printed
        SECONDS[words[1] if words[0] == "data" else words[0]] = time.monotonic() - began
    return here


def scan_words(whole, here):
    return ["data", "scan", str(whole / "list.csv"), "--output", str(here / "scan.csv"), "--num_workers", "2", "--full"]


def prepare_words(whole, here):
    size = ["--short_side_px", "48", "--shards", "7", "--num_workers", "2"]
    return ["data", "prepare", str(whole / "scan.csv"), str(here / "made"), *size]


def shards(here):
    return here / "made" / "manifest.csv"


def rounds(tmp_path, words_in, check, seed, *, begun):
    """Kill the command again and again until it has ended, in one directory after another, until KILLS are spent.

    Args:
        tmp_path: of the test.
        words_in: directory -> the command's words.
        check: (directory, None) after each kill; (directory, what its last run printed) at the end.
        seed: of the moments.
        begun: directory -> whether some of the work is done.
    """
    rng, spent, number = random.Random(seed), 0, 0
    while spent < KILLS:
        number += 1
        here = tmp_path / str(number)
        here.mkdir()
        log, words, printed = here / "log.txt", words_in(here), None
        seconds = SECONDS[words[1] if words[0] == "data" else words[0]]
        while printed is None:
            before = log.stat().st_size if log.exists() else 0
            process = start(words, here, log)
            if spent < KILLS:
                # Every second kill waits until something has been done, however slow the start.
                deadline = time.monotonic() + 120
                while spent % 2 == 0 and process.is_alive() and not begun(here):
                    assert time.monotonic() < deadline, log.read_text()
                    time.sleep(0.01)
                time.sleep(rng.uniform(0.1, 1.0) * seconds * (0.3 if spent % 2 == 0 else 1.0))
                process.kill()
            process.join(600)
            if process.exitcode == 0:
                printed = log.read_bytes()[before:].decode()
            else:
                assert process.exitcode == -9, log.read_bytes()[before:].decode()
                spent += 1
            check(here, printed)
    assert number <= 2 + KILLS, "it ended before it could be killed"


def test_scan(whole, tmp_path):
    seen = {}

    def check(here, printed):
        journal = here / ".scan.csv.partial"
        content = journal.read_bytes() if journal.exists() else b""
        if printed is None and not journal.exists() and (here / "scan.csv").exists():  # a kill right after its end
            seen[here], printed = b"", ""
        if printed is not None:
            assert (here / "scan.csv").read_bytes() == (whole / "scan.csv").read_bytes()
            assert not journal.exists()
            return
        complete = content[: content.rfind(b"\n") + 1]
        assert complete.startswith(seen.get(here, b"")), "what was known has been written anew"
        paths = [json.loads(line)[0] for line in complete.splitlines()[1:]]
        assert len(paths) == len(set(paths)), "a file has been probed twice"
        seen[here] = complete

    def begun(here):
        journal = here / ".scan.csv.partial"
        return journal.exists() and journal.read_bytes().count(b"\n") > 1  # its head, and a file

    rounds(tmp_path, lambda here: scan_words(whole, here), check, seed=0, begun=begun)
    assert max(len(content.splitlines()) for content in seen.values()) > 1, "no kill came after the first file"


def test_prepare(whole, tmp_path):
    noted, continued = {}, []

    def check(here, printed):
        journal = here / "made" / ".prepare.journal"
        lines = journal.read_bytes().splitlines() if journal.exists() else []
        before = noted.get(here, [])
        assert lines[: len(before)] == before
        if printed is None:
            noted[here] = lines[:-1]  # the last one may be half a line, which a restart ends
            return
        made = {p.name: p.read_bytes() for p in (here / "made").iterdir() if not p.name.startswith(".")}
        assert made == {p.name: p.read_bytes() for p in (whole / "made").iterdir() if not p.name.startswith(".")}
        total, new = map(int, re.search(r"(\d+) of \d+ videos.*?, (\d+) of them", printed).groups())
        entries = [json.loads(line) for line in before]
        finished = {e["name"] for e in entries if e["name"].endswith(".mp4") and "failed" not in e}
        # A file is noted before it gets its name: a kill may come between, in each of the two workers.
        assert new <= total - len(finished) + 2, "what was made has been made again"
        continued.append(new < total)

    rounds(
        tmp_path,
        lambda here: prepare_words(whole, here),
        check,
        seed=1,
        begun=lambda here: any(here.glob("made/**/*.mp4")),
    )
    assert any(continued), "no run went on where another had stopped"


def test_training_over_the_shards(whole, tmp_path):
    continued = []

    def check(here, printed):
        if printed is None:
            return
        assert_equals_the_whole_run(here, whole)
        resumed = [int(n) for n in re.findall(r"checkpoint: \S+ \(step (\d+)\)", (here / "log.txt").read_text())]
        # A kill may come between the word of a resume and its first hook.
        rest = iter(resumed)
        assert all(first in rest for first, _ in steps_of(here) if first > 0)
        continued.extend(resumed)

    rounds(
        tmp_path,
        lambda here: [*fit_words(shards(whole), here), "--ckpt_path=last"],
        check,
        seed=2,
        begun=lambda here: any(here.glob("run/**/last.ckpt")),
    )
    assert continued, "no kill came after the first checkpoint"
    assert "::" in Path(shards(whole)).read_text()
