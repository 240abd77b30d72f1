"""Text in any script: each character in a font that has it, or named once and drawn as its number."""

from __future__ import annotations

import logging
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, features

from video_gn.rendering import text
from video_gn.rendering.text import default_font, drawable, fitted, font_of, text_mask, text_width

needs_raqm = pytest.mark.skipif(not features.check("raqm"), reason="pillow finds no FriBiDi")
CACHED = (text._system_fonts, text.font_of, text.drawable, text.text_width, text.fitted, text.text_mask)


@pytest.fixture
def fonts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that stands for all of the system's fonts."""
    monkeypatch.setattr(text, "_font_directories", lambda: [tmp_path, tmp_path / "missing"])
    monkeypatch.setattr(text, "_told", set())
    for function in CACHED:
        function.cache_clear()
    yield tmp_path
    for function in CACHED:
        function.cache_clear()


def by_pillow(words: str, font: Path, size_px: int) -> np.ndarray:
    """Pillow's own drawing, on a canvas of DejaVu's height."""
    loaded = ImageFont.truetype(str(font), size_px)
    ascent, descent = ImageFont.truetype(str(default_font()), size_px).getmetrics()
    image = Image.new("L", (int(np.ceil(loaded.getlength(words))), ascent + descent))
    ImageDraw.Draw(image).text((0, ascent), words, fill=255, font=loaded, anchor="ls")
    return np.asarray(image)


@pytest.mark.parametrize(
    "words",
    ["wave with both hands", "прыгать", "λαμβάνω", "սլանալ", "სირბილი", "đi bộ"]
    + [pytest.param(words, marks=needs_raqm) for words in ("مشي سريع", "שלום")],
)
@pytest.mark.parametrize("size_px", [10, 80])
def test_scripts_of_the_default_font_are_as_pillow_draws_them(fonts: Path, words: str, size_px: int) -> None:
    assert np.array_equal(np.asarray(text_mask(words, size_px)), by_pillow(words, default_font(), size_px))


def test_a_character_that_no_font_has_is_named_once(fonts: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert drawable("跑 a跑步") == "[8DD1] a[8DD1][6B65]"
        assert drawable("步行 b") == "[6B65][884C] b"
        assert drawable("跑步") == "[8DD1][6B65]"
        assert drawable("a\U000e0061b") == "ab"  # a tag, which is not seen
    assert ["跑 (U+8DD1), 步 (U+6B65)" in m or "行 (U+884C)" in m for m in caplog.messages[:2]] == [True, True]
    assert sum("U+8DD1" in m for m in caplog.messages) == sum("U+6B65" in m for m in caplog.messages) == 1
    assert np.array_equal(np.asarray(text_mask("跑", 12)), np.asarray(text_mask("[8DD1]", 12)))


def test_other_characters_are_drawn_in_the_systems_fonts(fonts: Path) -> None:
    shipped = default_font().parent
    for name in ("STIXGeneralBol.ttf", "STIXGeneral.ttf", "STIXGeneralItalic.ttf"):
        shutil.copy(shipped / name, fonts / name)
    (fonts / "broken.ttf").write_bytes(b"no font")
    stix = fonts / "STIXGeneral.ttf"
    letters = [chr(c) for c in text._characters(stix).tolist() if unicodedata.category(chr(c))[0] == "L" and c < 0xE000]
    lacking = next(c for c in letters if not text._has(default_font(), c))
    assert font_of("a") == default_font() and font_of(lacking) == stix  # not the bold one
    assert text._runs(f"a {lacking}{lacking} b") == [
        (default_font(), "a "),
        (stix, f"{lacking}{lacking} "),
        (default_font(), "b"),
    ]
    assert np.array_equal(np.asarray(text_mask(lacking, 24)), by_pillow(lacking, stix, 24))
    # A line that begins from the right has its first part at the right.
    assert [run for _, run in text._runs(f"שלום{lacking}")] == [lacking, "שלום"]


def test_marks_stay_with_their_letters(fonts: Path) -> None:
    assert np.array_equal(np.asarray(text_mask("e\u0301", 30)), np.asarray(text_mask("é", 30)))
    words = "x\u0323" * 12  # no such letter as one character
    for width in range(10, text_width(words, 12)):
        assert fitted(words, 12, width).removesuffix("…").count("x") == fitted(words, 12, width).count("\u0323")


@pytest.mark.parametrize("size_px", [10, 33])
def test_shortened_to_the_longest_beginning_that_fits(fonts: Path, size_px: int) -> None:
    words = "playing the harmonica"
    for width in range(0, text_width(words, size_px) + 3, 3):
        expected = words
        if text_width(words, size_px) > width:
            fitting = [
                f"{words[:n].rstrip()}…"
                for n in range(len(words))
                if text_width(f"{words[:n].rstrip()}…", size_px) <= width
            ]
            expected = fitting[-1] if fitting else "…"
        assert fitted(words, size_px, width) == expected
        assert text_mask(words, size_px, width).width <= max(width, text_width("…", size_px))


def test_names_steer_nothing(fonts: Path) -> None:
    assert drawable("a\x1b[31m\n\u202eb") == "a\\x1b[31m\\n\\u202eb"


def test_without_raqm_it_is_said_once(
    fonts: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(features, "check", lambda name: False)
    with caplog.at_level(logging.WARNING):
        for words in ("walk", "مشي", "שלום"):
            drawable(words)
    assert len(caplog.messages) == 1 and "libfribidi0" in caplog.messages[0]
