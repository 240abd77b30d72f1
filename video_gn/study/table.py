"""A study's table, like Table 8 of the Group Normalization paper: on the terminal and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table as RichTable

from video_gn.shown import console as shown_console
from video_gn.study.collecting import NOT_STARTED, CellResult, Results, Spread, difference_spread, figure_spread, pooled
from video_gn.study.plan import Study

_NOTHING = "–"


@dataclass(frozen=True)
class Table:
    """A table of text."""

    title: str  # what the figures are
    # head of each column as a tuple of lines; the first column holds the labels of the rows
    heads: tuple[tuple[str, ...], ...]
    rows: tuple[tuple[str, ...], ...]  # cells of each row, as many as heads


def percent(value: Spread | None, *, signed: bool = False) -> str:
    """A fraction's mean and spread in percent: "86.7 ± 3.3"."""
    if value is None:
        return _NOTHING
    sign = "+" if signed else ""
    mean = f"{100 * value.mean:{sign}.1f}"
    return mean if value.deviation is None else f"{mean} ± {100 * value.deviation:.1f}"


def tables(results: Results) -> list[Table]:
    """Accuracies, differences to the reference line, and, for a cross validation, the pooled accuracy."""
    study = results.study

    def accuracy(cells: Sequence[CellResult], reference: Sequence[CellResult]) -> str:
        top1, top5 = figure_spread(cells, "top1"), figure_spread(cells, "top5")
        figures = percent(top1) if top5 is None else f"{percent(top1)} / {percent(top5)}"
        return figures + _of_seeds(len(cells), results)

    title = "Top-1 / top-5 %" if any(r.row["top5"] is not None for r in results.cells) else "Top-1 %"
    if len(study.seeds) > 1:
        title += f": mean ± sample standard deviation over {len(study.seeds)} seeds"
    found = [_table(results, title, accuracy)]
    if len(study.norms) > 1:

        def difference(cells: Sequence[CellResult], reference: Sequence[CellResult]) -> str:
            value = difference_spread(cells, reference)
            return percent(value, signed=True) + _of_seeds(value.count if value else 0, results)

        title = f"Top-1 minus that of {study.reference}, in points; each difference is between cells of one seed"
        norms = [norm for norm in study.norms if norm != study.reference]
        found.append(_table(results, title, difference, norms=norms))
    if any(pooled(results.of(n, c), len(study.seeds)) for n in study.norms for c in study.columns):

        def of_all(cells: Sequence[CellResult], reference: Sequence[CellResult]) -> str:
            counts = pooled(cells, len(study.seeds))
            return _NOTHING if counts is None else f"{100 * counts[0] / counts[1]:.1f} ({counts[0]} of {counts[1]})"

        title = "Top-1 % over all videos, each tested once, by the seed that held it out"
        found.append(_table(results, title, of_all))
    if study.pretrain is not None:
        found.append(_of_starts(results, study.pretrain))
    return found


def _of_starts(results: Results, pretrain: Study) -> Table:
    """The accuracies of the pre-trainings on their own test videos."""
    heads = (("",), *((f"seed {seed}",) for seed in pretrain.seeds))
    rows = []
    for norm in pretrain.norms:
        top1 = [results.starts.get((norm, seed), (None, None))[1] for seed in pretrain.seeds]
        rows.append((norm, *(_NOTHING if value is None else f"{100 * value:.1f}" for value in top1)))
    return Table("Top-1 % of the pre-trainings, on their own test videos", heads, tuple(rows))


def _table(
    results: Results,
    title: str,
    text: Callable[[Sequence[CellResult], Sequence[CellResult]], str],
    *,
    norms: Sequence[str] | None = None,
) -> Table:
    study = results.study
    heads = (("",), *((f"clip {clip}", study.of_size(size)) for clip, size in map(results.shown, study.columns)))
    rows = []
    for norm in study.norms if norms is None else norms:
        found = (text(results.of(norm, column), results.of(study.reference, column)) for column in study.columns)
        rows.append((norm, *found))
    return Table(title, heads, tuple(rows))


