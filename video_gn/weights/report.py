"""Reports what a load did with every tensor of the file and of the network."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from video_gn.files import write_text
from video_gn.shown import console as shown_console
from video_gn.weights.about import CLASSIFIER, Preprocessing

# What became of a tensor of the file. The first two are good; the others make the load an error.
TAKEN, DROPPED = "taken", "dropped"
UNEXPECTED, MISSHAPEN, UNFIT = "unexpected", "misshapen", "unfit"
PROBLEMS = (UNEXPECTED, MISSHAPEN, UNFIT)


@dataclass(frozen=True, slots=True)
class Entry:
    """One name of the file.

    Args:
        key: Name in the file.
        target: The network's name; None if the network has no place for it.
        status: "taken", "dropped", or a problem: "unexpected", "misshapen", "unfit".
        changes: What was done to it: renamed, inflated, reshaped, converted, reversed, scaled, reordered.
        shape: Shape in the file.
        reason: Why it was dropped or is a problem.
    """

    key: str
    target: str | None
    status: str
    changes: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Left:
    """One tensor of the network that the file did not give.

    Args:
        target: The network's name.
        status: "left" at its initial value, "set" to a value that follows from the file, or "missing", a problem.
        reason: Why.
    """

    target: str
    status: str
    reason: str


@dataclass(frozen=True)
class LoadReport:
    """What a load took, changed, dropped and left; every name of the file and of the network is in it once.

    Args:
        path: File.
        format: One of `video_gn.weights.FORMATS`.
        container: As in `FileContent`.
        norm: Kind of norm in the file, as far as it tells.
        layout: Layout that the file's network needs; None if the file does not say or any will do.
        depth: Depth of the file's network.
        num_classes: Classes of the file's classifier; None without one.
        preprocessing: The zoo's, for RGB input; the network's input should be normalized by it.
        entries: One for each name of the file.
        remaining: One for each tensor of the network that the file did not give.
        outside: What the file holds beside the network's tensors.
        foreign: Objects of other libraries in the file, which were not built.
        notes: What a user should know.
    """

    path: str
    format: str
    container: str
    norm: str
    layout: str | None
    depth: int | None
    num_classes: int | None
    preprocessing: Preprocessing
    entries: tuple[Entry, ...]
    remaining: tuple[Left, ...]
    outside: dict[str, str] = field(default_factory=dict)
    foreign: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def taken(self) -> tuple[str, ...]:
        """Names in the file of what went into the network."""
        return tuple(e.key for e in self.entries if e.status == TAKEN)

    @property
    def inflated(self) -> tuple[str, ...]:
        """Names in the file of 2-D kernels that became 3-D."""
        return self._changed("inflated")

    @property
    def renamed(self) -> tuple[str, ...]:
        """Names in the file that differ from the network's."""
        return self._changed("renamed")

    @property
    def reshaped(self) -> tuple[str, ...]:
        """Names in the file of classifiers that were convolutions."""
        return self._changed("reshaped")

    def _changed(self, change: str) -> tuple[str, ...]:
        return tuple(e.key for e in self.entries if change in e.changes)

    @property
    def dropped(self) -> dict[str, str]:
        """Name in the file -> why it was not taken."""
        return {e.key: e.reason for e in self.entries if e.status == DROPPED}

    @property
    def left(self) -> dict[str, str]:
        """The network's name -> why it is at its initial value."""
        return {r.target: r.reason for r in self.remaining if r.status == "left"}

    @property
    def left_classifier(self) -> bool:
        """Whether the network's classifier is at its initial value."""
        return any(name.startswith(CLASSIFIER) for name in self.left)

    @property
    def missing(self) -> tuple[str, ...]:
        """The network's names that the file should have given."""
        return tuple(r.target for r in self.remaining if r.status == "missing")

    @property
    def problems(self) -> tuple[str, ...]:
        """In words, one for each name that makes the load an error."""
        return (
            *(f"{e.key}: {e.reason}" for e in self.entries if e.status in PROBLEMS),
            *(f"{r.target}: {r.reason}" for r in self.remaining if r.status == "missing"),
        )

    def write(self, path: str | Path) -> None:
        """Write all of it as json."""
        write_text(path, json.dumps(asdict(self), indent=1, allow_nan=False) + "\n")

    def rows(self) -> list[tuple[str, int, str]]:
        """(what, how many, which) for a table: one row for each kind of result."""
        taken = [e for e in self.entries if e.status == TAKEN]
        rows = [("taken", len(taken), _examples([e.key for e in taken]))]
        for change, count in Counter(c for e in taken for c in e.changes).items():
            keys = [f"{e.key} -> {e.target}" if change == "renamed" else e.key for e in taken if change in e.changes]
            rows.append((f"  {change}", count, _examples(keys)))
        for status in (DROPPED, *PROBLEMS):
            rows += _by_reason(status, [(e.key, e.reason) for e in self.entries if e.status == status])
        for status in ("set", "left", "missing"):
            rows += _by_reason(status, [(r.target, r.reason) for r in self.remaining if r.status == status])
        if self.outside:
            rows.append(("beside the weights", len(self.outside), _examples(list(self.outside))))
        if self.foreign:
            rows.append(("foreign objects, not built", len(self.foreign), _examples(list(self.foreign))))
        return rows

    def title(self) -> str:
        """The file in a line."""
        parts = [self.format, f"ResNet-{self.depth}" if self.depth else None, f"norm {self.norm}"]
        parts += [f"layout {self.layout}" if self.layout else None]
        parts += [f"{self.num_classes} classes" if self.num_classes else "no classifier"]
        return f"{self.path}: " + ", ".join(p for p in parts if p)

    def text(self, width: int | None = None) -> str:
        """The table as plain text, `width` columns wide; None takes the terminal's width, or 100 without one."""
        width = width or shutil.get_terminal_size((100, 24)).columns
        from rich.table import Table

        table = Table("tensors", "number", "which", box=None, pad_edge=False)
        table.columns[0].no_wrap = True
        table.columns[2].overflow = "fold"
        for what, count, which in self.rows():
            table.add_row(what, str(count), which)
        console = shown_console(width=width, no_color=True, highlight=False, markup=False, emoji=False)
        with console.capture() as capture:
            console.print(self.title(), soft_wrap=True)
            console.print(table)
            for note in self.notes:
                console.print(f"note: {note}")
        return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _by_reason(status: str, items: Sequence[tuple[str, str]]) -> list[tuple[str, int, str]]:
    grouped: dict[str, list[str]] = {}
    for name, reason in items:
        grouped.setdefault(reason, []).append(name)
    return [(status, len(names), f"{_examples(names)}: {reason}") for reason, names in grouped.items()]


def _examples(names: Sequence[str], limit: int = 2) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
