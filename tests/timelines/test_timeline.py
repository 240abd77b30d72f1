"""Timelines of videos joined of colours, by a predictor that knows them."""

import logging
import threading
import time

import numpy as np
import pytest
import torch
from colours import ColourPredictor, write_colours
from media import write_numbered_video

from video_gn.clips import Failure
from video_gn.data.crops import TestCrops
from video_gn.data.dataset import ClipConfig
from video_gn.decoding import open_video
from video_gn.errors import CheckpointError, DecodeError
from video_gn.evaluation.predictor import Predictor
from video_gn.lists.records import VideoRecord
from video_gn.models import i3d
from video_gn.timelines.segments import TimelineConfig
from video_gn.timelines.timeline import label_reader, label_videos, read_ahead

PARTS = (("red", 60), ("green", 45), ("blue", 30), ("red", 50))


def label(predictor, video, every=0.2, **settings):
    more = {name: settings.pop(name) for name in ("num_threads", "views_per_forward", "backend") if name in settings}
    (entry,) = label_videos(predictor, [video], TimelineConfig(every, **settings), **more)
    return entry


def changes(entry):
    return [(s["label"], s["start_seconds"]) for s in entry["segments"]]


def check_boundaries(entry, expected, end):
    """Segments in their order, boundaries within half a window of (label, start)."""
    half = entry["timeline"]["window_seconds"] / 2
    assert [name for name, _ in changes(entry)] == [name for name, _ in expected]
    np.testing.assert_allclose([at for _, at in changes(entry)], [at for _, at in expected], atol=half)
    assert entry["segments"][-1]["end_seconds"] == pytest.approx(end, abs=entry["timeline"]["every_seconds"])


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    return write_colours(tmp_path_factory.mktemp("joined") / "joined.mp4", PARTS)


