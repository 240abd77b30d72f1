"""Text in any script that a font at hand has, as masks of pixels.

Each character is drawn in the first font that has it: DejaVu Sans, which comes with matplotlib (Latin, Greek, Cyrillic,
Arabic, Hebrew, Armenian, Georgian, ...), then the system's fonts. A character that none has is named in the log, once,
and drawn as its number, such as [8DD1]: two class names stay two. Letters are joined and ordered by raqm if pillow has
it, which needs the system's FriBiDi; without it, the log says that Arabic and the like are drawn letter by letter.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from video_gn.shown import shown

log = logging.getLogger(__name__)

_ELLIPSIS = "…"
_ENDINGS = (".ttf", ".otf", ".ttc")
# A plain font is preferred to those of the same family with one of these words in their names.
_FANCY = re.compile(r"bold|italic|oblique|black|light|thin|heavy|medium|mono|serif|condensed|narrow", re.IGNORECASE)
_SHAPED = ("Mc", "Mn")  # categories of marks, which raqm places at their letters
_told: set[str] = set()  # characters and shortcomings that the log has named


# ---- fonts --------------------------------------------------------------------------------------


def _font_directories() -> list[Path]:
    """Where fontconfig, macOS and Windows keep fonts."""
    home = Path.home()
    shares = os.environ.get("XDG_DATA_DIRS", "/usr/local/share:/usr/share").split(":")
    if sys.platform == "darwin":
        return [home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts")]
    if sys.platform == "win32":
        return [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts"]
    return [home / ".fonts", home / ".local/share/fonts", *(Path(share) / "fonts" for share in shares)]


@functools.cache
def _system_fonts() -> list[Path]:
    """The system's font files, plain ones first."""
    found = [p for d in _font_directories() for p in d.rglob("*") if p.suffix.lower() in _ENDINGS]
    return sorted(found, key=lambda p: (bool(_FANCY.search(p.name)), p.name))


@functools.cache
def default_font() -> Path:
    """DejaVu Sans, from matplotlib."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"


@functools.cache
def _characters(font: Path) -> np.ndarray:
    """Numbers of the characters that a font has, ascending; none for a font of coloured pictures or a damaged one."""
    from matplotlib.ft2font import FT2Font

    try:
        face = FT2Font(os.fspath(font))
        codes = face.get_charmap() if face.scalable else {}
    except (OSError, RuntimeError):
        codes = {}
    return np.array(sorted(codes), np.uint32)


def _has(font: Path, character: str) -> bool:
    codes, code = _characters(font), ord(character)
    at = int(np.searchsorted(codes, code))
    return at < len(codes) and int(codes[at]) == code


@functools.cache
def font_of(character: str) -> Path | None:
    """The first font that has a character; None if no font has it."""
    if _has(default_font(), character):
        return default_font()
    return next((font for font in _system_fonts() if _has(font, character)), None)


@functools.lru_cache(64)
def _loaded(font: Path, size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(os.fspath(font), size_px)


# ---- texts --------------------------------------------------------------------------------------


@functools.lru_cache(4096)
def drawable(text: str) -> str:
    """A name in one line, in which the number of a character stands for each that no font has."""
    text = unicodedata.normalize("NFC", shown(text))
    missing = [c for c in dict.fromkeys(text) if font_of(c) is None]
    for character in missing:
        # Joiners and the like are invisible anyway.
        is_hidden = unicodedata.category(character) in ("Cf", "Mn")
        text = text.replace(character, "" if is_hidden else f"[{ord(character):04X}]")
    new = [c for c in missing if c not in _told]
    if new:
        _told.update(new)
        names = ", ".join(f"{c} (U+{ord(c):04X})" for c in new)
        log.warning("no font has %s: drawn as a number. Install a font that does, such as one of Noto", names)
    needs_shaping = any(unicodedata.bidirectional(c) in ("R", "AL") or unicodedata.category(c) in _SHAPED for c in text)
    if needs_shaping and not features.check("raqm") and "raqm" not in _told:
        _told.add("raqm")
        log.warning(
            "%r is drawn letter by letter from the left, since pillow finds no FriBiDi, which joins and orders "
            "letters. Install it (Debian's libfribidi0)",
            text,
        )
    return text


def _runs(text: str) -> list[tuple[Path, str]]:
    """Parts of a drawable text that are in one font each, from left to right."""
    runs: list[tuple[Path, str]] = []
    for character in text:
        # Marks, joiners and spaces stay with the letters before them.
        follows = runs and unicodedata.category(character)[0] in "MCZ" and _has(runs[-1][0], character)
        font = runs[-1][0] if follows else font_of(character) or default_font()
        if runs and font == runs[-1][0]:
            runs[-1] = (font, runs[-1][1] + character)
        else:
            runs.append((font, character))
    strong = next((b for c in text if (b := unicodedata.bidirectional(c)) in ("L", "R", "AL")), "L")
    return runs if strong == "L" else runs[::-1]


def line_height(size_px: int) -> int:
    """Height in px of a line of text, and of its mask."""
    return sum(_loaded(default_font(), size_px).getmetrics())


@functools.lru_cache(4096)
def text_width(text: str, size_px: int) -> int:
    """Width in px of a text, rounded up."""
    return int(-(-sum(_loaded(font, size_px).getlength(run) for font, run in _runs(drawable(text))) // 1))


@functools.lru_cache(4096)
def fitted(text: str, size_px: int, width_px: int) -> str:
    """The text, or its beginning with an ellipsis that is at most so wide; never less than the ellipsis."""
    if text_width(text, size_px) <= width_px:
        return text
    # Not between a letter and its marks.
    ends = [i for i in range(len(text)) if unicodedata.category(text[i])[0] != "M"]
    low, high = 0, len(ends) - 1
    while low < high:
        middle = (low + high + 1) // 2
        fits = text_width(text[: ends[middle]].rstrip() + _ELLIPSIS, size_px) <= width_px
        low, high = (middle, high) if fits else (low, middle - 1)
    return text[: ends[low]].rstrip() + _ELLIPSIS


@functools.lru_cache(512)
def text_mask(text: str, size_px: int, width_px: int | None = None) -> Image.Image:
    """How much of each pixel a text covers: mode "L", `line_height` high; shortened to a width if that is given."""
    text = drawable(text if width_px is None else fitted(text, size_px, width_px))
    ascent, _ = _loaded(default_font(), size_px).getmetrics()
    mask = Image.new("L", (max(1, text_width(text, size_px)), line_height(size_px)))
    pen, x = ImageDraw.Draw(mask), 0.0
    for font, run in _runs(text):
        loaded = _loaded(font, size_px)
        pen.text((x, ascent), run, fill=255, font=loaded, anchor="ls")
        x += loaded.getlength(run)
    return mask
