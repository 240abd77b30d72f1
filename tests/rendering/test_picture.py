"""A timeline's picture: segments in order, in their colours, and legible names."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageColor
from timeline_entry import entry

from video_gn.errors import ConfigError, UnwritableError
from video_gn.rendering.entries import Timeline
from video_gn.rendering.overlay import Overlay
from video_gn.rendering.picture import COLOURS, GREY, write_picture


def test_the_strip_has_the_segments_in_their_places(tmp_path: Path) -> None:
    write_picture(entry(), tmp_path / "t.png")
    pixels = np.asarray(Image.open(tmp_path / "t.png").convert("RGB")).astype(int)
    assert pixels.shape[1] == 1000
    row = pixels[40]
    spans = {}
    for colour in (COLOURS[1], GREY, COLOURS[0]):
        near = np.abs(row - ImageColor.getrgb(colour)).max(-1) < 4
        spans[colour] = np.flatnonzero(near)[[0, -1]]
    left, right = spans[COLOURS[1]][0], spans[COLOURS[0]][1]
    for colour, (start, end) in zip(spans, ((0, 4), (4, 6), (6, 12)), strict=True):
        assert spans[colour] == pytest.approx(left + np.array([start, end]) / 12 * (right - left), abs=3)
    gap = row[round(left + 8.2 / 12 * (right - left)) : round(left + 8.8 / 12 * (right - left))]
    assert (gap > 200).all(-1).any() and (np.abs(gap - ImageColor.getrgb(COLOURS[0])).max(-1) > 50).all()


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_the_same_entry_gives_the_same_bytes_in_any_script(tmp_path: Path, ending: str) -> None:
    made = entry()
    for segment, label in zip(made["segments"], ("прыгать", "unsure", "跑步"), strict=True):
        segment["label"] = label
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of glyphs that no font has
        for name in ("a", "b"):
            write_picture(made, tmp_path / f"{name}{ending}")
    assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()


@pytest.mark.parametrize("num_windows", [0, 1, 5000])
def test_short_and_long_ones(tmp_path: Path, num_windows: int) -> None:
    labels = [f"label {i}" for i in range(20)]
    times = np.arange(num_windows) + 0.5
    top: list[Any] = [[{"label": labels[i * 20 // num_windows], "score": 0.9}] for i in range(num_windows)]
    made = entry(
        num_frames=5 + 10 * num_windows, segments=[], timeline={"times": times.tolist(), "top": top, "gaps": []}
    )
    write_picture(made, tmp_path / "t.svg")
    assert (tmp_path / "t.svg").stat().st_size < 500_000


def test_a_video_shorter_than_a_window_has_its_labels(tmp_path: Path) -> None:
    made = entry(segments=[], timeline={**entry()["timeline"], "times": [], "top": [], "gaps": []})
    write_picture(made, tmp_path / "t.svg")
    assert "<!-- run -->" in (tmp_path / "t.svg").read_text()  # as matplotlib notes a drawn text
    frame = np.full((120, 160, 3), 255, np.uint8)
    assert not np.array_equal(Overlay(Timeline.of(made))(frame.copy(), 1.0), frame)


@pytest.mark.parametrize(
    ("num_frames", "first", "ticks"),  # 25 a second; `first` is when a player shows the first frame
    [
        (1, 0.0, ["0:00.00", "0:00.01", "0:00.02", "0:00.03", "0:00.04"]),
        (20, 0.7, ["0:00.8", "0:01.0", "0:01.2", "0:01.4"]),
        (50, 59.0, ["0:59.0", "0:59.5", "1:00.0", "1:00.5", "1:01.0"]),
        (100, 0.0, ["0:00", "0:01", "0:02", "0:03", "0:04"]),
    ],
)
def test_the_time_of_short_videos_has_decimals(tmp_path: Path, num_frames: int, first: float, ticks: list[str]) -> None:
    line = {"times": [num_frames / 50], "top": [[{"label": "run", "score": 0.9}]], "gaps": []}
    timeline = line | {"first_frame_seconds": first}
    write_picture(entry(num_frames=num_frames, fps=25.0, segments=[], timeline=timeline), tmp_path / "t.svg")
    drawn = (tmp_path / "t.svg").read_text().split('id="xtick_')[1:]
    drawn = [part.split("<!-- ")[1].split(" -->")[0] for part in drawn]  # as matplotlib notes a drawn text
    assert drawn[-len(ticks) :] == ticks


def test_places_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.png or \.svg, got .*t\.jpg"):
        write_picture(entry(), tmp_path / "t.jpg")
    (tmp_path / "file").touch()
    with pytest.raises(UnwritableError, match="is no directory"):
        write_picture(entry(), tmp_path / "file" / "t.png")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
