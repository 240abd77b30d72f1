"""Real videos: scanned, prepared into shards and trained on, each killed again and again, with the same end."""

import csv
import json
import os
import random
import re
import time
from pathlib import Path

import pytest
from runs import run, start
from test_resume import assert_equals_the_whole_run, fit_words, steps_of

KILLS = int(os.environ.get("VIDEO_GN_KILLS", "3"))

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
    for words in (scan_words(here, here), prepare_words(here, here), fit_words(shards(here), here)):
        status, printed = run(words, here)
        assert status == 0, printed
    return here


def scan_words(whole, here):
    return ["data", "scan", str(whole / "list.csv"), "--output", str(here / "scan.csv"), "--num_workers", "2", "--full"]


def prepare_words(whole, here):
    size = ["--short_side_px", "48", "--shards", "7", "--num_workers", "2"]
    return ["data", "prepare", str(whole / "scan.csv"), str(here / "made"), *size]


def shards(here):
    return here / "made" / "manifest.csv"


def kill_and_go_on(words, here, rng, *, after_kill=lambda: None):
    """Start the command again and again; returns what its last, whole run printed."""
    log = here / "log.txt"
    for kills in range(KILLS + 1):
        before = log.stat().st_size if log.exists() else 0
        process = start(words, here, log)
        time.sleep(rng.uniform(0.2, 6) if kills < KILLS else 0)
        if kills < KILLS:
            process.kill()
        process.join(600)
        if process.exitcode == 0:
            return log.read_bytes()[before:].decode(), kills
        assert process.exitcode == -9, log.read_bytes()[before:].decode()
        after_kill()
    raise AssertionError("it has never come to its end")


def test_scan(whole, tmp_path):
    journal, seen = tmp_path / ".scan.csv.partial", [b""]

    def only_grows():
        content = journal.read_bytes() if journal.exists() else b""
        complete = content[: content.rfind(b"\n") + 1]
        assert complete.startswith(seen[-1]), "what was known has been written anew"
        paths = [json.loads(line)[0] for line in complete.splitlines()[1:]]
        assert len(paths) == len(set(paths)), "a file has been probed twice"
        seen.append(complete)

    _, kills = kill_and_go_on(scan_words(whole, tmp_path), tmp_path, random.Random(0), after_kill=only_grows)
    assert (tmp_path / "scan.csv").read_bytes() == (whole / "scan.csv").read_bytes()
    assert not journal.exists()
    assert kills == 0 or max(len(content.splitlines()) for content in seen) > 1, "no kill came after the first file"


def test_prepare(whole, tmp_path):
    done = [0]

    def only_grows():
        content = (
            (tmp_path / "made" / ".prepare.journal").read_text().splitlines() if (tmp_path / "made").exists() else []
        )
        assert len(content) >= done[-1]
        done.append(len(content))

    printed, kills = kill_and_go_on(prepare_words(whole, tmp_path), tmp_path, random.Random(1), after_kill=only_grows)
    made = {p.name: p.read_bytes() for p in (tmp_path / "made").iterdir() if not p.name.startswith(".")}
    assert made == {p.name: p.read_bytes() for p in (whole / "made").iterdir() if not p.name.startswith(".")}
    total, new = map(int, re.search(r"(\d+) of \d+ videos.*?, (\d+) of them", printed).groups())
    assert kills == 0 or new < total, "the last run has made everything anew"


def test_training_over_the_shards(whole, tmp_path):
    words = [*fit_words(shards(whole), tmp_path), "--ckpt_path=last"]
    _, kills = kill_and_go_on(words, tmp_path, random.Random(2))
    assert_equals_the_whole_run(tmp_path, whole)
    resumed = [int(n) for n in re.findall(r"checkpoint: \S+ \(step (\d+)\)", (tmp_path / "log.txt").read_text())]
    assert [first for first, _ in steps_of(tmp_path) if first > 0] == [n for n in resumed if n < 30]
    assert kills == 0 or resumed, "no kill came after the first checkpoint"
    assert "::" in Path(shards(whole)).read_text()
