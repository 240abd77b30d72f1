"""Text that people read: no name in it steers a terminal, and no cell of a table is run by a spreadsheet.

Files keep names as they are; only what is printed is escaped.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from typing import Any

# Control characters steer a terminal and are no valid HTML, lone surrogates (bytes of a file name that are no text) are
# no valid UTF-8, and the marks that turn the direction of writing make a name look like another. Line ends and tabs
# belong to a text, not to a name.
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_BREAKS = {"\n": "\\n", "\t": "\\t"}


def shown(value: Any) -> str:
    """A name as it is shown, in one line: every character that steers a terminal is written as \\xNN or \\uNNNN."""
    return re.sub(r"[\n\t]", lambda found: _BREAKS[found.group()], shown_text(value))


def shown_text(value: Any) -> str:
    """As `shown`, for a text of several lines: line ends and tabs stay."""
    return _STEERING.sub(_spell_out, str(value))


def shown_message(value: Any) -> str:
    """As `shown_text`, for an error or a log line: further lines are indented, so that no name passes for a message."""
    return re.sub(r"\n(?=\S)", "\n  ", shown_text(value))


def count(number: int, noun: str, plural: str = "") -> str:
    """A number of things: 1 video, 2 videos, 19,761 videos."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def _spell_out(found: re.Match[str]) -> str:
    code = ord(found.group())
    # os.fsdecode keeps byte 0xNN of a file name as U+DCNN.
    return f"\\x{code & 0xFF:02x}" if code < 0x100 or 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def console(**settings: Any) -> Any:
    """A console of rich's whose texts and cells of tables are shown as by `shown_text`; `settings` are rich's."""
    from rich.console import Console  # not at the start of every command

    class ShownConsole(Console):
        def render_str(self, text: str, **words: Any) -> Any:
            return super().render_str(shown_text(text), **words)

    return ShownConsole(**settings)


# ---- csv cells -----------------------------------------------------------------------------------

# What makes a spreadsheet run a cell (OWASP, CSV injection), also behind apostrophes; a number is no formula.
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")


def csv_cell(text: str) -> str:
    """A name or reason as a cell of a table for people; `from_csv_cell` gives it back.

    A text that a spreadsheet would run as a formula gets an apostrophe in front, as OWASP advises. Numbers stay.
    """
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def csv_line(cells: Iterable[Any]) -> str:
    """A row of a table for people, with its line end; texts are cells as `csv_cell` makes them, None is empty."""
    text = io.StringIO()
    # The module quotes a carriage return only if it is of the line's end.
    csv.writer(text, lineterminator="\r\n").writerow([csv_cell(c) if isinstance(c, str) else c for c in cells])
    return f"{text.getvalue()[:-2]}\n"


def from_csv_cell(cell: str) -> str:
    """The text that `csv_cell` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
