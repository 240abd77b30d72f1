"""`video-gn weights` shows and converts weight files; `export` writes networks for other engines, `hub` shares them."""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_gn.commands._options import Options, add_view_options, check_auto_or, labels_of, picked
from video_gn.commands._terminal import print_text, set_up_logging, with_progress
from video_gn.models import LAYOUTS
from video_gn.shown import count

if TYPE_CHECKING:
    from video_gn.export import Quantized

log = logging.getLogger(__name__)


def main(command: str, words: Sequence[str]) -> int:
    """Parse the words and run the command; see `video_gn.__main__`."""
    if command == "export":
        return _export(_export_parser().parse_args(words))
    if command == "hub":
        return _hub(_hub_parser().parse_args(words))
    parser = Options(
        prog="video-gn weights",
        description="Look into weight files, and convert them. Nothing in a file is executed. In place of a FILE, "
        "timm:NAME, torchvision:NAME and pytorchvideo:NAME fetch a package's weights, hf:OWNER/NAME a repository's.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_inspect(commands)
    _add_convert(commands)
    options = parser.parse_args(words)
    set_up_logging()

    from video_gn.weights import FORMATS

    check_auto_or("format", options.format, FORMATS)
    run: int = options.run(options)
    return run


# ---- inspect -------------------------------------------------------------------------------------


def _add_inspect(commands: Any) -> None:
    parser = commands.add_parser(
        "inspect",
        help="format, tensors, norms, layout, classes and preprocessing",
        description="Show what a weight file holds, and which network it belongs to.",
    )
    parser.add_argument("file", metavar="FILE", help="weight file, or exported .onnx")
    parser.add_argument("--tensors", action="store_true", help="list every tensor of weights")
    parser.add_argument("--format", default="auto", help="zoo whose format the file has (auto)")
    parser.set_defaults(run=_inspect)


def _inspect(options: argparse.Namespace) -> int:
    from video_gn.run.directory import checkpoint_of
    from video_gn.weights.inspect import inspect

    if Path(options.file).suffix == ".onnx":
        from video_gn.export.reading import describe_onnx

        print_text(describe_onnx(Path(options.file)))
        return 0
    print_text(inspect(checkpoint_of(options.file), format=options.format, tensors=options.tensors))
    return 0


# ---- convert -------------------------------------------------------------------------------------


def _add_convert(commands: Any) -> None:
    parser = commands.add_parser(
        "convert",
        help="to .safetensors, .ckpt, .pyth or .pth",
        description="Write weights in another format: DST.safetensors and DST.ckpt have this package's tensor names "
        "and describe the network, DST.pyth has pytorchvideo's names, DST.pth torchvision's. An image network is "
        "inflated.",
    )
    parser.add_argument("source", metavar="SRC", help="weight file to read")
    parser.add_argument("target", metavar="DST", help="weight file to write")
    parser.add_argument(
        "--names", choices=("video_gn", "pytorchvideo", "torchvision"), help="tensor names (those of DST's suffix)"
    )
    parser.add_argument("--format", default="auto", help="zoo whose format SRC has (auto)")
    parser.add_argument("--layout", choices=sorted(LAYOUTS), help="layout, if the file does not say (nonlocal)")
    parser.add_argument("--labels", metavar="FILE", help="class names to store: one a line, or json")
    parser.add_argument("--overwrite", action="store_true", help="replace DST")
    parser.set_defaults(run=_convert)


def _convert(options: argparse.Namespace) -> int:
    from video_gn.run.directory import checkpoint_of
    from video_gn.weights.convert import convert

    settings = picked(options, "names", "format", "layout", "overwrite")
    report = convert(checkpoint_of(options.source), options.target, labels=labels_of(options), **settings)
    print_text(report.text())
    log.info("weights: %s", options.target)
    return 0


# ---- export --------------------------------------------------------------------------------------


def _export_parser() -> Options:
    parser = Options(
        prog="video-gn export",
        description="Write a network for use outside torch: one file that takes pixels and gives scores, with its "
        "classes, clip and views. Its results are compared with torch's first; where they differ, nothing is written.",
        epilog="Exit status: 0; 2 for bad arguments, or results that differ; 3 if a video could not be read.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="run directory, checkpoint or any zoo's weights")
    parser.add_argument("target", metavar="OUT", help="file to write: .onnx, or .pt2 (torch.export)")
    parser.add_argument("--check", nargs="+", default=[], metavar="VIDEO", help="videos to compare beside random clips")
    parser.add_argument(
        "--int8",
        metavar="LIST",
        help="quantize to int8, and measure what that costs on a labelled list or folder: its part train calibrates "
        "and val is scored, or without parts some videos calibrate and the others are scored",
    )
    parser.add_argument(
        "--most_lost", type=float, default=0.01, metavar="FRACTION", help="top-1 that int8 may lose (0.01)"
    )
    add_view_options(parser)
    return parser


def _export(options: argparse.Namespace) -> int:
    set_up_logging()

    from video_gn.errors import ConfigError, DecodeError
    from video_gn.export import check_list, export, load_nncf, quantize

    target = Path(options.target)
    if options.int8:
        if target.suffix != ".onnx":
            raise ConfigError(f"the target must end in .onnx with --int8, got {options.target!r}. Rename it.")
        if not 0 <= options.most_lost <= 1:
            raise ConfigError(
                f"--most_lost must be in [0, 1], got {options.most_lost}. It is a fraction of the videos."
            )
        load_nncf()
        check_list(options.int8)
    with tempfile.TemporaryDirectory(prefix="video-gn-export-") as directory:
        plain = Path(directory) / "float32.onnx" if options.int8 else target
        try:
            settings = picked(options, "layout", "num_clips", "crops")
            found = export(options.checkpoint, plain, labels=labels_of(options), videos=options.check, **settings)
        except DecodeError as error:
            log.error("%s could not be read: %s", error.path, error.reason)
            return 3
        for parity in found:
            own = f" of float64's, torch's own {parity.own_error:.1e}" if parity.own_error else ""
            print_text(f"{parity.engine}, {parity.clips}: same label, relative error {parity.error:.1e}{own}")
        if options.int8:
            for found_by in quantize(plain, target, options.int8, most_lost=options.most_lost, progress=with_progress):
                print_text(_gain(found_by))
    log.info("exported: %s", options.target)
    return 0


def _gain(found: Quantized) -> str:
    (before, after), (slow, fast), (large, small) = found.top1, found.seconds, found.megabytes
    return (
        f"{found.engine}, float32 to int8: top-1 {before:.3f} to {after:.3f} on {count(found.num_videos, 'video')}; "
        f"{1000 * slow:.0f} ms to {1000 * fast:.0f} ms a video, {slow / fast:.2f} times as fast; "
        f"{large:.1f} MB to {small:.1f} MB"
    )


# ---- hub -----------------------------------------------------------------------------------------


def _hub_parser() -> Options:
    parser = Options(
        prog="video-gn hub",
        description="Share a run's best checkpoint: model.safetensors, config.json and a model card, README.md. "
        "--checkpoint hf:OWNER/NAME takes it from the Hugging Face Hub.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    save = commands.add_parser("save", help="to a directory, to look at and to edit", description="Write the files.")
    save.add_argument("source", metavar="RUN_DIR", help="run directory")
    save.add_argument("target", metavar="DIR", help="directory to write, new or empty")
    save.set_defaults(public=None)
    push = commands.add_parser(
        "push",
        help="to the Hugging Face Hub",
        description="Push the files in one commit. Log in first: hf auth login, or set HF_TOKEN.",
    )
    push.add_argument("source", metavar="RUN_DIR", help="run directory, or a directory of `hub save`")
    push.add_argument("target", metavar="OWNER/NAME", help="repository; made if it is not there")
    push.add_argument("--public", action="store_true", help="make a new repository public (private)")
    for one in (save, push):
        one.add_argument("--license", metavar="ID", help="license of the weights, such as apache-2.0 (none is stated)")
    return parser


def _hub(options: argparse.Namespace) -> int:
    set_up_logging()

    from video_gn.hub import push, save

    if options.public is None:
        save(options.source, options.target, license=options.license)
        log.info("saved: %s", options.target)
    else:
        address = push(options.source, options.target, public=options.public, license=options.license)
        log.info("pushed: %s", address)
    return 0
