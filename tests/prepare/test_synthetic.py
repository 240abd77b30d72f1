import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from video_gn.errors import RunError
from video_gn.lists.read import read_manifest
from video_gn.prepare import synthetic
from video_gn.prepare.synthetic import CLASSES, MOTIONS, SHAPES, draw_scene, render, states, synthesize

OPPOSITES = {"left": "right", "up": "down", "clockwise": "counter-clockwise", "growing": "shrinking"}
SMALL = {"num_train_per_class": 2, "num_val_per_class": 1, "num_frames": 5, "size_px": (48, 64), "seed": 3}


def hashes(root):
    return {
        p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(Path(root).rglob("*"))
        if p.is_file()
    }


def decode(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def scene(index=0, *, size_px=(96, 96), period_frames=None, outline=None, mirrored=None, **start):
    """A drawn scene with its frontmost shape alone, and what is given of that changed."""
    drawn = draw_scene("train", index, size_px=size_px, seed=0)
    shape = drawn.shapes[-1]
    changes = {"outline": outline, "mirrored": mirrored}
    changes = {name: value for name, value in changes.items() if value is not None}
    shape = replace(shape, start={**shape.start, **start}, **changes)
    return replace(drawn, shapes=(shape,), period_frames=period_frames or drawn.period_frames)


def shown(drawn, frames):
    """Pixels where frames differ from the background, bool (..., H, W)."""
    return np.abs(frames - np.clip(drawn.background, 0, 255)).sum(-1) > 60


# ---- files -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    out = tmp_path_factory.mktemp("small") / "videos"
    return synthesize(out, **SMALL)


def test_files(small):
    names = {p for p in hashes(small.out) if p.endswith(".mp4")}
    want = {f"train/{c}/000{i}.mp4" for c in CLASSES for i in range(2)} | {f"val/{c}/0000.mp4" for c in CLASSES}
    assert names == want
    assert (small.num_videos, small.num_written) == (24, 24)
    assert small.num_bytes == sum(p.stat().st_size for p in small.out.rglob("*.mp4"))
    assert not [p for p in small.out.rglob("*") if p.name.endswith(".tmp")]
    train, val = (read_manifest(small.out, split=split) for split in ("train", "val"))
    assert train.classes == val.classes == CLASSES and (len(train), len(val)) == (16, 8)


def test_streams(small):
    for path in small.out.rglob("*.mp4"):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
            assert (stream.width, stream.height, stream.average_rate) == (64, 48, 25)
            packets = [p for p in container.demux(stream) if p.size]
            assert len(packets) == 5 and all(p.is_keyframe for p in packets)


def test_pixels_survive_compression(small):
    """Decoded frames show what was drawn: the picture is read row by row, in RGB, with the right side up."""
    drawn = draw_scene("val", 0, size_px=(48, 64), seed=3)
    clean = render(drawn, "left", num_frames=5, rng=None)
    decoded = decode(small.out / "val" / "left" / "0000.mp4")
    assert decoded.shape == clean.shape == (5, 48, 64, 3)
    difference = np.abs(decoded.astype(int) - clean)
    assert difference.mean() < 12  # noise of 5 levels and a quantizer of 27; another frame's shape gives more
    assert np.abs(decoded[0].astype(int) - clean[::-1][0, ::-1]).mean() > 1.5 * difference[0].mean()


def test_same_arguments_same_bytes(small, tmp_path):
    again = synthesize(tmp_path / "again", **SMALL, num_workers=1)
    assert hashes(again.out) == hashes(small.out)
    other = synthesize(tmp_path / "other", **{**SMALL, "seed": 4})
    same = set(hashes(other.out).items()) & set(hashes(small.out).items())
    assert not same


def test_same_bytes_from_any_number_of_processes(small, tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "_PROCESSES_FROM", 1)
    assert hashes(synthesize(tmp_path / "out", **SMALL, num_workers=3).out) == hashes(small.out)


def test_noise_is_normal_and_differs_between_videos():
    drawn = scene()
    still = render(drawn, "left", num_frames=1, rng=None)[0].astype(float)
    one, two = (render(drawn, "left", num_frames=1, rng=np.random.default_rng(i))[0] - still for i in (0, 1))
    inner = (still > 20) & (still < 235)  # not cut off
    assert one[inner].std() == pytest.approx(4, rel=0.03) and abs(one[inner].mean()) < 0.15
    assert (np.abs(one[inner]) < 4.5).mean() == pytest.approx(0.739, abs=0.02)  # normal: P(|z| < 4.5 / 4)
    assert abs(np.corrcoef(one[inner], two[inner])[0, 1]) < 0.04


def test_more_videos_leave_the_first_ones(small, tmp_path):
    more = synthesize(tmp_path / "more", **{**SMALL, "num_train_per_class": 3, "num_val_per_class": 0})
    first = {name: h for name, h in hashes(small.out).items() if name.startswith("train")}
    assert first.items() <= hashes(more.out).items() and more.num_videos == 24
    assert len(first) == 16


def test_again_is_left_alone(small):
    before = {p: p.stat().st_mtime_ns for p in small.out.rglob("*.mp4")}
    again = synthesize(small.out, **SMALL)
    assert (again.num_written, again.num_bytes) == (0, small.num_bytes)
    assert {p: p.stat().st_mtime_ns for p in small.out.rglob("*.mp4")} == before


def test_an_interrupted_call_is_finished_by_the_next(small, tmp_path, monkeypatch):
    out = tmp_path / "videos"
    real, calls = synthetic._encode, []

    def stop_early(frames, path, *, fps):
        calls.append(path)
        if len(calls) == 6:
            raise KeyboardInterrupt
        real(frames, path, fps=fps)

    monkeypatch.setattr(synthetic, "_encode", stop_early)
    with pytest.raises(KeyboardInterrupt):
        synthesize(out, **SMALL, num_workers=1)
    assert json.loads((out / "dataset.json").read_text())["complete"] is False
    monkeypatch.setattr(synthetic, "_encode", real)
    there = len(list(out.rglob("*.mp4")))
    assert there >= 5
    assert synthesize(out, **SMALL).num_written == 24 - there
    assert hashes(out) == hashes(small.out)


def test_progress_counts_videos_also_those_that_were_there(small, tmp_path, caplog):
    caplog.set_level("INFO", "video_gn")
    out = shutil.copytree(small.out, tmp_path / "videos")
    for path in [*out.glob("train/*/0001.mp4"), out / "val/left/0000.mp4"]:
        path.unlink()
    seen = []
    assert synthesize(out, **SMALL, progress=lambda *counts: seen.append(counts)).num_written == 9
    assert seen == [(23, 24), (24, 24)]
    assert f"{out}: making 9 of 24 videos" in caplog.messages


def test_shapes_are_brighter_than_their_background():
    for index in range(200):
        drawn = draw_scene("train", index, size_px=(32, 32), seed=0)
        ground = drawn.background.mean()
        assert all(shape.color.mean() - ground >= synthetic._MIN_BRIGHTER - 1 for shape in drawn.shapes)


def test_a_failed_write_leaves_nothing(tmp_path):
    frames = np.zeros((2, 31, 32, 3), dtype=np.uint8)  # an odd height: the encoder refuses
    with pytest.raises(av.FFmpegError):
        synthetic._encode(frames, tmp_path / "x.mp4", fps=25)
    assert list(tmp_path.iterdir()) == []


def test_other_content_is_not_overwritten(small, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(
        RunError, match=r"out must be new, empty or a data set of the same parameters, got \['mine.txt'\]"
    ):
        synthesize(tmp_path, **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(RunError, match=r"out must be a directory, got a file"):
        synthesize(tmp_path / "mine.txt", **SMALL)
    with pytest.raises(RunError, match=r"mine\.txt/out/dataset\.json could not be written: [^:]+ is no directory"):
        synthesize(tmp_path / "mine.txt" / "out", **SMALL)
    with pytest.raises(RunError, match=r"of the same parameters, got num_frames 5 and not 6, seed 3 and not 4"):
        synthesize(small.out, **{**SMALL, "seed": 4, "num_frames": 6})
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(RunError, match=r"dataset.json: the description cannot be read"):
        synthesize(tmp_path, **SMALL)
    (tmp_path / "dataset.json").write_text("3")
    with pytest.raises(RunError, match=r"dataset.json: the description cannot be read"):
        synthesize(tmp_path, **SMALL)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"num_train_per_class": 0}, "num_train_per_class must be at least 1, got 0"),
        ({"num_val_per_class": -1}, "num_val_per_class must be at least 0, got -1"),
        ({"num_frames": 0}, "num_frames must be at least 1, got 0"),
        ({"fps": 0}, "fps must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"num_workers": 0}, "num_workers must be at least 1, got 0"),
        ({"size_px": (96, 95)}, r"size_px must be an even height and width of at least 32, got \(96, 95\)"),
        ({"size_px": (30, 96)}, r"size_px must be an even height and width of at least 32, got \(30, 96\)"),
        ({"size_px": (96,)}, r"size_px must be an even height and width"),
    ],
)
def test_arguments_out_of_range(tmp_path, arguments, match):
    with pytest.raises(ValueError, match=match):
        synthesize(tmp_path / "out", **{**SMALL, **arguments})
    assert not (tmp_path / "out").exists()


