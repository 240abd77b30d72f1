"""`video-gn similar`: the most similar videos, and near-copies between sets, by the embeddings of `infer`."""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_gn.checks import check_integer, positive
from video_gn.commands._options import Options
from video_gn.commands._terminal import set_up_logging
from video_gn.errors import ConfigError, DecodeError
from video_gn.files import check_place, whole_file, write_json
from video_gn.shown import console, count, csv_line, shown

if TYPE_CHECKING:
    from video_gn.embeddings.reading import EmbeddingsFile
    from video_gn.embeddings.search import Query
    from video_gn.evaluation.predictor import Predictor

log = logging.getLogger(__name__)

_TABLE_ROWS = 100  # with --output; without, the table is all there is


def main(command: str, words: Sequence[str]) -> int:
    """Parse the words and run the command; see `video_gn.__main__`."""
    options = _parser().parse_args(words)
    set_up_logging()
    _check_options(options)
    from video_gn.embeddings.reading import EmbeddingsFile

    failed = 0
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(EmbeddingsFile(options.of))
        if options.queries:
            queries, failed = _queries(options, file)
            rows = _similar(queries, file, top_k=options.top_k or 10)
        else:
            other = None if options.other is None else stack.enter_context(EmbeddingsFile(options.other))
            rows = _near_copies(file, other, above=options.above)
    _print_table(rows, most=None if options.output is None else _TABLE_ROWS)
    if not options.queries:
        log.info("%s", count(len(rows), "pair of near-copies", "pairs of near-copies"))
    if options.output is not None:
        _write(Path(options.output), rows)
        log.info("results: %s", options.output)
    return 3 if failed else 0


def _parser() -> Options:
    parser = Options(
        prog="video-gn similar",
        description="Find the videos that are most similar to others, by the cosine of the embeddings that "
        "`video-gn infer --embeddings` writes. Without QUERY, list pairs of near-copies within a file or between two.",
        epilog="Exit status: 0, 3 if a QUERY could not be read, 2 for bad arguments.",
    )
    parser.add_argument(
        "queries", nargs="*", metavar="QUERY", help="path of a row of the file; with --checkpoint also any video"
    )
    parser.add_argument(
        "--in", dest="of", required=True, metavar="FILE", help="parquet file of infer --embeddings, or of its parts"
    )
    parser.add_argument("--top_k", type=positive, metavar="K", help="rows for each QUERY (10)")
    parser.add_argument("--checkpoint", metavar="PATH", help="the file's checkpoint, for videos that are no rows of it")
    parser.add_argument("--and", dest="other", metavar="FILE", help="second file: list pairs of a row of each file")
    parser.add_argument("--above", type=float, metavar="COSINE", help="least similarity of near-copies (0.995)")
    parser.add_argument("--output", metavar="FILE", help="file to write the results to, .json or .csv")
    return parser


