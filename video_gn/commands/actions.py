"""What the commands do: wiring of the package's parts, and nothing else."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

log = logging.getLogger("video_gn")


class _LevelFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


def _set_up_logging() -> None:
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_LevelFormatter())
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


def run_lightning(command: str, words: Sequence[str]) -> int:
    """`video-gn fit | validate | test | predict`."""
    _set_up_logging()
    from video_gn.commands.fit import run
    from video_gn.run import slurm
    from video_gn.run import torchrun as launch

    with slurm.refusals_noted(), launch.leaving_group():
        return run(command, words)


def run_infer(options: argparse.Namespace) -> int:
    """`video-gn infer`: 3 where videos could not be read."""
    _set_up_logging()
    from video_gn.commands.infer import run

    return run(options, progress=_with_progress)


def _with_progress(items: Any, total: int | None, done: int = 0) -> Any:
    """On a terminal a bar, or, where nobody knows how many there are, their number; and how many come in a second."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("videos"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("videos", total=total, completed=done, rate="")
        for item in items:
            yield item
            speed = bar.tasks[0].speed
            bar.update(task, advance=1, rate="" if speed is None else f"{speed:.1f} a second")


def _with_length(items: Any) -> Any:
    return _with_progress(items, len(items))


def run_synth(options: argparse.Namespace) -> int:
    """`video-gn data synth`."""
    _set_up_logging()
    from video_gn.prepare.synthetic import synthesize

    synthesize(
        options.out,
        num_train_per_class=options.train_per_class,
        num_val_per_class=options.val_per_class,
        seed=options.seed,
    )
    log.info("videos: %s", options.out)
    return 0


def run_scan(options: argparse.Namespace) -> int:
    """`video-gn data scan`: 3 where videos cannot be read."""
    _set_up_logging()
    from video_gn.prepare.scan import scan

    summary = scan(
        options.videos,
        options.output,
        full=options.full,
        headers_only=options.headers_only,
        num_workers=options.num_workers,
        timeout_seconds=options.timeout_seconds,
        root=options.root,
        format=options.format,
        overwrite=options.overwrite,
        progress=_with_length,
    )
    sys.stdout.write(summary.text() + "\n")
    log.info("list: %s", options.output)
    return 3 if summary.readable < summary.listed else 0


def run_prepare(options: argparse.Namespace) -> int:
    """`video-gn data prepare`: 3 where videos could not be made."""
    _set_up_logging()
    from video_gn.errors import ConfigError
    from video_gn.lists.read import Manifest, has_split, read_manifest
    from video_gn.prepare.prepare import prepare, with_raw_videos
    from video_gn.prepare.tar_shards import write_shards

    if options.copy and options.shards is None:
        raise ConfigError("--copy packs files as they are: say how many go into a tar file with --shards")
    settings: dict[str, Any] = {"root": options.root, "format": options.format}
    whole = read_manifest(options.list, **settings)
    names = [s for s in ("train", "val", "test") if has_split(options.list, s, **settings)]
    parts: dict[str, Manifest] = {
        name: read_manifest(options.list, split=name, classes=whole.classes, **settings) for name in names
    } or {"": whole}
    if options.raw is not None:
        parts = {name: with_raw_videos(part, options.raw) for name, part in parts.items()}
    summaries: list[Any] = []
    with _counting("videos") as progress:
        if options.copy:
            for name, part in parts.items():
                summaries.append(
                    write_shards(
                        part,
                        options.out,
                        name=name or "videos",
                        videos_per_shard=options.shards,
                        overwrite=options.overwrite,
                        progress=progress,
                    )
                )
        else:
            summaries.append(
                prepare(
                    parts if names else whole if options.raw is None else parts[""],
                    options.out,
                    short_side_px=options.short_side_px,
                    key_frame_interval=options.key_frame_interval,
                    crf=options.crf,
                    num_workers=options.num_workers,
                    shards=options.shards,
                    overwrite=options.overwrite,
                    progress=progress,
                )
            )
    sys.stdout.write("\n".join(summary.text() for summary in summaries) + "\n")
    return 3 if any(summary.failed for summary in summaries) else 0


