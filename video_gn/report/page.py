"""Builds the page of a run: gives the template `page.html` the figures, charts and rows to show."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from video_gn.report import calibration, training
from video_gn.report.analysis import (
    Predictions,
    class_rows,
    confident_mistakes,
    confused_pairs,
    least_certain,
    wilson_interval,
)
from video_gn.report.heat import explain_videos, load_explained
from video_gn.report.matrix import MAX_CLASSES, confusion_matrix
from video_gn.report.plots import Axis, Curve, clip_chart, line_chart
from video_gn.report.reading import MISSING, Run
from video_gn.report.strips import Strip, read_strips, reason_of_none
from video_gn.report.text import percent, render, whole
from video_gn.report.views import read_clips
from video_gn.run.directory import BEST, CHECKPOINTS, CONFIG, TEST_CONFIG, TEST_METRICS
from video_gn.run.metrics_file import best_row
from video_gn.shown import count

_NUM_PAIRS = 30
_NUM_MISTAKES = 25
_NUM_HARDEST = 12
_MAX_FAILED = 500
_MAX_CLASS_ROWS = 2000

SETTINGS = (
    ("network", "model.net.class_path"),
    ("depth", "model.net.init_args.depth"),
    ("layout", "model.net.init_args.layout"),
    ("norm", "model.net.init_args.norm"),
    ("groups", "model.net.init_args.num_groups"),
    ("width", "model.net.init_args.width"),
    ("classes", "model.net.init_args.num_classes"),
    ("frames of a clip", "data.clip.num_frames"),
    ("stride", "data.clip.stride"),
    ("training crop, px", "data.augment.crop_px"),
    ("training short side, px", "data.augment.short_side_px"),
    ("batch size of a process", "data.batch_size"),
    ("processes", "trainer.devices"),
    ("nodes", "trainer.num_nodes"),
    ("accumulated batches", "trainer.accumulate_grad_batches"),
    ("precision", "trainer.precision"),
    ("epochs", "trainer.max_epochs"),
    ("optimizer", "model.optimizer.name"),
    ("learning rate", "model.optimizer.lr"),
    ("for a global batch of", "model.optimizer.reference_batch_size"),
    ("weight decay", "model.optimizer.weight_decay"),
    ("weight decay of norms", "model.optimizer.norm_weight_decay"),
    ("schedule", "model.schedule.name"),
    ("training videos", "data.train"),
    ("validation videos", "data.val"),
    ("test videos", "data.test"),
    ("test clips", "data.views.num_clips"),
    ("spacing of test clips", "data.views.spacing"),
    ("test crops", "data.views.crops"),
    ("test short side, px", "data.views.short_side_px"),
    ("seed", "seed_everything"),
)


class Tile(NamedTuple):
    """A figure at the top of the page: what it is, its value, and a hint below it."""

    label: str
    value: str
    hint: str


def build_page(run: Run, *, frames: bool = False, validation: Run | None = None, num_explained: int = 0) -> str:
    """The page of a run, from what `read_run` gives; see `video_gn.report.write_report`.

    `validation` is the run whose test was of validation videos, on which a temperature is fitted.
    """
    predictions, failed = run.predictions, run.failed
    monitor = str(run.setting("checkpoint.monitor") or "val/top1")
    tested = {} if predictions is None or not predictions.num_labelled else _tested(predictions)
    videos = {"hardest": []} if predictions is None else _videos(run, predictions, frames, num_explained)
    context = {
        "title": run.directory.resolve().name or str(run.directory),
        "run": run,
        "subtitle": _subtitle(run),
        "problems": [note for note in run.notes.values() if note.problem not in ("", MISSING)],
        "num_missing": sum(note.problem == MISSING for note in run.notes.values()),
        **_headline(run),
        "training": training.section(run.rows, monitor) if run.rows else None,
        "views": _views(run, calibration.calibrated(run, validation)),
        "validation": validation and validation.directory,
        "pairs": None,
        **tested,
        **videos,
        "predicted": None if tested or predictions is None else _predicted(predictions),
        "failed": failed[:_MAX_FAILED],
        "num_failed_more": max(0, len(failed) - _MAX_FAILED),
        "reasons": Counter(reason for _, reason in failed).most_common(_MAX_FAILED),
        "settings": [(label, text) for label, key in SETTINGS if (text := run.shown_setting(key)) is not None],
        "commands": _commands(run),
        "resumes": [name for name in run.configs if name not in (CONFIG, TEST_CONFIG)],
    }
    return render("page.html", **context, max_class_rows=_MAX_CLASS_ROWS)


def _subtitle(run: Run) -> str:
    """What was trained, in one line, as far as the config has it."""
    net = "model.net.init_args"
    network = run.setting("model.net.class_path")
    depth, norm, layout = (run.setting(f"{net}.{key}") for key in ("depth", "norm", "layout"))
    groups = run.setting(f"{net}.num_groups")
    frames, stride = run.setting("data.clip.num_frames"), run.setting("data.clip.stride")
    batch = run.setting("data.batch_size")
    if batch is not None and run.shown_setting("data.batch_size") != str(batch):
        batch = None  # several: see Settings
    parts = (
        network if depth is None else f"ResNet-{depth} I3D",
        None if norm is None else f"{norm} norm" + (f", {groups} groups" if norm == "group" and groups else ""),
        None if layout is None else f"layout {layout}",
        None if frames is None or stride is None else f"clips of {frames} frames, stride {stride}",
        None if batch is None else f"batch size {batch} in a process",
    )
    return " · ".join(part for part in parts if part)


# ---- the figures at the top ----------------------------------------------------------------------


def _headline(run: Run) -> dict[str, Any]:
    """`tiles`, `warnings` and `untested`: the test's figures, else what there is instead."""
    predictions = run.predictions
    if run.test:
        return {"tiles": _test_tiles(run), "warnings": _test_warnings(run), "untested": False}
    if predictions is not None and predictions.num_labelled:
        num_videos = predictions.num_labelled
        tiles = []
        for label, right in (("top-1", predictions.num_correct), ("top-5", int((predictions.ranks > 0).sum()))):
            tiles.append(Tile(label, percent(right / num_videos), _interval(right / num_videos, num_videos)))
        warning = "Counted from test/predictions.csv alone: it does not list videos that could not be read."
        return {"tiles": tiles, "warnings": [warning], "untested": False}
    untested = run.notes[TEST_METRICS].problem == MISSING and predictions is None
    return {"tiles": _validation_tiles(run), "warnings": [], "untested": untested}


