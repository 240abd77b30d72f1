"""What is drawn on frames: bars of the nearest window, the strip of segments, a mark at the time."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from media import all_frames, write_numbered_video
from PIL import Image, ImageColor
from timeline_entry import entry

from video_gn.rendering import overlay, picture
from video_gn.rendering.entries import Timeline, clock
from video_gn.rendering.overlay import COLOURS, GREY, Overlay, render

SIZES = [(160, 120), (120, 214), (640, 360), (3840, 2160)]


def is_colour(pixels: np.ndarray, colour: str) -> np.ndarray:
    return (pixels == ImageColor.getrgb(colour)).all(-1)


def drawn(size: tuple[int, int], seconds: float, *, value: int = 255, of: dict[str, Any] | None = None) -> np.ndarray:
    frame = np.full((size[1], size[0], 3), value, np.uint8)
    return Overlay(Timeline.of(of or entry()))(frame, seconds)


@pytest.mark.parametrize("size", SIZES[:3])
@pytest.mark.parametrize("seconds", [1.2, 10.0])
def test_bars_are_as_long_as_scores(size: tuple[int, int], seconds: float) -> None:
    frame = drawn(size, seconds)
    above = frame[: size[1] // 2]
    first, second = (is_colour(above, c).sum(1).max() for c in (COLOURS[1], COLOURS[0]))  # run takes more time: 0
    walk, run = (0.75, 0.25) if seconds < 5 else (0.25, 0.75)
    assert first / walk == pytest.approx(second / run, abs=4)  # rounded to px: 0.5 px of 0.25 are 2 of 1
    track = is_colour(above, "#484c54") | is_colour(above, COLOURS[0]) | is_colour(above, COLOURS[1])
    assert first == pytest.approx(walk * track.sum(1).max(), abs=1)


@pytest.mark.parametrize("size", SIZES)
def test_the_strip_has_each_second_in_its_colour_and_the_mark(size: tuple[int, int]) -> None:
    seconds = 2.5
    frame = drawn(size, seconds, value=0)
    line = Overlay(Timeline.of(entry()))
    line._lay_out(size[1], size[0])
    row = frame[line._strip_top + 1]
    is_part = {c: is_colour(row, c) for c in (COLOURS[1], GREY, COLOURS[0])}
    spans = {c: np.flatnonzero(part)[[0, -1]] for c, part in is_part.items()}
    left, right = spans[COLOURS[1]][0], spans[COLOURS[0]][1] + 1
    for colour, (start, end) in zip(spans, ((0, 4), (4, 6), (6, 12)), strict=True):
        expected = left + np.array([start, end]) / 12 * (right - left)
        assert spans[colour] == pytest.approx(expected - (0, 1), abs=1)
    white = np.flatnonzero(is_colour(row, "#ffffff"))
    assert white.mean() == pytest.approx(left + seconds / 12 * (right - left), abs=1)
    gap = row[round(left + 8.1 / 12 * (right - left)) : round(left + 8.9 / 12 * (right - left))]
    assert not is_colour(gap, COLOURS[0]).any()


@pytest.mark.parametrize("size", [*SIZES, (2, 2), (16, 16), (64, 2000), (2000, 64)])
def test_all_lies_within_the_frame_and_half_of_it_stays_free(size: tuple[int, int]) -> None:
    long = entry()
    for best in long["timeline"]["top"]:
        best += [{"label": f"an action with a very long name, number {i}", "score": 0.01} for i in range(8)]
    frame = drawn(size, 1.0, of=long)
    touched = (frame != 255).any(-1)
    if min(size) >= 100:
        assert not touched[:, [0, -1]].any() and not touched[[0, -1]].any()  # a margin on each side
        assert touched.any(1).sum() < 0.75 * size[1]


def luminance(colour: Any) -> float:
    share = np.asarray(colour, float) / 255
    return float(np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722))


def contrast(first: Any, second: Any) -> float:
    """Source: WCAG 2.2, "contrast ratio"."""
    dark, bright = sorted((luminance(first), luminance(second)))
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_readable_over_bright_and_dark(value: int) -> None:
    frame = drawn((640, 360), 1.0, value=value)
    panel = frame[6, 12]
    assert contrast((255, 255, 255), panel) >= 7  # WCAG AAA for text
    for colour in (*COLOURS, GREY):
        assert contrast(ImageColor.getrgb(colour), panel) >= 3  # WCAG's for graphics


# Linear RGB as seen without one of the three cones. Source: Machado, Oliveira and Fernandes 2009, severity 1.
SEEN = {
    "by most": np.eye(3),
    "without red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "without green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "without blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def oklab(linear: np.ndarray) -> np.ndarray:
    """Source: Ottosson 2020, "A perceptual color space for image processing"."""
    lms = np.array([[0.41222, 0.53633, 0.05145], [0.2119, 0.6807, 0.1074], [0.0883, 0.28172, 0.62998]])
    lab = np.array([[0.21045, 0.79362, -0.00407], [1.978, -2.42859, 0.45059], [0.0259, 0.78277, -0.80868]])
    return lab @ np.cbrt(lms @ np.clip(linear, 0, 1))


@pytest.mark.parametrize("eye", SEEN)
@pytest.mark.parametrize("colours", [(*COLOURS, GREY), (*picture.COLOURS, picture.GREY)], ids=["video", "picture"])
def test_colours_are_told_apart_by_the_colour_blind(eye: str, colours: tuple[str, ...]) -> None:
    srgb = [np.array(ImageColor.getrgb(c)) / 255 for c in colours]
    seen = [oklab(np.array(SEEN[eye]) @ np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)) for c in srgb]
    # Okabe and Ito's own colours are at 0.067 for the worst of their pairs, 0.02 is just noticeable.
    assert min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2)) > 0.09


def test_pictures_of_white_paper_have_contrast() -> None:
    assert all(contrast(ImageColor.getrgb(c), (255, 255, 255)) >= 2.95 for c in (*picture.COLOURS, picture.GREY))


def test_mixing_is_rounded_exactly() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (50, 60, 4), dtype=np.uint8)
    frame = rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)
    alpha = pixels[..., 3:] / 255.0
    expected = np.round(frame * (1 - alpha) + pixels[..., :3] * alpha)
    overlay._Patch(Image.fromarray(pixels), (0, 0)).lay_on(frame)
    assert np.array_equal(frame, expected)


def test_windows_and_segments_of_a_time() -> None:
    rng = np.random.default_rng(1)
    times = np.sort(rng.uniform(0, 30, 12))
    ends = np.sort(rng.uniform(0, 30, 12)).reshape(6, 2)
    line = Timeline.of(
        entry(
            timeline={"times": times.tolist(), "top": [[{"label": "a", "score": 1.0}]] * 12},
            segments=[{"label": "a", "start_seconds": a, "end_seconds": b, "score": 1.0} for a, b in ends.tolist()],
        )
    )
    for seconds in rng.uniform(-1, 31, 200):
        assert line.window_at(seconds) == np.abs(times - seconds).argmin()
        inside = [i for i, (start, end) in enumerate(ends) if start <= seconds < end]
        assert line.segment_at(seconds) == (inside[0] if inside else None)


def test_panels_are_drawn_only_when_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    for name in ("_bars", "_strip", "_words"):
        plain = getattr(Overlay, name)
        monkeypatch.setattr(
            Overlay, name, lambda self, *a, name=name, plain=plain: made.append(name) or plain(self, *a)
        )
    over = Overlay(Timeline.of(entry()))
    for number in range(120):
        over(np.zeros((120, 160, 3), np.uint8), number / 10)
    assert [made.count(name) for name in ("_bars", "_strip", "_words")] == [12, 1, 12]


def test_more_labels_than_colours_are_striped() -> None:
    names = [f"label {i}" for i in range(8)]
    segments = [{"label": n, "start_seconds": i, "end_seconds": i + 1, "score": 1.0} for i, n in enumerate(names)]
    over = Overlay(Timeline.of(entry(segments=segments)))
    assert [over._fill(n) for n in names[:1] + names[6:7]] == [(COLOURS[0], False), (COLOURS[0], True)]
    assert over._fill("never") == (GREY, False)


def test_times_as_a_player_shows_them() -> None:
    assert [clock(s) for s in (0, 7.99, 60, 754, 3723)] == ["0:00", "0:07", "1:00", "12:34", "1:02:03"]


def test_a_video_is_rendered(tmp_path: Any) -> None:
    source = write_numbered_video(tmp_path / "a.mp4", 120, fps=10, size=(160, 120))
    done: list[tuple[int, int]] = []
    render(entry(), source, tmp_path / "b.mp4", on_frame=lambda *at: done.append(at))
    assert done[-1] == (120, 120) and len(done) == 120
    frames = all_frames(tmp_path / "b.mp4")
    strip = frames[:, -6].astype(int)  # a row through the strip; the mark moves to the right
    marks = (strip.min(-1) > 215)[:, 8:-8]
    places = [np.flatnonzero(row).mean() for row in marks if row.any()]
    assert len(places) > 60 and np.corrcoef(places, np.arange(len(places)))[0, 1] > 0.9
    without = {k: v for k, v in entry().items() if k not in ("timeline", "segments")}
    no_window = entry(segments=[], timeline={"first_frame_seconds": 0.0, "times": [], "top": [], "gaps": []})
    drawn = [Overlay(Timeline.of(made))(np.zeros((120, 160, 3), np.uint8), 0.0) for made in (without, no_window)]
    assert drawn[0].any() and np.array_equal(*drawn)
    render(without, source, tmp_path / "c.mp4")  # bars of the whole video's labels, no strip
    plain = all_frames(tmp_path / "c.mp4")
    assert np.abs(plain[:, -20:].astype(int) - all_frames(source)[:, -20:]).mean() < 12
    assert plain[:, 5:30, 5:50].mean() < 100
