"""Writes the page of a run, `report.html`, or of several side by side.

A page is one file that can be mailed, runs no script and loads nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from video_gn.damage import set_damaged_aside
from video_gn.files import write_text
from video_gn.report.comparison import build_comparison
from video_gn.report.page import build_page
from video_gn.report.reading import read_run
from video_gn.run.directory import REPORT

__all__ = ["write_comparison", "write_report"]


def write_report(
    run_dir: Path,
    *,
    frames: bool = False,
    validation: Path | None = None,
    num_explained: int = 0,
    output: Path | None = None,
) -> Path:
    """Write a run directory's report.html from the files in it, or the same page as `output`.

    Any of config.yaml, metrics.csv and the test's files may be missing or damaged: the page says so, and links that
    lead out of the directory are not followed. It is written whole or not at all.

    `frames` puts frames of some test videos into it, read in other processes: a script that asks
    for them needs `if __name__ == "__main__"`.

    `validation` is a run directory whose test was of validation videos: a temperature is fitted on their scores.

    `num_explained` videos, the most confident mistakes and then the hardest, get a picture of where the network looks.

    Raises:
        CheckpointError: if they have to be explained, and the run has no checkpoint.
        RunError: if the directory does not exist or holds none of these files, or the validation's are of no use.
    """
    run_dir = Path(run_dir)
    run, val = read_run(run_dir), None if validation is None else read_run(Path(validation), "--validation")
    page, path = build_page(run, frames=frames, validation=val, num_explained=num_explained), run_dir / REPORT
    if output is None and path.is_dir():
        set_damaged_aside(path, "it is a directory", "The page takes its place.")
    write_text(output or path, page)
    return output or path


def write_comparison(run_dirs: Sequence[Path], output: Path, *, frames: bool = False) -> Path:
    """Write the page of several tested runs, each against the first; `frames` as in `write_report`.

    Raises:
        RunError: if one of them is no run, has no predictions, or tested other videos, labels or classes.
    """
    write_text(output, build_comparison([read_run(Path(run_dir)) for run_dir in run_dirs], frames=frames))
    return output
