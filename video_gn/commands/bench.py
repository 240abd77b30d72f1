"""`video-gn bench`: measures speed, side by side in one run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from video_gn.checks import positive
from video_gn.commands._options import Options, picked
from video_gn.commands._terminal import set_up_logging
from video_gn.files import check_place, write_json
from video_gn.models import HUB_NETWORKS, I3D_NETWORK, LAYOUTS

# Figures to write as json, and the module of `video_gn.bench` that makes a page of them.
Measured = tuple[ModuleType, dict[str, Any]]

# Sizes of `EvalSetup`, `InferSetup` and `TrainSetup`: name, default, what.
_TEST_SIZES = (
    ("num_videos", 8, "videos of a test"),
    ("num_clips", 10, "clips of a video"),
    ("frames", 8, "frames of a clip"),
    ("size", 112, "height and width, px"),
    ("width", 64, "channels of the stem"),
    ("num_processes", 2, "processes that share the videos"),
)
_INFER_SIZES = (
    ("num_videos", 3, "videos"),
    ("num_clips", 10, "clips of a video"),
    ("frames", None, "frames of a clip, which spans about 64 of the video"),
    ("size", None, "height and width, px"),
    ("width", None, "channels of the stem"),
)
_TRAIN_SIZES = (
    ("num_clips", 2, "clips of a step"),
    ("frames", 32, "frames of a clip"),
    ("size", 224, "height and width, px"),
    ("width", 64, "channels of the stem"),
)


def main(command: str, words: Sequence[str]) -> int:
    """Parse the words and run the command; see `video_gn.__main__`."""
    parser = Options(prog="video-gn bench", description="Measure speed, side by side in one run.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (line, measure, add_options) in _BENCHES.items():
        one = commands.add_parser(name, help=line, description=measure.__doc__)
        if add_options is not None:
            add_options(one)
        one.add_argument("--rounds", type=positive, default=5, metavar="N", help="rounds, each of all contenders (5)")
        one.add_argument("--output", "--json", metavar="FILE", help="json file to write the figures to")
    options, others = parser.parse_known_args(words)
    if options.command == "fit":
        options.words = others
    elif others:
        parser.parse_args(words)  # it names the first of them
    set_up_logging()
    if options.output is not None:
        check_place(Path(options.output))
    _, measure, _ = _BENCHES[options.command]
    module, result = measure(options)
    sys.stdout.write(module.format_page(result))
    if options.output is not None:
        settings = {name: value for name, value in vars(options).items() if name not in ("command", "output")}
        write_json(options.output, {"command": options.command, "settings": settings, **result})
    return 0


def _add_videos(parser: Options) -> None:
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="files to read (a made one: 10 s, 340x256)")


def _add_sizes(parser: Options, sizes: Sequence[tuple[str, int | None, str]]) -> None:
    for name, value, what in sizes:
        shown = "the network's own" if value is None else value
        parser.add_argument(f"--{name}", type=positive, default=value, metavar="N", help=f"{what} ({shown})")


# ---- data, weights, start ------------------------------------------------------------------------


def _data_options(parser: Options) -> None:
    _add_videos(parser)
    parser.add_argument("--peers", action="store_true", help="also measure the other projects that are installed")


def _data(options: argparse.Namespace) -> Measured:
    """Ratios of the data path's medians."""
    from video_gn.bench import data

    return data, data.bench_data(options.videos, rounds=options.rounds, peers=options.peers)


def _weights(options: argparse.Namespace) -> Measured:
    """Loading of weight files, against plain loaders."""
    from video_gn.bench import weights

    return weights, weights.bench_weights(rounds=options.rounds)


def _start(options: argparse.Namespace) -> Measured:
    """CPU time that commands take before they work."""
    from video_gn.bench import start

    return start, start.bench_start(rounds=options.rounds)


# ---- infer, test ---------------------------------------------------------------------------------


def _infer_options(parser: Options) -> None:
    _add_videos(parser)
    parser.add_argument(
        "--network", choices=(I3D_NETWORK, *HUB_NETWORKS), default=I3D_NETWORK, help="network to measure (i3d)"
    )
    _add_sizes(parser, _INFER_SIZES)
    parser.add_argument(
        "--every", type=float, metavar="SECONDS", help="measure timelines instead, against reading and network alone"
    )
    parser.add_argument(
        "--engines", action="store_true", help="also export the network, and measure each engine that is installed"
    )