def _of_seeds(count: int, results: Results) -> str:
    """How many of the study's seeds there are, if some are missing."""
    return f" ({count} of {len(results.study.seeds)})" if 0 < count < len(results.study.seeds) else ""


def markdown(results: Results, *, figures: Sequence[str] = ()) -> str:
    """The tables, notes, missing cells, and links to the figures, which are picture files beside the text."""
    study = results.study
    lines = [f"# {study.path.stem}", "", _summary(results), ""]
    for table in tables(results):
        lines += [table.title + ".", ""]
        lines.append("| " + " | ".join(_escape(", ".join(head)) for head in table.heads) + " |")
        lines.append("|" + "|".join(["---", *["---:"] * (len(table.heads) - 1)]) + "|")
        lines += ["| " + " | ".join(map(_escape, row)) + " |" for row in table.rows] + [""]
    for note in results.notes:
        lines += [note, ""]
    if results.missing:
        lines += [f"Missing, {len(results.missing)} of {len(study.cells)} cells:", ""]
        lines += [f"- {text}" for text in _missing(results)] + [""]
    lines += [f"![{name.rsplit('.', 1)[0].replace('_', ' ')}]({name})\n" for name in figures]
    return "\n".join(lines).rstrip("\n") + "\n"


def _summary(results: Results) -> str:
    study = results.study
    minutes = sum(result.row["minutes"] for result in results.cells)
    given = [f"{key} {json.dumps(value)}" for r in results.cells[:1] for key, value in r.given.items()]
    part = "" if len(study.cells) == study.num_cells else " of --quick"
    return (
        f"{len(study.norms)} norms x {len(study.columns)} columns x {len(study.seeds)} seeds of {study.base_path}"
        f"{', with ' if given else ''}{', '.join(given)}: "
        f"{len(results.cells)} of {len(study.cells)} cells{part}, {_duration(minutes)}. "
        f"{_of_batches(study)} "
        f"{_of_start(results)}The last checkpoint was tested."
    )


def _duration(minutes: float) -> str:
    if round(minutes) == 1:
        return "1 minute"
    return f"{minutes:.0f} minutes" if minutes < 100 else f"{minutes / 60:.1f} hours"


def _of_start(results: Results) -> str:
    """A sentence on what the cells started from."""
    pretrain = results.study.pretrain
    if pretrain is None:
        return ""
    others = {cell.norm: cell.start.norm for cell in results.study.cells if cell.start and cell.start.norm != cell.norm}
    own = f", {', '.join(f'{norm} from that of {start}' for norm, start in others.items())}" if others else ""
    duration = _duration(sum(record.minutes for record, _ in results.starts.values()))
    return (
        f"Each cell starts from the last checkpoint of a pre-training of its norm and seed{own}: {pretrain.base_path}, "
        f"{duration} in all. "
    )


def _of_batches(study: Study) -> str:
    if study.optimizer_batch is None:
        return "Batch sizes are those of one process."
    return (
        f"Every step averages the gradients of {study.optimizer_batch} clips of one process, at the same learning "
        "rate; a norm's batch statistics go over as many of them as the column says."
    )


def _missing(results: Results) -> list[str]:
    """Missing cells and why: those not started in one line, each other one in its own."""
    lines = [f"{cell.index}, {cell.name}: {why}" for cell, why in results.missing if why != NOT_STARTED]
    numbers = [cell.index for cell, why in results.missing if why == NOT_STARTED]
    return lines if not numbers else [*lines, f"{NOT_STARTED}: {', '.join(map(str, numbers))}"]


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def print_tables(results: Results, console: Console | None = None) -> None:
    """Print the tables, then the missing cells."""
    console = console or shown_console()
    for table in tables(results):
        rich = RichTable(title=table.title, title_justify="left", title_style="bold")
        for number, head in enumerate(table.heads):
            rich.add_column("\n".join(head), justify="right" if number else "left", no_wrap=number == 0)
        for row in table.rows:
            rich.add_row(*row)
        console.print(rich)
    for note in results.notes:
        console.print(note, markup=False)
    if results.missing:
        console.print(f"missing, {len(results.missing)} of {len(results.study.cells)} cells:", markup=False)
        for text in _missing(results):
            console.print(f"  {text}", markup=False, highlight=False)
