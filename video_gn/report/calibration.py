"""How far scores can be taken as probabilities, and a temperature that makes more of them, fitted on other videos.

Shape letters: V videos, Y classes.
Source: Guo et al. 2017 (arXiv:1706.04599).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from markupsafe import Markup

from video_gn.errors import RunError
from video_gn.report.analysis import Predictions
from video_gn.report.plots import Axis, Curve, line_chart
from video_gn.report.reading import Run
from video_gn.report.views import read_log_scores
from video_gn.run.directory import TEST_PREDICTIONS, TEST_SCORES
from video_gn.shown import count

NUM_BINS = 15  # as in the source's Table 1
NUM_FOLDS = 5
# Fewer videos say nothing about a temperature.
_MIN_VIDEOS = 10
# Beyond these the scores are all but equal, or all but 0 and 1: a test in which every video is right has no best one.
LIMITS = (0.05, 20.0)


@dataclass(frozen=True)
class Calibration:
    """Scores and accuracies by bins of score."""

    counts: np.ndarray  # (bins,) videos
    scores: np.ndarray  # (bins,) their mean score, NaN in an empty bin
    accuracies: np.ndarray  # (bins,) their accuracy, NaN in an empty bin
    expected_error: float  # mean over videos of |accuracy - score| of their bin


def calibrate(scores_V: np.ndarray, right_V: np.ndarray) -> Calibration:
    """Reliability by bins of equal width, from the predicted classes' scores in [0, 1] and whether each is right.

    Source: expected calibration error of Guo et al. 2017, Eq. 5.
    """
    # (0, 1/15], (1/15, 2/15] and so on; a score of 0 belongs to the first bin.
    place = np.clip(np.ceil(scores_V * NUM_BINS) - 1, 0, NUM_BINS - 1).astype(np.int64)
    counts = np.bincount(place, minlength=NUM_BINS)
    with np.errstate(invalid="ignore"):
        mean_score = np.bincount(place, weights=scores_V, minlength=NUM_BINS) / counts
        accuracy = np.bincount(place, weights=right_V, minlength=NUM_BINS) / counts
    error = float(np.nansum(np.abs(accuracy - mean_score) * counts) / counts.sum())
    return Calibration(counts, mean_score, accuracy, error)


def fit_temperature(log_VY: np.ndarray, labels_V: np.ndarray, start: float = 1.0) -> float:
    """The temperature T in `LIMITS` whose softmax(log_VY / T) has the least mean negative log likelihood.

    The logarithm of scores that were averaged over views takes the place of the logits, which differ by view.
    Newton's method from `start`, kept within a bracket: in 1/T the likelihood is convex, so it has one optimum.
    Source: Guo et al. 2017, section 4.2.
    """
    log_VY = log_VY - log_VY.max(1, keepdims=True)
    of_label = log_VY[np.arange(len(labels_V)), labels_V].mean(dtype=np.float64)
    low, high = 1 / LIMITS[1], 1 / LIMITS[0]
    inverse = 1 / start
    while high / low > 1 + 1e-6:
        weights_VY = np.exp(inverse * log_VY)
        weights_VY /= weights_VY.sum(1, keepdims=True)
        mean_V = np.einsum("vy,vy->v", weights_VY, log_VY)
        weights_VY *= log_VY
        slope = float(mean_V.mean(dtype=np.float64) - of_label)
        curvature = float((np.einsum("vy,vy->v", weights_VY, log_VY) - mean_V**2).mean(dtype=np.float64))
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        before, inverse = inverse, inverse - slope / curvature if curvature > 0 else math.inf
        if abs(inverse - before) < 1e-6 * before:
            break
        if not low < inverse < high:
            inverse = math.sqrt(low * high)
    return 1 / min(max(inverse, 1 / LIMITS[1]), 1 / LIMITS[0])


def scaled(log_VY: np.ndarray, temperature: float) -> np.ndarray:
    """Score of each video's best class at a temperature, float64 (V,)."""
    distance_VY = (log_VY - log_VY.max(1, keepdims=True)) / np.float32(temperature)
    return 1 / np.exp(distance_VY, out=distance_VY).sum(1, dtype=np.float64)


@dataclass(frozen=True)
class Calibrated:
    """A test's calibration before and after scaling by a temperature that was fitted on other videos."""

    plain: Calibration
    scaled: Calibration
    temperatures: tuple[float, ...]  # one, or that of each fold
    num_fitted: int  # videos that the temperature was fitted on; of cross-validation all of them
    num_left_out: int = 0  # validation videos that it was not fitted on, since the test has them
    own: bool = False  # whether by cross-validation over the test's own videos

    @property
    def temperature(self) -> str:
        """The temperature, or the range of those of all folds."""
        low, high = min(self.temperatures), max(self.temperatures)
        at_limit = " (a limit of the search)" if low <= LIMITS[0] or high >= LIMITS[1] else ""
        return (f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}") + at_limit


