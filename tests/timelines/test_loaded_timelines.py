"""Timelines of a loaded predictor: of files as `infer --every` writes them, and of the same frames in memory."""

import json

import numpy as np
import pytest
import torch
from media import write_numbered_video
from small import ABOUT

import video_gn
from video_gn.__main__ import main
from video_gn.decoding import open_video
from video_gn.errors import DecodeError, SettingError
from video_gn.models import i3d


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """a.ckpt and v.mp4."""
    here = tmp_path_factory.mktemp("timelines")
    torch.manual_seed(0)
    net = i3d(50, norm="group", num_groups=2, width=4, num_classes=3, zero_init_last_norm=False)
    torch.nn.init.normal_(net.classifier.weight, std=0.3)
    state = {f"net.{k}": v for k, v in net.state_dict().items()}
    torch.save({"video_gn": {"net": net.arguments, **ABOUT}, "state_dict": state}, here / "a.ckpt")
    write_numbered_video(here / "v.mp4", 60, size=(80, 60))
    return here


def test_files_and_frames_in_memory(here):
    words = ["infer", here / "v.mp4", "--checkpoint", here / "a.ckpt", "--every", "0.25", "--unsure", "0.4", "--quiet"]
    assert main([str(w) for w in [*words, "--crops", "three", "--output", here / "a.json"]]) == 0
    (entry,) = json.loads((here / "a.json").read_text())["videos"]
    predictor = video_gn.load(here / "a.ckpt", device="cpu", crops="three")
    settings = {"every_seconds": np.float32(0.25), "unsure": 0.4}
    result = predictor.timeline(here / "v.mp4", **settings)
    assert json.loads(json.dumps(result)) == entry
    assert (result.timeline, result.segments) == (entry["timeline"], entry["segments"])
    scores = [top[0]["score"] for top in result.timeline["top"]]
    assert len(scores) == len(set(scores)) == 8  # they depend on the frames
    with open_video(here / "v.mp4") as reader:
        frames, fps = reader.frames_at(range(60)), reader.info.fps
    for form in (frames, frames.numpy(), iter(frames)):
        found = predictor.timeline(form, fps=fps, **settings)
        assert found == {**result, "path": "<frames>"}
        assert found._repr_html_().count("<img") == 2
    assert predictor.predict(frames, fps=fps) == {k: v for k, v in found.items() if k not in ("timeline", "segments")}


def test_what_is_refused(here):
    predictor = video_gn.load(here / "a.ckpt", device="cpu")
    with pytest.raises(DecodeError, match=r"missing\.mp4: "):
        predictor.timeline("missing.mp4")
    with pytest.raises(SettingError, match="every_seconds"):
        predictor.timeline(here / "v.mp4", every_seconds=0.0)
    with pytest.raises(DecodeError, match="<frames>: every_seconds .* at most 1,000,000 windows"):
        predictor.timeline(torch.zeros((20, 40, 40, 3), dtype=torch.uint8), fps=0.001, every_seconds=0.001)
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        predictor.timeline(here / "v.mp4", top_k=0)
    with pytest.raises(ValueError, match="fps must be left out for a file"):
        predictor.timeline(here / "v.mp4", fps=25)
    with pytest.raises(ValueError, match="fps must be above 0 for frames in memory, got None"):
        predictor.timeline(torch.zeros((20, 40, 40, 3), dtype=torch.uint8))
