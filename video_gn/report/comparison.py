"""Builds the page of several runs side by side, each against the first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from video_gn.errors import RunError
from video_gn.report import calibration, training
from video_gn.report.analysis import Predictions, class_rows, wilson_interval
from video_gn.report.paired import Pairs, check_classes, difference_interval, holm, mcnemar, pair
from video_gn.report.plots import line_of
from video_gn.report.reading import AFTER_RESUME, IN_TEST, MISSING, Run, value_of
from video_gn.report.strips import Strip, read_strips, reason_of_none
from video_gn.report.text import render
from video_gn.run.directory import CONFIG, TEST_PREDICTIONS

MAX_RUNS = 8  # lines that four colours and dashes tell apart
_NUM_CHANGED = 6
_MAX_HEAD = 20  # letters of a name as the head of a column
_MAX_NAMED = 200
_MAX_SETTINGS = 300


def build_comparison(runs: Sequence[Run], *, frames: bool = False) -> str:
    """The page of two to `MAX_RUNS` runs; `frames` reads those of videos that one run has right and another wrong.

    Raises:
        RunError: if they are too many, one is given twice or has no predictions, or videos, labels or classes differ.
    """
    names, tests = _names(runs), [_predictions(run) for run in runs]
    calibrated = [calibration.calibrated(run, None) for run in runs]
    sizes = [_num_classes(run) for run in runs]
    pairs = []
    for test, size, name in zip(tests[1:], sizes[1:], names[1:], strict=True):
        check_classes(tests[0], test, (sizes[0], size), (names[0], name))
        pairs.append(pair(tests[0], test, (names[0], name)))
    adjusted = holm([mcnemar(*found.counts[1:3]) for found in pairs])
    changed = [_changed_places(tests[0], test, found) for test, found in zip(tests[1:], pairs, strict=True)]
    strips: dict[str, Strip] = {}
    if frames:
        strips = read_strips([tests[0].videos[first] for two in changed for places in two for first, _ in places])
    comparisons = [
        {
            "name": name,
            "heads": [names[0], name] if max(len(names[0]), len(name)) <= _MAX_HEAD else ["the first", "this run"],
            "pairs": found,
            "p": mcnemar(*found.counts[1:3]),
            "adjusted": p,
            "interval": difference_interval(*found.counts),
            "changed": [[_changed_row(tests[0], test, places, strips) for places in group] for group in two],
        }
        for name, test, found, p, two in zip(names[1:], tests[1:], pairs, adjusted, changed, strict=True)
    ]
    settings = list(_different_settings(runs))
    return render(
        "compare.html",
        title=" · ".join(names),
        names=names,
        directories=[run.directory for run in runs],
        rows=[_row(*found) for found in zip(runs, tests, names, calibrated, strict=True)],
        comparisons=comparisons,
        no_strips=reason_of_none(strips),
        charts=training.together(names, [run.rows for run in runs]),
        reliability=_reliability(runs, names),
        settings=settings[:_MAX_SETTINGS],
        num_more_settings=max(0, len(settings) - _MAX_SETTINGS),
        problems=[
            (name, note) for name, run in zip(names, runs, strict=True)
            for note in run.notes.values() if note.problem not in ("", MISSING)
        ],
        max_named=_MAX_NAMED,
    )  # fmt: skip


def _names(runs: Sequence[Run]) -> list[str]:
    """Names of the runs' directories, or their paths if two have the same name."""
    if len(runs) > MAX_RUNS:
        raise RunError(f"runs of a page must be at most {MAX_RUNS}, got {len(runs)}. Make several pages.")
    resolved = [run.directory.resolve() for run in runs]
    for place, path in enumerate(resolved):
        if path in resolved[:place]:
            raise RunError(f"runs must be different directories, got {str(runs[place].directory)!r} twice.")
    names = [path.name for path in resolved]
    return names if len(set(names)) == len(names) else [str(run.directory) for run in runs]


def _predictions(run: Run) -> Predictions:
    """A run's predictions; a RunError if it has none."""
    if run.predictions is not None and run.predictions.videos:
        return run.predictions
    problem = run.notes[TEST_PREDICTIONS].problem or "holds no video"
    raise RunError(
        f"runs to compare must each have a test, got {str(run.directory)!r}, whose {TEST_PREDICTIONS} "
        f"{'is missing' if problem == MISSING else problem}. Test it: `video-gn test --run_dir {run.directory}`."
    )


