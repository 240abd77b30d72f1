"""What `video-gn infer` does with its options."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from video_gn.clips import Failure
from video_gn.data.loader import explain
from video_gn.decoding import BACKENDS
from video_gn.errors import ConfigError
from video_gn.evaluation.predictor import DEAD_WORKER_ADVICE, Predictor
from video_gn.evaluation.results import write_results
from video_gn.labelling.inputs import Inputs
from video_gn.labelling.merging import merge
from video_gn.labelling.options import LINES_SUFFIX, check_options
from video_gn.labelling.parts import parse_shard
from video_gn.labelling.running import Predict, Progress, check_shards, describe, label
from video_gn.lists.class_names import read_labels
from video_gn.run.memory import keep_freed_memory

log = logging.getLogger(__name__)


def run(options: argparse.Namespace, *, progress: Progress) -> int:
    """Label videos, or merge what has been labelled.

    Args:
        options: of the command line.
        progress: shown to the user.

    Returns:
        The exit status: 0; 3 where videos could not be read; 128 and the number of a signal that stopped it.

    Raises:
        ConfigError: for options that do not go together.
        ManifestError: for a list that cannot be read.
        CheckpointError: for a checkpoint that cannot be used.
        RunError: where a loading worker died, or a file cannot be written.
    """
    check_options(options)
    if options.merge is not None:
        return _merge(options)
    _check_machine(options)
    shard = None if options.shard is None else parse_shard(options.shard, os.environ)
    inputs = Inputs(options.videos, options.list, shard=shard)
    try:
        if options.output is not None and options.output.endswith(LINES_SUFFIX):
            return _label_lines(options, inputs, progress)
        return _label_at_once(options, inputs, progress)
    except RuntimeError as error:
        told = explain(error, advice=DEAD_WORKER_ADVICE)
        if told is None:
            raise
        raise told from error


def _check_machine(options: argparse.Namespace) -> None:
    if options.backend != "auto" and options.backend not in BACKENDS:
        raise ConfigError(f"--backend must be auto, {', '.join(BACKENDS)}, got {options.backend!r}")
    try:
        torch.empty(0, device="cpu" if options.device == "auto" else options.device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {options.device!r} cannot be used: {str(error).splitlines()[0]}") from error


def _predictor(options: argparse.Namespace) -> tuple[Predictor, Predict]:
    """A predictor, and what gives the results of records."""
    predictor = Predictor.from_checkpoint(
        options.checkpoint,
        device=options.device,
        num_clips=options.num_clips,
        crops=options.crops,
        labels=read_labels(options.labels) if options.labels else (),
        layout=options.layout,
    )
    if predictor.device.type == "cpu":
        keep_freed_memory()
    return predictor, functools.partial(
        predictor.predict_many,
        top_k=options.top_k,
        backend=options.backend,
        num_workers=options.num_workers,
        views_per_forward=options.views_per_forward,
    )


def _label_at_once(options: argparse.Namespace, inputs: Inputs, progress: Progress) -> int:
    """Results are held to the end, for a table and one .json or .csv."""
    _, predict = _predictor(options)
    records = list(inputs)
    videos: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    for result in progress(predict(records), len(records), 0):
        if isinstance(result, Failure):
            failed.append({"path": result.path, "reason": result.reason})
            log.warning("%s could not be read: %s", result.path, result.reason)
        else:
            videos.append(result)
    if options.output:
        write_results(options.output, videos, failed)
    if not options.quiet:
        _print_table(videos, failed)
    if options.output:
        log.info("results: %s", options.output)
    return 3 if failed else 0


def _label_lines(options: argparse.Namespace, inputs: Inputs, progress: Progress) -> int:
    """Results are written as they come, and none is held."""
    output = Path(options.output)
    if inputs.shard is not None:
        check_shards(output, inputs.shard)
        output = inputs.shard.path(output)
    predictor, predict = _predictor(options)
    about = describe(predictor, options.checkpoint, top_k=options.top_k, backend=options.backend, shard=inputs.shard)
    tally = label(predict, inputs, output, about=about, overwrite=options.overwrite, progress=progress)
    words = f"{tally.labelled} labelled, {tally.failed} failed, {tally.before} of them before: {output}"
    if tally.stopped_by:
        name = signal.Signals(tally.stopped_by).name
        log.warning("stopped by %s; %s; the same command goes on from there", name, words)
    else:
        log.info("%s", words)
    return tally.exit_status


def _merge(options: argparse.Namespace) -> int:
    output = Path(options.output)
    tally = merge(Path(options.merge), output, partial=options.partial, overwrite=options.overwrite)
    log.info("%d labelled, %d failed: %s", tally.labelled, tally.failed, output)
    return tally.exit_status


def _print_table(videos: Sequence[dict[str, Any]], failed: Sequence[dict[str, str]]) -> None:
    from rich.console import Console
    from rich.markup import escape as escape_markup
    from rich.table import Table

    def escape(text: str) -> str:
        # A file name may hold bytes that are no text, which a terminal refuses.
        return escape_markup(text.encode("utf-8", "replace").decode())

    table = Table(title=f"{len(videos)} labelled, {len(failed)} failed")
    table.add_column("video", overflow="fold")
    table.add_column("seconds", justify="right")
    table.add_column("labels and scores", overflow="fold")
    for video in videos:
        seconds = f"{video['num_frames'] / video['fps']:.1f}"
        table.add_row(
            escape(video["path"]), seconds, ", ".join(f"{escape(t['label'])} {t['score']:.2f}" for t in video["top"])
        )
        for clip in video["clips"] if len(videos) == 1 else ():
            best = clip["top"][0]
            span = f"{clip['start_seconds']:.1f}-{clip['end_seconds']:.1f}"
            table.add_row("  clip", span, f"{escape(best['label'])} {best['score']:.2f}")
    for failure in failed:
        table.add_row(escape(failure["path"]), "", f"[red]failed:[/red] {escape(failure['reason'])}")
    Console().print(table)
