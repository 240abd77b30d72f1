"""Runs whose files beside the checkpoints are damaged at random: read or refused in a sentence, never a traceback.

VIDEO_GN_DAMAGED_RUNS sets the number of runs.
"""

import contextlib
import functools
import json
import os
import random
import shutil
import signal
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_run import checked, make_test, make_training, page_of

from video_gn.clips import Failure
from video_gn.commands._run_settings import with_run_config
from video_gn.errors import VideoGNError
from video_gn.evaluation.unfinished import Unfinished
from video_gn.report import write_comparison
from video_gn.report.reading import FILES
from video_gn.run.broken_videos import BrokenVideos
from video_gn.run.directory import RunDirectory, checkpoint_of
from video_gn.run.metrics_csv import MetricsCSV
from video_gn.run.metrics_file import read_metrics, whole_metrics
from video_gn.run.saved_config import SaveConfig
from video_gn.study.cells import CellDirectory
from video_gn.study.plan import Cell

NUM_RUNS = int(os.environ.get("VIDEO_GN_DAMAGED_RUNS", "8"))
SECONDS = 60  # of one run under load; more is a hang
SETTINGS = {"checkpoint": "SHA-256 0", "data": {"views": {"num_clips": 2}}}
SCORES = np.random.default_rng(0).random((2, 3)).astype(np.float32)
MORE = {
    "config.resume-001.yaml": "seed_everything: 8\nmodel: {weights: null}\n",
    "failures.csv": 'path,reason\na.mp4,broken\n\'-b.mp4,"is, empty"\n',
    "weights.json": '{"entries": []}\n',
    "previous/.displaced": "moved 001\n",
    "previous/001/config.yaml": "seed_everything: 1\n",
    ".lock": "process 1 on node, job 17, start 2\n",
    "test/.lock": "process 2 on node\n",
    "cell.json": '{"settings": {"a": 1}, "extra": [], "fit_done": true, "failed": null, "sessions": [[1.0, 2.0]]}',
    "report.html": "<html></html>",
}
NUMBERS = [
    b"1" * 400,
    b"1e999",
    b"-1",
    b"nan",
    b"Infinity",
    b"1" * 5000,
    b"0x10",
    b"\xd9\xa3",
    b"1e-320",
    b"9007199254740993",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run, made by hand."""
    run = tmp_path_factory.mktemp("whole") / "cells" / "mine"
    make_training(run, num_steps=12)
    make_test(run, num_videos=8, failed=[("x.mp4", "no stream")])
    for name, text in MORE.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(text)
    for name in ("last", "best"):
        (run / "checkpoints").mkdir(exist_ok=True)
        torch.save({}, run / f"checkpoints/{name}.ckpt")
    folder = Unfinished(run / "test/unfinished")
    part = folder.files(folder.open(SETTINGS).start, 0)
    for number in range(3):
        part.add(number, f"{number}.mp4", 1, SCORES)
    part.add_failure(Failure(7, "a\udcff.mp4", "broken"))
    part.close()
    return run


KINDS = ("prefix", "flips", "zeros", "empty", "noise", "number", "deep", "repeated")
KINDS += ("gone", "directory", "loop", "out", "pipe")


def damage(path, generator):
    """Damage a file; returns in words how."""
    content = bytearray(path.read_bytes())
    where = generator.randrange(len(content) + 1)
    kind = generator.choice(KINDS)
    if kind in ("gone", "directory", "loop", "out", "pipe"):
        path.unlink()
        if kind == "directory":
            (path / "inside").mkdir(parents=True)
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind != "gone":
            elsewhere = generator.choice(["/dev/zero", "/etc/passwd", "/nowhere/x"])
            path.symlink_to(path.name if kind == "loop" else elsewhere)
        return kind
    if kind == "prefix":
        del content[where:]
    elif kind == "flips":
        for _ in range(generator.randrange(1, 20)):
            if content:
                content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    elif kind == "zeros":
        size = generator.choice([1, 16, 512, 4096])
        content[where : where + size] = bytes(size)
    elif kind == "empty":
        content.clear()
    elif kind == "noise":
        content[where:where] = generator.randbytes(generator.randrange(1, 300))
    elif kind == "number":
        digits = [place for place, letter in enumerate(content) if 48 <= letter < 58] or [0]
        place = generator.choice(digits)
        content[place : place + 1] = generator.choice(NUMBERS)
    elif kind == "deep":
        content[where:where] = generator.choice([b"[", b"{a: ", b'{"a":', b"- ", b"(", b'"']) * 50_000
    elif kind == "repeated":
        content[where:where] = content[:where] * generator.randrange(1, 5)
    path.write_bytes(content)
    return f"{kind} at {where}"


def refused_or(read):
    """Call it; errors in a sentence are answers too."""
    with contextlib.suppress(VideoGNError):
        read()


def resume(run):
    """What a resume does with the files, its checkpoint being whole: none of it may end it."""
    directory = RunDirectory(run)
    directory.settle_after_kill()
    assert checkpoint_of(run) == run / "checkpoints/best.ckpt"
    directory.lock(".lock", wait_seconds=0)
    directory.set_strange_files_aside("fit")
    trainer = SimpleNamespace(is_global_zero=True, global_step=10, current_epoch=0, callbacks=[], loggers=[])
    saved = SaveConfig(run, "seed_everything: 9\n", stage="fit", resumes=True)
    saved.setup(trainer, None, "fit")
    saved.on_train_start(trainer, None)
    metrics = MetricsCSV(run / "metrics.csv")
    metrics.on_train_start(trainer, None)
    rows = read_metrics(run / "metrics.csv")
    assert all(row["step"] <= 10 for row in rows)
    videos = BrokenVideos(0.5, ["c.mp4"], table=run / "failures.csv")
    videos.broken = {"c.mp4": "broken"}
    videos._write()
    directory.unlock()
    directory.lock("test/.lock", wait_seconds=0)
    directory.set_strange_files_aside("test")
    unfinished = Unfinished(run / "test/unfinished")
    kept = unfinished.open(SETTINGS)
    assert kept.video_ids <= {0, 1, 2, 7}
    for place in kept.places.values():
        assert np.array_equal(place.read(), SCORES) and place.label == 1
    unfinished.files(kept.start, 0).close()
    directory.unlock()


def content_of(path):
    return path.read_bytes() if path.is_file() and not path.is_symlink() else None


def problem_of(path):
    try:
        return whole_metrics(path)[1]
    except (OSError, ValueError) as error:
        return str(error)


def read_and_resume(run, done, whole):
    """All that reads a run; nothing damaged may be lost."""
    before = {name: content_of(run / name) for name in ("config.yaml", "metrics.csv")}
    is_damaged = problem_of(run / "metrics.csv") != ""
    page = page_of(run)
    assert len(page) < 2_000_000
    text = checked(page)
    for name in set(done) & set(FILES):
        assert done[name] not in ("directory", "loop", "out", "pipe") or f"{name} cannot be read" in text
    refused_or(lambda: checked(write_comparison([whole, run], run.parent / "compare.html").read_text(encoding="utf-8")))
    refused_or(CellDirectory(run.parent.parent, Cell(0, "mine", "GN", "8x2", 8, ("8x2", 8), 0, {}, 8)).read)
    for command, *words in (["test"], ["fit", "--ckpt_path=last"], ["predict", "-c", str(run)]):
        refused_or(functools.partial(with_run_config, command, ["--run_dir", str(run), *words]))
    resume(run)
    checked(page_of(run))
    everywhere = [content_of(path) for path in run.rglob("*")]
    assert before["config.yaml"] in everywhere
    assert before["metrics.csv"] in everywhere or not is_damaged
    RunDirectory(run).set_aside()


def hangs(number, frame):
    raise AssertionError("it hangs")


def test_damaged_runs(whole, tmp_path):
    names = sorted(
        str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file() and path.suffix != ".ckpt"
    )
    assert len(names) > 17
    kinds = Counter()
    earlier = signal.signal(signal.SIGALRM, hangs)
    for seed in range(NUM_RUNS):
        generator = random.Random(seed)
        run = tmp_path / "cells" / "mine"
        shutil.copytree(whole, run)
        picked = generator.sample(names, generator.choice([1, 1, 2, 4]))
        done = {name: damage(run / name, generator) for name in picked}
        signal.alarm(SECONDS)
        try:
            read_and_resume(run, done, whole)
        except Exception as error:
            raise AssertionError(f"run {seed}: {json.dumps(done)}") from error
        finally:
            signal.alarm(0)
            shutil.rmtree(tmp_path / "cells")
        kinds.update(how.split()[0] for how in done.values())
    signal.signal(signal.SIGALRM, earlier)
    if summary := os.environ.get("VIDEO_GN_DAMAGED_RUNS_REPORT"):
        Path(summary).write_text(json.dumps({"runs": NUM_RUNS, "damaged files": kinds.total(), **kinds}))
