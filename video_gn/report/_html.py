"""Text to HTML: everything is escaped unless it says that it is markup."""

from __future__ import annotations

import html
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence

# Control characters are no valid HTML, and lone surrogates (bytes of a file name that are no text)
# no valid UTF-8; the marks that turn the direction of writing could make a name look like another.
# Line ends and tabs may stay.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """HTML that is ready to be put into a page."""

    __slots__ = ()


def esc(text: object) -> Markup:
    """A value as HTML text or attribute; what cannot be shown is written as \\xNN."""
    if isinstance(text, Markup):
        return text
    shown = _UNPRINTABLE.sub(_spell_out, str(text))
    return Markup(html.escape(shown, quote=True))


def _spell_out(match: re.Match[str]) -> str:
    code = ord(match.group())
    # os.fsdecode keeps byte 0xNN of a file name as U+DCNN.
    return f"\\x{code & 0xFF:02x}" if code < 0x100 or 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as percent; a dash for what is unknown."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f}%"


def count(number: int, noun: str, plural: str = "") -> str:
    """1 video, 2 videos, 19,761 videos."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def name(text: str) -> Markup:
    """A class name: kept together with its own direction of writing, so that it cannot reorder its neighbours."""
    return Markup(f"<bdi>{esc(text)}</bdi>")


def path(text: str) -> Markup:
    """A path, which may break anywhere."""
    return Markup(f'<bdi class="path">{esc(text)}</bdi>')


def table(
    headers: Sequence[str], rows: Iterable[Sequence[object]], *, numeric: Sequence[int] = (), label: str
) -> Markup:
    """A table.

    Args:
        headers: of the columns.
        rows: cells, escaped unless they are markup.
        numeric: columns to align on the right.
        label: what it shows, for those who cannot see it.
    """
    right = set(numeric)

    def cells(tag: str, values: Sequence[object]) -> str:
        opened = [f'<{tag} class="n">' if place in right else f"<{tag}>" for place in range(len(values))]
        return "".join(f"{start}{esc(value)}</{tag}>" for start, value in zip(opened, values, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in rows)
    head = f"<thead><tr>{cells('th', headers)}</tr></thead>"
    return Markup(
        f'<div class="scroll" tabindex="0" role="region" aria-label="{esc(label)}">'
        f"<table>{head}\n<tbody>\n{body}</tbody></table></div>"
    )


def details(summary: str, content: Markup) -> Markup:
    """Something that is folded up at first."""
    return Markup(f"<details><summary>{esc(summary)}</summary>{content}</details>")


def paragraph(text: object, kind: str = "") -> Markup:
    """A paragraph; `kind` is "", "note" or "warning"."""
    return Markup(f'<p class="{kind}">{esc(text)}</p>' if kind else f"<p>{esc(text)}</p>")


def join(parts: Iterable[str]) -> Markup:
    """Pieces of markup, one after the other."""
    return Markup("\n".join(part for part in parts if part))


def text_width_px(text: str, font_px: float) -> float:
    """About how wide a sans-serif text is: East Asian wide letters take a whole em, others about 0.56 em."""
    return sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.56 for c in text) * font_px


def shorten(text: str, width_px: float, font_px: float) -> str:
    """The beginning of a text that fits, with an ellipsis where it was cut."""
    if text_width_px(text, font_px) <= width_px:
        return text
    while text and text_width_px(text + "…", font_px) > width_px:
        text = text[:-1]
    return text + "…"
