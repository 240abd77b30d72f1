"""`video-gn infer`: labels video files with a checkpoint."""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import math
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_gn.checks import not_negative, positive
from video_gn.commands._options import Options, add_network_options, check_network_options, load_predictor, picked
from video_gn.commands._terminal import counted, set_up_logging, with_progress
from video_gn.errors import ConfigError, DecodeError
from video_gn.files import check_place
from video_gn.shown import console, shown
from video_gn.timelines.subtitles import SUFFIXES as SUBTITLES

if TYPE_CHECKING:
    from video_gn.evaluation.predictor import Predictor
    from video_gn.labelling.inputs import Inputs
    from video_gn.labelling.running import Predict, Progress, Tally
    from video_gn.timelines.segments import TimelineConfig

log = logging.getLogger(__name__)

_LINES_SUFFIX = ".jsonl"
_SUFFIXES = (".json", ".csv", _LINES_SUFFIX, *SUBTITLES)
_TABLE_ROWS = 100  # with --output; without, the table is all there is


def main(command: str, words: Sequence[str]) -> int:
    """Parse the words and run the command; see `video_gn.__main__`."""
    options = _parser().parse_args(words)
    set_up_logging(quiet=options.quiet)
    _check_options(options)
    if options.live is not None:
        return _watch(options)
    if options.merge is not None:
        return _merge(options)

    from video_gn.data.loader import explain
    from video_gn.evaluation.predictor import DEAD_WORKER_ADVICE
    from video_gn.labelling.inputs import Inputs
    from video_gn.parts import parse_part

    check_network_options(options)
    part = None if options.part is None else parse_part(options.part, os.environ)
    inputs = Inputs(options.videos, options.list, part=part)
    _check_pictures(options, inputs)
    try:
        in_file = options.output is not None or options.embeddings is not None
        return (_label_into_file if in_file else _label_for_table)(options, inputs)
    except RuntimeError as error:
        explained = explain(error, advice=DEAD_WORKER_ADVICE)
        if explained is None:
            raise
        raise explained from error


def _parser() -> Options:
    parser = Options(
        prog="video-gn infer",
        description="Label video files: the best classes of each video and of each of its clips, with times.",
        epilog="Exit status: 0 if all were read, 3 if some could not be, 2 for bad arguments, 128 + N for signal N. "
        "`video-gn predict` writes the same json for the videos of a data module, on all ranks of a launch.",
    )
    parser.add_argument(
        "videos", nargs="*", metavar="PATH", help="files, directories (searched through), tars, globs, lists"
    )
    add_network_options(parser)
    parser.add_argument(
        "--engine", metavar="NAME", help="torch; for .onnx onnxruntime, openvino or openvino-bf16 (torch, onnxruntime)"
    )
    parser.add_argument("--output", metavar="FILE", help=f"file to write the results to: {', '.join(_SUFFIXES)}")
    parser.add_argument("--top_k", type=positive, default=5, metavar="K", help="labels of each video (5)")
    parser.add_argument("--views_per_forward", type=positive, default=10, metavar="N", help="views at a time (10)")
    parser.add_argument(
        "--num_workers",
        type=not_negative,
        metavar="N",
        help="processes that decode (one a core, at most 8); with --every, threads",
    )
    parser.add_argument("--quiet", action="store_true", help="print warnings and errors only")
    group = parser.add_argument_group(
        "timelines", "Labels all along a video, and segments of one label, from windows as long as the network's clip."
    )
    group.add_argument("--every", type=float, metavar="SECONDS", help="distance of windows, such as 0.5")
    group.add_argument("--smooth", type=float, metavar="SECONDS", help="width of the scores' moving average (a window)")
    group.add_argument("--min_seconds", type=float, metavar="SECONDS", help="shortest segment (half a window)")
    group.add_argument(
        "--unsure", type=float, metavar="SCORE", help='score below which a segment is "unsure", 0 for never (0.5)'
    )
    group = parser.add_argument_group("embeddings", "The features before the classifier, for `video-gn similar`.")
    group.add_argument("--embeddings", metavar="FILE", help="parquet file to write, beside --output or without")
    group.add_argument("--embeddings_of", choices=("videos", "clips"), help="a row for each video, or clip (videos)")
    group = parser.add_argument_group("pictures", "Of one video, after its results are written.")
    group.add_argument(
        "--render", metavar="FILE", help="write the video with its labels and timeline drawn on, .mp4 or .mkv"
    )
    group.add_argument("--picture", metavar="FILE", help="with --every: write the timeline as a picture, .png or .svg")
    group = parser.add_argument_group(
        "live", "Labels the newest window of a source again and again, a line of json each, until it ends or Ctrl-C."
    )
    group.add_argument(
        "--live",
        metavar="SOURCE",
        help="camera (/dev/video0), rtsp://, http://, udp:// or tcp:// address, FIFO, or - for standard input; "
        "--every is then the least distance of windows (a window)",
    )
    group = parser.add_argument_group(
        "many videos",
        "Results are written as they come, with --output X.jsonl a line each; the same command resumes a stopped one.",
    )
    group.add_argument("--list", metavar="FILE", help="list of videos, a path a line; - reads standard input")
    group.add_argument(
        "--part",
        metavar="I/N",
        help="part I of N, from 0: every N-th video, into X.part-I-of-N.jsonl; slurm takes an array job's numbers",
    )
    group.add_argument("--overwrite", action="store_true", help="replace X.jsonl instead of resuming it")
    group.add_argument(
        "--merge",
        metavar="X.jsonl",
        help="results of earlier runs, or their parts, to write to --output in the list's order; nothing is labelled",
    )
    group.add_argument(
        "--partial", action="store_true", help="with --merge: accept parts that are missing or not finished"
    )
    return parser


