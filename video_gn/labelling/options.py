"""Options of `video-gn infer` for many videos: which there are, and which go together."""

from __future__ import annotations

import argparse
from pathlib import Path

from video_gn.errors import ConfigError

LINES_SUFFIX = ".jsonl"
SUFFIXES = (".json", ".csv", LINES_SUFFIX)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add them to a parser that has the other options of `infer`."""
    group = parser.add_argument_group(
        "many videos",
        "With --output X.jsonl each result is a line, written as it comes; the same command goes on where it stopped.",
    )
    group.add_argument("--list", metavar="FILE", help="a file with a path a line; - reads standard input")
    group.add_argument(
        "--shard",
        metavar="I/N",
        help="only every N-th video, from I on (from 0), into X.shard-I-of-N.jsonl; slurm takes an array job's numbers",
    )
    group.add_argument("--overwrite", action="store_true", help="label anew what is in X.jsonl")
    group.add_argument(
        "--merge",
        metavar="X.jsonl",
        help="label nothing: write X.jsonl, or its shards, to --output in the list's order",
    )
    group.add_argument("--partial", action="store_true", help="merge what there is, though it is not finished")


def check_options(options: argparse.Namespace) -> None:
    """Refuse what does not go together.

    Args:
        options: of `infer`.

    Raises:
        ConfigError: it names the options.
    """
    suffix = Path(options.output).suffix if options.output else None
    if suffix is not None and suffix not in SUFFIXES:
        raise ConfigError(f"--output must end in {', '.join(SUFFIXES)}, got {options.output!r}.")
    if options.merge is not None:
        _check_merge(options)
        return
    if not options.checkpoint:
        raise ConfigError("--checkpoint must be given, got none. Name a run's checkpoint, or any zoo's weights.")
    if options.partial:
        raise ConfigError("--partial must stand with --merge, got no --merge. Leave it out.")
    if options.shard is not None and suffix != LINES_SUFFIX:
        raise ConfigError(
            f"--shard must have an --output that ends in {LINES_SUFFIX}, got {options.output!r}. Write "
            f"{LINES_SUFFIX}, then --merge the shards into a .json or .csv."
        )
    if options.overwrite and suffix != LINES_SUFFIX:
        raise ConfigError(
            f"--overwrite must have an --output that ends in {LINES_SUFFIX}, got {options.output!r}. Others are "
            "replaced anyway."
        )


def _check_merge(options: argparse.Namespace) -> None:
    given = {
        "PATH": options.videos,
        "--list": options.list,
        "--shard": options.shard,
        "--checkpoint": options.checkpoint,
    }
    more = [name for name, value in given.items() if value]
    if more:
        raise ConfigError(f"--merge must stand alone, got {', '.join(more)} too. It labels nothing: leave them out.")
    if Path(options.merge).suffix != LINES_SUFFIX:
        raise ConfigError(
            f"--merge must end in {LINES_SUFFIX}, got {options.merge!r}. Give the --output that the runs were given."
        )
    if not options.output:
        raise ConfigError("--merge must have an --output, got none. Write --output X.json, X.csv or X.jsonl.")
