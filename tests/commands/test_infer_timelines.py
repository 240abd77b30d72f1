"""`video-gn infer --every`: files, the table, a stop and its resume, and what is refused."""

import csv
import json
import logging

import pytest
import torch
from media import write_numbered_video
from small import ABOUT

from video_gn.__main__ import main
from video_gn.models import i3d

EVERY = ["--every=0.2", "--unsure=0", "--smooth=0"]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A directory with a.ckpt, a.mp4 and b.mp4 of 2 seconds."""
    here = tmp_path_factory.mktemp("timelines")
    torch.manual_seed(0)
    net = i3d(50, layout="nonlocal", norm="group", num_groups=2, width=4, num_classes=3, zero_init_last_norm=False)
    state = {f"net.{k}": v for k, v in net.state_dict().items()}
    torch.save({"video_gn": {"net": net.arguments, **ABOUT}, "state_dict": state}, here / "a.ckpt")
    for name in ("a.mp4", "b.mp4"):
        write_numbered_video(here / name, 50, size=(48, 40))
    return here


@pytest.fixture
def infer(here, monkeypatch, capsys):
    """(exit status, what was printed) of `video-gn infer` with more words."""
    monkeypatch.chdir(here)
    monkeypatch.setenv("VIDEO_GN_KEEP_MEMORY", "0")

    def run(*words):
        for name, value in (("handlers", []), ("propagate", True), ("level", logging.NOTSET)):
            monkeypatch.setattr(logging.getLogger("video_gn"), name, value)
        capsys.readouterr()
        status = main(["infer", "--checkpoint=a.ckpt", "--num_workers=0", *words])
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run


def test_files_and_the_table(infer, here):
    assert infer("a.mp4", "--output=plain.json", "--quiet")[0] == 0
    status, printed = infer("a.mp4", "--output=x.json", *EVERY)
    assert status == 0
    (plain,), (entry,) = (json.loads((here / name).read_text())["videos"] for name in ("plain.json", "x.json"))
    timeline, segments = entry.pop("timeline"), entry.pop("segments")
    assert entry == plain
    assert timeline["times"] == [0.32, 0.52, 0.72, 0.92, 1.12, 1.32, 1.52]
    assert set(timeline) == {"window_seconds", "every_seconds", "first_frame_seconds", "times", "top", "gaps"}
    assert "segment" in printed and segments[0]["label"] in printed and "  clip" not in printed
    assert infer("a.mp4", "--output=x.csv", "--quiet", *EVERY)[0] == 0
    with (here / "x.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["start_seconds"] for row in rows if row["clip"] == "window 1"] == ["0.2"] * 3
    assert [row["label"] for row in rows if row["clip"].startswith("segment")] == [s["label"] for s in segments]
    assert [row for row in rows if row["clip"] in ("", "0", "1")] == rows[:9]
    assert infer("a.mp4", "--output=x.vtt", "--quiet", *EVERY) == (0, "")
    assert (here / "x.vtt").read_text().count(" --> ") == len(segments)


def test_a_stopped_run_resumes_with_the_same_settings_alone(infer, here):
    words = ["a.mp4", "b.mp4", "--output=x.jsonl"]
    assert infer(*words, *EVERY)[0] == 0
    whole = (here / "x.jsonl").read_bytes()
    (here / "x.jsonl").write_bytes(whole[: whole.index(b"\n") + 20])
    status, printed = infer(*words, *EVERY)
    assert status == 0 and "resuming after 1 video" in printed
    assert (here / "x.jsonl").read_bytes() == whole
    for other, message in (
        ([], "--every must be 0.2 as for these lines, got None"),
        ([*EVERY, "--min_seconds=1"], "--min_seconds must be None as for these lines, got 1.0"),
    ):
        status, printed = infer(*words, *other)
        assert status == 2 and message in " ".join(printed.split())
    assert infer("--merge=x.jsonl", "--output=m.json")[0] == 2  # a merge has no checkpoint
    assert main(["infer", "--merge=x.jsonl", "--output=m.csv"]) == 0
    assert "window 6" in (here / "m.csv").read_text()


def test_lines_without_a_timeline_still_resume(infer, here):
    words = ["a.mp4", "b.mp4", "--output=plain.jsonl"]
    assert infer(*words)[0] == 0
    settings = json.loads((here / "plain.jsonl.meta.json").read_text())["settings"]
    assert not {"every", "smooth", "min_seconds", "unsure"} & set(settings)
    assert "resuming after 2 videos" in infer(*words)[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.mp4", "--smooth=1"], "--smooth must stand with --every, got no --every"),
        (["a.mp4", "--unsure=0"], "--unsure must stand with --every"),
        (["a.mp4", "--min_seconds=1"], "--min_seconds must stand with --every"),
        (["a.mp4", "--every=0"], "every_seconds (--every) must be at least 0.001, got 0.0"),
        (["a.mp4", "--every=x"], "--every must be a number, got 'x'"),
        (["a.mp4", "--output=x.vtt"], "--output x.vtt must have --every, got none"),
        (["a.mp4", "b.mp4", "--output=y.srt", "--every=1"], "--output y.srt must have one video, got 2"),
        (["a.mp4", "--output=y.txt", "--every=1"], "--output must end in .json, .csv, .jsonl, .vtt, .srt, got 'y.txt'"),
    ],
)
def test_refusals(infer, here, words, message):
    status, printed = infer(*words)
    assert status == 2 and message in " ".join(printed.split()), printed
    assert not (here / "y.srt").exists()


def test_merge_refusals(here, monkeypatch, capsys):
    monkeypatch.chdir(here)
    for words, message in (
        (["--every=1", "--output=m.json"], "--merge must stand alone, got --every too"),
        (["--output=m.vtt"], "--merge must have an --output of results, got m.vtt"),
    ):
        assert main(["infer", "--merge=x.jsonl", *words]) == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_subtitles_of_a_video_that_cannot_be_read(infer, here):
    (here / "bad.mp4").write_text("<html>")
    status, printed = infer("bad.mp4", "--output=bad.vtt", "--quiet", *EVERY)
    assert status == 3
    assert "bad.mp4 could not be read" in printed and "results:" not in printed
    assert not (here / "bad.vtt").exists()