# ---- motions ---------------------------------------------------------------------------------


def middle(covered):
    """Middle (x, y) of a picture of weights, in px, and their sum."""
    y, x = np.mgrid[: covered.shape[0], : covered.shape[1]]
    return (covered * x).sum() / covered.sum(), (covered * y).sum() / covered.sum(), covered.sum()


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("motion", CLASSES)
def test_what_moves_is_what_the_class_says(motion, index):
    """Read off the pixels, independently of how they are drawn."""
    drawn = scene(index, x=0.5, y=0.5, size=0.5)
    drawn = replace(drawn, background=np.full_like(drawn.background, drawn.background.mean((0, 1)).round()))
    frames = render(drawn, motion, num_frames=4, rng=None)
    places = np.array([middle(frame) for frame in np.abs(frames - drawn.background).sum(-1)])
    move = (places[-1, :2] - places[0, :2]) * drawn.period_frames / 3 / 96  # turns around the frame in a period
    want = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}.get(motion, (0, 0))
    # Turning and growing shapes move their middle too, since their own middle is not their center.
    tolerance = 0.01 if motion in ("left", "right", "up", "down") else 0.6
    np.testing.assert_allclose(move, want, atol=tolerance)
    growth = places[-1, 2] / places[0, 2]
    # The area is the radius squared, and the radius runs through its range once in a period.
    smallest, largest = synthetic._SIZE_RANGE
    exponent = {"growing": 1, "shrinking": -1}.get(motion, 0)
    assert growth == pytest.approx((largest / smallest) ** (2 * exponent * 3 / drawn.period_frames), rel=0.02)


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize(("motion", "sign"), [("clockwise", 1), ("counter-clockwise", -1)])
def test_turns_are_seen_as_named(motion, sign, index):
    """Of all turns of the first frame around its center, pixel by pixel, the expected one fits the last frame best."""
    drawn = scene(index, x=0.5, y=0.5, size=0.9)
    first, *_, last = shown(drawn, render(drawn, motion, num_frames=5, rng=None))
    y, x = np.mgrid[:96, :96] - 47.5

    def overlap(degrees):
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        # Where a pixel of the turned picture came from; x to the right and y down make positive turns clockwise.
        u, v = cos * x + sin * y, cos * y - sin * x
        inside = np.clip(np.rint([v + 47.5, u + 47.5]).astype(int), 0, 95)
        turned = first[inside[0], inside[1]]
        return (turned & last).sum() / (turned | last).sum()

    turn = 4 * 360 / drawn.period_frames
    best = max(np.arange(-60, 61, 2), key=overlap)
    assert best == pytest.approx(sign * turn, abs=4)  # degrees; at this radius a pixel is about 1.5