def _num_classes(run: Run) -> int | None:
    size = run.scores.shape[2] if run.scores is not None else run.setting("model.net.init_args.num_classes")
    return size if isinstance(size, int) else None


def _row(run: Run, predictions: Predictions, name: str, calibrated: calibration.Calibrated | None) -> dict[str, Any]:
    """A run's own test: figures of all its labelled videos, whether or not the other runs tested them."""
    num_videos = predictions.num_labelled
    num_top5 = int((predictions.ranks > 0).sum()) if (_num_classes(run) or len(predictions.classes)) >= 5 else None
    accuracies = [row.accuracy for row in class_rows(predictions) if row.num_videos]
    plain = calibration.of_predictions(predictions)
    return {
        "name": name,
        "num_videos": num_videos,
        "num_failed": run.number("num_failed"),
        "accuracies": [
            None if right is None else (right / num_videos, wilson_interval(right, num_videos))
            for right in (predictions.num_correct, num_top5)
        ],
        "mean_class": math.fsum(accuracies) / len(accuracies),
        "views": [run.number("num_clips"), run.number("num_crops")],
        "error": None if plain is None else plain.expected_error,
        "calibrated": calibrated,
    }


def _changed_places(one: Predictions, two: Predictions, pairs: Pairs) -> list[list[tuple[int, int]]]:
    """Places in both tests of the videos that the other run alone has right, and of those that it alone has wrong.

    Those first of whose predictions both runs were surest.
    """
    sure = one.scores[pairs.first] + two.scores[pairs.other]
    found = []
    for which in (~pairs.first_right & pairs.other_right, pairs.first_right & ~pairs.other_right):
        places = np.flatnonzero(which)
        places = places[np.argsort(-sure[places], kind="stable")][:_NUM_CHANGED]
        found.append(list(zip(pairs.first[places].tolist(), pairs.other[places].tolist(), strict=True)))
    return found


def _changed_row(
    one: Predictions, two: Predictions, places: tuple[int, int], strips: Mapping[str, Strip]
) -> dict[str, Any]:
    video = one.videos[places[0]]
    said = [(p.classes[p.preds[i]], float(p.scores[i])) for p, i in zip((one, two), places, strict=True)]
    return {"video": video, "strip": strips.get(video), "label": one.classes[one.labels[places[0]]], "said": said}


def _reliability(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    found = [calibration.of_predictions(run.predictions) for run in runs]
    return calibration.chart(
        [
            calibration.curve(of_run, name, **line_of(place))
            for place, (of_run, name) in enumerate(zip(found, names, strict=True))
            if of_run is not None
        ]
    )


def _different_settings(runs: Sequence[Run]) -> Iterator[tuple[str, list[str | None]]]:
    """(key, its value in each run) of the settings in which trainings or tests differ, but for their directories."""
    configs = [config for run in runs for config in (run.config, *run.later.values())]
    for key in sorted({key for config in configs for key in _keys(config)} - {"run_dir", "config"}):
        trained = [(run, run.later.get(AFTER_RESUME) or run.config) for run in runs if CONFIG in run.configs]
        tested = [(run, run.later.get(IN_TEST) or run.config) for run in runs]
        for stage in (trained, tested):
            values = [value_of(config, key) for _, config in stage]
            texts = [_without_directory(run, value) for (run, _), value in zip(stage, values, strict=True)]
            if any(value != values[0] for value in values) and len(set(texts)) > 1:
                yield key, [_without_directory(run, run.shown_setting(key)) for run in runs]
                break


def _without_directory(run: Run, value: Any) -> str | None:
    """A setting as text, with the run's directory as RUN_DIR: it is another in each run, and after a move."""
    if value is None:
        return None
    directories = {config.get("run_dir") for config in (run.config, *run.later.values())}
    text = str(value)
    for directory in sorted(filter(None, (d for d in directories if isinstance(d, str))), key=len, reverse=True):
        text = text.replace(directory, "RUN_DIR")
    return text


def _keys(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted keys of a config's values."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
