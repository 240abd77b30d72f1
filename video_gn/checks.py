"""Checks of settings. Errors name the setting, the value and what to do."""

from __future__ import annotations

import argparse
import difflib
import math
import operator
from collections.abc import Iterable
from typing import Any


def check_choice(name: str, value: object, choices: Iterable[Any]) -> None:
    """Raise ValueError unless the value is one of the choices, such as a table's keys."""
    known = sorted(choices)
    if value not in known:
        advice = did_you_mean(str(value), map(str, known)) or "Choose one of these."
        raise ValueError(f"{name} must be one of {known}, got {value!r}. {advice}")


def did_you_mean(word: str, known: Iterable[str], form: str = "{}") -> str:
    """A question about the known words nearest to a wrong one, such as "Did you mean group?"; "" if none is near."""
    near = [form.format(name) for name in nearest(word, known)]
    return f"Did you mean {' or '.join(near)}?" if near else ""


def nearest(word: str, known: Iterable[str]) -> list[str]:
    """At most three known words that are near a wrong one, the nearest first.

    Of dotted settings the last part counts: batch_size, batch and bach_size are near data.batch_size. Case does not
    count, nor whether words are joined by "-" or "_".
    """

    def plain(text: str) -> str:
        return text.lower().replace("-", "_")

    def ratio(a: str, b: str) -> float:
        return difflib.SequenceMatcher(None, a, b).ratio()

    wanted = plain(word)
    last = wanted.rpartition(".")[2]
    scores: dict[str, float] = {}
    for name in dict.fromkeys(known):
        end = plain(name).rpartition(".")[2]
        is_part = len(last) > 2 and (end.startswith(last) or last in end.split("_"))
        score = 2.0 if end == last else 1.0 if is_part else ratio(last, end)
        if score > 0.7:  # one wrong letter in four, or two exchanged ones in five, have 0.75 and 0.8
            scores[name] = score + 0.3 * ratio(wanted, plain(name))
    least = max(scores.values(), default=0.0) - 0.1
    return sorted((name for name, score in scores.items() if score >= least), key=lambda name: -scores[name])[:3]


def check_range(name: str, value: float, inside: bool, rule: str, advice: str) -> None:
    """Raise ValueError unless a number is finite and in its range.

    Args:
        name: Name of the setting.
        value: Given value.
        inside: Whether it is in the range.
        rule: The range in words.
        advice: What to do.
    """
    if not inside or not math.isfinite(value):
        raise ValueError(f"{name} must be {rule}, got {value!r}. {advice}")


def check_integer(name: str, value: object, *, least: int = 1) -> int:
    """An integer of any kind, numpy's too, as Python's own.

    Args:
        name: Name of the setting.
        value: Given value.
        least: Smallest value allowed.

    Raises:
        TypeError: for anything else; a bool is none.
        ValueError: for a smaller one.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return number


def positive(text: str) -> int:
    """Argparse type: an integer of at least 1."""
    return _at_least(text, 1)


def not_negative(text: str) -> int:
    """Argparse type: an integer of at least 0."""
    return _at_least(text, 0)


def _at_least(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer, got {text!r}") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
    return value
