"""Writes a run's page, `report.html`: one file that can be mailed, runs no script and loads nothing."""

from __future__ import annotations

from pathlib import Path

from video_gn.files import write_text
from video_gn.report.page import build_page
from video_gn.report.reading import read_run
from video_gn.run.directory import REPORT

__all__ = ["write_report"]


def write_report(run_dir: Path) -> Path:
    """Write a run directory's report.html from the files in it.

    Any of config.yaml, metrics.csv and the test's files may be missing or damaged: the page says so. The
    file appears under its name only when it is complete.

    Args:
        run_dir: Run directory of a `fit` or `test`.

    Returns:
        The path of the page.

    Raises:
        RunError: if the directory does not exist, or holds none of these files.
    """
    run_dir = Path(run_dir)
    page = build_page(read_run(run_dir))
    target = run_dir / REPORT
    write_text(target, page)
    return target