def test_seen_clockwise_by_hand():
    """An arrow that points right, turned a quarter clockwise, points down: its tip is the farthest pixel."""
    drawn = scene(x=0.5, y=0.5, angle=0.0, size=0.7, outline="wedge", mirrored=False, period_frames=4.0)
    tips = []
    for mask in shown(drawn, render(drawn, "clockwise", num_frames=4, rng=None)):
        y, x = np.nonzero(mask)
        tip = np.hypot(x - 47.5, y - 47.5).argmax()
        tips.append((round((x[tip] - 47.5) / 30), round((y[tip] - 47.5) / 30)))
    assert tips == [(1, 0), (0, 1), (-1, 0), (0, -1)]


def test_a_shape_wraps_around_the_frame():
    """A frame that is drawn with the shape on the border is the one in the middle, rolled."""
    drawn = scene(x=0.5, y=0.5)
    drawn = replace(drawn, background=np.full_like(drawn.background, 128))
    whole = render(drawn, "left", num_frames=1, rng=None)[0]
    for x, y in ((0.0, 0.5), (0.5, 0.0), (0.0, 0.0), (0.25, 0.75)):
        drawn.shapes[0].start.update(x=x, y=y)
        moved = render(drawn, "left", num_frames=1, rng=None)[0]
        rolled = np.roll(whole, (round((y - 0.5) * 96), round((x - 0.5) * 96)), axis=(0, 1))
        # Coordinates are rounded elsewhere, so a pixel may fall on the next step of the map of distances.
        difference = np.abs(moved.astype(int) - rolled)
        assert difference.mean() < 0.02 and difference.max() <= 12