@contextlib.contextmanager
def _counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, lines elsewhere, for who calls with (done, all)."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    told = [0]

    def tell(done: int, total: int) -> None:
        if total and (10 * done) // total > told[0]:
            told[0] = (10 * done) // total
            log.info("%d of %d %s", done, total, what)

    yield tell


def run_show(options: argparse.Namespace) -> int:
    """`video-gn data show`."""
    _set_up_logging()
    from video_gn.commands._run_arguments import read_data
    from video_gn.data.show import show

    datamodule = read_data(options.config, options.settings)
    show(datamodule, options.output, num_train=options.num_train, num_test=options.num_test, epoch=options.epoch)
    log.info("clips: %s", options.output)
    return 0


def run_study(options: argparse.Namespace) -> int:
    """`video-gn study`: 1 where a cell failed, 130 after Ctrl-C."""
    _set_up_logging()
    from video_gn import study

    try:
        return study.run_study(
            options.config, out=options.out, words=options.settings, cell=options.cell, action=options.action
        )
    except KeyboardInterrupt:
        log.warning("stopped; the same command goes on from the last checkpoint")
        return 130


def run_report(options: argparse.Namespace) -> int:
    """`video-gn report`."""
    _set_up_logging()
    from video_gn.report import write_report

    log.info("report: %s", write_report(Path(options.run_dir)))
    return 0


def run_bench(options: argparse.Namespace) -> int:
    """`video-gn bench data | weights | test | train`."""
    _set_up_logging()
    if "num_processes" in options:
        from video_gn.bench.test import EvalSetup, bench_test

        setup = EvalSetup(**{name: getattr(options, name) for name in EvalSetup.__dataclass_fields__})
        return bench_test(setup, videos=options.videos, rounds=options.rounds, output=options.output)
    if "videos" in options:
        from video_gn.bench.data import bench_data

        return bench_data(options.videos, rounds=options.rounds, output=options.output, peers=options.peers)
    if "norms" in options:
        from video_gn.bench.train import TrainSetup, bench_train
        from video_gn.run.memory import keep_freed_memory

        step_setup = TrainSetup(
            num_clips=options.num_clips,
            frames=options.frames,
            size=options.size,
            width=options.width,
            layout=options.layout,
            device=options.device,
        )
        if options.keep_memory and not step_setup.on_cuda:
            keep_freed_memory()
        return bench_train(
            step_setup,
            norms=options.norms,
            formats=options.formats,
            precisions=options.precisions,
            compiled=options.compile,
            memory=not options.no_memory,
            rounds=options.rounds,
            output=options.output,
        )
    from video_gn.bench.weights import bench_weights

    return bench_weights(rounds=options.rounds, output=options.output)


def run_weights(options: argparse.Namespace) -> int:
    """`video-gn weights inspect | convert`."""
    _set_up_logging()
    from video_gn.errors import ConfigError
    from video_gn.weights import FORMATS

    if options.format not in ("auto", *FORMATS):
        raise ConfigError(f"--format must be auto, {', '.join(FORMATS)}, got {options.format!r}")
    if "file" in options:
        from video_gn.weights.inspect import inspect

        sys.stdout.write(inspect(options.file, format=options.format, tensors=options.tensors) + "\n")
        return 0
    from video_gn.lists.class_names import read_labels
    from video_gn.weights.convert import convert

    report = convert(
        options.source,
        options.target,
        names=options.names,
        format=options.format,
        layout=options.layout,
        labels=read_labels(options.labels) if options.labels else (),
        overwrite=options.overwrite,
    )
    sys.stdout.write(report.text() + "\n")
    log.info("weights: %s", options.target)
    return 0
