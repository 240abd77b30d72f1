"""`video-gn study`: trains and tests every cell of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from video_gn.commands._options import Options, missing_config
from video_gn.commands._terminal import set_up_logging
from video_gn.errors import ConfigError, StoppedError


def main(command: str, words: Sequence[str]) -> int:
    """Parse the words and run the command; see `video_gn.__main__`."""
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
            return run_study(
                options.config,
                out=options.out,
                words=settings,
                cell=options.cell,
                quick=options.quick,
                action=options.action,
            )
    except StoppedError as error:
        hint = "The same command resumes from the last checkpoint."
        raise StoppedError(f"{error} {hint}", status=error.status) from error
