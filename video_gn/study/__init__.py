"""Studies: norms x batch sizes x clips x seeds on any data, cell by cell, to a table and figures like the paper's.

Every cell is its own run directory, trained by `video-gn fit` and tested by `video-gn test`, each in its own
process. Finished cells are not run again, started ones resume.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from video_gn.errors import RunError
from video_gn.files import write_text
from video_gn.report.analysis import wilson_interval
from video_gn.shown import console as shown_console
from video_gn.study.cells import CellDirectory
from video_gn.study.collecting import Results, collect, spread, tested_once, write_csv
from video_gn.study.plan import Cell, Study, read_study
from video_gn.study.running import Runner, pick_cells, run_cells, run_child
from video_gn.study.table import markdown, print_tables, tables

if TYPE_CHECKING:
    from rich.console import Console

    from video_gn.report.study_figures import StudyData

__all__ = [
    "Cell", "CellDirectory", "Results", "Study", "collect", "list_cells", "pick_cells", "read_study", "run_cells",
    "run_study", "spread", "tables", "write_results",
]  # fmt: skip

log = logging.getLogger(__name__)


def run_study(
    path: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    words: Sequence[str] = (),
    cell: str | None = None,
    quick: bool = False,
    action: str = "study",
    runner: Runner = run_child,
) -> int:
    """Run `video-gn study`.

    `out` is by default runs/study/<the file's stem>, `words` are further settings of every cell, as of fit. `action` is
    "study", "list" or "collect"; with a `cell`, "I" or "I/N", a study runs a part and does not collect. `quick` takes
    only the first seed and the largest and smallest batch size, in the same directory.

    Returns:
        0, or 1 if a cell failed.

    Raises:
        ConfigError: for a file or settings that do not fit.
        RunError: for a single cell that another process runs, or if there is nothing to collect.
        StoppedError: after a signal, once the running command has ended.
    """
    study = read_study(path, words)
    study = study.quick() if quick else study
    out = Path("runs") / "study" / study.path.stem if out is None else Path(out)
    if action == "list":
        list_cells(study, out)
        return 0
    if action == "collect":
        write_results(study, out)
        return 0
    cells = study.cells if cell is None else pick_cells(study, cell)
    failures = run_cells(study, out, cells, runner=runner)
    if cell is None and any(CellDirectory(out, c).metrics.is_file() for c in study.cells):
        write_results(study, out)
    for failure in failures if len(cells) > 1 else ():
        log.error("failed: %s", failure)
    return 1 if failures else 0


def list_cells(study: Study, out: Path, console: Console | None = None) -> None:
    """Print the state of every pre-training, and number, name and state of every cell."""
    console = console or shown_console(soft_wrap=True)
    if study.pretrain is not None:
        for cell in study.pretrain.cells:
            text = f"     {cell.folder}/{cell.name}  {CellDirectory(out, cell).state(study.pretrain)}"
            console.print(text, markup=False, highlight=False)
    for cell in study.cells:
        directory = CellDirectory(out, cell)
        text = f"{cell.index:3d}  {directory.cell.name}  {directory.state(study)}"
        console.print(text, markup=False, highlight=False)


def write_results(study: Study, out: Path) -> Results:
    """Write study.csv, table.md and figures of finished cells, and print the table; a RunError if none is finished."""
    results = collect(study, out)
    if not results.cells:
        first, why = results.missing[0]
        raise RunError(f"{out}: no cell is finished yet ({first.name}: {why}). Run the study first.")
    write_csv(results, out / "study.csv")
    # Imported here, since matplotlib takes long to import.
    from video_gn.report.study_figures import write_figures

    pictures = write_figures(_drawn(results), out)
    write_text(out / "table.md", markdown(results, figures=[p.name for p in pictures if p.suffix == ".png"]))
    print_tables(results)
    log.info("results: %s, table.md, %s", out / "study.csv", ", ".join(p.name for p in pictures))
    return results


def _drawn(results: Results) -> StudyData:
    """The data of the figures, with errors in percent."""
    from video_gn.report.study_figures import StudyData

    test_errors, losses, val_errors, counts = {}, {}, {}, {}
    for norm in results.study.norms:
        for column in results.study.columns:
            cells = results.of(norm, column)
            key = norm, results.shown(column)
            test_errors[key] = [100 * (1 - r.row["top1"]) for r in cells if r.row["top1"] is not None]
            losses[key] = [r.train for r in cells]
            val_errors[key] = [[(epoch, 100 * (1 - top1)) for epoch, top1 in r.val] for r in cells]
            if cells:
                counts[key] = tested_once(cells)
    # All bars are of one kind: intervals over videos only if no line of the table has tested a video twice.
    once = {key: count for key, count in counts.items() if count is not None}
    intervals = {key: _error(*count) for key, count in once.items()} if len(once) == len(counts) else {}
    columns = tuple(map(results.shown, results.study.columns))
    step = results.study.optimizer_batch
    return StudyData(results.study.norms, columns, test_errors, losses, val_errors, step, intervals)


def _error(num_right: int, num_videos: int) -> tuple[float, float, float]:
    """An error and the ends of its 95% interval, in percent."""
    low, high = wilson_interval(num_right, num_videos)
    return 100 * (1 - num_right / num_videos), 100 * (1 - high), 100 * (1 - low)
