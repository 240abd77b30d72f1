"""Writes a run's page, `report.html`: one file that can be mailed, runs no script and loads nothing."""

from __future__ import annotations

from pathlib import Path

from video_gn.damage import set_damaged_aside
from video_gn.files import write_text
from video_gn.report.page import build_page
from video_gn.report.reading import read_run
from video_gn.run.directory import REPORT

__all__ = ["write_report"]


def write_report(run_dir: Path, *, frames: bool = False) -> Path:
    """Write a run directory's report.html from the files in it.

    Any of config.yaml, metrics.csv and the test's files may be missing or damaged: the page says so, and links that
    lead out of the directory are not followed. It is written whole or not at all.

    `frames` puts frames of some test videos into it, read in other processes: a script that asks
    for them needs `if __name__ == "__main__"`.

    Raises:
        RunError: if the directory does not exist, or holds none of these files.
    """
    run_dir = Path(run_dir)
    page, path = build_page(read_run(run_dir), frames=frames), run_dir / REPORT
    if path.is_dir():
        set_damaged_aside(path, "it is a directory", "The page takes its place.")
    write_text(path, page)
    return path
