"""The options of `video-gn bench`. Nothing heavy is imported, so that help answers at once."""

from __future__ import annotations

import argparse
from typing import Any

from video_gn.checks import LAYOUTS, positive

FORMATS = ("contiguous", "channels_last_3d")
PRECISIONS = ("float32", "bfloat16")
# Name, default, what: the defaults of `EvalSetup`, which imports torch; a test compares them.
_TEST_SIZES = (
    ("num_videos", 8, "videos of a test"),
    ("num_clips", 10, "of a video"),
    ("frames", 8, "of a clip"),
    ("size", 112, "height and width, px"),
    ("width", 64, "channels of the stem"),
    ("num_processes", 2, "that share the videos out"),
    ("rounds", 5, "rounds, each of one process and of several"),
)


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add data, weights, test and train.

    Args:
        parser: of `video-gn bench`.
    """
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_data(commands)
    _add_weights(commands)
    _add_test(commands)
    _add_train(commands)


def _add_data(commands: Any) -> None:
    data = commands.add_parser(
        "data", help="decoding and clips: ratios of medians", description="Ratios of the data path's medians."
    )
    data.add_argument("videos", nargs="*", metavar="VIDEO", help="files to measure on (a 10 s, 340x256 video is made)")
    data.add_argument("--rounds", type=positive, default=5, metavar="N", help="rounds, each of every contender (5)")
    data.add_argument("--peers", action="store_true", help="other projects' ways too, those that are installed")
    data.add_argument("--output", metavar="FILE", help="write the figures as .json")


def _add_weights(commands: Any) -> None:
    weights = commands.add_parser(
        "weights", help="loading of weight files", description="Loading of weight files, against plain loaders."
    )
    weights.add_argument("--rounds", type=positive, default=5, metavar="N", help="rounds, each of every contender (5)")
    weights.add_argument("--output", metavar="FILE", help="write the figures as .json")


def _add_test(commands: Any) -> None:
    test = commands.add_parser("test", help="what several processes save of a test's time, one thread each")
    test.add_argument("videos", nargs="*", metavar="VIDEO", help="files to read (a 10 s, 340x256 video is made)")
    for name, value, what in _TEST_SIZES:
        test.add_argument(f"--{name}", type=positive, default=value, metavar="N", help=f"{what} ({value})")
    test.add_argument("--output", metavar="FILE", help="write the figures as .json")


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="a training step of each norm: time and memory",
        description="A training step's time and peak memory for each norm, against Batch Norm and pytorchvideo's "
        "i3d_r50 as it comes. All of it takes tens of minutes on a CPU; fewer norms, formats or rounds take less.",
    )
    train.add_argument("--num_clips", type=positive, default=2, metavar="N", help="clips of a step (2)")
    train.add_argument("--frames", type=positive, default=32, metavar="N", help="of a clip (32)")
    train.add_argument("--size", type=positive, default=224, metavar="PX", help="height and width (224)")
    train.add_argument("--width", type=positive, default=64, metavar="N", help="channels of the stem (64)")
    train.add_argument(
        "--layout",
        choices=LAYOUTS,
        default="slowfast",
        help="of our nets; pytorchvideo's is measured with slowfast alone (slowfast)",
    )
    train.add_argument("--norms", nargs="+", default=(), metavar="NORM", help="such as batch group (all)")
    train.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS, help="memory formats (both)")
    train.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS, help="by autocast (both)")
    train.add_argument(
        "--compile", action="store_true", help="compiled nets too, channels_last_3d; a minute or more for each"
    )
    train.add_argument("--no_memory", action="store_true", help="leave the memory out")
    train.add_argument("--keep_memory", action="store_true", help="keep freed memory on a CPU, as fit does")
    train.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (auto)")
    train.add_argument("--rounds", type=positive, default=5, metavar="N", help="rounds, each of every contender (5)")
    train.add_argument("--output", "--json", metavar="FILE", help="write the figures as .json")