@pytest.mark.parametrize("name", SHAPES)
def test_map_of_distances(name):
    """Against the shoelace formula for the area, and against points laid densely along the outline."""
    corners = SHAPES[name].astype(float)
    assert np.hypot(*corners.T).max() == pytest.approx(1, abs=1e-6)
    x, y = corners.T
    area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    found = synthetic._distances(name)
    side, reach = len(found), synthetic._MAP_REACH
    assert (found < 0).mean() * (2 * reach) ** 2 == pytest.approx(area, rel=0.01)
    dense = np.concatenate([np.linspace(a, b, 400) for a, b in zip(corners, np.roll(corners, -1, 0), strict=True)])
    rng = np.random.default_rng(0)
    for row, column in rng.integers(0, side, (200, 2)):
        px, py = (((np.array([column, row]) + 0.5) / side) * 2 - 1) * reach
        want = np.hypot(dense[:, 0] - px, dense[:, 1] - py).min()
        assert abs(found[row, column]) == pytest.approx(want, abs=0.004)  # half a step between two of the points


def test_a_large_shape_covers_its_area():
    for name in SHAPES:
        drawn = scene(x=0.5, y=0.5, size=0.99, angle=0.13, outline=name)
        drawn = replace(drawn, background=np.zeros_like(drawn.background))
        drawn = replace(drawn, shapes=(replace(drawn.shapes[0], color=np.full(3, 200.0)),))
        frame = render(drawn, "left", num_frames=1, rng=None)[0]
        smallest, largest = synthetic._SIZE_RANGE
        radius = 96 * smallest * (largest / smallest) ** 0.99
        x, y = SHAPES[name].astype(float).T * radius
        area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
        assert frame.astype(float).mean(-1).sum() / 200 == pytest.approx(area, rel=0.01)


@pytest.mark.parametrize("name", SHAPES)
def test_no_shape_looks_the_same_after_less_than_a_turn(name):
    """Or its motion would look like another, backwards."""
    drawn = scene(x=0.5, y=0.5, size=0.99, outline=name)
    turns = []
    for degrees in range(0, 360, 5):
        drawn.shapes[0].start["angle"] = degrees / 360
        turns.append(shown(drawn, render(drawn, "left", num_frames=1, rng=None))[0])
    for degrees, turned in zip(range(20, 341, 5), turns[4:], strict=False):
        assert (turns[0] & turned).sum() / (turns[0] | turned).sum() < 0.85, degrees


# ---- nothing but motion tells the class ------------------------------------------------------


def test_motions_come_in_pairs():
    assert sorted([*OPPOSITES, *OPPOSITES.values()]) == list(CLASSES)
    for motion, opposite in OPPOSITES.items():
        assert MOTIONS[motion][0] == MOTIONS[opposite][0] and MOTIONS[motion][1] == -MOTIONS[opposite][1]


