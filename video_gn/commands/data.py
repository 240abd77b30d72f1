"""`video-gn data`: finds broken videos, re-encodes videos, shows clips, and makes synthetic data sets."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from video_gn.checks import not_negative, positive
from video_gn.commands._options import Options, picked
from video_gn.commands._terminal import counted, print_text, set_up_logging, with_progress
from video_gn.errors import ConfigError

log = logging.getLogger(__name__)


def main(command: str, words: Sequence[str]) -> int:
    """Parse the words and run the command; see `video_gn.__main__`."""
    parser = Options(prog="video-gn data", description="Make data sets.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_synth, _add_scan, _add_prepare, _add_show):
        add(commands)
    options, settings = parser.parse_known_args(words)
    if settings and options.run is not _show:
        parser.error(f"unrecognized arguments: {' '.join(settings)}")
    options.settings, options.names = settings, parser.called().names()
    set_up_logging()
    status: int = options.run(options)
    return status


# ---- synth ---------------------------------------------------------------------------------------


def _add_synth(commands: Any) -> None:
    parser = commands.add_parser(
        "synth",
        help="videos of moving shapes, whose class is the motion alone",
        description="Write H.264 videos of moving shapes in class folders, OUT/train/CLASS/*.mp4 and "
        "OUT/val/CLASS/*.mp4. The class is the motion alone; no single frame shows it.",
    )
    parser.add_argument("out", metavar="OUT", help="directory to write; created if missing")
    parser.add_argument(
        "--train_per_class", type=positive, default=40, metavar="N", help="training videos of each class (40)"
    )
    parser.add_argument(
        "--val_per_class", type=positive, default=10, metavar="N", help="validation videos of each class (10)"
    )
    parser.add_argument("--seed", type=not_negative, default=0, help="seed; the same one gives the same files (0)")
    parser.set_defaults(run=_synth)


def _synth(options: argparse.Namespace) -> int:
    from video_gn.prepare.synthetic import synthesize

    with counted("videos") as progress:
        synthesize(
            options.out,
            num_train_per_class=options.train_per_class,
            num_val_per_class=options.val_per_class,
            seed=options.seed,
            progress=progress,
        )
    log.info("videos: %s", options.out)
    return 0


# ---- scan ----------------------------------------------------------------------------------------


def _add_scan(commands: Any) -> None:
    parser = commands.add_parser(
        "scan",
        help="find the broken videos of a list before training does",
        description="Probe every video of lists, folders or the official Kinetics csv, and write a list that fit and "
        "test read: with frames, rate, size, codec and key frames of each video, or why it cannot be read. The same "
        "command resumes a stopped scan.",
    )
    parser.add_argument("videos", nargs="+", metavar="LIST", help="list, folder, tar, glob or video")
    parser.add_argument("--output", required=True, metavar="FILE", help="list to write, .csv or .parquet")
    parser.add_argument("--full", action="store_true", help="decode every frame")
    parser.add_argument("--headers_only", action="store_true", help="no pass over the packets: twice as fast")
    parser.add_argument("--root", metavar="DIR", help="directory of a list's relative paths (the list's directory)")
    parser.add_argument("--format", default="auto", help="format of the list, as data.source.format (auto)")
    parser.add_argument("--num_workers", type=positive, metavar="N", help="processes (one a core)")
    parser.add_argument("--timeout_seconds", type=float, metavar="S", help="limit for one file (60; 600 with --full)")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE, or a part's results")
    _add_parts(parser, "every N-th file, whose results go into FILE.part-I-of-N.jsonl", "write FILE")
    parser.set_defaults(run=_scan)


def _add_parts(parser: argparse.ArgumentParser, part: str, merge: str) -> None:
    group = parser.add_argument_group(
        "many videos", "Several processes share the work: the same command with --part for each, then with --merge."
    ).add_mutually_exclusive_group()
    group.add_argument("--part", metavar="I/N", help=f"part I of N, from 0: {part}; slurm takes an array job's numbers")
    group.add_argument("--merge", action="store_true", help=f"{merge} from the results of all parts")


def _scan(options: argparse.Namespace) -> int:
    from video_gn.parts import parse_part
    from video_gn.prepare.scan import scan

    part = None if options.part is None else parse_part(options.part, os.environ)
    settings = picked(options, "full", "headers_only", "num_workers", "timeout_seconds", "root", "format")
    settings |= picked(options, "overwrite", "merge")
    settings["progress"] = lambda videos: with_progress(videos, len(videos))
    summary = scan(options.videos, options.output, part=part, **settings)
    print_text(summary.text())
    log.info("%s: %s", "list" if options.part is None else f"part {options.part}", summary.target)
    return 3 if summary.readable < summary.listed else 0


# ---- prepare -------------------------------------------------------------------------------------


def _add_prepare(commands: Any) -> None:
    parser = commands.add_parser(
        "prepare",
        help="cut, scale and re-encode videos so that clips decode fast; tar shards",
        description="Re-encode videos: cut to their segments, short side at most 320 px, a key frame every 32 frames; "
        "and write a list of them that fit and test read. The same command resumes a stopped call; failed.csv names "
        "what cannot be read.",
    )
    parser.add_argument("list", metavar="LIST", help="list, folder or tar")
    parser.add_argument("out", metavar="OUT", help="directory to write; created if missing")
    parser.add_argument("--root", metavar="DIR", help="directory of the list's relative paths (the list's directory)")
    parser.add_argument("--raw", metavar="DIR", help="directory of a Kinetics csv's whole videos, ID.mp4")
    parser.add_argument("--format", default="auto", help="format of the list, as data.source.format (auto)")
    parser.add_argument("--short_side_px", type=positive, default=320, metavar="PX", help="largest short side (320)")
    parser.add_argument(
        "--key_frame_interval", type=positive, default=32, metavar="N", help="frames from key frame to key frame (32)"
    )
    parser.add_argument("--crf", type=float, default=20, help="x264's quality: lower is better and larger (20)")
    parser.add_argument(
        "--square_pixels",
        action="store_true",
        help="stretch videos whose pixels are not square, as of DV and DVD, to what is shown",
    )
    parser.add_argument("--shards", type=positive, metavar="N", help="videos of each tar file (no tar files)")
    parser.add_argument("--copy", action="store_true", help="with --shards: pack the files unchanged")
    parser.add_argument("--num_workers", type=positive, metavar="N", help="processes (one a core)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    _add_parts(parser, "every N-th video or tar file", "write the lists")
    parser.set_defaults(run=_prepare)


def _prepare(options: argparse.Namespace) -> int:
    from video_gn.lists.read import VideoList
    from video_gn.parts import parse_part
    from video_gn.prepare.names import with_raw_videos
    from video_gn.prepare.prepare import prepare
    from video_gn.prepare.tar_shards import write_failures, write_shards

    if options.copy and options.shards is None:
        raise ConfigError("--copy packs files unchanged: give the number of videos of each tar file with --shards")
    common = picked(options, "overwrite", "merge")
    common["part"] = None if options.part is None else parse_part(options.part, os.environ)
    splits = VideoList(options.list, root=options.root, format=options.format).manifests()
    if options.raw is not None:
        splits = {name: with_raw_videos(split, options.raw) for name, split in splits.items()}
    summaries: list[Any] = []
    with counted("videos") as progress:
        common["progress"] = progress
        if options.copy:
            sharding = {"videos_per_shard": options.shards, **common}
            summaries += [write_shards(s, options.out, name=name or "videos", **sharding) for name, s in splits.items()]
            if common["part"] is None:  # each has written its own
                failed = [(path, None, None, "", reason) for summary in summaries for path, reason in summary.failed]
                write_failures(Path(options.out) / "failed.csv", failed)
        else:
            common |= picked(options, "short_side_px", "key_frame_interval", "crf", "square_pixels")
            summaries.append(prepare(splits, options.out, **common, **picked(options, "num_workers", "shards")))
    print_text("\n".join(summary.text() for summary in summaries))
    return 3 if any(summary.failed for summary in summaries) else 0


# ---- show ----------------------------------------------------------------------------------------


def _add_show(commands: Any) -> None:
    parser = commands.add_parser(
        "show",
        help="what the network sees: a picture of clips after augmentation",
        description="Write a contact sheet (PNG) of training clips after augmentation and of all views of test videos, "
        "with file, class, frames, times and crop. Further words are settings, as of fit: --data.train videos",
        takes_settings=True,
        usage="video-gn data show CONFIG|DIR [--output FILE] [--num_train N] [--num_test N] [--KEY VALUE ...]",
        epilog="CONFIG is a config, as of fit; DIR a run's directory, for the config that the run has saved.",
    )
    parser.add_argument("--output", default="clips.png", metavar="FILE", help="picture to write (clips.png)")
    parser.add_argument("--num_train", type=not_negative, default=8, metavar="N", help="training clips (8)")
    parser.add_argument("--num_test", type=not_negative, default=2, metavar="N", help="test videos (2)")
    parser.add_argument("--epoch", type=not_negative, default=0, metavar="N", help="their epoch, from 0 (0)")
    parser.set_defaults(run=_show)


def _show(options: argparse.Namespace) -> int:
    from video_gn.commands._run_settings import settle_lists, with_run_config
    from video_gn.commands._settings import config_parser
    from video_gn.data.datamodule import build_datamodule
    from video_gn.data.show import show

    words = options.settings
    if words and not words[0].startswith("-"):
        words = ["-c", *words]
    parser = config_parser(prog="video-gn data show", also=options.names)
    given = with_run_config("data show", words)
    config = parser.parse_args(given.words)
    settle_lists("data show", given, config)
    try:
        datamodule = build_datamodule({**config.data.as_dict(), "seed": config.seed_everything})
    except (ValueError, TypeError) as error:
        raise ConfigError(f"data: {error}") from error
    datamodule.read()
    show(datamodule, options.output, **picked(options, "num_train", "num_test", "epoch"))
    log.info("clips: %s", options.output)
    return 0
