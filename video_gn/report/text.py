"""Text of the pages: templates, escaping, numbers in words, the width of labels."""

from __future__ import annotations

import math
import unicodedata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

import video_gn
from video_gn.shown import count, shown_text

# Names and reasons are shorter; a config is some 5,000 characters. More would make a page that no browser opens.
_MAX_CHARACTERS, _MAX_LONG_CHARACTERS = 1000, 100_000


def printable(value: Any) -> Any:
    """A value's text, cut after 1,000 characters, with every character that cannot be shown written as \\xNN.

    Markup stays as it is.
    """
    return value if hasattr(value, "__html__") else _cut(value, _MAX_CHARACTERS)


def long_text(value: Any) -> Markup:
    """As `esc`, of up to 100,000 characters."""
    return escape(_cut(value, _MAX_LONG_CHARACTERS))


def _cut(value: Any, num_characters: int) -> str:
    text = str(value)
    more = len(text) - num_characters
    return shown_text(text[:num_characters]) + (f" ... ({more:,} more characters)" if more > 0 else "")


def esc(value: object) -> Markup:
    """A value as HTML text or attribute, as the template writes it."""
    return escape(printable(value))


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as percent; a dash if it is unknown."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f}%"


def whole(number: int) -> str:
    """A whole number: 19,761."""
    return f"{number:,}"


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
    text = text[: int(width_px / (0.56 * font_px)) + 1]
    while text and text_width_px(text + "…", font_px) > width_px:
        text = text[:-1]
    return text + "…"


def render(template: str, **context: Any) -> str:
    """A page from a template, which escapes every value (jinja2's autoescape) but Markup: our own SVG."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=printable,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.globals.update(count=count, file_size=file_size, long_text=long_text, percent=percent, whole=whole)
    return environment.get_template(template).render(version=video_gn.__version__, **context)