@pytest.mark.parametrize("crops", ["center", "three", "full"])
@pytest.mark.parametrize("target_fps", [None, 30.0])
def test_segments_of_a_joined_video(joined, crops, target_fps):
    predictor = ColourPredictor(crops=crops, target_fps=target_fps)
    entry = label(predictor, str(joined), unsure=0.4)
    check_boundaries(entry, [("red", 0), ("green", 2.4), ("blue", 4.2), ("red", 5.4)], 7.4)
    timeline = entry["timeline"]
    assert timeline["window_seconds"] == pytest.approx(16 / (target_fps or 25))
    assert (timeline["every_seconds"], timeline["first_frame_seconds"], timeline["gaps"]) == (0.2, 0.0, [])
    times = np.array(timeline["times"])
    np.testing.assert_allclose(times, timeline["window_seconds"] / 2 + 0.2 * np.arange(len(times)), atol=0.001)
    assert 7.4 - 0.2 <= times[-1] + timeline["window_seconds"] / 2 <= 7.4 + 0.011
    assert len(timeline["top"]) == len(times)
    # At most 10 views at a time, of one window or more; the clips' views at the end.
    per_window = {"three": 3}.get(crops, 1)
    assert predictor.given[-1] == 4 * per_window
    assert sum(predictor.given[:-1]) == per_window * len(times)
    assert set(predictor.given[:-2]) == {10 // per_window * per_window}


def test_raw_scores_are_those_of_each_window(joined):
    entry = label(ColourPredictor(), str(joined), every=0.16)
    for time_of, top in zip(entry["timeline"]["times"], entry["timeline"]["top"], strict=True):
        frames = np.floor((time_of - 0.32 + 0.08 * np.arange(8)) * 25 + 0.1)
        is_red = (frames < 60) | (frames >= 135)
        assert {t["label"]: t["score"] for t in top}["red"] == pytest.approx(is_red.mean())


def test_the_usual_labels_do_not_change(tiny_videos):
    torch.manual_seed(0)
    net = i3d(50, layout="nonlocal", norm="group", num_groups=2, width=4, num_classes=3, zero_init_last_norm=False)
    for crops in ("center", "three"):
        predictor = Predictor(
            net,
            classes="abc",
            clip=ClipConfig(num_frames=8, stride=1),
            crops=TestCrops(crops, short_side_px=36, crop_px=32),
            num_clips=3,
            spacing="nonlocal",  # the last clip is looped
            mean=[0.45] * 3,
            std=[0.225] * 3,
        )
        for video in sorted(tiny_videos.rglob("*9.mp4"))[:2]:
            entry, plain = label(predictor, str(video), every=0.1), predictor.predict(str(video))
            assert len(entry["timeline"]["times"]) == 9
            assert {name: entry[name] for name in plain} == dict(plain)
            with open_video(str(video)) as reader:
                assert label_reader(predictor, reader, TimelineConfig(0.1)) == entry


def test_each_frame_is_decoded_once(tmp_path):
    video = write_numbered_video(tmp_path / "v.mp4", 200)
    with open_video(video) as reader:
        asked = []
        frames_at = reader.frames_at
        reader.frames_at = lambda indices: asked.extend(indices) or frames_at(indices)
        entry = label_reader(ColourPredictor(), reader, TimelineConfig(0.1))
    assert len(entry["timeline"]["times"]) > 70
    assert sorted(set(asked)) == sorted(asked) == asked


def test_threads_of_the_decoder_change_nothing(joined):
    one, three = (label(ColourPredictor(), str(joined), num_threads=number) for number in (1, 3))
    assert one == three


def test_a_variable_rate(tmp_path):
    rng = np.random.default_rng(0)
    pts_ms = np.concatenate([[0], np.cumsum(rng.choice([20, 40, 80], size=184))]).tolist()
    video = write_colours(tmp_path / "v.mkv", PARTS, pts_ms=pts_ms)
    starts = [pts_ms[i] / 1000 for i in (0, 60, 105, 135)]
    entry = label(ColourPredictor(), str(video), unsure=0.4)
    check_boundaries(entry, list(zip(("red", "green", "blue", "red"), starts, strict=True)), pts_ms[-1] / 1000)


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
@pytest.mark.parametrize(("audio_from_ms", "first"), [(None, 0.0), (1000, 0.5)])
def test_a_start_that_is_not_0(tmp_path, suffix, audio_from_ms, first):
    pts_ms = [1500 + 40 * i for i in range(185)]
    video = write_colours(tmp_path / f"v.{suffix}", PARTS, pts_ms=pts_ms, audio_from_ms=audio_from_ms)
    entry = label(ColourPredictor(), str(video), unsure=0.4)
    check_boundaries(entry, [("red", 0), ("green", 2.4), ("blue", 4.2), ("red", 5.4)], 7.4)
    assert entry["timeline"]["first_frame_seconds"] == pytest.approx(first, abs=0.03)  # aac has a lead of 21 ms


@pytest.mark.needs_real_videos
@pytest.mark.parametrize("name", ["test_non_zero_start.mp4", "pts_offset_1h.mkv", "vfr_select.mp4"])
def test_real_videos_with_odd_times(real_videos, name):
    """They start at 8 s and at an hour, or drop most frames: times begin at 0, where players show the first frame."""
    video = str(real_videos / "odd" / name)
    entry = label(ColourPredictor(num_frames=4, stride=1), video, every=0.05)
    timeline, half = entry["timeline"], entry["timeline"]["window_seconds"] / 2
    with open_video(video) as reader:
        info, steps = reader.info, np.diff(reader.frame_seconds)
    assert (timeline["first_frame_seconds"], timeline["times"][0]) == (0.0, round(half, 3))
    assert info.duration_seconds - 0.06 < timeline["times"][-1] + half < info.duration_seconds + 0.01
    assert len(timeline["gaps"]) == (steps > max(half, 2 * np.median(steps))).sum()


def test_gaps(tmp_path):
    pts_ms = [40 * i + (5000 if i >= 80 else 0) for i in range(185)]
    video = write_colours(tmp_path / "v.mkv", PARTS, pts_ms=pts_ms)
    entry = label(ColourPredictor(), str(video), unsure=0.4)
    np.testing.assert_allclose(entry["timeline"]["gaps"], [[3.2, 8.2]], atol=0.002)
    expected = [("red", 0), ("green", 2.4), ("green", 8.2), ("blue", 9.2), ("red", 10.4)]
    check_boundaries(entry, expected, 12.4)
    assert [s["end_seconds"] <= 3.2 or s["start_seconds"] >= 8.2 for s in entry["segments"]] == [True] * 5


def test_a_segment_of_a_video(joined):
    record = VideoRecord(str(joined), 0, 1.0, 5.0, source="list.csv:1")
    entry = label(ColourPredictor(), record, unsure=0.4)
    assert entry["num_frames"] == 100
    assert entry["segments"][0]["start_seconds"] == 1.0
    check_boundaries(entry, [("red", 1.0), ("green", 2.4), ("blue", 4.2)], 5.0)


def test_a_video_shorter_than_a_window(tmp_path, caplog):
    video = write_colours(tmp_path / "v.mp4", [("green", 9)])
    with caplog.at_level(logging.WARNING):
        entry = label(ColourPredictor(), str(video))
    assert f"{video}: no window of 0.64 s fits into it" in caplog.text
    assert entry["top"][0] == {"label": "green", "score": 1.0}
    assert (entry["timeline"]["times"], entry["timeline"]["top"], entry["segments"]) == ([], [], [])


def test_what_cannot_be_read_is_a_failure_and_the_next_is_labelled(joined, tmp_path):
    (tmp_path / "bad.mp4").write_text("<html>")
    found = list(label_videos(ColourPredictor(), [str(tmp_path / "bad.mp4"), str(joined)], TimelineConfig(0.2)))
    assert isinstance(found[0], Failure)
    assert found[1]["path"] == str(joined)


def test_fewer_frames_than_promised_are_laid_out_again(tmp_path):
    """The last packets' data are gone: their frames do not decode."""
    video = write_colours(tmp_path / "v.mp4", PARTS)
    with open_video(str(video)) as reader:
        sizes = reader.table.sizes
    data = bytearray(video.read_bytes())
    start = data.index(b"mdat") + 4 + int(sizes[:150].sum())
    data[start : start + int(sizes[150:].sum())] = bytes(int(sizes[150:].sum()))
    video.write_bytes(data)
    entry = label(ColourPredictor(), str(video), unsure=0.4)
    assert entry["num_frames"] == 150
    assert entry["timeline"]["times"][-1] == pytest.approx(5.52)  # the last whole window of 6 s
    check_boundaries(entry, [("red", 0), ("green", 2.4), ("blue", 4.2), ("red", 5.4)], 6)


def test_damage_in_the_middle_is_a_gap(tmp_path):
    """Three seconds of packets in the middle are zeros; key frames every half second go on behind them."""
    video = write_numbered_video(tmp_path / "v.mp4", 200, gop=12, bframes=0)
    with open_video(video) as reader:
        sizes = reader.table.sizes
    data = bytearray(video.read_bytes())
    start = data.index(b"mdat") + 4 + int(sizes[:60].sum())
    data[start : start + int(sizes[60:132].sum())] = bytes(int(sizes[60:132].sum()))
    video.write_bytes(data)
    entry = label(ColourPredictor(), str(video))
    (gap,) = entry["timeline"]["gaps"]
    np.testing.assert_allclose(gap, [60 / 25, 132 / 25], atol=0.09)
    assert entry["num_frames"] == pytest.approx(128, abs=3)
    assert entry["timeline"]["times"][-1] > 7.4
    assert not [t for t in entry["timeline"]["times"] if gap[0] < t < gap[1]]


def test_scores_that_are_not_finite_are_an_error(joined):
    predictor = ColourPredictor()

    def scores(frames_VTCHW, *, video="", views_per_forward=10):
        raise CheckpointError(f"the network: its scores of {video} are not finite")

    predictor.scores = scores
    with pytest.raises(CheckpointError, match="joined.mp4 are not finite"):
        label(predictor, str(joined))
    assert not reading_threads()


def reading_threads():
    return [t for t in threading.enumerate() if "reading ahead" in t.name]


def test_reading_ahead():
    made, closed = [], []

    def items():
        try:
            for number in range(100):
                made.append(number)
                yield number
        finally:
            closed.append(True)

    assert list(read_ahead(items())) == list(range(100))
    made.clear()
    ahead = read_ahead(items())
    assert next(ahead) == 0
    time.sleep(0.05)
    assert made == [0, 1]  # the next one is made meanwhile, and no more
    ahead.close()
    assert closed == [True, True]
    assert not reading_threads()

    def fails():
        yield 1
        raise DecodeError("v.mp4", "torn")

    ahead = read_ahead(fails())
    assert next(ahead) == 1
    with pytest.raises(DecodeError, match="torn"):
        next(ahead)
    assert not reading_threads()


def test_progress(joined):
    told = []
    list(label_videos(ColourPredictor(), [str(joined)], TimelineConfig(0.2), progress=lambda *t: told.append(t)))
    assert told[-1] == (34, 34)
    assert [done for done, _ in told] == [10, 20, 30, 34]