def _num_labelled(run: Run) -> int | None:
    """Labelled videos that the test read; those it read, if there is no table of predictions."""
    if run.predictions is not None:
        return run.predictions.num_labelled
    listed, failed = run.number("num_videos"), run.number("num_failed")
    return None if listed is None or failed is None else int(listed - failed)


def _test_tiles(run: Run) -> list[Tile]:
    labelled, listed, failed = _num_labelled(run), run.number("num_videos"), run.number("num_failed")
    top1, top5 = run.number("top1"), run.number("top5")
    clips, crops = run.number("num_clips"), run.number("num_crops")
    read = ""
    if listed is not None and failed is not None:
        read = f"{whole(int(listed - failed))} of {count(int(listed), 'video')} read"
    views = Tile("views of a video", "–", "")
    if clips is not None and crops is not None:
        hint = f"{count(int(clips), 'clip')}, {count(int(crops), 'crop')} of each"
        views = Tile("views of a video", f"{clips:.0f} × {crops:.0f}", hint)
    tiles = [
        Tile("top-1", percent(top1), _interval(top1, labelled)),
        Tile("top-5", percent(top5), _interval(top5, labelled) or "no top-5 under 5 classes"),
        Tile("mean class accuracy", percent(run.number("mean_class_accuracy")), "mean over classes"),
        Tile("coverage", percent(run.number("coverage"), 2 if failed else 0), read),
        views,
    ]
    return tiles[3:] if labelled == 0 else tiles


def _test_warnings(run: Run) -> list[str]:
    warnings = []
    failed, labelled = run.number("num_failed"), _num_labelled(run)
    if failed:
        warnings.append(
            f"{count(int(failed), 'video')} could not be read. Accuracies are over the videos that were read; "
            "see Failed videos for names and reasons."
        )
    if labelled == 0:
        warnings.append("No tested video has a label: there are predictions, but no accuracy.")
    elif run.predictions is not None and labelled:
        counted, stated = run.predictions.num_correct / labelled, run.number("top1")
        # A difference of less than one video is rounding.
        if stated is not None and abs(counted - stated) > 0.5 / labelled:
            warnings.append(
                f"Top-1 is {percent(stated, 2)} in test/metrics.json, but {percent(counted, 2)} counted from the rows "
                "of test/predictions.csv: the files may come from different tests."
            )
    return warnings


def _validation_tiles(run: Run) -> list[Tile]:
    tiles = []
    for key, label in (("val/top1", "best validation top-1"), ("val/top5", "best validation top-5")):
        best = best_row(run.rows, key)
        if best is not None:
            tiles.append(Tile(label, percent(best[key]), f"step {whole(best['step'])}, epoch {best['epoch'] + 1}"))
    return tiles


def _interval(accuracy: float | None, num_videos: int | None) -> str:
    if accuracy is None or not num_videos or not 0 <= accuracy <= 1:
        return ""
    low, high = wilson_interval(accuracy * num_videos, num_videos)
    return f"95% interval {100 * low:.1f} to {100 * high:.1f}"


# ---- the test --------------------------------------------------------------------------------------


