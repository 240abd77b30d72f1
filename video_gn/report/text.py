"""Text of the page: escaping, numbers in words, the width of labels."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any

from markupsafe import Markup, escape

# Control characters are no valid HTML, and lone surrogates (bytes of a file name that are no text)
# no valid UTF-8; the marks that turn the direction of writing could make a name look like another.
# Line ends and tabs may stay.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def printable(value: Any) -> Any:
    """A value's text with every character that cannot be shown written as \\xNN; markup stays as it is."""
    return value if hasattr(value, "__html__") else _UNPRINTABLE.sub(_spell_out, str(value))


def _spell_out(match: re.Match[str]) -> str:
    code = ord(match.group())
    # os.fsdecode keeps byte 0xNN of a file name as U+DCNN.
    return f"\\x{code & 0xFF:02x}" if code < 0x100 or 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def esc(value: object) -> Markup:
    """A value as HTML text or attribute, as the template writes it."""
    return escape(printable(value))


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as percent; a dash if it is unknown."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f}%"


def whole(number: int) -> str:
    """A whole number: 19,761."""
    return f"{number:,}"


def count(number: int, noun: str, plural: str = "") -> str:
    """A number of things: 1 video, 2 videos, 19,761 videos."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def file_size(num_bytes: int) -> str:
    """A file's size in decimal units: 312 B, 4.1 kB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} B"


def text_width_px(text: str, font_px: float) -> float:
    """About how wide a sans-serif text is: East Asian wide letters take a whole em, others about 0.56 em."""
    return sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.56 for c in text) * font_px


def shorten(text: str, width_px: float, font_px: float) -> str:
    """The beginning of a text that fits, with an ellipsis if it was cut."""
    if text_width_px(text, font_px) <= width_px:
        return text
    while text and text_width_px(text + "…", font_px) > width_px:
        text = text[:-1]
    return text + "…"
