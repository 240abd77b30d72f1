"""`video-gn report`: writes the page of a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from video_gn.commands._options import Options
from video_gn.commands._terminal import set_up_logging

log = logging.getLogger(__name__)


def main(command: str, words: Sequence[str]) -> int:
    """Parse the words and run the command; see `video_gn.__main__`."""
    parser = Options(prog="video-gn report", description="Write RUN_DIR/report.html from a run's files.")
    parser.add_argument("run_dir", metavar="RUN_DIR", help="run directory")
    parser.add_argument(
        "--no_frames", action="store_true", help="leave out frames of the videos, such as in a page for others"
    )
    options = parser.parse_args(words)
    set_up_logging()

    from video_gn.report import write_report
    from video_gn.run.directory import RunDirectory

    RunDirectory(options.run_dir).settle_after_kill()
    log.info("report: %s", write_report(Path(options.run_dir), frames=not options.no_frames))
    return 0