def _check_options(options: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    rule = "without" if options.queries else "with"
    refused = {"and": options.other, "above": options.above}
    if not options.queries:
        refused = {"top_k": options.top_k, "checkpoint": options.checkpoint}
    for name, value in refused.items():
        if value is not None:
            raise ConfigError(f"--{name} must stand {rule} QUERY, got --{name} {value}. Run the command once for each.")
    if options.above is not None and not 0 < options.above <= 1:
        raise ConfigError(f"--above must be above 0 and at most 1, got {options.above!r}. 0.995 is the default.")
    if options.output is not None:
        if Path(options.output).suffix not in (".json", ".csv"):
            raise ConfigError(f"--output must end in .json or .csv, got {options.output!r}. Choose one of these.")
        check_place(Path(options.output))


def _check_alike(file: EmbeddingsFile, other: EmbeddingsFile) -> None:
    """Refuse two files whose rows cannot be compared."""
    for what, mine, theirs in (
        ("of the same checkpoint", file.checkpoint, other.checkpoint),
        ("of the same number of features", file.width, other.width),
        ("of videos both, or of clips", file.rows, other.rows),
    ):
        if mine != theirs:
            raise ConfigError(
                f"--and {other.path}: must be {what} as {file.path}, got {theirs} and {mine}. Embed one of them anew."
            )


def _queries(options: argparse.Namespace, file: EmbeddingsFile) -> tuple[list[Query], int]:
    """The queries that are rows of the file, and others by the checkpoint; and how many could not be read."""
    from video_gn.embeddings.reading import path_text, to_unit
    from video_gn.embeddings.search import Query, rows_of

    if options.checkpoint is not None:
        _check_checkpoint(options.checkpoint, file)
    # A list in the same directory gives ./a.mp4 for a.mp4.
    names = {path: (path_text(path), path_text(f"./{path}"), path_text(path.removeprefix("./")))
             for path in options.queries}  # fmt: skip
    rows = rows_of(file, {name for several in names.values() for name in several})
    predictor, found, failed = None, [], 0
    for path, several in names.items():
        if there := [name for name in several if name in rows]:
            found.append(Query(there[0], rows[there[0]]))
            continue
        if options.checkpoint is None:
            raise ConfigError(
                f"QUERY must be a path in {file.path}, or come with --checkpoint, got {path!r}. Add the checkpoint "
                "that the file was made with."
            )
        predictor = predictor or _predictor(options.checkpoint, file)
        try:
            embedding = predictor.embed(path)
        except DecodeError as error:
            log.warning("%s could not be read: %s", error.path, error.reason)
            failed += 1
            continue
        vectors = embedding.clips if file.rows == "clips" else embedding.video[None]
        found.append(Query(path, to_unit(vectors, [f"the embedding of {path!r}"] * len(vectors))))
    return found, failed


def _check_checkpoint(path: str, file: EmbeddingsFile) -> None:
    """Refuse another checkpoint than the file's."""
    from video_gn.run.directory import checkpoint_of
    from video_gn.weights.named import file_digest, find_weights

    found = find_weights(str(checkpoint_of(path)))
    if not found.is_file():
        raise ConfigError(f"--checkpoint must be a run's directory or a file, got {path}, where there is none.")
    mine = f"SHA-256 {file_digest(found)}"
    if mine != file.checkpoint:
        raise ConfigError(
            f"--checkpoint {path} must be the one that {file.path} was made with, "
            f"{file.about.get('checkpoint', 'which it does not name')} ({file.checkpoint}), got {mine}. Name that one."
        )


def _predictor(checkpoint: str, file: EmbeddingsFile) -> Predictor:
    """The network, with the file's clips and crops."""
    from video_gn.evaluation.predictor import Predictor

    settings = {name: file.about["settings"].get(name) for name in ("num_clips", "crops", "layout")}
    try:
        predictor = Predictor.from_checkpoint(checkpoint, **settings)
        check_integer("num_clips", predictor.num_clips)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{file.path}: its metadata must name settings of infer, got {settings}: {error}") from error
    return predictor


def _similar(queries: Sequence[Query], file: EmbeddingsFile, *, top_k: int) -> list[dict[str, Any]]:
    from video_gn.embeddings.search import most_similar

    found = most_similar(queries, file, top_k=top_k)
    texts = file.texts([match.other for match in found])
    return [{"path": queries[m.one].path, **_other(texts[m.other]), "similarity": m.similarity} for m in found]


def _near_copies(file: EmbeddingsFile, other: EmbeddingsFile | None, *, above: float | None) -> list[dict[str, Any]]:
    from video_gn.embeddings.search import NEAR_COPY, near_copies

    if other is not None:
        _check_alike(file, other)
    found = near_copies(file, other, above=NEAR_COPY if above is None else above)
    mine = file.texts([m.one for m in found])
    theirs = (other or file).texts([m.other for m in found])
    return [{**mine[m.one], **_other(theirs[m.other]), "similarity": m.similarity} for m in found]


def _other(row: dict[str, Any]) -> dict[str, Any]:
    return {f"similar_{name}": value for name, value in row.items()}


def _write(output: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write json or csv, whole or not at all."""
    if output.suffix == ".json":
        write_json(output, {"similar": rows})
        return
    names = list(rows[0]) if rows else ["path", "similar_path", "similarity"]
    with whole_file(output) as file:
        file.write(csv_line(names))
        file.writelines(csv_line(row.get(name) for name in names) for row in rows)


def _print_table(rows: Sequence[dict[str, Any]], *, most: int | None) -> None:
    from rich.markup import escape
    from rich.table import Table

    if not rows:
        return
    shown_rows = rows[:most]
    table = Table(
        caption=f"the first {most} of {len(rows):,}; the file has all" if len(rows) > len(shown_rows) else None
    )
    for name, justify in (("video", "left"), ("similar video", "left"), ("label", "left"), ("cosine", "right")):
        table.add_column(name, overflow="fold", justify=justify)  # type: ignore[arg-type]
    for row in shown_rows:
        cells = [_name(row, ""), _name(row, "similar_"), row.get("similar_label") or ""]
        table.add_row(*(escape(shown(cell)) for cell in cells), f"{row['similarity']:.4f}")
    console().print(table)


def _name(row: dict[str, Any], prefix: str) -> str:
    start, end = (row.get(f"{prefix}{name}_seconds") for name in ("start", "end"))
    return row[f"{prefix}path"] + ("" if start is None else f" {start:.1f}-{end:.1f} s")
