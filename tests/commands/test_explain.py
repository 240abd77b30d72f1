"""`video-gn explain` from the command line: its files, and refusals that leave nothing behind."""

import json

import numpy as np
import pytest
import torch
from media import write_numbered_video
from PIL import Image
from small import ABOUT

from video_gn.__main__ import main
from video_gn.decoding import open_video
from video_gn.models import i3d


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A directory with a.ckpt (classes a, b and "ç, d"; two clips of 8 frames; crops of 32 px) and video.mp4."""
    here = tmp_path_factory.mktemp("explain")
    torch.manual_seed(0)
    net = i3d(50, layout="nonlocal", norm="group", num_groups=2, width=4, num_classes=3, zero_init_last_norm=False)
    net.classifier.weight.data.mul_(30)
    state = {f"net.{k}": v for k, v in net.state_dict().items()}
    torch.save({"video_gn": {"net": net.arguments, **ABOUT}, "state_dict": state}, here / "a.ckpt")
    write_numbered_video(here / "video.mp4", 40)
    return here


def explain(*words):
    return main(["explain", *map(str, words)])


def test_the_three_files(here, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(here)
    files = [tmp_path / name for name in ("heat.mp4", "strip.png", "deep/why.json")]
    assert explain("video.mp4", "--checkpoint", "a.ckpt", "--label", "ç, d", "--windows", 4, "--output", *files) == 0
    printed = capsys.readouterr()
    why = json.loads(files[2].read_text())
    assert (why["path"], why["label"], len(why["clips"]), len(why["occlusion"])) == ("video.mp4", "ç, d", 2, 4)
    assert f"ç, d {why['score']:.3f}" in printed.out
    for part in why["occlusion"]:
        span = f"{part['start_seconds']:.1f}-{part['end_seconds']:.1f}"
        assert any(span in line and f"{part['score_without']:.3f}" in line for line in printed.out.splitlines())
        assert part["drop"] == pytest.approx(why["score"] - part["score_without"], abs=2e-6)
    assert (
        main(["infer", "video.mp4", "--checkpoint", "a.ckpt", "--output", str(tmp_path / "all.json"), "--quiet"]) == 0
    )
    video = json.loads((tmp_path / "all.json").read_text())["videos"][0]
    assert {t["label"]: t["score"] for t in video["top"]}["ç, d"] == why["score"]
    for clip, ours in zip(video["clips"], why["clips"], strict=True):
        assert [clip[k] for k in ("start_seconds", "end_seconds")] == [
            ours[k] for k in ("start_seconds", "end_seconds")
        ]
        assert {t["label"]: t["score"] for t in clip["top"]}["ç, d"] == ours["score"]
    with Image.open(files[1]) as strip:
        assert strip.width == 1200
    with open_video(here / "video.mp4") as source, open_video(files[0]) as heated:
        np.testing.assert_array_equal(heated.frame_seconds, source.frame_seconds)
        frames = heated.frames_at([4, 18]).numpy().astype(int)
    # Clips start at frames 0 and 20 and span 15: 18 is in none; the crop of 32 px cuts off an eighth at left and right.
    assert frames[1].max() < 115 and frames[0, :, :6].max() < 115 < frames[0, :, 10:-10].max()


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--label", "aa"], 2, "label must be one of a, b, ç, d, got 'aa'. Choose one of these."),
        (["--output", "OUT/x.gif"], 2, "--output must end in .mp4, .mkv, .png, .json, got"),
        (["--output", "OUT/file/x.png"], 2, "file is no directory. Choose another place."),
        (["--windows", "0"], 2, "--windows must be at least 1, got 0"),
        (["--checkpoint", ""], 2, "--checkpoint must be given, got none. Name a run's directory"),
        (["--device", "tpu"], 2, "--device 'tpu' cannot be used"),
        (["--output", "OUT/video.mp4", "--crops", "five"], 2, "--crops must be one of center, three, full"),
    ],
)
def test_refusals(here, tmp_path, capsys, words, status, message):
    (tmp_path / "file").touch()
    words = [word.replace("OUT", str(tmp_path)) for word in words]
    assert explain(here / "video.mp4", "--checkpoint", here / "a.ckpt", *words) == status
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("output", ["x.mp4", "x.png"])
def test_what_cannot_be_read(here, tmp_path, capsys, output):
    (tmp_path / "page.mp4").write_text("<html>")
    for name, reason in (("page.mp4", "page.mp4 could not be read: "), ("none.mp4", "the file is missing")):
        words = (tmp_path / name, "--checkpoint", here / "a.ckpt", "--output", tmp_path / output)
        assert explain(*words) == 3
        assert reason in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["page.mp4"]
