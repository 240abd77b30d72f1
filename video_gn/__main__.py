"""The console script `video-gn`: wiring only. Its help answers at once, without importing torch."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import video_gn
from video_gn.checks import LAYOUTS, not_negative, positive

Commands = Any  # what `ArgumentParser.add_subparsers` returns has no public name

_LIGHTNING = {
    "fit": "train a network: video-gn fit -c configs/demo.yaml",
    "validate": "validation figures of a checkpoint",
    "test": "test a checkpoint on all views of each video",
    "predict": "label a data module's videos, on all processes of a launch",
}
_OWN = {
    "infer": "label video files with a checkpoint: table, json, csv or json lines",
    "data": "data sets: scan, prepare, show, synth",
    "weights": "weight files of any zoo: inspect, convert",
    "study": "norms x batch sizes x clips x seeds, to a table and figures",
    "report": "write a run directory's report.html",
    "bench": "speed, side by side in one run: data, weights, test, train",
}


def _overview() -> str:
    lines = ["usage: video-gn COMMAND [options]", ""]
    lines += ["Train, test and run video classifiers with Group Normalization.", ""]
    lines += [f"  {name:9s} {text}" for name, text in (_LIGHTNING | _OWN).items()]
    lines += ["", "`video-gn COMMAND --help` lists a command's options; `video-gn --version` prints the version."]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: words after `video-gn`; None takes the process's.

    Returns:
        The exit status: 0, or 1 for a run that failed, 2 for bad arguments, lists or checkpoints, 3
        where some videos could not be read.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(_overview() + "\n")
        return 0 if words else 2
    if words[0] == "--version":
        sys.stdout.write(f"video-gn {video_gn.__version__}\n")
        return 0
    command, rest = words[0], words[1:]
    if command in _LIGHTNING:
        # Decoding workers share the cores with torch's threads; threads that spin while they wait take the
        # workers' time (on two cores 84 clips/s against 50). It must be set before torch is imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from video_gn.commands.actions import run_lightning

        return _guarded(lambda: run_lightning(command, rest))
    if command in _OWN:
        parser = _PARSERS[command]()
        options, settings = parser.parse_known_args(rest)
        if settings and getattr(options, "action", "") not in _TAKE_SETTINGS:
            parser.error(f"unrecognized arguments: {' '.join(settings)}")
        options.settings = settings
        return _guarded(lambda: options.run(options))
    sys.stderr.write(f"video-gn: no command {command!r}; there are {', '.join(_LIGHTNING | _OWN)}\n")
    return 2


def _guarded(run: Callable[[], int]) -> int:
    """Errors that are about files and settings are told in a line, not as a traceback."""
    from video_gn.errors import CheckpointError, ConfigError, ManifestError, StoppedError, VideoGNError
    from video_gn.run.slurm import place

    try:
        return run()
    except (ManifestError, CheckpointError, ConfigError) as error:
        sys.stderr.write(f"video-gn{place()}: error: {error}\n")
        return 2
    except StoppedError as error:
        sys.stderr.write(f"video-gn: {error}\n")
        return error.status
    except VideoGNError as error:
        sys.stderr.write(f"video-gn{place()}: error: {error}\n")
        return 1
    except BrokenPipeError:
        return 1


def _infer_parser() -> argparse.ArgumentParser:
    from video_gn.labelling.options import add_options

    parser = argparse.ArgumentParser(
        prog="video-gn infer",
        description="Label video files: the best classes of each video and of each of its clips, with times.",
        epilog="Exit status: 0 when all were read, 3 when some could not be, 2 for bad arguments, 128 + N for signal "
        "N. `video-gn predict` writes the same json for the videos of a data module, on all processes of a launch.",
    )
    parser.add_argument("videos", nargs="*", metavar="PATH", help="files, directories (searched through), globs, lists")
    parser.add_argument("--checkpoint", "--ckpt_path", metavar="FILE", help="of a training run, or any zoo's weights")
    parser.add_argument("--labels", metavar="FILE", help="class names: a name a line, or json (the checkpoint's own)")
    parser.add_argument("--layout", choices=LAYOUTS, help="of a zoo's file that does not tell it (nonlocal)")
    parser.add_argument("--output", metavar="FILE", help="write the results as .json, .csv or .jsonl")
    parser.add_argument("--top_k", type=positive, default=5, metavar="K", help="labels to give (5)")
    parser.add_argument(
        "--num_clips", type=positive, metavar="K", help="clips of a video (as the checkpoint was tested)"
    )
    parser.add_argument(
        "--crops", choices=("center", "three", "full"), help="crops of a clip (as the checkpoint was tested)"
    )
    parser.add_argument("--views_per_forward", type=positive, default=10, metavar="N", help="views at a time (10)")
    parser.add_argument("--backend", default="auto", help="decoder: auto, pyav, decord or torchcodec (auto)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (a GPU where there is one)")
    parser.add_argument(
        "--num_workers", type=not_negative, metavar="N", help="processes that decode (one a core, at most 8)"
    )
    parser.add_argument("--quiet", action="store_true", help="no table")
    add_options(parser)

    def run(options: argparse.Namespace) -> int:
        from video_gn.commands.actions import run_infer

        return run_infer(options)

    parser.set_defaults(run=run)
    return parser


def _data_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="video-gn data", description="Make data sets.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_synth, _add_scan, _add_prepare, _add_show):
        add(commands)

    def run(options: argparse.Namespace) -> int:
        from video_gn.commands import actions as cli

        actions = {"synth": cli.run_synth, "scan": cli.run_scan, "prepare": cli.run_prepare, "show": cli.run_show}
        return actions[options.action](options)

    parser.set_defaults(run=run)
    return parser


def _add_synth(commands: Commands) -> None:
    parser = commands.add_parser(
        "synth",
        help="videos of moving shapes, whose class is the motion alone",
        description="Write H.264 videos of moving shapes in class folders, OUT/train/CLASS/*.mp4 and "
        "OUT/val/CLASS/*.mp4. The class is the motion alone; no single frame tells it.",
    )
    parser.add_argument("out", metavar="OUT", help="directory to write; it is made")
    parser.add_argument(
        "--train_per_class", type=positive, default=40, metavar="N", help="training videos of a class (40)"
    )
    parser.add_argument(
        "--val_per_class", type=positive, default=10, metavar="N", help="validation videos of a class (10)"
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same files (0)")
    parser.set_defaults(action="synth")


def _add_scan(commands: Commands) -> None:
    parser = commands.add_parser(
        "scan",
        help="find the broken videos of a list before training does",
        description="Probe every video of lists, folders or the official Kinetics csv, and write a list that fit and "
        "test read: with frames, rate, size, codec and key frames of each video, or why it cannot be read. A scan that "
        "was stopped goes on where it stood.",
    )
    parser.add_argument("videos", nargs="+", metavar="LIST", help="a list, folder, glob or video")
    parser.add_argument("--output", required=True, metavar="FILE", help="list to write, .csv or .parquet")
    parser.add_argument("--full", action="store_true", help="decode every frame")
    parser.add_argument("--headers_only", action="store_true", help="no pass over the packets: twice as fast")
    parser.add_argument("--root", metavar="DIR", help="where relative paths of a list start (the list's directory)")
    parser.add_argument("--format", default="auto", help="of the list, as data.source.format (auto)")
    parser.add_argument("--num_workers", type=positive, metavar="N", help="processes (one a core)")
    parser.add_argument("--timeout_seconds", type=float, default=60.0, metavar="S", help="for one file (60)")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    parser.set_defaults(action="scan")


def _add_prepare(commands: Commands) -> None:
    parser = commands.add_parser(
        "prepare",
        help="cut, scale and re-encode videos so that clips decode fast; tar shards",
        description="Write videos anew: cut to their segments, short side at most 320 px, a key frame every 32 frames, "
        "and a list of them that fit and test read. A call that was stopped goes on where it stood; what cannot be "
        "read is named in failed.csv.",
    )
    parser.add_argument("list", metavar="LIST", help="a list, folder or official Kinetics csv")
    parser.add_argument("out", metavar="OUT", help="directory to write; it is made")
    parser.add_argument("--root", metavar="DIR", help="where relative paths of the list start (the list's directory)")
    parser.add_argument("--raw", metavar="DIR", help="whole videos as downloaded, ID.mp4, of a Kinetics csv")
    parser.add_argument("--format", default="auto", help="of the list, as data.source.format (auto)")
    parser.add_argument("--short_side_px", type=positive, default=320, metavar="PX", help="at most (320)")
    parser.add_argument("--key_frame_interval", type=positive, default=32, metavar="N", help="frames (32)")
    parser.add_argument("--crf", type=float, default=20, help="x264's quality: lower is better and larger (20)")
    parser.add_argument("--shards", type=positive, metavar="N", help="pack N videos into each of tar files")
    parser.add_argument("--copy", action="store_true", help="with --shards: pack the files as they are")
    parser.add_argument("--num_workers", type=positive, metavar="N", help="processes (one a core)")
    parser.add_argument("--overwrite", action="store_true", help="make anew what is there")
    parser.set_defaults(action="prepare")


def _add_show(commands: Commands) -> None:
    parser = commands.add_parser(
        "show",
        help="what the network sees: a picture of clips after augmentation",
        description="Write a contact sheet (PNG) of training clips after augmentation and of all views of test videos, "
        "with file, class, frames, times and crop. Further words are settings, as of fit: --data.train videos",
    )
    parser.add_argument("config", metavar="CONFIG", help="a config, as of fit")
    parser.add_argument("--output", default="clips.png", metavar="FILE", help="the picture (clips.png)")
    parser.add_argument("--num_train", type=not_negative, default=8, metavar="N", help="training clips (8)")
    parser.add_argument("--num_test", type=not_negative, default=2, metavar="N", help="test videos (2)")
    parser.add_argument("--epoch", type=not_negative, default=0, metavar="N", help="of the training clips (0)")
    parser.set_defaults(action="show")


def _study_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="video-gn study",
        description="Train and test every combination of a study's norms, batch sizes, clips and seeds, each in a run "
        "directory of its own, then write study.csv, table.md and figures. A study that was stopped goes on where it "
        "stood; a cell that is finished is not run again. Further words are settings of every cell, as of fit: "
        "--data.train videos",
        epilog="Exit status: 0 where no cell failed, 1 where one did or nothing can be collected, 2 for bad settings. "
        "As SLURM array jobs: --cell $SLURM_ARRAY_TASK_ID, and --collect when they are done.",
        # A fit setting must not be taken for a short form of one of these.
        allow_abbrev=False,
    )
    parser.add_argument("-c", "--config", required=True, metavar="STUDY", help="a study, such as configs/study/*.yaml")
    parser.add_argument("--out", metavar="DIR", help="directory of the study (runs/study/<the file's stem>)")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--cell", metavar="I[/N]", help="run cell I alone, or the I-th of N parts; from 0")
    action.add_argument(
        "--list", action="store_const", const="list", dest="action", help="list the cells and their states"
    )
    action.add_argument(
        "--collect", action="store_const", const="collect", dest="action", help="run nothing; table and figures alone"
    )

    def run(options: argparse.Namespace) -> int:
        from video_gn.commands.actions import run_study

        return run_study(options)

    parser.set_defaults(run=run, action="study")
    return parser


def _report_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="video-gn report", description="Write RUN_DIR/report.html from a run's files."
    )
    parser.add_argument("run_dir", metavar="RUN_DIR")

    def run(options: argparse.Namespace) -> int:
        from video_gn.commands.actions import run_report

        return run_report(options)

    parser.set_defaults(run=run)
    return parser


def _bench_parser() -> argparse.ArgumentParser:
    from video_gn.bench.options import add_commands

    parser = argparse.ArgumentParser(prog="video-gn bench", description="Measure speed, side by side in one run.")
    add_commands(parser)

    def run(options: argparse.Namespace) -> int:
        from video_gn.commands.actions import run_bench

        return run_bench(options)

    parser.set_defaults(run=run)
    return parser


def _weights_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="video-gn weights",
        description="Look into weight files, and convert them. Nothing in a file is executed. In place of a FILE, "
        "timm:NAME, torchvision:NAME and pytorchvideo:NAME fetch a package's weights.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    inspect = commands.add_parser(
        "inspect",
        help="format, tensors, norms, layout, classes and preprocessing",
        description="Tell what a weight file holds and what network it is of.",
    )
    inspect.add_argument("file", metavar="FILE")
    inspect.add_argument("--tensors", action="store_true", help="list every tensor")
    inspect.add_argument("--format", default="auto", help="read it as this zoo's (auto)")
    convert = commands.add_parser(
        "convert",
        help="to .safetensors, .ckpt, .pyth or .pth",
        description="Write weights in another form: DST.safetensors and DST.ckpt bear this package's names and what "
        "the network is, DST.pyth pytorchvideo's names, DST.pth torchvision's. An image network is inflated.",
    )
    convert.add_argument("source", metavar="SRC")
    convert.add_argument("target", metavar="DST")
    convert.add_argument(
        "--names", choices=("video_gn", "pytorchvideo", "torchvision"), help="other than DST's ending says"
    )
    convert.add_argument("--format", default="auto", help="read SRC as this zoo's (auto)")
    convert.add_argument("--layout", choices=LAYOUTS, help="of a file that does not tell it (nonlocal)")
    convert.add_argument("--labels", metavar="FILE", help="class names to store: a name a line, or json")
    convert.add_argument("--overwrite", action="store_true", help="replace DST")

    def run(options: argparse.Namespace) -> int:
        from video_gn.commands.actions import run_weights

        return run_weights(options)

    parser.set_defaults(run=run)
    return parser


# Actions that hand further words on, as settings of fit.
_TAKE_SETTINGS = ("show", "study", "list", "collect")
_PARSERS = {
    "infer": _infer_parser,
    "data": _data_parser,
    "weights": _weights_parser,
    "study": _study_parser,
    "report": _report_parser,
    "bench": _bench_parser,
}


if __name__ == "__main__":
    sys.exit(main())