def calibrated(run: Run, validation: Run | None) -> Calibrated | None:
    """A test's calibration with a temperature of the validation's videos, else by cross-validation over its own.

    None if the test's scores are missing, damaged or of too few videos; a RunError if the validation's are, or are of
    other classes, or of no other video.
    """
    found = None if run.predictions is None else read_log_scores(run.scores, run.predictions)
    if validation is None:
        return None if found is None else cross_validated(*found)
    must = f"--validation {validation.directory} must hold"
    advice = "Write it with `video-gn test --data.test VALIDATION_VIDEOS --run_dir DIR`."
    val = None if validation.predictions is None else read_log_scores(validation.scores, validation.predictions)
    if validation.predictions is None or val is None:
        raise RunError(f"{must} whole {TEST_PREDICTIONS} and {TEST_SCORES} of one test with labels. {advice}")
    if found is None or run.predictions is None:
        return None
    if val[0].shape[1] != found[0].shape[1]:
        raise RunError(
            f"{must} scores of the same classes, got {val[0].shape[1]} and {found[0].shape[1]} of them in "
            f"{run.directory}. Test the same network on the validation videos."
        )
    tested = set(run.predictions.videos)
    labels, videos = validation.predictions.labels, validation.predictions.videos
    other = np.array([videos[place] not in tested for place in np.flatnonzero(labels >= 0)])
    if other.sum() < _MIN_VIDEOS:
        raise RunError(
            f"{must} at least {_MIN_VIDEOS} labelled videos that {run.directory} did not test, got {other.sum()}. "
            f"{advice}"
        )
    temperature = fit_temperature(val[0][other], val[1][other])
    result = _calibrated(*found, scaled(found[0], temperature), (temperature,), int(other.sum()))
    return replace(result, num_left_out=int((~other).sum()))


def of_predictions(predictions: Predictions | None) -> Calibration | None:
    """Calibration of the scores in predictions.csv alone; None without a labelled video's score."""
    if predictions is None:
        return None
    use = (predictions.labels >= 0) & np.isfinite(predictions.scores)
    return calibrate(predictions.scores[use], (predictions.labels == predictions.preds)[use]) if use.any() else None


def curve(found: Calibration, label: str, *, color: int, dashed: bool = False) -> Curve:
    """The line of a reliability chart."""
    filled = found.counts > 0
    hints = [count(number, "video") for number in found.counts[filled].tolist()]
    x, y = found.scores[filled], found.accuracies[filled]
    return Curve(label, x, y, color, "dots", dashed=dashed, shows_last=False, hints=hints)


def chart(curves: Sequence[Curve]) -> Markup:
    """Accuracy by score, beside the line on which they are equal."""
    ends = np.array([0.0, 1.0])
    ideal = Curve("score = accuracy", ends, ends, 0, "faint", dashed=True, shows_last=False)
    x = Axis("score of the predicted class", "percent", (0.0, 1.0))
    y = Axis("top-1 accuracy", "percent", (0.0, 1.02))
    return line_chart("Accuracy by score", [ideal, *curves], x=x, y=y)


def cross_validated(log_VY: np.ndarray, labels_V: np.ndarray) -> Calibrated | None:
    """Calibration whose temperature is fitted anew for each fifth of the videos, on the other four; None of too few."""
    if len(labels_V) < _MIN_VIDEOS:
        return None
    folds_V = np.random.default_rng(0).permutation(len(labels_V)) % NUM_FOLDS
    start = fit_temperature(log_VY, labels_V)  # near those of all folds, but used for none
    temperatures, scores_V = [], np.empty(len(labels_V))
    for fold in range(NUM_FOLDS):
        others = folds_V != fold
        temperatures.append(fit_temperature(log_VY[others], labels_V[others], start))
        scores_V[~others] = scaled(log_VY[~others], temperatures[-1])
    result = _calibrated(log_VY, labels_V, scores_V, tuple(temperatures), len(labels_V))
    return replace(result, own=True)


def _calibrated(
    log_VY: np.ndarray, labels_V: np.ndarray, scores_V: np.ndarray, temperatures: tuple[float, ...], num_fitted: int
) -> Calibrated:
    right_V = log_VY.argmax(1) == labels_V
    plain = calibrate(np.exp(log_VY.max(1)).astype(np.float64), right_V)
    return Calibrated(plain, calibrate(scores_V, right_V), temperatures, num_fitted)
