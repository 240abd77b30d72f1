"""`video-gn report` writes the page of a run or of several, `card` its model card; `study` runs a comparison."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from video_gn.checks import positive
from video_gn.commands._options import Options, missing_config, picked
from video_gn.commands._terminal import set_up_logging
from video_gn.errors import ConfigError, StoppedError
from video_gn.files import check_place

log = logging.getLogger(__name__)


def main(command: str, words: Sequence[str]) -> int:
    """Parse the words and run the command; see `video_gn.__main__`."""
    return {"report": _report, "study": _study, "card": _card}[command](words)


def _report(words: Sequence[str]) -> int:
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


def _card(words: Sequence[str]) -> int:
    parser = Options(
        prog="video-gn card",
        description="Write RUN_DIR/card.md: a model card of the run's best checkpoint, for others. Its figures are "
        "those of a test of this very checkpoint; of the disk's paths it holds the names of lists alone.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="run directory")
    parser.add_argument("--license", metavar="ID", help="license of the weights, such as apache-2.0 (none is stated)")
    options = parser.parse_args(words)
    set_up_logging()

    from video_gn.files import write_text
    from video_gn.hub import build_card
    from video_gn.run.directory import CARD

    card, untested = build_card(options.run_dir, license=options.license)
    if untested:
        log.warning("Not tested: %s Test it first: video-gn test --run_dir %s", untested, options.run_dir)
    write_text(options.run_dir / CARD, card)
    log.info("card: %s", options.run_dir / CARD)
    return 0


def _study(words: Sequence[str]) -> int:
    parser = Options(
        prog="video-gn study",
        description="Train and test every combination of a study's norms, batch sizes, clips and seeds, each in its "
        "own run directory, then write study.csv, table.md and figures. The same command resumes a stopped study; "
        "finished cells are not run again. Further words are settings of every cell, as of fit: --data.train videos",
        epilog="Exit status: 0 if no cell failed, 1 if one did or nothing can be collected, 2 for bad settings, "
        "128 + N for signal N. As SLURM array jobs: --cell $SLURM_ARRAY_TASK_ID, and --collect when they are done.",
        takes_settings=True,
    )
    parser.add_argument("-c", "--config", required=True, metavar="STUDY", help="study, such as configs/study/*.yaml")
    parser.add_argument("--out", metavar="DIR", help="directory of the study (runs/study/<the file's stem>)")
    action = parser.add_mutually_exclusive_group()
    parser.add_argument(
        "--quick", action="store_true", help="only the first seed, the largest and the smallest batch size"
    )
    action.add_argument("--cell", metavar="I[/N]", help="run cell I alone, or part I of N parts; from 0")
    action.add_argument(
        "--list", action="store_const", const="list", dest="action", help="list the cells and their states"
    )
    action.add_argument(
        "--collect", action="store_const", const="collect", dest="action", help="run nothing; write table and figures"
    )
    parser.set_defaults(action="study")
    options, settings = parser.parse_known_args(words)
    set_up_logging()
    if not Path(options.config).is_file():
        raise ConfigError(missing_config(options.config, of_study=True))

    from video_gn.run.signals import StopFlag
    from video_gn.study import read_study, run_study

    if options.action == "study":
        from video_gn.commands._settings import config_parser

        base = read_study(options.config, settings).base_path
        config_parser("video-gn study", also=parser.names()).parse_args(["-c", str(base), *settings])
    try:
        with StopFlag().installed():
            return run_study(options.config, words=settings, **picked(options, "out", "cell", "quick", "action"))
    except StoppedError as error:
        hint = "The same command resumes from the last checkpoint."
        raise StoppedError(f"{error} {hint}", status=error.status) from error