@pytest.mark.parametrize("frame", [0, 17, 40, 63])
def test_every_state_is_uniform_in_every_frame_of_every_class(frame):
    """So a frame's place in the video tells nothing either."""
    scenes = [draw_scene("train", i, size_px=(32, 32), seed=1) for i in range(250)]
    shapes = [(shape, s.period_frames) for s in scenes for shape in s.shapes]
    num_shapes = len(shapes)
    assert num_shapes == 1000
    for motion in CLASSES:
        drawn = [states(s, motion, num_frames=64, period_frames=period) for s, period in shapes]
        for name in ("x", "y", "angle", "size"):
            values = np.sort([d[name][frame] for d in drawn])
            assert values[0] >= 0 and values[-1] < 1
            # Kolmogorov-Smirnov against the uniform distribution: 2.2 / sqrt(n) is passed by all but 1 in
            # 8,000 draws, and 128 are looked at (of them 36 different ones).
            steps = np.arange(num_shapes + 1) / num_shapes
            gap = max(np.abs(values - steps[:-1]).max(), np.abs(values - steps[1:]).max())
            assert gap < 2.2 / np.sqrt(num_shapes), (motion, name)
        # Independent of each other: correlations of points on circles, 4.5 standard deviations.
        points = np.exp(2j * np.pi * np.array([[d[n][frame] for d in drawn] for n in ("x", "y", "angle", "size")]))
        for sign in (points, points.conj()):
            correlation = np.abs(points @ sign.T / num_shapes)[np.triu_indices(4, 1)]
            assert correlation.max() < 4.5 / np.sqrt(num_shapes)


@pytest.mark.parametrize(("motion", "opposite"), OPPOSITES.items())
def test_backwards_a_motion_is_its_opposite(motion, opposite):
    (shape,) = scene(5).shapes
    name, direction = MOTIONS[motion]
    forward = states(shape, motion, num_frames=30, period_frames=31.5)
    shape.start[name] = (shape.start[name] + direction * 29 / 31.5) % 1
    backward = states(shape, opposite, num_frames=30, period_frames=31.5)
    for key in forward:
        np.testing.assert_allclose(
            np.exp(2j * np.pi * forward[key]), np.exp(2j * np.pi * backward[key][::-1]), atol=1e-9
        )


def test_videos_of_one_number_share_their_scene(small):
    """The first frames of all classes are equal up to their noise, and the noise is not the same."""
    first = np.stack([decode(small.out / "train" / name / "0000.mp4")[0] for name in CLASSES]).astype(float)
    clean = render(draw_scene("train", 0, size_px=(48, 64), seed=3), "up", num_frames=1, rng=None)[0]
    for frame in first:
        assert np.abs(frame - clean).mean() < 12
    for a in range(8):
        for b in range(a):
            assert 0.5 < np.abs(first[a] - first[b]).mean() < 12
    other = decode(small.out / "train" / "up" / "0001.mp4")[0]
    assert np.abs(first[0] - other).mean() > 20


def test_parts_have_other_scenes():
    train, val = (draw_scene(split, 0, size_px=(32, 32), seed=0) for split in ("train", "val"))
    assert train.period_frames != val.period_frames and np.abs(train.background - val.background).max() > 1
    assert {s.start["x"] for s in train.shapes}.isdisjoint(s.start["x"] for s in val.shapes)


def test_a_frame_is_coded_the_same_whatever_comes_before_it(tmp_path):
    """No compression artifact of other frames: it could show where the shape was."""
    drawn = scene(2)
    frames = render(drawn, "right", num_frames=12, rng=np.random.default_rng(0))
    synthetic._encode(frames, tmp_path / "forward.mp4", fps=25)
    synthetic._encode(frames[::-1], tmp_path / "backward.mp4", fps=25)
    synthetic._encode(frames[7:8], tmp_path / "alone.mp4", fps=25)
    forward, backward, alone = (decode(tmp_path / f"{name}.mp4") for name in ("forward", "backward", "alone"))
    np.testing.assert_array_equal(forward, backward[::-1])
    np.testing.assert_array_equal(forward[7], alone[0])
