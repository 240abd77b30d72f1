"""Labels and features of files and of frames in memory: the same ones, to the bit."""

import copy
import json
import threading

import numpy as np
import pytest
import torch
from media import write_numbered_video
from PIL import Image
from small import ABOUT

from video_gn import load
from video_gn.clips import Failure
from video_gn.data.crops import TestCrops
from video_gn.data.dataset import ClipConfig
from video_gn.decoding import open_video
from video_gn.errors import CheckpointError, DecodeError
from video_gn.evaluation.prediction import Prediction
from video_gn.evaluation.predictor import Predictor
from video_gn.models import i3d
from video_gn.sampling import test_clips as places_of_clips


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = i3d(50, norm="group", num_groups=2, width=4, num_classes=3, zero_init_last_norm=False).eval()
    with torch.no_grad():
        net.classifier.weight.normal_(std=0.3)
    return net


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("memory") / "v.mp4"
    write_numbered_video(path, 40, size=(80, 60))
    return path


def predictor(net, *, crops="center", scaled=None, px=32):
    return Predictor(
        net,
        classes=["a", "b", "c"],
        clip=ClipConfig(num_frames=8, stride=2, decode_short_side_px=scaled),
        crops=TestCrops(crops, short_side_px=px + 4, crop_px=px),
        num_clips=2,
        spacing="nonlocal",
        mean=ABOUT["mean"],
        std=ABOUT["std"],
    )


def frames_of(path):
    with open_video(path) as reader:
        return reader.frames_at(range(reader.info.num_frames)), reader.info.fps


@pytest.mark.parametrize("crops", ["center", "three", "full"])
def test_frames_in_memory_are_those_of_the_file(net, video, crops):
    frames, fps = frames_of(video)
    mine = predictor(net, crops=crops)
    from_file = mine.predict(video, top_k=3)
    buffer = np.empty(frames.shape[1:], dtype=np.uint8)

    def reused():
        for frame in frames:  # as a camera's driver does
            buffer[:] = frame
            yield buffer

    blue_first = np.ascontiguousarray(frames.numpy()[..., ::-1])
    for form in (
        frames,
        frames.numpy(),
        blue_first[..., ::-1],
        reused(),
        list(frames),
        map(Image.fromarray, frames.numpy()),
    ):
        assert mine.predict(form, fps=fps, top_k=3) == {**from_file, "path": "<frames>"}
    features = mine.embed(video)
    for form in (frames, reused()):
        assert np.array_equal(mine.embed(form, fps=fps).clips, features.clips)
    (frame := frames.clone())[:] = 0
    assert mine.predict(frame, fps=fps, top_k=3)["top"] != from_file["top"]  # the scores depend on the frames


def test_frames_are_scaled_as_a_frame_folders(net, video, tmp_path):
    frames, _ = frames_of(video)
    for number, frame in enumerate(frames.numpy()):
        Image.fromarray(frame).save(tmp_path / f"img_{number:05d}.png")
    mine = predictor(net, scaled=48)
    from_folder = mine.predict(tmp_path)
    assert from_folder["top"] != predictor(net).predict(tmp_path)["top"]
    for form in (frames, iter(frames)):
        assert mine.predict(form, fps=from_folder["fps"]) == {**from_folder, "path": "<frames>"}


@pytest.mark.parametrize("crops", ["center", "full"])
def test_features_beside_labels_are_of_one_pass_and_change_neither(net, video, crops):
    net = copy.deepcopy(net)
    net.blocks[-1].pool.size_THW = (None, 1, 1)
    mine = predictor(net, crops=crops, px=64)
    passes = []
    mine.net.blocks[0].register_forward_hook(lambda *_: passes.append(1))
    (found,) = mine.predict_many([str(video)], num_workers=0, embed=True)
    assert len(passes) == 1
    assert found == mine.predict(video) and mine.predict(video).embedding is None
    alone = mine.embed(video)
    assert np.array_equal(found.embedding.video, alone.video) and np.array_equal(found.embedding.clips, alone.clips)
    assert found.embedding.clip_seconds == alone.clip_seconds and found.embedding.path == str(video)
    x_NCTHW = torch.randn(2, 3, 8, 64, 64)
    with torch.no_grad():
        scores_NY, features_NC = mine.net.scores_and_embedding(x_NCTHW)
        assert torch.equal(scores_NY, mine.net(x_NCTHW)) and torch.equal(features_NC, mine.net.embed(x_NCTHW))


@pytest.mark.parametrize("crops", ["center", "three", "full"])
def test_features_are_those_of_a_plain_forward_pass(net, video, crops):
    frames, fps = frames_of(video)
    net = copy.deepcopy(net)
    net.blocks[-1].pool.size_THW = (None, 1, 1)  # several positions, which a frame of the usual size has too
    found = predictor(net, crops=crops, px=64).embed(video)
    indices_KT = places_of_clips(len(frames), num_frames=8, stride=2, num_clips=2, spacing="nonlocal", fps=fps)
    kept = []

    def keep(_, given):
        kept.append(given[0])

    for indices_T in indices_KT:
        views = TestCrops(crops, short_side_px=68, crop_px=64).apply(frames[torch.from_numpy(indices_T)])
        x_PTCHW = views.double() / 255
        x_PTCHW = (x_PTCHW - torch.tensor(ABOUT["mean"]).view(3, 1, 1)) / torch.tensor(ABOUT["std"]).view(3, 1, 1)
        with torch.no_grad(), net.classifier.register_forward_pre_hook(keep):
            net(x_PTCHW.float().transpose(1, 2))
    means = [given_PSC.double().mean((0, 1)) for given_PSC in kept]  # over crops and positions
    assert all(given_PSC.shape[1] >= 4 for given_PSC in kept)
    clips_KC = torch.stack(means)
    assert found.clips.dtype == found.video.dtype == np.float32
    assert found.clips.shape == (2, 128)
    assert found.video.shape == (128,)
    # float32's roundings in another order of additions.
    torch.testing.assert_close(torch.from_numpy(found.clips).double(), clips_KC, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.from_numpy(found.video).double(), clips_KC.mean(0), rtol=1e-4, atol=1e-5)
    assert not np.allclose(found.clips[0], found.clips[1], rtol=1e-3)
    spans = [(row[0] / fps, (row[-1] + 1) / fps) for row in indices_KT.tolist()]
    assert np.allclose(found.clip_seconds, spans, rtol=1e-9, atol=0)


