"""The test's sections: headline figures, views, confusions, classes, mistakes, failed videos."""

from __future__ import annotations

from collections import Counter

import numpy as np

from video_gn.report import analysis as _analysis
from video_gn.report._html import Markup, count, details, esc, join, name, paragraph, path, percent, table
from video_gn.report.analysis import ClassRow, Predictions, ViewCurve
from video_gn.report.matrix import MAX_CLASSES, confusion_matrix
from video_gn.report.plots import Axis, Curve, line_chart
from video_gn.report.reading import Run

_NUM_PAIRS = 30
_NUM_MISTAKES = 25
# Whole lists longer than this are folded up, their ends shown.
_MAX_OPEN_CLASSES = 40
_NUM_SHOWN_CLASSES = 15
_MAX_FAILED = 500


def headline(run: Run) -> Markup:
    """The figures at the top; where no test was run, how to run one, and the validation's best."""
    if not run.test:
        return _headline_without_metrics(run)
    listed, failed = run.number("num_videos"), run.number("num_failed")
    decoded = None if listed is None or failed is None else int(listed - failed)
    labelled = run.predictions.num_labelled if run.predictions else decoded
    tiles = [
        ("top-1", percent(run.number("top1")), _interval(run.number("top1"), labelled)),
        ("top-5", percent(run.number("top5")), _interval(run.number("top5"), labelled) or "no top-5 under 5 classes"),
        ("mean class accuracy", percent(run.number("mean_class_accuracy")), "mean over classes"),
        ("coverage", percent(run.number("coverage"), 2 if failed else 0), _coverage(decoded, listed)),
        ("views of a video", *_views(run)),
    ]
    if labelled == 0:
        tiles = tiles[3:]
    return join([_tiles(tiles), *_test_warnings(run, labelled, failed)])


def _tiles(tiles: list[tuple[str, str, str]]) -> Markup:
    texts = [f"<span>{esc(a)}</span><b>{esc(b)}</b><span>{esc(c)}</span>" for a, b, c in tiles]
    body = "".join(f'<div class="tile">{text}</div>\n' for text in texts)
    return Markup(f'<div class="tiles">{body}</div>' if tiles else "")


def _headline_without_metrics(run: Run) -> Markup:
    """What the predictions alone give; else the validation's best."""
    predictions = run.predictions
    if predictions is not None and predictions.num_labelled:
        num_videos = predictions.num_labelled
        tiles = []
        for label, right in (("top-1", predictions.num_correct), ("top-5", int((predictions.ranks > 0).sum()))):
            tiles.append((label, percent(right / num_videos), _interval(right / num_videos, num_videos)))
        hint = "Counted from test/predictions.csv alone: what could not be read is not known."
        return join([_tiles(tiles), paragraph(hint, "warning")])
    hint = "Not tested yet: see Reproduce for the command. Validation figures come from one clip a video."
    untested = run.notes["test/metrics.json"].problem == "missing" and predictions is None
    return join([_tiles(_validation_tiles(run)), paragraph(hint, "note") if untested else ""])


def _validation_tiles(run: Run) -> list[tuple[str, str, str]]:
    tiles = []
    for key, label in (("val/top1", "best validation top-1"), ("val/top5", "best validation top-5")):
        rows = [row for row in run.rows if np.isfinite(row.get(key, np.nan))]
        if rows:
            best = max(rows, key=lambda row: row[key])
            tiles.append((label, percent(best[key]), f"step {best['step']:,}, epoch {best['epoch'] + 1}"))
    return tiles


def _interval(accuracy: float | None, num_videos: int | None) -> str:
    if accuracy is None or not num_videos or not 0 <= accuracy <= 1:
        return ""
    low, high = _analysis.wilson_interval(accuracy * num_videos, num_videos)
    return f"95% interval {100 * low:.1f} to {100 * high:.1f}"


def _coverage(decoded: int | None, listed: float | None) -> str:
    return "" if decoded is None or listed is None else f"{decoded:,} of {count(int(listed), 'video')} read"


def _views(run: Run) -> tuple[str, str]:
    clips, crops = run.number("num_clips"), run.number("num_crops")
    if clips is None or crops is None:
        return "–", ""
    return f"{clips:.0f} × {crops:.0f}", f"{count(int(clips), 'clip')}, {count(int(crops), 'crop')} of each"


