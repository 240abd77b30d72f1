"""`video-gn infer --render` and `--picture`: one video, drawn after its results are written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from media import write_numbered_video
from runs import run
from small import ABOUT

from video_gn.__main__ import main
from video_gn.decoding import open_video
from video_gn.models import i3d


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a network, a.ckpt, and a video with sound, v.mp4."""
    here = tmp_path_factory.mktemp("pictures")
    torch.manual_seed(0)
    net = i3d(50, layout="nonlocal", norm="group", num_groups=2, width=4, num_classes=3, zero_init_last_norm=False)
    state = {f"net.{k}": v for k, v in net.state_dict().items()}
    torch.save({"video_gn": {"net": net.arguments, **ABOUT}, "state_dict": state}, here / "a.ckpt")
    write_numbered_video(here / "v.mp4", 50, size=(96, 80), audio="aac")
    return here


def infer(here: Path, *words: str) -> tuple[int, str]:
    return run(["infer", *words, "--checkpoint=a.ckpt", "--num_workers=0"], here)


@pytest.mark.parametrize("output", ["o.vtt", pytest.param("o.jsonl", marks=pytest.mark.slow), None])
def test_video_and_picture_beside_any_output(here: Path, output: str | None) -> None:
    for name in ("r.mp4", "t.svg"):
        (here / name).unlink(missing_ok=True)
    more = ["--output", output] if output else ["--quiet"]
    status, printed = infer(here, "v.mp4", "--every=0.4", "--render=r.mp4", "--picture=t.svg", *more)
    assert status == 0, printed
    if output:
        assert all(words in printed for words in ("timeline: t.svg", "video: r.mp4", "labels and scores"))
    else:
        assert printed == ""
    with open_video(here / "v.mp4") as before, open_video(here / "r.mp4") as after:
        assert after.frame_seconds.tolist() == before.frame_seconds.tolist()
    assert (here / "t.svg").read_text().rstrip().endswith("</svg>")
    if output:
        assert (here / output).stat().st_size


def test_without_a_timeline_the_videos_labels_are_drawn(here: Path) -> None:
    status, printed = infer(here, "v.mp4", "--render", "plain.mkv", "--output", "plain.json")
    assert status == 0, printed
    assert "timeline" not in json.loads((here / "plain.json").read_text())["videos"][0]
    with open_video(here / "plain.mkv") as after:
        assert after.info.num_frames == 50


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["v.mp4", "none.mp4", "--every=1", "--render=x.mp4"], "--render must have one video, got 2"),
        ([".", "--every=1", "--picture=x.png"], "--picture must have one video"),
        (["v.mp4", "--picture=x.png"], "--picture must have --every, got none"),
        (["v.mp4", "--every=1", "--render=x.gif"], "must end in .mp4 or .mkv, got 'x.gif'"),
        (["v.mp4", "--every=1", "--picture=x.jpg"], "must end in .png or .svg, got 'x.jpg'"),
        (["v.mp4", "--every=1", "--render=v.mp4"], "v.mp4 must not be the video that is read"),
        (["v.mp4", "--every=1", "--render=a.ckpt/x.mp4"], "a.ckpt is no directory"),
        (["--merge=x.jsonl", "--output=x.json", "--render=x.mp4"], "--merge must stand alone"),
    ],
)
def test_refused_before_the_work(
    here: Path, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(here)
    before = {path: path.stat().st_mtime_ns for path in here.iterdir()}
    assert main(["infer", *words, "--checkpoint=a.ckpt"]) == 2
    assert message in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in here.iterdir()} == before


def test_a_video_that_cannot_be_read_is_not_drawn(here: Path) -> None:
    status, printed = infer(here, "none.mp4", "--every=1", "--render=n.mp4", "--picture=n.png")
    assert status == 3 and "none.mp4" in printed, printed
    assert not list(here.glob("n.*")) and not list(here.glob(".n.*"))
