import contextlib
import importlib
import re

import numpy as np
import pytest
import torch
from media import write_numbered_video

from video_gn.bench import peers
from video_gn.bench._video import frames_of, records_of
from video_gn.bench.measuring import one_thread
from video_gn.errors import DecodeError

PEERS = {"mmaction2", "torchcodec", "pytorchvideo"}
FIGURES = {"median_ms", "min_ms", "max_ms", "per_second"}


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("peers") / "numbered.mp4"
    write_numbered_video(path, 90, fps=30, size=(64, 48), gop=30)
    return str(path)


@pytest.fixture
def small(monkeypatch):
    """Small pictures and few clips: what is measured here is not the point."""
    for name, value in {"_CROP": 24, "_SHORT_SIDE": 32, "_SHORT_SIDES": (32, 40), "_NUM_CLIPS": 3}.items():
        monkeypatch.setattr(peers, name, value)


def test_the_result_and_the_page(video, small):
    with one_thread():
        found = peers.bench_peers([video, video], rounds=2)
    assert set(found) == {"training_clip", "ten_clip_test"}
    page = "\n".join(peers.peer_lines(found)) + "\n"
    for result in (found["training_clip"], found["ten_clip_test"]):
        assert {"video_gn", *PEERS} <= set(result)
        for name in {"video_gn", *result["ratios"]}:
            assert set(result[name]) == FIGURES
            assert 0 < result[name]["min_ms"] <= result[name]["median_ms"] <= result[name]["max_ms"]
            assert result[name]["per_second"] == pytest.approx(1000 / result[name]["median_ms"])
        for name, ratio in result["ratios"].items():
            assert ratio == pytest.approx(result[name]["median_ms"] / result["video_gn"]["median_ms"])
    training, test = found["training_clip"], found["ten_clip_test"]
    assert training["ratio"] == min(training["ratios"].values()) == training["ratios"][training["best_peer"]]
    assert training["target"] == 1.25
    assert test["targets"].items() <= {"pytorchvideo": 4.0, "torchcodec": 4.0, "mmaction2": 1.0}.items()
    assert f"({training['best_peer']}) {training['ratio']:.2f}, target at least 1.25: " in page
    for name, ratio in test["ratios"].items():
        assert re.search(rf"ratio to {name} {ratio:.2f}(, target at least [14]: (met|missed))?\n", page)


def test_what_is_missing_has_a_reason(video, small, monkeypatch):
    real = importlib.import_module

    def without(name, *args):
        if name.partition(".")[0] in ("cv2", "torchcodec", "pytorchvideo"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", without)
    found = peers.bench_peers([video], rounds=1)
    for result in (found["training_clip"], found["ten_clip_test"]):
        assert result["mmaction2"] == {"missing": "No module named 'cv2'"}
        assert all("No module named" in result[name]["missing"] for name in PEERS)
        assert result["ratios"] == {} and "ratio" not in result
        assert set(result["video_gn"]) == FIGURES
    page = "\n".join(peers.peer_lines(found)) + "\n"
    assert page.count("mmaction2               not measured: No module named 'cv2'\n") == 2
    assert "ratio" not in page


def test_a_peer_that_fails_on_a_file_has_a_reason(video, small):
    def make():
        def clips(path):
            raise RuntimeError(" no such frame\n")

        return clips

    found = peers._measure(lambda number: 1.0, {"it": make}, [video], 1)
    assert found["it"] == {"missing": f"fails on {video}: RuntimeError: no such frame"}
    assert found["video_gn"]["median_ms"] == 1000


def test_milliseconds_are_those_of_one_video(small):
    found = peers._measure(lambda number: 1.0, {}, ["a", "b", "c", "d"], 1)
    assert found["video_gn"]["median_ms"] == 250


CLIPS = {
    "mmaction2": (lambda: peers._mmaction2_clip, torch.uint8, (3, 32, 24, 24)),
    "torchcodec": (lambda: peers._torchcodec_clip, torch.uint8, (32, 3, 24, 24)),
    "pytorchvideo": (lambda: peers._pytorchvideo_clip, torch.float32, (3, 32, 24, 24)),
}
VIEWS = {
    "mmaction2": (lambda: peers._mmaction2_views, torch.uint8, (3, 32, 32, 32, 3)),
    "torchcodec": (lambda: peers._torchcodec_views, torch.uint8, (3, 32, 3, 32, 32)),
    "at once": (lambda: peers._torchcodec_views_at_once, torch.uint8, (3, 32, 3, 32, 32)),
    "pytorchvideo": (lambda: peers._pytorchvideo_views, torch.float32, (3, 3, 32, 32, 32)),
}


@pytest.mark.parametrize("contender", [*CLIPS.values(), *VIEWS.values()], ids=[*CLIPS, *(f"{n} views" for n in VIEWS)])
def test_what_each_pipeline_gives(video, small, contender):
    make, dtype, shape = contender
    try:
        clips = make()()
    except ImportError as error:
        pytest.skip(str(error))
    with one_thread():
        out = clips(video)
    assert (out.dtype, tuple(out.shape)) == (dtype, shape)


def test_all_read_the_same_test_frames(video, small, monkeypatch):
    """Full frames without resizing: ours, mmaction2's and torchcodec's clips agree."""
    pytest.importorskip("cv2")
    monkeypatch.setattr(peers, "_SHORT_SIDE", 48)
    views = [peers._mmaction2_views()(video).permute(0, 1, 4, 2, 3)]
    with contextlib.suppress(ImportError):
        views.append(peers._torchcodec_views()(video))
    dataset = peers.EvalDataset(
        records_of([video]), clip=peers._CLIP, crops=peers.TestCrops("center", 48, 48), num_clips=3
    )
    ours = dataset[0].frames_VTCHW
    for other in views:
        np.testing.assert_array_equal(np.asarray(other), np.asarray(ours))


def test_a_sample_that_failed_is_an_error():
    from video_gn.clips import Failure
    from video_gn.data.dataset import Sample

    with pytest.raises(DecodeError, match=r"b\.mp4: broken"):
        frames_of(Sample(None, 0, 0, (Failure(0, "b.mp4", "broken"),)))