def _check_options(options: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    suffix = Path(options.output).suffix if options.output else None
    if suffix is not None and suffix not in _SUFFIXES:
        raise ConfigError(f"--output must end in {', '.join(_SUFFIXES)}, got {options.output!r}. Choose one of these.")
    if options.live is not None:
        _check_live(options, suffix)
        return
    if options.merge is not None:
        _check_merge(options)
        return
    _check_embeddings(options)
    of_timeline = f"--output {options.output}" if suffix in SUBTITLES else "--picture" if options.picture else None
    if _timeline(options) is None and of_timeline:
        raise ConfigError(f"{of_timeline} must have --every, got none. Add it, as in --every 0.5.")
    if options.partial:
        raise ConfigError("--partial must stand with --merge, got no --merge. Leave it out.")
    for name, value, advice in (
        ("part", options.part, f"Write {_LINES_SUFFIX}, then --merge the parts into a .json or .csv."),
        ("overwrite", options.overwrite, "Others are replaced anyway."),
    ):
        if value and suffix != _LINES_SUFFIX:
            rule = f"have an --output that ends in {_LINES_SUFFIX}, got {options.output!r}"
            raise ConfigError(f"--{name} must {rule}. {advice}")


def _check_embeddings(options: argparse.Namespace) -> None:
    if options.embeddings is None:
        if options.embeddings_of is not None:
            raise ConfigError("--embeddings_of must stand with --embeddings, got none. Add --embeddings FILE.parquet.")
        return
    if Path(options.embeddings).suffix != ".parquet":
        raise ConfigError(f"--embeddings must end in .parquet, got {options.embeddings!r}. Rename it.")
    if options.every is not None:
        raise ConfigError("--embeddings must stand without --every, got both. Run the command once for each.")
    from video_gn.lists.parquet import require_pyarrow

    require_pyarrow(Path(options.embeddings), otherwise="")


def _check_alone(name: str, why: str, options: argparse.Namespace, others: Sequence[str]) -> None:
    """Refuse videos beside an option, and other options."""
    values = {other: getattr(options, other) for other in ("list", "part", "render", "picture", "embeddings", *others)}
    more = ["PATH"] if options.videos else []
    more += [f"--{other}" for other, value in values.items() if value is not None and value is not False]
    if more:
        raise ConfigError(f"--{name} must stand alone, got {', '.join(more)} too. {why}: leave them out.")


def _check_merge(options: argparse.Namespace) -> None:
    _check_alone("merge", "It labels nothing", options, ("checkpoint", "every"))
    if Path(options.merge).suffix != _LINES_SUFFIX:
        raise ConfigError(
            f"--merge must end in {_LINES_SUFFIX}, got {options.merge!r}. Give the --output that the runs were given."
        )
    if not options.output or options.output.endswith(SUBTITLES):
        raise ConfigError(
            f"--merge must have an --output of results, got {options.output}. Write --output X.json, X.csv or X.jsonl."
        )


def _check_live(options: argparse.Namespace, suffix: str | None) -> None:
    from video_gn.labelling.lines import about_path

    others = ("merge", "partial", "overwrite", "num_clips", "num_workers", "smooth", "min_seconds", "unsure")
    _check_alone("live", "It reads its source alone", options, others)
    if suffix not in (None, _LINES_SUFFIX):
        raise ConfigError(f"--output must end in {_LINES_SUFFIX} with --live, got {options.output!r}. Rename it.")
    if options.backend not in ("auto", "pyav"):
        raise ConfigError(f"--backend must be pyav with --live, got {options.backend!r}. Leave it out.")
    if options.output and about_path(Path(options.output)).exists():
        raise ConfigError(f"--output must not hold labels of files, got {options.output!r}. Choose another name.")
    if options.every is not None and not 0 <= options.every < math.inf:
        raise ConfigError(f"--every must be at least 0 with --live, got {options.every!r}. 0 is as often as it can.")


def _timeline(options: argparse.Namespace) -> TimelineConfig | None:
    """The settings of a timeline; None without --every."""
    others = {"smooth_seconds": options.smooth, "min_seconds": options.min_seconds, "unsure": options.unsure}
    given = {name: value for name, value in others.items() if value is not None}
    if options.every is None:
        if given:
            name = next(iter(given)).replace("smooth_seconds", "smooth")
            raise ConfigError(f"--{name} must stand with --every, got no --every. Add it, as in --every 0.5.")
        return None
    from video_gn.timelines.segments import TimelineConfig

    return TimelineConfig(options.every, **given)


def _predictor(options: argparse.Namespace) -> tuple[Predictor, Predict]:
    """A predictor, and its function from records to results."""
    predictor = load_predictor(options)
    settings = picked(options, "top_k", "backend", "views_per_forward")
    config = _timeline(options)
    if config is None:
        settings |= {"num_workers": options.num_workers, "embed": options.embeddings is not None}
        return predictor, functools.partial(predictor.predict_many, **settings)
    from video_gn.timelines.timeline import label_videos

    threads = None if options.num_workers is None else max(1, options.num_workers)
    return predictor, functools.partial(label_videos, predictor, config=config, num_threads=threads, **settings)


@contextlib.contextmanager
def _progress(options: argparse.Namespace, predict: Any, total: int | None) -> Iterator[tuple[Predict, Progress]]:
    """A bar of videos; of a single one's timeline, of its windows."""
    if options.every is None or total != 1:
        yield predict, with_progress
        return
    with counted("windows") as count:
        yield functools.partial(predict, progress=count), lambda items, total, done: items


def _label_for_table(options: argparse.Namespace, inputs: Inputs) -> int:
    """Hold the results to the end, for a table."""
    from video_gn.clips import Failure
    from video_gn.labelling.lines import to_entry
    from video_gn.labelling.running import Tally

    _, predict = _predictor(options)
    records = list(inputs)
    tally = Tally(num_shown=_num_shown(options, None))
    with _progress(options, predict, len(records)) as (predict, progress):
        for result in progress(predict(records), len(records), 0):
            tally.add(to_entry(result))
            if isinstance(result, Failure):
                log.warning("%s could not be read: %s", result.path, result.reason)
    _print_table(options, tally)
    _draw(options, tally)
    return tally.exit_status


def _label_into_file(options: argparse.Namespace, inputs: Inputs) -> int:
    """Write each result as it comes; the table shows the first ones, also after an error."""
    from video_gn.labelling.running import Tally, describe, label
    from video_gn.parts import check_parts

    output = Path(options.output or options.embeddings)
    parquet = None if options.embeddings is None else Path(options.embeddings)
    if inputs.part is not None:
        check_parts(output, inputs.part, beside=" and their .meta.json")
        output = inputs.part.path(output)
        parquet = None if parquet is None else inputs.part.path(parquet)
    for place in (output, parquet):
        if place is not None:
            check_place(place)
    if output.suffix in SUBTITLES:
        inputs.hold()
        if inputs.total != 1:
            raise ConfigError(
                f"--output {output} must have one video, got {inputs.total}. Write a .json, or give one video."
            )
    predictor, predict = _predictor(options)
    embeddings = None
    if parquet is not None:
        from video_gn.embeddings.keeping import Target

        width = predictor.net.num_features
        embeddings = Target(parquet, options.embeddings_of or "videos", predictor.num_clips, width)
    about = describe(
        predictor,
        str(predictor.checkpoint),
        **picked(options, "top_k", "backend"),
        part=inputs.part,
        timeline=_timeline(options),
        embeddings=None if embeddings is None else embeddings.rows,
    )
    is_lines = output.suffix == _LINES_SUFFIX
    tally = Tally(num_shown=_num_shown(options, 0 if is_lines else _TABLE_ROWS))
    settings = {"about": about, "overwrite": options.overwrite, "embeddings": embeddings}
    try:
        with _progress(options, predict, inputs.total) as (predict, progress):
            label(predict, inputs, output, progress=progress, tally=tally, **settings)
    finally:
        _print_table(options, tally)
    words = f"{tally.labelled} labelled, {tally.failed} failed, {tally.before} of them before: {output}"
    if tally.stopped_by:
        name = signal.Signals(tally.stopped_by).name
        log.warning("stopped by %s; %s; the same command resumes from there", name, words)
    elif tally.labelled or output.suffix not in SUBTITLES:
        log.info("%s", words if is_lines else f"results: {output}")
        if parquet is not None and parquet != output:
            log.info("embeddings: %s", parquet)
    _draw(options, tally)
    return tally.exit_status


def _check_pictures(options: argparse.Namespace, inputs: Inputs) -> None:
    """Refuse, before the work, what --render and --picture cannot do."""
    for name in ("render", "picture"):
        if getattr(options, name):
            inputs.hold()
            if inputs.total != 1:
                raise ConfigError(f"--{name} must have one video, got {inputs.total}. Leave it out, or give one video.")
    if options.picture:
        from video_gn.rendering.picture import check_picture

        check_picture(Path(options.picture))
    if options.render:
        from video_gn.rendering.video import check_output

        with contextlib.suppress(DecodeError):  # counted as a video that fails
            check_output(next(iter(inputs)).path, Path(options.render))


def _num_shown(options: argparse.Namespace, rows: int | None) -> int | None:
    """Entries to keep, for a table and for pictures."""
    return 1 if options.render or options.picture else 0 if options.quiet else rows


def _draw(options: argparse.Namespace, tally: Tally) -> None:
    """Write what is drawn of the one video that was labelled."""
    if not tally.labelled or tally.stopped_by:
        return
    if options.picture:
        from video_gn.rendering.picture import write_picture

        write_picture(tally.shown[0], Path(options.picture))
        log.info("timeline: %s", options.picture)
    if options.render:
        from video_gn.rendering.overlay import render

        with counted("frames") as count:
            render(tally.shown[0], tally.shown[0]["path"], options.render, on_frame=count)
        log.info("video: %s", options.render)


def _watch(options: argparse.Namespace) -> int:
    from video_gn.live import parse_source, watch

    source = parse_source(options.live)  # before the checkpoint is read
    output = None if options.output is None else Path(options.output)
    if output is not None:
        check_place(output)
    check_network_options(options)
    settings = picked(options, "top_k", "views_per_forward", "quiet")
    return watch(source, load_predictor(options), output=output, every_seconds=options.every, **settings)


def _merge(options: argparse.Namespace) -> int:
    from video_gn.labelling.merging import merge

    output = Path(options.output)
    tally = merge(Path(options.merge), output, partial=options.partial, overwrite=options.overwrite)
    log.info("%d labelled, %d failed: %s", tally.labelled, tally.failed, output)
    return tally.exit_status


def _print_table(options: argparse.Namespace, tally: Tally) -> None:
    from rich.markup import escape as escape_markup
    from rich.table import Table

    def escape(text: str) -> str:
        return escape_markup(shown(text))

    if options.quiet or not tally.shown:
        return
    num_more = tally.labelled + tally.failed - len(tally.shown)
    more = f"the first {len(tally.shown)} of them; the file has all" if num_more else None
    table = Table(title=f"{tally.labelled} labelled, {tally.failed} failed", caption=more)
    table.add_column("video", overflow="fold")
    table.add_column("seconds", justify="right")
    table.add_column("labels and scores", overflow="fold")
    for entry in sorted(tally.shown, key=lambda entry: "reason" in entry):
        if "reason" in entry:
            table.add_row(escape(entry["path"]), "", f"[red]failed:[/red] {escape(entry['reason'])}")
            continue
        seconds = f"{entry['num_frames'] / entry['fps']:.1f}"
        table.add_row(
            escape(entry["path"]), seconds, ", ".join(f"{escape(t['label'])} {t['score']:.2f}" for t in entry["top"])
        )
        name = "segments" if "segments" in entry else "clips"
        for part in entry[name] if tally.labelled == 1 else ():
            best = part["top"][0] if "top" in part else part
            span = f"{part['start_seconds']:.1f}-{part['end_seconds']:.1f}"
            table.add_row(f"  {name[:-1]}", span, f"{escape(best['label'])} {best['score']:.2f}")
    console().print(table)
