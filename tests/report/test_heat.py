"""Pictures of where the network looks, on the page of a run."""

import json

import pytest
import torch
from fake_run import checked, make_test
from test_report_strips import put_videos

from video_gn import explaining
from video_gn.__main__ import main
from video_gn.data.crops import TestCrops
from video_gn.data.dataset import ClipConfig
from video_gn.errors import CheckpointError
from video_gn.evaluation.predictor import Predictor
from video_gn.models import OwnNet, i3d
from video_gn.report import page, write_report
from video_gn.report.analysis import confident_mistakes, least_certain
from video_gn.report.reading import read_run


def test_mistakes_and_then_the_hardest_videos_are_explained_by_the_tested_network(tiny_videos, tmp_path, monkeypatch):
    run = tmp_path / "run"
    make_test(run)
    torch.manual_seed(0)
    predictor = Predictor(
        i3d(50, norm="none", width=4, num_classes=7),
        classes=["bend", "jack", "<b>&\"'</b>", "走路", "a|b", "class 10", "class 2"],
        clip=ClipConfig(num_frames=8, stride=1),
        crops=TestCrops("center", short_side_px=32, crop_px=32),
        num_clips=1,
        spacing="uniform",
        mean=(0.4, 0.4, 0.4),
        std=(0.25, 0.25, 0.25),
    )
    predictions = read_run(run).predictions
    mistakes = confident_mistakes(predictions, 25)
    shown = [*mistakes, *least_certain(predictions, 12, without=mistakes)][:3]
    assert len(mistakes) < 3, "so that the hardest follow"
    videos = [str(video) for video in sorted(tiny_videos.rglob("*.mp4"))]
    videos[shown[1]] = str(tmp_path / "gone.mp4")
    put_videos(run, videos)
    (run / "test/config.yaml").write_text("data: {views: {crops: three}}\n")
    checkpoint = tmp_path / "tested.ckpt"
    checkpoint.touch()
    metrics = json.loads((run / "test/metrics.json").read_text())
    (run / "test/metrics.json").write_text(json.dumps(metrics | {"checkpoint": str(checkpoint)}))
    asked, explained, explain = [], [], explaining.explain

    def load(path, **words):
        asked.append((path, words))
        return predictor

    def explain_and_note(predictor, video, label):
        explained.append((video, label))
        return explain(predictor, video, label)

    monkeypatch.setattr(Predictor, "from_checkpoint", load)
    monkeypatch.setattr(explaining, "explain", explain_and_note)
    assert main(["report", str(run), "--explain", "3", "--no_frames"]) == 0
    written = (run / "report.html").read_text(encoding="utf-8")
    text = checked(written)
    assert asked == [(str(checkpoint), {"num_clips": 4, "crops": "three"})]
    assert explained == [(videos[place], predictions.classes[predictions.preds[place]]) for place in shown]
    assert written.count('<img class="heat"') == 2 and text.count("not explained: the file is missing") == 1
    # The scores of the test are not this network's.
    assert text.count(": it now has ") == 2

    asked.clear()
    checkpoint.unlink()
    write_report(run, num_explained=1)
    assert asked[0][0] == run, "its best checkpoint"
    asked.clear()
    write_report(run)
    assert asked == []


def test_what_cannot_be_explained_is_refused_before_videos_are_read(tmp_path, monkeypatch):
    make_test(tmp_path)
    monkeypatch.setattr(page, "read_strips", None)
    with pytest.raises(CheckpointError, match="is a directory without checkpoints/best.ckpt"):
        write_report(tmp_path, frames=True, num_explained=1)
    checkpoint = {"video_gn": {"net": OwnNet(torch.nn.Identity()).arguments}, "state_dict": {"net.a": torch.zeros(1)}}
    (tmp_path / "checkpoints").mkdir()
    torch.save(checkpoint, tmp_path / "checkpoints/best.ckpt")
    with pytest.raises(CheckpointError, match="is of torch.nn.modules.linear.Identity, a network of somebody's own"):
        write_report(tmp_path, frames=True, num_explained=1)
