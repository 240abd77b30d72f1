"""Class names: the 400 of Kinetics, and those in files, which the package reads only here."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from video_gn.errors import ManifestError
from video_gn.lists.lines import Problems, read_lines, some, write_text

# A file without the ending .json is json if it begins like a list or a mapping.
_JSON = re.compile(r'\s*[\[{]\s*["\[\]{}0-9-]')


def kinetics400() -> tuple[str, ...]:
    """The 400 names by number, in alphabetical order, which is every zoo's.

    Source: equal in video-nonlocal-net (process_data/kinetics/classids.json, which pytorchvideo and SlowFast's
    zoo use too), mmaction2 (tools/data/kinetics/label_map_k400.txt) and torchvision (its video models' categories).
    """
    text = resources.files("video_gn.lists").joinpath("kinetics400.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def read_classes(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read class names in the order of their numbers.

    The file is text with one name per line; or json, a list of names or a mapping of names to numbers, which may be
    written as text ("0").

    Raises:
        ManifestError: for a file that cannot be read, no name, an empty one, one that stands twice, or numbers that
            are not 0, 1, 2, ...
    """
    path = Path(path)
    lines = read_lines(path)
    text = "\n".join(lines)
    if path.suffix.lower() == ".json" or _JSON.match(text):
        return check_classes(_from_json(path, text), origin=str(path))
    while lines and not lines[-1].strip():
        lines.pop()
    return check_classes([line.strip() for line in lines], origin=str(path))


def _from_json(path: Path, text: str) -> list[Any]:
    try:
        content: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise ManifestError(f"{path}:{error.lineno}: the json cannot be read: {error.msg}") from error
    if isinstance(content, dict):
        numbers = {_number(number): name for name, number in content.items()}
        if sorted(numbers) != list(range(len(content))):
            raise ManifestError(
                f"{path}: numbers of classes must be 0 to {len(content) - 1}, each once, got "
                f"{some(list(content.values()))}. Correct the file."
            )
        # The mapping of Kinetics that is passed around keeps quotes around names of several words.
        return [numbers[number].strip('"') for number in range(len(content))]
    if not isinstance(content, list):
        raise ManifestError(
            f"{path}: classes must be a list of names or a mapping of names to numbers, got {content!r}."
        )
    return content


def _number(value: object) -> int:
    """A class's number, as a number or as text; -1 for anything else."""
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdecimal() else -1
    return value if isinstance(value, int) and not isinstance(value, bool) else -1


def check_classes(names: Sequence[Any], *, origin: str) -> tuple[str, ...]:
    """Refuse class names that are empty or stand twice, and an empty list; `origin` is for the message."""
    seen: dict[str, int] = {}
    problems = Problems(origin)
    for number, name in enumerate(names, start=1):
        if not isinstance(name, str) or not name:
            problems.add(
                number, f"a class must be a name, got {name!r}. Write one class per line, without blank lines."
            )
        elif (first := seen.setdefault(class_key(name), number)) != number:
            problems.add(number, f"class {name!r} must stand once, but line {first} has it too. Remove one of the two.")
    problems.check()
    if not names:
        raise ManifestError(f"{origin}: classes must have at least one name, got none. Write one class per line.")
    return tuple(names)


def write_classes(path: str | os.PathLike[str], classes: Iterable[str]) -> None:
    """Write class names, one per line; errors as `write_table`."""
    write_text(Path(path), "".join(f"{name}\n" for name in classes))


def class_key(name: str) -> str:
    """What two writings of a class have in common: copies of Kinetics differ in spaces and underscores."""
    return name.replace("_", " ")