def _infer(options: argparse.Namespace) -> Measured:
    """Time from video files to labels on a CPU, against pytorchvideo with the same weights and scores."""
    from video_gn.bench import infer, timelines

    given = picked(options, *(name for name, _, _ in _INFER_SIZES))
    sizes = infer.SIZES[options.network] | {name: value for name, value in given.items() if value is not None}
    setup = infer.InferSetup(options.network, **sizes)
    common = picked(options, "videos", "rounds")
    if options.every is not None:
        return timelines, timelines.bench_timelines(setup, options.every, **common)
    return infer, infer.bench_infer(setup, engines=options.engines, **common)


def _test_options(parser: Options) -> None:
    _add_videos(parser)
    _add_sizes(parser, _TEST_SIZES)


def _test(options: argparse.Namespace) -> Measured:
    """What several processes save of a test's time, one thread each."""
    from video_gn.bench import test

    setup = test.EvalSetup(**picked(options, *(name for name, _, _ in _TEST_SIZES)))
    return test, test.bench_test(setup, videos=options.videos, rounds=options.rounds)


# ---- train, fit ----------------------------------------------------------------------------------


def _train_options(parser: Options) -> None:
    _add_sizes(parser, _TRAIN_SIZES)
    what = "layout of our nets; pytorchvideo's is measured with slowfast alone (slowfast)"
    parser.add_argument("--layout", choices=sorted(LAYOUTS), default="slowfast", help=what)
    for name, what in (
        ("norms", "norms, such as batch group (all)"),
        ("formats", "memory formats: contiguous, channels_last_3d (both)"),
        ("precisions", "float32, bfloat16 by autocast; on CUDA also tf32, float16 (all)"),
    ):
        parser.add_argument(f"--{name}", nargs="+", default=(), metavar=name.upper()[:-1], help=what)
    parser.add_argument(
        "--compile", action="store_true", help="also compile nets, channels_last_3d; a minute or more for each"
    )
    parser.add_argument("--no_memory", action="store_true", help="do not measure memory")
    parser.add_argument("--keep_memory", action="store_true", help="keep freed memory on a CPU, as fit does")
    parser.add_argument("--device", default="auto", help="device: auto, cpu, cuda, cuda:1 (auto)")


def _train(options: argparse.Namespace) -> Measured:
    """A training step's time and peak memory for each norm, against Batch Norm and pytorchvideo's i3d_r50 as it comes.

    All of it takes tens of minutes on a CPU; fewer norms, formats or rounds take less.
    """
    from video_gn.bench import train
    from video_gn.run.memory import keep_freed_memory

    setup = train.TrainSetup(**picked(options, *train.TrainSetup.__slots__))
    if options.keep_memory and not setup.on_cuda:
        keep_freed_memory()
    contenders = picked(options, "norms", "formats", "precisions", "rounds")
    memory = not options.no_memory
    return train, train.bench_train(setup, compiled=options.compile, memory=memory, **contenders)


def _fit_options(parser: Options) -> None:
    parser.add_argument("--steps", type=positive, default=20, metavar="N", help="steps of a round (20)")


def _fit(options: argparse.Namespace) -> Measured:
    """Run a short training with the settings of `video-gn fit`, such as -c CONFIG --data.train videos, and measure its
    steps: on batches in memory, against a bare loop of the same network and optimizer; and on videos, with the time
    that a step waits for them.
    """
    from video_gn.bench import fit

    return fit, fit.bench_fit(options.words, steps=options.steps, rounds=options.rounds)


# Name -> (line of the help, what measures, whose docstring is its description, and its options).
_BENCHES: dict[str, tuple[str, Callable[[argparse.Namespace], Measured], Callable[[Options], None] | None]] = {
    "data": ("decoding and clips: ratios of medians", _data, _data_options),
    "weights": ("loading of weight files", _weights, None),
    "start": ("CPU time before a command works", _start, None),
    "infer": ("from video files to labels on a CPU, against pytorchvideo", _infer, _infer_options),
    "test": ("what several processes save of a test's time, one thread each", _test, _test_options),
    "train": ("a training step of each norm: time and memory", _train, _train_options),
    "fit": ("a training's loop, against a bare one, and its wait for videos", _fit, _fit_options),
}
