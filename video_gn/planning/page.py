"""A plan as text."""

from __future__ import annotations

from io import StringIO
from typing import Any

from video_gn.planning.figures import Plan
from video_gn.shown import console

_SI = ("", "k", "M", "G", "T", "P")
# Heading -> figures: (label, name).
SECTIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "network": (
        ("parameters", "num_parameters"),
        ("multiply-adds, a clip forward", "clip_forward_macs"),
        ("multiply-adds, a clip of training", "clip_training_macs"),
        ("multiply-adds, a test video", "test_video_macs"),
    ),
    "memory of a process": (
        ("weights", "weights_bytes"),
        ("gradients", "gradients_bytes"),
        ("optimizer state", "optimizer_bytes"),
        ("activations", "activations_bytes"),
        ("a training step", "step_bytes"),
        ("room for it", "memory_limit_bytes"),
    ),
    "data": (
        ("a video's file", "video_bytes"),
        ("all videos", "data_bytes"),
        ("a core loads, clips a second", "loaded_clips_per_second_and_core"),
        ("read from files, a clip", "read_bytes_per_clip"),
    ),
    "training": (
        ("clips of an optimizer step", "clips_of_step"),
        ("epochs", "epochs"),
        ("optimizer steps", "steps"),
        ("clips", "clips"),
        ("clips a second, computed", "computed_clips_per_second"),
        ("cores to load as many", "cores_to_feed"),
        ("loading workers to load as many", "workers_to_feed"),
        ("cores there are", "num_cores"),
        ("clips a second, of all", "clips_per_second"),
        ("read from files a second", "read_bytes_per_second"),
        ("hours of training", "training_hours"),
        ("hours of validation", "validation_hours"),
        ("hours to the end", "hours"),
        ("hours of a test after it", "test_hours"),
    ),
    "disk": (("a checkpoint", "checkpoint_bytes"), ("the run's directory", "run_dir_bytes"), ("free", "free_bytes")),
}
_COLUMNS = (
    ("a step", "step_bytes"),
    ("largest batch", "largest_batch"),
    ("cores to load", "cores_to_feed"),
    ("training hours", "training_hours"),
    ("all videos", "data_bytes"),
)


def format_page(plan: Plan) -> str:
    """The plan as text."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    page = StringIO()
    out = console(file=page, width=118)
    out.print(escape(plan.title), highlight=False)
    for problem in plan.problems:
        out.print(f"It does not fit: {escape(problem)}", highlight=False)
    if not plan.problems:
        out.print("It fits.", highlight=False)
    for note in plan.notes:
        out.print(escape(note), highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, justify in (("", "left"), ("", "left"), ("", "right"), ("", "left")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for section, lines in SECTIONS.items():
        shown = [(label, name, plan.figures[name]) for label, name in lines if name in plan.figures]
        for number, (label, name, figure) in enumerate(shown):
            head = section if number == 0 else ""
            how = ": ".join(filter(None, ("" if figure.basis == "follows" else figure.basis, figure.note)))
            table.add_row(head, label, quantity(name, figure.value), escape(how), end_section=number == len(shown) - 1)
    out.print(table)
    largest = ", ".join(f"{n or 'none'} in {name}" for name, n in plan["largest_batches"].items())
    out.print(f"Largest batches in the room for it: {largest}", highlight=False)
    out.print(_alternatives(plan))
    out.print(
        "counted: on tensors without data. measured: here and now, on these videos. assumed: as given, or a guess. "
        "Others follow from these.",
        highlight=False,
    )
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines()) + "\n"


def _alternatives(plan: Plan) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("", *(label for label, _ in _COLUMNS), "setting"):
        table.add_column(heading, justify="left" if heading in ("", "setting") else "right")
    for row in plan.alternatives:
        cells = ["-" if row[name] is None else quantity(name, row[name]) for _, name in _COLUMNS]
        table.add_row(row["change"], *cells, row["setting"])
    return table


def quantity(name: str, value: float) -> str:
    """A figure with three digits and its unit, which its name tells."""
    if "hours" in name:
        return f"{value:.1f} h" if value >= 1 else f"{60 * value:.1f} min"
    if name in ("steps", "clips", "num_cores", "largest_batch", "clips_of_step", "workers_to_feed"):
        return f"{value:,}"
    if not (name.endswith("macs") or "bytes" in name or name == "num_parameters"):
        return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
    power = 0
    while abs(value) >= 999.5 and power < len(_SI) - 1:
        value, power = value / 1000, power + 1
    unit = ("B/s" if name.endswith("per_second") else "B") if "bytes" in name else ""
    return f"{value:.3g} {_SI[power]}{unit}".rstrip()
