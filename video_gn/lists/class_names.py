"""Class names: the 400 of Kinetics, and lists from files."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from video_gn.errors import CheckpointError


def kinetics400() -> tuple[str, ...]:
    """The 400 names by number, in alphabetical order, which is every zoo's.

    Source: equal in video-nonlocal-net (process_data/kinetics/classids.json, which pytorchvideo and SlowFast's
    zoo use too), mmaction2 (tools/data/kinetics/label_map_k400.txt) and torchvision (its video models' categories).
    """
    text = resources.files("video_gn.lists").joinpath("kinetics400.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def read_labels(path: str | Path) -> tuple[str, ...]:
    """Class names from a file.

    Args:
        path: a text file with a name a line, or json: a list of names, or an object of name -> number.

    Returns:
        Names by number.

    Raises:
        CheckpointError: naming the file, and line or name, that cannot be used.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read as a list of labels ({error})") from error
    names = _from_json(path, text) if text.lstrip()[:1] in ("[", "{") else _from_lines(path, text)
    seen: dict[str, int] = {}
    for number, name in enumerate(names):
        if name in seen:
            raise CheckpointError(
                f"{path}: the label {name!r} stands at numbers {seen[name]} and {number}. Name it once."
            )
        seen[name] = number
    if not names:
        raise CheckpointError(f"{path}: holds no labels. Write one name a line.")
    return names


def _from_lines(path: str | Path, text: str) -> tuple[str, ...]:
    lines = text.rstrip().splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise CheckpointError(f"{path}:{number}: is empty. Write one name a line.")
    return tuple(line.strip() for line in lines)


def _from_json(path: str | Path, text: str) -> tuple[str, ...]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path}: is no JSON ({error})") from error
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return tuple(value)
    if isinstance(value, dict) and sorted(map(str, value.values())) == sorted(map(str, range(len(value)))):
        by_number = {int(number): name for name, number in value.items()}
        # The list that goes round for Kinetics keeps quotes around names of several words.
        return tuple(by_number[i].strip('"') for i in range(len(value)))
    raise CheckpointError(f"{path}: must be a list of names, or name -> number from 0 without gaps")