def _test_warnings(run: Run, labelled: int | None, failed: float | None) -> list[Markup]:
    warnings = []
    if failed:
        warnings.append(
            f"{count(int(failed), 'video')} could not be read. The accuracies are over the videos that were read; "
            "see Failed videos for names and reasons."
        )
    if labelled == 0:
        warnings.append("No tested video has a label: there are predictions and no accuracy.")
    elif run.predictions is not None and labelled:
        found, told = run.predictions.num_correct / labelled, run.number("top1")
        # Less than one video's worth is rounding.
        if told is not None and abs(found - told) > 0.5 / labelled:
            warnings.append(
                f"test/metrics.json says top-1 {percent(told, 2)}, the rows of test/predictions.csv give "
                f"{percent(found, 2)}: the files may come from different tests."
            )
    return [paragraph(text, "warning") for text in warnings]


def sections_of_test(run: Run) -> list[tuple[str, Markup]]:
    """Titles and contents; those without content are left out."""
    predictions = run.predictions
    sections = [("Views and scores", _views_and_scores(run.views, predictions))]
    if predictions is not None and predictions.num_labelled:
        sections += [
            ("Confusions", _confusions(predictions)),
            ("Classes", _classes(predictions)),
            ("Most confident mistakes", _mistakes(predictions)),
        ]
    elif predictions is not None and len(predictions.videos):
        sections.append(("Predicted classes", _predicted(predictions)))
    return [*sections, ("Failed videos", _failed(run))]


def _views_and_scores(views: ViewCurve | None, predictions: Predictions | None) -> Markup:
    charts, notes = [], []
    if views is not None:
        x, y = np.array(views.counts), np.array(views.accuracies)
        accuracy = Axis("top-1 accuracy", "percent")
        hint = [count(int(number), "clip") for number in views.counts]
        if len(x) > 1:
            curve = Curve("top-1", x, y, 3, "dots")
            title = "Top-1 by number of clips averaged"
            charts.append(line_chart(title, [curve], x=Axis("clips", whole=True), y=accuracy, hint=hint))
            notes.append("Of fewer clips those spread evenly over the video are taken, each with all its crops.")
        if views.num_clips * views.num_crops > 1:
            alone = f"A view alone is right in {percent(views.single_view)} (mean over views)"
            notes.insert(0, f"{alone}, all views together in {percent(y[-1])}.")
        if views.num_not_finite:
            notes.append(f"{count(views.num_not_finite, 'video')} with scores that are no numbers count as wrong.")
    calibration = _analysis.calibrate(predictions) if predictions is not None else None
    if calibration is not None:
        filled = calibration.counts > 0
        found = Curve(
            "accuracy", calibration.scores[filled], calibration.accuracies[filled], 1, "dots", tells_last=False
        )
        ideal = Curve(
            "score = accuracy", np.array([0.0, 1.0]), np.array([0.0, 1.0]), 2, "faint", dashed=True, tells_last=False
        )
        hint = [count(int(number), "video") for number in calibration.counts[filled]]
        x_axis = Axis("score of the predicted class", "percent", (0.0, 1.0))
        y_axis = Axis("top-1 accuracy", "percent", (0.0, 1.02))
        charts.append(line_chart("Accuracy by score", [ideal, found], x=x_axis, y=y_axis, hint=hint))
        notes.append(
            f"Scores and accuracy differ by {percent(calibration.expected_error)} on average (expected calibration "
            "error, 10 bins): below the line scores promise too much."
        )
    if not charts and not notes:
        return Markup("")
    return join(['<div class="charts">', *charts, "</div>", paragraph(" ".join(notes), "note")])


def _confusions(predictions: Predictions) -> Markup:
    pairs = _analysis.confused_pairs(predictions, _NUM_PAIRS)
    names = predictions.classes
    rows = [(name(names[p.label]), name(names[p.pred]), f"{p.count:,}", percent(p.count / p.num_videos)) for p in pairs]
    headers = ["label", "predicted", "videos", "share of label"]
    listing = table(headers, rows, numeric=[2, 3], label="Most confused pairs of classes")
    if not rows:
        listing = paragraph("No video was mistaken.")
    size = len(predictions.classes)
    if size > MAX_CLASSES:
        hint = f"{size:,} classes are too many for a matrix: these are the pairs mixed up most often."
        return join([paragraph(hint, "note"), listing])
    hint = "Rows are labels, columns predictions; the shade is the part of the row. Point at a cell for its figures."
    return join([paragraph(hint, "note"), '<div class="pair">', confusion_matrix(predictions), listing, "</div>"])


