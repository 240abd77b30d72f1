"""The writer counts what the module scores, each video once, and keeps the failures."""

import errno
import json
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from video_gn.clips import ClipBatch, Failure, VideoNote
from video_gn.errors import CheckpointError, DiskFullError, RunError
from video_gn.evaluation.writer import EvaluationWriter

NUM_CLASSES = 6


class Module:
    """What the writer takes of a module: it notes what is logged."""

    device = torch.device("cpu")
    net = SimpleNamespace(num_classes=NUM_CLASSES)
    classes = tuple("abcdef")

    def __init__(self):
        self.logged = {}

    def log(self, name, value, **_):
        self.logged[name] = float(value)


def batch(ids, num_views, failures=()):
    frames = torch.zeros((len(ids), num_views, 1, 3, 1, 1), dtype=torch.uint8)
    ids = torch.tensor(ids, dtype=torch.int64)
    notes = tuple(VideoNote(f"{i}.mp4", 10, 25.0, ((0.0, 0.2),) * num_views) for i in ids.tolist())
    return ClipBatch(frames, ids % NUM_CLASSES, ids, tuple(failures), notes)


def scores(num_videos, num_views, seed=0):
    return torch.randn(num_videos, num_views, NUM_CLASSES, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def trainer(num_videos=5, num_clips=3):
    manifest = SimpleNamespace(
        records=[SimpleNamespace(path=f"{i}.mp4") for i in range(num_videos)], digest=lambda: "one list"
    )
    datamodule = SimpleNamespace(
        manifests={"test": manifest}, views=SimpleNamespace(num_clips=num_clips),
        test_crops=SimpleNamespace(num_crops=1), classes=Module.classes,
    )  # fmt: skip
    return SimpleNamespace(
        datamodule=datamodule, is_global_zero=True, global_rank=0, world_size=1, ckpt_path=None,
        strategy=SimpleNamespace(broadcast=lambda value: value),
    )  # fmt: skip


def validate(writer, batches):
    module = Module()
    writer.on_validation_epoch_start(None, module)
    for b, scores_NKY in batches:
        writer.on_validation_batch_end(None, module, scores_NKY, b, 0)
    writer.on_validation_epoch_end(None, module)
    return module.logged


def test_validation_loss_is_of_the_averaged_softmax(tmp_path, caplog):
    scores_NKY = scores(5, 1)
    labels = torch.arange(5)
    batches = [
        (batch([0, 1, 2], 1, [Failure(9, "gone.mp4", "no such file")]), scores_NKY[:3]),
        (batch([], 0), torch.zeros((0, 1, NUM_CLASSES))),
        (batch([3, 4], 1), scores_NKY[3:]),
    ]
    writer = EvaluationWriter(tmp_path)
    logged = validate(writer, batches)
    assert logged["val/loss"] == pytest.approx(float(F.nll_loss(scores_NKY[:, 0].log(), labels)), rel=1e-5)
    assert logged["val/top1"] == pytest.approx(float((scores_NKY[:, 0].argmax(-1) == labels).double().mean()))
    assert set(logged) == {"val/loss", "val/top1", "val/top5"}
    assert caplog.text.count("validation: gone.mp4 could not be read: no such file") == 1
    assert validate(writer, batches[2:]).keys() == logged.keys(), "the next one counts anew"
    assert caplog.text.count("gone.mp4") == 1


def test_a_validation_of_which_nothing_can_be_read_is_an_error(tmp_path):
    with pytest.raises(RunError, match="none of the videos could be read"):
        validate(EvaluationWriter(tmp_path), [(batch([], 0, [Failure(0, "a", "b")]), torch.zeros((0, 1, NUM_CLASSES)))])


def start_test(tmp_path, made_with=dict):
    writer, running, module = EvaluationWriter(tmp_path, made_with=made_with), trainer(), Module()
    writer.setup(running, module, "test")
    writer.on_test_start(running, module)
    writer.on_test_epoch_start(running, module)
    return writer, running, module


def end_test(writer, running, module):
    writer.on_test_epoch_end(running, module)
    writer.on_test_end(running, module)


def test_a_test_averages_softmax_scores_and_counts_each_video_once(tmp_path):
    """Whether in one start, or in two with half of the videos each."""
    scores_NKY = scores(4, 3)
    gone = Failure(4, "4.mp4", "no such file")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    writer, running, module = start_test(whole)
    writer.on_test_batch_end(running, module, scores_NKY, batch([0, 1, 2, 3], 3, [gone]), 0)
    end_test(writer, running, module)
    logged = module.logged

    writer, running, module = start_test(stopped)
    writer.on_test_batch_end(running, module, scores_NKY[:2], batch([0, 1], 3, [gone]), 0)
    writer, running, module = start_test(stopped)
    assert running.datamodule.tested == {0, 1, 4}
    writer.on_test_batch_end(running, module, scores_NKY[2:], batch([2, 3], 3), 0)
    end_test(writer, running, module)

    assert module.logged == logged
    mean_NY = scores_NKY.double().mean(1)
    assert logged["test/top1"] == pytest.approx(float((mean_NY.argmax(-1) == torch.arange(4)).double().mean()))
    metrics = json.loads((whole / "test/metrics.json").read_text())
    assert (metrics["num_videos"], metrics["num_failed"], metrics["coverage"]) == (5, 1, 0.8)
    assert metrics["failed"] == [{"path": "4.mp4", "reason": "no such file"}]
    assert writer.num_failed == 1
    for name in ("metrics.json", "predictions.csv", "scores.npz"):
        assert (whole / "test" / name).read_bytes()[:26] == (stopped / "test" / name).read_bytes()[:26]
    with np.load(stopped / "test/scores.npz") as found:
        assert np.array_equal(found["scores"], scores_NKY.numpy())
        assert found["video_ids"].tolist() == found["labels"].tolist() == [0, 1, 2, 3]
    assert (whole / "test/predictions.csv").read_text() == (stopped / "test/predictions.csv").read_text()
    assert not (stopped / "test/unfinished").exists()


def test_other_settings_start_anew(tmp_path):
    writer, running, module = start_test(tmp_path, lambda: {"precision": "32"})
    writer.on_test_batch_end(running, module, scores(2, 3), batch([0, 1], 3), 0)
    for made_with in (lambda: {"precision": "bf16"}, None):
        assert start_test(tmp_path, made_with)[1].datamodule.tested == frozenset()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("stage", ["val", "test", "predict"])
def test_scores_that_are_not_finite_are_no_result(tmp_path, stage, value):
    writer, module, of = EvaluationWriter(tmp_path), Module(), trainer()
    of.ckpt_path = "a.ckpt"
    of.datamodule.manifests = dict.fromkeys(("val", "test", "predict"), of.datamodule.manifests["test"])
    scores_NKY = scores(3, 3)
    scores_NKY[2, 1, 4] = value
    writer.setup(of, module, stage)
    start, end = {
        "val": (writer.on_validation_epoch_start, writer.on_validation_batch_end),
        "test": (writer.on_test_epoch_start, writer.on_test_batch_end),
        "predict": (writer.on_predict_start, writer.on_predict_batch_end),
    }[stage]
    start(of, module)
    if stage == "test":
        writer.on_test_start(of, module)
    before = set(tmp_path.glob("*/*.json"))
    with pytest.raises(CheckpointError, match=r"a\.ckpt: its scores of 4\.mp4 are not finite"):
        end(of, module, scores_NKY, batch([1, 3, 4], 3), 0)
    assert set(tmp_path.glob("*/*.json")) == before


def start_prediction(run_dir):
    writer, running, module = EvaluationWriter(run_dir, made_with=dict), trainer(), Module()
    running.datamodule.manifests["predict"] = running.datamodule.manifests["test"]
    running.state = SimpleNamespace(fn="predict")
    writer.setup(running, module, "predict")
    writer.on_predict_start(running, module)
    return writer, running, module


def test_a_prediction_keeps_a_few_labels_of_each_video(tmp_path):
    writer, running, module = start_prediction(tmp_path)
    scores_NKY = scores(2, 3)
    writer.on_predict_batch_end(running, module, scores_NKY, batch([3, 1], 3, [Failure(0, "0.mp4", "gone")]), 0)
    writer.on_predict_end(running, module)
    found = json.loads((tmp_path / "predict/predictions.json").read_text())
    assert [video["path"] for video in found["videos"]] == ["1.mp4", "3.mp4"], "in the list's order"
    assert [len(video["top"]) for video in found["videos"]] == [5, 5]
    best = int(scores_NKY[0].mean(0).argmax())
    assert found["videos"][1]["top"][0]["label"] == Module.classes[best]
    assert found["failed"] == [{"path": "0.mp4", "reason": "gone"}] and writer.num_failed == 1
    assert not (tmp_path / "predict/unfinished").exists()


def test_a_stopped_prediction_resumes(tmp_path, caplog, monkeypatch):
    """On a full disk it keeps what it has labelled; the results are those of one that never stopped."""
    scores_NKY, gone = scores(3, 3), Failure(4, "4.mp4", "no such file")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    writer, running, module = start_prediction(whole)
    writer.on_predict_batch_end(running, module, scores_NKY, batch([0, 2, 3], 3, [gone]), 0)
    writer.on_predict_end(running, module)

    writer, running, module = start_prediction(stopped)
    writer.on_predict_batch_end(running, module, scores_NKY[:2], batch([0, 2], 3, [gone]), 0)
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(writer._files._lines, "_file", SimpleNamespace(name=str(stopped), write=Mock(side_effect=full)))
    with pytest.raises(DiskFullError) as error:
        writer.on_predict_batch_end(running, module, scores_NKY[2:], batch([3], 3), 0)
    with caplog.at_level("INFO"):
        writer.on_exception(running, module, error.value)
        assert f"kept in {stopped / 'predict/unfinished'}; the same command resumes" in caplog.text
        writer, running, module = start_prediction(stopped)
    assert "resuming the prediction: 3 of 5 videos are done" in caplog.text
    assert running.datamodule.tested == {0, 2, 4}
    writer.on_predict_batch_end(running, module, scores_NKY[2:], batch([3], 3), 0)
    writer.on_predict_end(running, module)
    name = "predict/predictions.json"
    assert (stopped / name).read_bytes() == (whole / name).read_bytes() and writer.num_failed == 1
    assert not (stopped / "predict/unfinished").exists()
