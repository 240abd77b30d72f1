import math

import numpy as np
import pytest
from fake_run import checked, make_test, page_of, predictions_of

from video_gn.errors import RunError
from video_gn.report import calibration, write_report
from video_gn.report.reading import read_run
from video_gn.report.views import read_log_scores


def test_the_error_is_that_of_a_naive_loop():
    rng = np.random.default_rng(0)
    labels, preds = rng.integers(-1, 3, 200).tolist(), rng.integers(0, 3, 200).tolist()
    scores = [*rng.random(195), 0.0, 0.2, 1.0, math.nan, 0.4]
    found = calibration.of_predictions(predictions_of(labels, preds, scores=scores))
    bins = [[] for _ in range(15)]
    for label, pred, score in zip(labels, preds, scores, strict=True):
        if label >= 0 and math.isfinite(score):
            place = next(b for b in range(15) if score <= (b + 1) / 15)
            bins[place].append((score, label == pred))
    assert found.counts.tolist() == [len(b) for b in bins]
    total = sum(len(b) for b in bins)
    error = sum(abs(sum(r for _, r in b) - sum(s for s, _ in b)) for b in bins) / total
    assert found.expected_error == pytest.approx(error, abs=1e-12)
    assert calibration.of_predictions(predictions_of([-1], [0])) is None


def drawn(num_videos, temperature, *, num_classes=5, seed=0):
    """Log scores and labels drawn from softmax(log scores / temperature)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(num_videos, num_classes)) * 3
    chances = np.exp(logits / temperature)
    chances /= chances.sum(1, keepdims=True)
    labels = (chances.cumsum(1) > rng.random((num_videos, 1))).argmax(1)
    return (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32), labels


def likelihood(log_VY, labels, temperature):
    scaled = log_VY.astype(np.float64) / temperature
    return float(np.mean(np.log(np.exp(scaled).sum(1)) - scaled[np.arange(len(labels)), labels]))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.7])
def test_a_temperature_is_that_of_a_grid_in_float64(temperature):
    log_VY, labels = drawn(400, temperature)
    grid = np.geomspace(0.05, 20, 3000)  # steps of 0.2%
    best = grid[np.argmin([likelihood(log_VY, labels, t) for t in grid])]
    for start in (1.0, 0.06, 19.0):
        assert calibration.fit_temperature(log_VY, labels, start) == pytest.approx(best, rel=0.002)
    assert best == pytest.approx(temperature, rel=0.2), "that of the draw"


def test_scores_that_tell_no_temperature_end_at_the_limits():
    log_VY, _ = drawn(50, 1.0)
    assert calibration.fit_temperature(log_VY, log_VY.argmax(1)) == pytest.approx(0.05)
    assert calibration.fit_temperature(log_VY, log_VY.argmin(1)) == pytest.approx(20)
    assert calibration.fit_temperature(np.zeros((4, 3), np.float32), np.array([0, 1, 2, 0])) > 0


def test_no_video_takes_part_in_its_own_temperature():
    log_VY, labels = drawn(100, 2.0)
    found = calibration.cross_validated(log_VY, labels)
    assert len(found.temperatures) == 5 and len(set(found.temperatures)) == 5 and found.own
    folds = np.random.default_rng(0).permutation(100) % 5
    scores = np.empty(100)
    for fold in range(5):
        others = folds != fold
        t = calibration.fit_temperature(log_VY[others], labels[others])
        assert found.temperatures[fold] == pytest.approx(t, rel=1e-4)
        chances = np.exp(log_VY[~others].astype(np.float64) / t)
        scores[~others] = (chances / chances.sum(1, keepdims=True)).max(1)
    expected = calibration.calibrate(scores, log_VY.argmax(1) == labels).expected_error
    assert found.scaled.expected_error == pytest.approx(expected, abs=1e-3)  # a score at the end of a bin may change it
    assert calibration.cross_validated(log_VY[:9], labels[:9]) is None


def test_log_scores_are_those_of_the_mean_of_all_views(tmp_path, monkeypatch):
    labels, scores = make_test(tmp_path)
    run = read_run(tmp_path)
    expected = np.log(scores.astype(np.float64).mean(1))
    for block in (1, 200, 4_000_000):
        monkeypatch.setattr("video_gn.report.views._BLOCK", block)
        log_VY, found = read_log_scores(run.scores, run.predictions)
        np.testing.assert_allclose(log_VY, expected, atol=1e-5)  # float32
        assert found.tolist() == labels.tolist()
    np.savez(tmp_path / "test/scores.npz", labels=labels, scores=np.roll(scores, 1, 0))
    assert read_log_scores(read_run(tmp_path).scores, run.predictions) is None, "of another test"


def test_the_page_has_both_errors(tmp_path):
    make_test(tmp_path / "run", num_videos=40)
    run = read_run(tmp_path / "run")
    found = calibration.calibrated(run, None)
    text = checked(page_of(tmp_path / "run"))
    assert f"differ by {100 * found.plain.expected_error:.1f}% on average" in text
    assert f"temperature of {found.temperature} (softmax of it), they differ by " in text
    assert f"they differ by {100 * found.scaled.expected_error:.1f}%. The temperature is fitted by cross-val" in text

    make_test(tmp_path / "val", num_videos=60, seed=1)
    csv = tmp_path / "val/test/predictions.csv"
    csv.write_text(csv.read_text().replace("data/<v> 1", "val/<v> 1").replace("data/<v> 4", "val/<v> 4"))
    val = read_run(tmp_path / "val")
    other = [place for place, video in enumerate(val.predictions.videos) if video not in run.predictions.videos]
    assert 10 < len(other) < 60
    log_VY, labels = read_log_scores(val.scores, val.predictions)
    temperature = calibration.fit_temperature(log_VY[other], labels[other])
    page = write_report(tmp_path / "run", validation=tmp_path / "val", output=tmp_path / "page.html")
    text = checked(page.read_text())
    assert f"temperature of {temperature:.2f} (softmax of it)" in text
    assert (
        f"fitted on {len(other)} videos of {tmp_path}/val, without {60 - len(other)} videos that the test has" in text
    )


def test_a_validation_that_is_of_no_use_is_refused(tmp_path):
    make_test(tmp_path / "run", num_videos=40)

    def told(message):
        with pytest.raises(RunError, match=message):
            write_report(tmp_path / "run", validation=tmp_path / "val")

    told("^--validation must be a directory, got .*val'")
    (tmp_path / "val").mkdir()
    told("^--validation must hold at least one of config.yaml, .*val' with none of them")
    make_test(tmp_path / "val", num_videos=45)
    told(r"--validation .*val must hold at least 10 labelled videos that .*run did not test, got 5\. Write it with")
    make_test(tmp_path / "val", num_videos=60, classes=["a", "b", "c"])
    told("must hold scores of the same classes, got 3 and 7 of them in .*run. Test the same network on the validation")
    (tmp_path / "val/test/scores.npz").unlink()
    told("must hold whole test/predictions.csv and test/scores.npz of one test with labels. Write it")