def test_many_videos_are_each_alone(net, video, tmp_path):
    mine, missing = predictor(net), str(tmp_path / "missing.mp4")
    embedded = list(mine.embed_many([str(video), missing], num_workers=0))
    assert np.array_equal(embedded[0].video, mine.embed(video).video)
    assert isinstance(embedded[1], Failure)
    for one in (str(video), video):
        with pytest.raises(TypeError, match="videos must be several paths, got '.*' alone"):
            next(mine.predict_many(one))
    predicted = list(mine.predict_many([video, missing], num_workers=0))
    assert predicted[0] == mine.predict(video)
    assert isinstance(predicted[1], Failure)
    with pytest.raises(DecodeError, match=r"missing\.mp4: "):
        mine.embed(missing)


def test_threads_share_a_predictor(net, video):
    mine, (frames, fps) = predictor(net), frames_of(video)
    alone, found = mine.predict(frames, fps=fps), []
    threads = [threading.Thread(target=lambda: found.append(mine.predict(frames, fps=fps))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [alone] * 4


def test_what_is_no_video(net, video):
    mine, frames = predictor(net), np.zeros((20, 40, 40, 3), dtype=np.uint8)
    with pytest.raises(TypeError, match=r"^frames must be uint8, got float64\."):
        mine.predict(np.full(frames.shape, np.nan), fps=25)
    with pytest.raises(TypeError, match=r"^frames must be uint8, got bfloat16\."):
        mine.predict(torch.zeros(frames.shape, dtype=torch.bfloat16), fps=25)
    for given in ([str(video)], [video], b"v.mp4", 5):
        with pytest.raises(
            TypeError, match=r"^video must be a path, or frames .*, got (list|bytes|int)\. Several paths"
        ):
            mine.predict(given, fps=25)
    for top_k, error in ((0, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="top_k must be"):
            mine.predict(frames, fps=25, top_k=top_k)
    with pytest.raises(ValueError, match=r"shape \(T, H, W, 3\), none of it 0, got \(20, 3, 40, 40\)\. Put the colors"):
        mine.predict(frames.transpose(0, 3, 1, 2), fps=25)
    with pytest.raises(ValueError, match=r"shape \(T, H, W, 3\), none of it 0, got \(0, 40, 40, 3\)"):
        mine.predict(frames[:0], fps=25)
    with pytest.raises(ValueError, match=r"frame 0 must be of shape \(H, W, 3\), none of it 0, got \(40, 40, 4\)"):
        mine.predict(iter(np.zeros((20, 40, 40, 4), dtype=np.uint8)), fps=25)
    with pytest.raises(ValueError, match=r"one size, got \(40, 40, 3\) and, as frame 1, \(20, 40, 3\)"):
        mine.predict(iter([frames[0], frames[1, :20]]), fps=25)
    with pytest.raises(ValueError, match=r"frames must be at least one, got none\. Has the iterator been read"):
        mine.predict(iter([]), fps=25)
    for fps in (None, "25", 0, -1.0, float("nan"), float("inf")):
        for form in (frames, iter(frames)):
            with pytest.raises(ValueError, match=r"fps must be above 0 for frames in memory, got .* as in fps=25"):
                mine.predict(form, fps=fps)
    with pytest.raises(ValueError, match=r"fps must be left out for a file, which has its own, got 25 for .*v\.mp4"):
        mine.predict(video, fps=25)
    with torch.no_grad():
        mine.net.classifier.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="scores of <frames> are not finite"):
        mine.predict(frames, fps=25)


def test_results_are_infers_entries(net, video, tmp_path):
    """Of a checkpoint, as `video-gn infer` writes them; a dictionary whose keys are properties too."""
    from video_gn.__main__ import main

    torch.save(
        {
            "video_gn": {"net": net.arguments, **ABOUT},
            "state_dict": {f"net.{k}": v for k, v in net.state_dict().items()},
        },
        tmp_path / "a.ckpt",
    )
    assert (
        main(
            [
                "infer",
                str(video),
                "--checkpoint",
                str(tmp_path / "a.ckpt"),
                "--output",
                str(tmp_path / "a.json"),
                "--quiet",
            ]
        )
        == 0
    )
    result = load(tmp_path / "a.ckpt", device="cpu").predict(video)
    assert isinstance(result, Prediction)
    assert json.loads(json.dumps(result)) == json.loads((tmp_path / "a.json").read_text())["videos"][0] == result
    assert (result.path, result.top, result.clips) == (result["path"], result["top"], result["clips"])
    assert (result.label, result.score) == tuple(result["top"][0].values())
    assert result.timeline is None
    assert result.segments == []
