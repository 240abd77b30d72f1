"""Labels videos one after the other into a file of lines, until all are done or a signal arrives."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_gn.clips import Failure
from video_gn.embeddings.keeping import KeptFeatures, Target
from video_gn.embeddings.reading import Rows
from video_gn.errors import StoppedError
from video_gn.evaluation.prediction import Prediction
from video_gn.labelling.inputs import Inputs
from video_gn.labelling.lines import LINES_SUFFIX, About, LinesFile, to_entry
from video_gn.lists.records import VideoRecord
from video_gn.parts import Part
from video_gn.run.signals import StopFlag
from video_gn.shown import count
from video_gn.weights.named import file_digest, find_weights

if TYPE_CHECKING:
    from video_gn.evaluation.predictor import Predictor
    from video_gn.timelines.segments import TimelineConfig

log = logging.getLogger(__name__)

Result = dict[str, Any] | Failure
Predict = Callable[[Iterable[VideoRecord]], Iterator[Result]]
# (items, how many all are or None, how many are done already) -> the items
Progress = Callable[[Iterator[Result], int | None, int], Iterator[Result]]

# Time that a video may take after a signal. By default SLURM kills after 30 seconds.
_GRACE_SECONDS = 3.0


@dataclass
class Tally:
    """Counts of labelled videos."""

    labelled: int = 0  # videos with labels
    failed: int = 0  # videos that could not be read
    before: int = 0  # number of both that were there already
    stopped_by: int = 0  # signal that stopped the run; 0 for none
    num_shown: int | None = 0  # entries to keep in memory; None for all
    shown: list[Mapping[str, Any]] = field(default_factory=list)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Count a line."""
        if self.num_shown is None or len(self.shown) < self.num_shown:
            self.shown.append(entry)
        if "reason" in entry:
            self.failed += 1
        else:
            self.labelled += 1

    @property
    def exit_status(self) -> int:
        """Exit status of `video-gn infer`."""
        return 128 + self.stopped_by if self.stopped_by else 3 if self.failed else 0


def describe(
    predictor: Predictor,
    checkpoint: str,
    *,
    top_k: int,
    backend: str,
    part: Part | None,
    timeline: TimelineConfig | None = None,
    embeddings: Rows | None = None,
) -> About:
    """The settings that lines are made with, at their true values; those of a timeline or embeddings if there are any.

    Device, views at a time and number of workers are left out, since a run may resume on another machine: they change
    a score by no more than its rounding.
    """
    labels = hashlib.sha256("\n".join(predictor.classes).encode("utf-8", "surrogateescape")).hexdigest()
    settings = {
        "checkpoint": f"SHA-256 {file_digest(find_weights(checkpoint))}",
        "labels": f"SHA-256 {labels}",
        "layout": predictor.net.arguments.get("layout"),
        "num_clips": predictor.num_clips,
        "crops": predictor.crops.crops,
        "top_k": top_k,
        "backend": backend,
    }
    if timeline is not None:
        given = {
            "every": timeline.every_seconds,
            "smooth": timeline.smooth_seconds,
            "min_seconds": timeline.min_seconds,
            "unsure": timeline.unsure,
        }
        settings |= {name: value for name, value in given.items() if value is not None}
    if embeddings is not None:
        settings["embeddings_of"] = embeddings
    return About(settings, checkpoint, None if part is None else str(part))


def label(
    predict: Predict,
    inputs: Inputs,
    output: Path,
    *,
    about: About,
    overwrite: bool = False,
    progress: Progress,
    tally: Tally | None = None,
    embeddings: Target | None = None,
) -> Tally:
    """Label the videos that have no line yet, write a line for each at once, and count all lines of the file.

    An output that ends in .json or .csv is written from the lines when all are done. They lie beside it until then, and
    are dropped if they are of other videos or settings. `embeddings` are written then too, from features that are kept
    like the lines; they may be the only output.

    `predict` gives the results of records in their order; `progress` wraps them in a bar; `overwrite` removes the lines
    that are there. `tally` is what to count in, for a caller that needs the counts after an error too.

    Raises:
        ConfigError: the lines that are there belong to other videos or settings.
        RunError: another process writes the file.
    """
    tally, flag = tally or Tally(), StopFlag()
    path, is_whole = output, output.suffix != LINES_SUFFIX
    if is_whole:
        inputs.hold()
        path = output.with_name(f".{output.name}.lines")
        about = replace(about, settings={**about.settings, "list": f"SHA-256 {inputs.sha256}"})
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(flag.installed())
            lines = stack.enter_context(LinesFile(path, about, overwrite=overwrite, replace=is_whole))
            kept = None
            if embeddings is not None:
                kept = stack.enter_context(
                    KeptFeatures(path, embeddings, settings=about.settings, checkpoint=about.checkpoint)
                )
            videos = iter(inputs)
            for entry in lines.resume(videos):
                tally.add(entry)
                tally.before += 1
            if tally.before:
                log.info("%s: resuming after %s", output, count(tally.before, "video"))
            first = next(videos, None)
            if kept is not None:
                kept.resume(tally.labelled, all_done=first is None)
            if first is not None:
                records = [first, *videos] if is_whole else chain([first], videos)
                results = progress(predict(records), inputs.total, tally.before)
                with flag.waiting("video", grace_seconds=_GRACE_SECONDS):
                    _write_all(results, lines, kept, tally, flag)
            assert tally.labelled + tally.failed == (inputs.part or Part(0, 1)).size(inputs.num_seen)
            if kept is not None:
                kept.write(lines.entries(failed=False))
            if not is_whole:
                lines.finish(listed=inputs.num_seen, sha256=inputs.sha256)
            elif embeddings is None or output != embeddings.path:
                lines.write_whole(output)
            if is_whole:
                lines.remove()
            if kept is not None:
                kept.remove()
    except StoppedError:
        tally.stopped_by = flag.number
    return tally


def _write_all(
    results: Iterator[Result], lines: LinesFile, kept: KeptFeatures | None, tally: Tally, flag: StopFlag
) -> None:
    for result in results:
        with flag.held():
            entry = to_entry(result)
            if kept is not None and isinstance(result, Prediction):
                assert result.embedding is not None
                kept.add(result.embedding)
            lines.write(entry)
            tally.add(entry)
        if isinstance(result, Failure):
            log.warning("%s could not be read: %s", result.path, result.reason)