def _classes(predictions: Predictions) -> Markup:
    rows = _analysis.class_rows(predictions)
    with_top5 = len(predictions.classes) > 5
    if len(rows) <= _MAX_OPEN_CLASSES:
        return join([paragraph("The hardest first.", "note"), _class_table(rows, with_top5)])
    seen = [row for row in rows if row.num_videos]
    return join(
        [
            "<h3>Hardest</h3>", _class_table(seen[:_NUM_SHOWN_CLASSES], with_top5),
            "<h3>Easiest</h3>", _class_table(seen[-_NUM_SHOWN_CLASSES:][::-1], with_top5),
            details(f"All {len(rows):,} classes", _class_table(rows, with_top5)),
        ]
    )  # fmt: skip


def _class_table(rows: list[ClassRow], with_top5: bool) -> Markup:
    body = []
    for row in rows:
        width = 0 if not row.num_videos else 100 * row.accuracy
        bar = Markup(f'<span class="bar"><i style="width:{width:.1f}%"></i></span><b>{percent(row.accuracy)}</b>')
        top5 = [percent(row.num_top5 / row.num_videos if row.num_videos else None)] if with_top5 else []
        right = percent(row.num_correct / row.num_predicted if row.num_predicted else None)
        mistaken = Markup(f"{name(row.mistaken_for)} ({row.num_mistaken:,})") if row.num_mistaken else ""
        body.append((name(row.name), f"{row.num_videos:,}", bar, *top5, f"{row.num_predicted:,}", right, mistaken))
    headers = ["class", "videos", "top-1", *(["top-5"] if with_top5 else [])]
    headers += ["predicted", "of these right", "most often taken for"]
    return table(headers, body, numeric=range(1, len(headers) - 1), label="Accuracy of each class")


def _mistakes(predictions: Predictions) -> Markup:
    places = _analysis.confident_mistakes(predictions, _NUM_MISTAKES)
    if not places:
        return paragraph("None: every labelled video was predicted right.")
    rows = []
    for place in places:
        label, pred = (predictions.classes[numbers[place]] for numbers in (predictions.labels, predictions.preds))
        rank = int(predictions.ranks[place])
        rank_text = f"{rank}." if rank else "not in the best five"
        score = percent(predictions.scores[place])
        rows.append((path(predictions.videos[place]), name(label), name(pred), score, rank_text))
    hint = "Wrong with the highest scores: wrong labels of the data set are found here first."
    headers = ["video", "label", "predicted", "score", "place of the label"]
    return join([paragraph(hint, "note"), table(headers, rows, numeric=[3], label="Most confident mistakes")])


def _predicted(predictions: Predictions) -> Markup:
    counts, total = Counter(predictions.preds.tolist()).most_common(), len(predictions.videos)
    rows = [(name(predictions.classes[place]), f"{number:,}", percent(number / total)) for place, number in counts]
    return table(["class", "videos", "share"], rows, numeric=[1, 2], label="Videos of each predicted class")


def _failed(run: Run) -> Markup:
    if not run.failed:
        return paragraph("None: every listed video was read.") if run.number("num_failed") == 0 else Markup("")
    parts = []
    reasons = Counter(reason for _, reason in run.failed).most_common()
    if 1 < len(reasons) < len(run.failed):
        rows = [(reason, f"{number:,}") for reason, number in reasons[:_MAX_FAILED]]
        parts.append(table(["reason", "videos"], rows, numeric=[1], label="Reasons of failures"))
    rows = [(path(video), reason) for video, reason in run.failed[:_MAX_FAILED]]
    parts.append(table(["video", "reason"], rows, label="Failed videos"))
    if len(run.failed) > _MAX_FAILED:
        parts.append(paragraph(f"{len(run.failed) - _MAX_FAILED:,} more: see test/metrics.json.", "note"))
    return join(parts)
