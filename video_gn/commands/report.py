"""`video-gn report`: writes the page of a run, or of several side by side."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from video_gn.checks import positive
from video_gn.commands._options import Options
from video_gn.commands._terminal import set_up_logging
from video_gn.errors import ConfigError
from video_gn.files import check_place

log = logging.getLogger(__name__)


def main(command: str, words: Sequence[str]) -> int:
    """Parse the words and run the command; see `video_gn.__main__`."""
    parser = Options(
        prog="video-gn report",
        description="Write RUN_DIR/report.html from a run's files, or a page of several tested runs side by side.",
    )
    parser.add_argument(
        "run_dir",
        metavar="RUN_DIR",
        nargs="+",
        help="run directory; of several, the others are compared with the first",
    )
    parser.add_argument("--output", metavar="FILE.html", type=Path, help="page to write (default: RUN_DIR/report.html)")
    parser.add_argument(
        "--validation", metavar="DIR",
        help="run directory whose test was of validation videos, to fit a temperature of the scores on (default: "
        "cross-validation over the test's own videos)",
    )  # fmt: skip
    parser.add_argument(
        "--no_frames", action="store_true", help="leave out frames of the videos, such as in a page for others"
    )
    parser.add_argument(
        "--explain", type=positive, default=0, metavar="N",
        help="show where the network looks in N videos: the most confident mistakes, then the hardest (0)",
    )  # fmt: skip
    options = parser.parse_args(words)
    several = len(options.run_dir) > 1
    if several and options.output is None:
        raise ConfigError(
            "--output must be given with several runs, got none. Name the page, such as --output compare.html."
        )
    for name, value in (("--validation", options.validation), ("--explain", options.explain)):
        if several and value:
            raise ConfigError(f"{name} must stand with a single run. Write the page of each run by itself.")
    if options.output is not None and options.output.suffix != ".html":
        raise ConfigError(f"--output must end in .html, got {str(options.output)!r}. The page is one.")
    set_up_logging()
    if options.output is not None:
        check_place(options.output)

    from video_gn.report import write_comparison, write_report
    from video_gn.run.directory import RunDirectory

    for run_dir in options.run_dir:
        RunDirectory(run_dir).settle_after_kill()
    frames = not options.no_frames
    if several:
        path = write_comparison([Path(run_dir) for run_dir in options.run_dir], options.output, frames=frames)
    else:
        path = write_report(
            Path(options.run_dir[0]),
            frames=frames,
            validation=options.validation,
            num_explained=options.explain,
            output=options.output,
        )
    log.info("report: %s", path)
    return 0
