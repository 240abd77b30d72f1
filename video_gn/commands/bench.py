"""`video-gn bench`: measures speed, side by side in one run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from video_gn.checks import positive
from video_gn.commands._options import Options
from video_gn.commands._terminal import set_up_logging
from video_gn.files import check_place, write_json
from video_gn.models import LAYOUTS

# Sizes of `EvalSetup`: name, default, what.
_TEST_SIZES = (
    ("num_videos", 8, "videos of a test"),
    ("num_clips", 10, "clips of a video"),
    ("frames", 8, "frames of a clip"),
    ("size", 112, "height and width, px"),
    ("width", 64, "channels of the stem"),
    ("num_processes", 2, "processes that share the videos"),
)

# Sizes of `InferSetup`, as above.
_INFER_SIZES = (
    ("num_videos", 3, "videos"),
    ("num_clips", 10, "clips of a video"),
    ("frames", 8, "frames of a clip, which spans 64 of the video"),
    ("size", 224, "height and width, px"),
    ("width", 64, "channels of the stem"),
)

# What is written as json, and the page to print.
Figures = tuple[dict[str, Any], str]


def main(command: str, words: Sequence[str]) -> int:
    """Parse the words and run the command; see `video_gn.__main__`."""
    parser = Options(prog="video-gn bench", description="Measure speed, side by side in one run.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_data, _add_weights, _add_start, _add_infer, _add_test, _add_train, _add_fit):
        added = add(commands)
        added.add_argument("--rounds", type=positive, default=5, metavar="N", help="rounds, each of all contenders (5)")
        added.add_argument("--output", "--json", metavar="FILE", help="json file to write the figures to")
    options, others = parser.parse_known_args(words)
    if options.run is _fit:
        options.words = others
    elif others:
        parser.parse_args(words)  # it names the first of them
    set_up_logging()
    if options.output is not None:
        check_place(Path(options.output))
    result, page = options.run(options)
    sys.stdout.write(page)
    if options.output is not None:
        settings = {name: value for name, value in vars(options).items() if name not in ("run", "output")}
        write_json(options.output, {"command": words[0], "settings": settings, **result})
    return 0


# ---- data ----------------------------------------------------------------------------------------


def _add_data(commands: Any) -> Options:
    parser: Options = commands.add_parser(
        "data", help="decoding and clips: ratios of medians", description="Ratios of the data path's medians."
    )
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="files to measure on (a made one: 10 s, 340x256)")
    parser.add_argument("--peers", action="store_true", help="also measure the other projects that are installed")
    parser.set_defaults(run=_data)
    return parser


def _data(options: argparse.Namespace) -> Figures:
    from video_gn.bench.data import bench_data, format_page

    result = bench_data(options.videos, rounds=options.rounds, peers=options.peers)
    return result, format_page(result)


# ---- weights -------------------------------------------------------------------------------------


def _add_weights(commands: Any) -> Options:
    parser: Options = commands.add_parser(
        "weights", help="loading of weight files", description="Loading of weight files, against plain loaders."
    )
    parser.set_defaults(run=_weights)
    return parser


def _weights(options: argparse.Namespace) -> Figures:
    from video_gn.bench.weights import bench_weights, format_page

    result = bench_weights(rounds=options.rounds)
    return result, format_page(result)


# ---- start ---------------------------------------------------------------------------------------


def _add_start(commands: Any) -> Options:
    parser: Options = commands.add_parser(
        "start", help="CPU time before a command works", description="CPU time that commands take before they work."
    )
    parser.set_defaults(run=_start)
    return parser


def _start(options: argparse.Namespace) -> Figures:
    from video_gn.bench.start import bench_start, format_page

    result = bench_start(rounds=options.rounds)
    return result, format_page(result)


# ---- infer ---------------------------------------------------------------------------------------


def _add_infer(commands: Any) -> Options:
    parser: Options = commands.add_parser(
        "infer",
        help="from video files to labels on a CPU, against pytorchvideo",
        description="Time from video files to labels on a CPU, against pytorchvideo with the same weights and scores.",
    )
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="files to label (a made one: 10 s, 340x256)")
    for name, value, what in _INFER_SIZES:
        parser.add_argument(f"--{name}", type=positive, default=value, metavar="N", help=f"{what} ({value})")
    parser.add_argument(
        "--every", type=float, metavar="SECONDS", help="measure timelines instead, against reading and network alone"
    )
    parser.add_argument(
        "--engines",
        action="store_true",
        help="also export the network, and measure each other engine that is installed",
    )
    parser.set_defaults(run=_infer)
    return parser


def _infer(options: argparse.Namespace) -> Figures:
    from video_gn.bench.infer import InferSetup, bench_infer, format_page

    setup = InferSetup(**{name: getattr(options, name) for name, _, _ in _INFER_SIZES})
    if options.every is not None:
        from video_gn.bench import timelines

        found = timelines.bench_timelines(setup, options.every, videos=options.videos, rounds=options.rounds)
        return found, timelines.format_page(found)
    result = bench_infer(setup, videos=options.videos, rounds=options.rounds, engines=options.engines)
    return result, format_page(result)


# ---- test ----------------------------------------------------------------------------------------


def _add_test(commands: Any) -> Options:
    parser: Options = commands.add_parser("test", help="what several processes save of a test's time, one thread each")
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="files to read (a made one: 10 s, 340x256)")
    for name, value, what in _TEST_SIZES:
        parser.add_argument(f"--{name}", type=positive, default=value, metavar="N", help=f"{what} ({value})")
    parser.set_defaults(run=_test)
    return parser


def _test(options: argparse.Namespace) -> Figures:
    from video_gn.bench.test import EvalSetup, bench_test, format_page

    setup = EvalSetup(**{name: getattr(options, name) for name, _, _ in _TEST_SIZES})
    result = bench_test(setup, videos=options.videos, rounds=options.rounds)
    return result, format_page(result)


# ---- train ---------------------------------------------------------------------------------------


def _add_train(commands: Any) -> Options:
    parser: Options = commands.add_parser(
        "train",
        help="a training step of each norm: time and memory",
        description="A training step's time and peak memory for each norm, against Batch Norm and pytorchvideo's "
        "i3d_r50 as it comes. All of it takes tens of minutes on a CPU; fewer norms, formats or rounds take less.",
    )
    parser.add_argument("--num_clips", type=positive, default=2, metavar="N", help="clips of a step (2)")
    parser.add_argument("--frames", type=positive, default=32, metavar="N", help="frames of a clip (32)")
    parser.add_argument("--size", type=positive, default=224, metavar="PX", help="height and width (224)")
    parser.add_argument("--width", type=positive, default=64, metavar="N", help="channels of the stem (64)")
    parser.add_argument(
        "--layout",
        choices=sorted(LAYOUTS),
        default="slowfast",
        help="layout of our nets; pytorchvideo's is measured with slowfast alone (slowfast)",
    )
    parser.add_argument("--norms", nargs="+", default=(), metavar="NORM", help="norms, such as batch group (all)")
    parser.add_argument(
        "--formats", nargs="+", default=(), metavar="FORMAT", help="memory formats: contiguous, channels_last_3d (both)"
    )
    parser.add_argument(
        "--precisions",
        nargs="+",
        default=(),
        metavar="PRECISION",
        help="float32, bfloat16 by autocast; on CUDA also tf32, float16 (all)",
    )
    parser.add_argument(
        "--compile", action="store_true", help="also compile nets, channels_last_3d; a minute or more for each"
    )
    parser.add_argument("--no_memory", action="store_true", help="do not measure memory")
    parser.add_argument("--keep_memory", action="store_true", help="keep freed memory on a CPU, as fit does")
    parser.add_argument("--device", default="auto", help="device: auto, cpu, cuda, cuda:1 (auto)")
    parser.set_defaults(run=_train)
    return parser


def _train(options: argparse.Namespace) -> Figures:
    from video_gn.bench.train import TrainSetup, bench_train, format_page
    from video_gn.run.memory import keep_freed_memory

    setup = TrainSetup(**{name: getattr(options, name) for name in TrainSetup.__slots__})
    if options.keep_memory and not setup.on_cuda:
        keep_freed_memory()
    result = bench_train(
        setup,
        norms=options.norms,
        formats=options.formats,
        precisions=options.precisions,
        compiled=options.compile,
        memory=not options.no_memory,
        rounds=options.rounds,
    )
    return result, format_page(result)


# ---- fit -----------------------------------------------------------------------------------------


def _add_fit(commands: Any) -> Options:
    parser: Options = commands.add_parser(
        "fit",
        help="a training's loop, against a bare one, and its wait for videos",
        description="Run a short training with the settings of `video-gn fit`, such as -c CONFIG --data.train videos, "
        "and measure its steps: on batches in memory, against a bare loop of the same network and optimizer; and on "
        "videos, with the time that a step waits for them.",
    )
    parser.add_argument("--steps", type=positive, default=20, metavar="N", help="steps of a round (20)")
    parser.set_defaults(run=_fit)
    return parser


def _fit(options: argparse.Namespace) -> Figures:
    from video_gn.bench.fit import bench_fit, format_page

    result = bench_fit(options.words, steps=options.steps, rounds=options.rounds)
    return result, format_page(result)