def _views(run: Run, calibrated: calibration.Calibrated | None) -> dict[str, Any] | None:
    """Accuracy by number of clips and by score; None if the test left neither."""
    curve = run.clip_curve
    charts = []
    if curve is not None and len(curve.num_clips) > 1:
        hints = [count(number, "clip") for number in curve.num_clips]
        line = Curve("top-1", np.array(curve.num_clips), np.array(curve.top1), 3, "dots", hints=hints)
        x, y = Axis("clips", whole=True), Axis("top-1 accuracy", "percent")
        charts.append(line_chart("Top-1 by number of clips averaged", [line], x=x, y=y))
    plain = calibration.of_predictions(run.predictions) if calibrated is None else calibrated.plain
    if plain is not None:
        lines = [calibration.curve(plain, "scores", color=1)]
        if calibrated is not None:
            lines.append(calibration.curve(calibrated.scaled, "with a temperature", color=3, dashed=True))
        charts.append(calibration.chart(lines))
    several = (run.number("num_clips") or 1) * (run.number("num_crops") or 1) > 1
    # Tests of earlier versions left no curve, though they had labels and several views.
    lacks_curve = curve is None and several and run.number("top1") is not None
    if not (charts or curve or lacks_curve):
        return None
    return {
        "charts": charts,
        "curve": curve,
        "several": several,
        "lacks_curve": lacks_curve,
        "error": None if plain is None else plain.expected_error,
        "calibrated": calibrated,
    }


def _tested(predictions: Predictions) -> dict[str, Any]:
    """Confusions, classes and mistakes of the labelled videos."""
    classes = predictions.classes
    matrix = confusion_matrix(predictions) if len(classes) <= MAX_CLASSES else Markup("")
    return {
        "classes": classes,
        "pairs": confused_pairs(predictions, _NUM_PAIRS),
        "matrix": matrix,
        "class_rows": class_rows(predictions),
    }


def _videos(run: Run, predictions: Predictions, frames: bool, num_explained: int) -> dict[str, Any]:
    """`mistakes` and `hardest`, rows for each such video; `no_strips`, why none of them has frames."""
    predictor = load_explained(run) if num_explained else None  # it may be refused: before anything slow
    mistakes = confident_mistakes(predictions, _NUM_MISTAKES)
    hardest = least_certain(predictions, _NUM_HARDEST, without=mistakes)
    strips: dict[str, Strip] = {}
    if frames:
        strips = read_strips([predictions.videos[place] for place in mistakes + hardest])
    num_crops = int(run.number("num_crops") or 1)
    heat = explain_videos(predictor, predictions, (mistakes + hardest)[:num_explained]) if predictor else {}
    clips = read_clips(run.scores, predictions, mistakes + hardest, max(1, num_crops))

    def row(place: int) -> dict[str, Any]:
        video, label = predictions.videos[place], int(predictions.labels[place])
        found = clips.get(place)
        return {
            "video": video,
            "strip": strips.get(video),
            "heat": heat.get(place),
            "label": predictions.classes[label] if label >= 0 else "",
            "pred": predictions.classes[predictions.preds[place]],
            "score": float(predictions.scores[place]),
            "rank": int(predictions.ranks[place]),
            "views": f"{found.num_right or 'none'} of {found.num_views}" if found and found.label else "",
            "clips": clip_chart(found.pred, found.label) if found else "",
        }

    return {
        "mistakes": list(map(row, mistakes)),
        "hardest": list(map(row, hardest)),
        "no_strips": reason_of_none(strips),
    }


def _predicted(predictions: Predictions) -> list[tuple[str, int, float]]:
    """How often each class was predicted, most often first: name, videos, share."""
    counts, total = Counter(predictions.preds.tolist()).most_common(), len(predictions.videos)
    return [(predictions.classes[number], videos, videos / total) for number, videos in counts]


# ---- how it was made -------------------------------------------------------------------------------


def _commands(run: Run) -> str:
    """Commands that train and test the same again, and that use the result."""

    def quoted(*parts: str) -> str:
        return shlex.quote("/".join((parts[0].rstrip("/") or "/", *parts[1:])))

    here = str(run.directory)
    commands = []
    if CONFIG in run.configs:
        again = quoted(here.rstrip("/") + "-again")
        commands.append(
            f"# train again, into another directory\nvideo-gn fit -c {quoted(here, CONFIG)} --run_dir {again}"
        )
    for name, what in ((TEST_CONFIG, "again"), (CONFIG, "the best checkpoint")):
        if name in run.configs:
            commands.append(f"# test {what}\nvideo-gn test -c {quoted(here, name)} --run_dir {quoted(here)}")
            break
    commands.append(f"# this page\nvideo-gn report {quoted(here)}")
    checkpoint, best = run.test.get("checkpoint"), run.directory / CHECKPOINTS / BEST
    if not isinstance(checkpoint, str):
        checkpoint = str(best) if best.is_file() else ""
    if checkpoint:
        options = f"--checkpoint {quoted(checkpoint)} --output labels.json"
        commands.append(f"# label other videos\nvideo-gn infer VIDEO... {options}")
    return "\n".join(commands)
