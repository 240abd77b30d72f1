"""Lists as json: a list of objects with a path, or one object a line, as columns of text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from video_gn.errors import ManifestError
from video_gn.lists.lines import LABEL_COLUMNS, PATH_COLUMNS, ListTable, Problems, read_lines


def read_json(path: Path) -> tuple[Any, list[int]]:
    """The content of a json file, of json lines a list; and the line of each of its objects, or their places from 1.

    Raises:
        ManifestError: for a file that cannot be read, and for what is not json.
    """
    lines = read_lines(path)
    try:
        content = json.loads("\n".join(lines))
    except json.JSONDecodeError as error:
        # A second object begins where the first has ended.
        if error.msg != "Extra data":
            raise ManifestError(f"{path}:{error.lineno}: the json cannot be read: {error.msg}") from error
        return _read_json_lines(path, lines)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of levels
        raise ManifestError(f"{path}: the json cannot be read: {error}") from error
    if isinstance(content, dict) and path.suffix.lower() == ".jsonl":
        content = [content]
    return content, list(range(1, len(content) + 1)) if isinstance(content, list) else []


def _read_json_lines(path: Path, lines: Sequence[str]) -> tuple[list[Any], list[int]]:
    objects, numbers, problems = [], [], Problems(path)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            objects.append(json.loads(line))
            numbers.append(number)
        except json.JSONDecodeError as error:
            problems.add(number, f"a line must be one json object, got {line!r}: {error.msg}. Correct the line.")
        except (ValueError, RecursionError) as error:
            problems.add(number, f"the json cannot be read: {error}. Correct the line.")
    problems.check()
    return objects, numbers


def table_of_json(path: Path, content: Any, numbers: Sequence[int]) -> ListTable:
    """Columns of a list of objects with a path.

    Raises:
        ManifestError: for other content, and for objects without a path or with several labels.
    """
    if not isinstance(content, list) or not content or not all(isinstance(row, dict) for row in content):
        got = f"an object with the keys {sorted(content)[:5]}" if isinstance(content, dict) else "something else"
        raise ManifestError(
            f"{path}:1: a json list must be a list of objects with a path, or one of a data set, got {got}. If it is "
            "of a data set, name its form with data.source.format."
        )
    rows = [{str(key).strip().lower(): value for key, value in row.items()} for row in content]
    header = list(dict.fromkeys(key for row in rows for key in row))
    path_key = next((name for name in PATH_COLUMNS if name in header), None)
    problems = Problems(path)
    for number, row in zip(numbers, rows, strict=True):
        if path_key is None or not isinstance(row.get(path_key), str) or not row[path_key].strip():
            problems.add(
                number,
                f"an object must have a path as one of {list(PATH_COLUMNS)}, got the keys {sorted(row)}. If the list "
                "is of a data set, name its form with data.source.format.",
            )
        for name in LABEL_COLUMNS:
            value = row.get(name)
            if isinstance(value, list) and len(value) == 1:
                row[name] = value = value[0]
            if isinstance(value, (list, dict)):
                problems.add(
                    number,
                    f"a video must have one label, got {json.dumps(value)}. Lists with several labels a video cannot "
                    "be used: keep one of them.",
                )
    problems.check()
    columns = {name: [_text(row.get(name)) for row in rows] for name in header}
    return ListTable(path, header, dict(columns), list(numbers))


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
