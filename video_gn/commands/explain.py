"""`video-gn explain`: where and when a network looks in a video."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from video_gn.checks import positive
from video_gn.commands._options import Options, add_network_options, check_network_options, load_predictor
from video_gn.commands._terminal import counted, set_up_logging
from video_gn.errors import ConfigError, DecodeError
from video_gn.files import check_place, whole_file, write_json
from video_gn.shown import console, shown

if TYPE_CHECKING:
    from video_gn.explaining import Explanation

log = logging.getLogger(__name__)

_VIDEO_SUFFIXES = (".mp4", ".mkv")
_SUFFIXES = (*_VIDEO_SUFFIXES, ".png", ".json")


def main(command: str, words: Sequence[str]) -> int:
    """Parse the words and run the command; see `video_gn.__main__`."""
    options = _parser().parse_args(words)
    set_up_logging()
    outputs = [Path(name) for name in options.output]
    wrong = [path for path in outputs if path.suffix not in _SUFFIXES]
    if wrong:
        raise ConfigError(f"--output must end in {', '.join(_SUFFIXES)}, got {str(wrong[0])!r}. Choose one of these.")
    check_network_options(options)

    from video_gn.explaining import explain
    from video_gn.rendering.video import check_output

    try:
        for path in outputs:
            check_output(options.video, path) if path.suffix in _VIDEO_SUFFIXES else check_place(path)
        predictor = load_predictor(options)
        explanation = explain(
            predictor, options.video, options.label, num_windows=options.windows, backend=options.backend
        )
        _print_table(explanation)
        for path in outputs:
            _write(explanation, path)
    except DecodeError as error:
        log.error("%s could not be read: %s", error.path, error.reason)
        return 3
    return 0


def _parser() -> Options:
    parser = Options(
        prog="video-gn explain",
        description="Show where and when a network looks for a label in a video: heat over its frames (Grad-CAM), and "
        "the label's score with a part of the video hidden.",
        epilog="Exit status: 0; 2 for bad arguments; 3 if the video could not be read.",
    )
    parser.add_argument("video", metavar="VIDEO", help="video file")
    add_network_options(parser)
    parser.add_argument("--label", metavar="NAME", help="class to explain (the best one)")
    parser.add_argument(
        "--output",
        nargs="+",
        default=[],
        metavar="FILE",
        help="files to write: .mp4 or .mkv (the video with heat over it), .png (a strip of frames), .json",
    )
    parser.add_argument(
        "--windows", type=positive, default=8, metavar="N", help="parts of the video hidden one after the other (8)"
    )
    return parser


def _write(explanation: Explanation, path: Path) -> None:
    from video_gn.explaining import draw_strip, render_heat

    if path.suffix in _VIDEO_SUFFIXES:
        with counted("frames") as on_frame:
            render_heat(explanation, path, on_frame=on_frame)
    elif path.suffix == ".png":
        with whole_file(path, "wb") as file:
            draw_strip(explanation).save(file, "PNG")
    else:
        write_json(path, explanation.as_json())
    log.info("results: %s", path)


def _print_table(explanation: Explanation) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(f"{shown(explanation.label)} {explanation.score:.3f}"))
    table.add_column("seconds hidden", justify="right")
    table.add_column("score", justify="right")
    table.add_column("falls by", justify="right")
    for part in explanation.occlusion:
        without = part.score_without
        scores = ("in no clip", "") if without is None else (f"{without:.3f}", f"{explanation.score - without:z.3f}")
        table.add_row(f"{part.start_seconds:.1f}-{part.end_seconds:.1f}", *scores)
    console().print(table)
