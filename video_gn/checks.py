"""Checks of settings. Errors name the setting, the value and what to do."""

from __future__ import annotations

import argparse
import math
import operator
from collections.abc import Iterable
from typing import Any


def check_choice(name: str, value: object, choices: Iterable[Any]) -> None:
    """Raise ValueError unless the value is one of the choices, such as a table's keys."""
    known = sorted(choices)
    if value not in known:
        raise ValueError(f"{name} must be one of {known}, got {value!r}. Choose one of these.")


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
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
    return value
