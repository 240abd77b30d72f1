"""Class names: the 400 of Kinetics, and those in files, which the package reads only here."""

from __future__ import annotations

import json
import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from video_gn.errors import ManifestError
from video_gn.lists.lines import Problems, read_lines, some, write_text

log = logging.getLogger(__name__)

# A file without the ending .json is json if it begins like a list or a mapping.
_JSON = re.compile(r'\s*[\[{]\s*["\[\]{}0-9-]')

_NUMBERED = (
    (
        re.compile(
            r"(?P<quote>\"?)(?P<number>[0-9]+)(?P=quote)(?:\s*[,;:\t|=)]\s*|\.(?![0-9])\s*|\s+-\s+|\s+)(?P<name>\S|\S.*\S)"
        ),
        "number name",
    ),
    (
        re.compile(r"(?P<name>\S|\S.*?\S)(?:\s*[,;:\t|=]\s*|\s+-\s+|\s+)(?P<quote>\"?)(?P<number>[0-9]+)(?P=quote)"),
        "name number",
    ),
)
_IN_YAML = re.compile(r"- |[0-9]+:\s")
_SEPARATOR = re.compile(r"\s*[,;\t ]\s*")
# Keys with which json holds classes among other things.
_JSON_KEYS = ("id2label", "label2id", "classes", "class_names", "names", "labels", "categories")
# Names of the columns of a class file.
_HEADERS = frozenset(
    prefix + word
    for prefix in ("", "class", "class_", "label", "label_", "category", "category_")
    for word in ("id", "index", "idx", "number", "name", "")
) - {""} | {"names", "classes", "labels", "categories"}


def kinetics400() -> tuple[str, ...]:
    """The 400 names by number, in alphabetical order, which is every zoo's.

    Source: equal in video-nonlocal-net (process_data/kinetics/classids.json, which pytorchvideo and SlowFast's
    zoo use too), mmaction2 (tools/data/kinetics/label_map_k400.txt) and torchvision (its video models' categories).
    """
    text = resources.files("video_gn.lists").joinpath("kinetics400.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def read_classes(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read class names in the order of their numbers; see `read_numbered_classes`."""
    return read_numbered_classes(path)[0]


def read_numbered_classes(path: str | os.PathLike[str]) -> tuple[tuple[str, ...], int | None]:
    """Read class names in the order of their numbers, and the first number.

    The file is text with one name per line, or a number and a name (`0 archery`, `archery,0`, a tab or a semicolon
    between them, `id,name` as a header); or json, a list of names, or a mapping of names to numbers or of numbers to
    names, also below a key (`{"classes": [...]}`, `id2label`), or a list of objects (`{"id": 0, "name": ...}`).
    Numbers are 0, 1, 2, ... or 1, 2, 3, ... in any order.

    Returns:
        names, and the number of the first one, 0 or 1; None for a file without numbers.

    Raises:
        ManifestError: for a file that cannot be read, no name, an empty one, one that stands twice, or other numbers.
    """
    path = Path(path)
    return _parse(path, read_lines(path))


def _parse(path: Path, lines: list[str]) -> tuple[tuple[str, ...], int | None]:
    text = "\n".join(lines)
    if path.suffix.lower() != ".json" and not _JSON.match(text):
        return _from_lines(path, lines)
    names, first = _from_json(path, text)
    return check_classes(names, origin=str(path)), first


def _from_json(path: Path, text: str) -> tuple[list[Any], int | None]:
    try:
        content: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise ManifestError(f"{path}:{error.lineno}: the json cannot be read: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: the json cannot be read: {error}") from error
    if isinstance(content, dict) and any(isinstance(value, list | dict) for value in content.values()):
        key = next((key for key in _JSON_KEYS if isinstance(content.get(key), list | dict)), None)
        if key is None:
            raise ManifestError(
                f"{path}: classes must be a list of names or a mapping of names to numbers, or stand so below one of "
                f"the keys {list(_JSON_KEYS)}, got an object with the keys {some(list(content))}. Write such a list."
            )
        content = content[key]
    if isinstance(content, dict):
        if all(_number(key) >= 0 for key in content) and all(_number(name) < 0 for name in content.values()):
            content = {name: number for number, name in content.items()}  # id2label
        # The mapping of Kinetics that is passed around keeps quotes around names of several words.
        return _in_order(path, [(_number(value), value, name.strip('"')) for name, value in content.items()])
    if not isinstance(content, list):
        raise ManifestError(
            f"{path}: classes must be a list of names or a mapping of names to numbers, got {content!r}."
        )
    if content and all(isinstance(row, dict) for row in content):
        return _from_objects(path, content)
    # Diving48's names have four parts: ["Back", "15som", "05Twis", "FREE"].
    is_in_parts = all(isinstance(name, list) and name and all(isinstance(x, str) for x in name) for name in content)
    return [" ".join(name) for name in content] if is_in_parts else content, None


def _from_objects(path: Path, rows: list[dict[str, Any]]) -> tuple[list[str], int | None]:
    """Names of a list of objects, which all have a name, and all or none a number."""
    name = next((key for key in ("name", "label", "class", "class_name") if key in rows[0]), None)
    number = next(
        (key for key in rows[0] if key != name and key.lower() in _HEADERS and _number(rows[0][key]) >= 0), None
    )
    keys = [key for key in (name, number) if key is not None]
    if name is None or not all(isinstance(row.get(name), str) and keys[-1] in row for row in rows):
        raise ManifestError(
            f"{path}: objects of classes must each have a 'name', and an 'id' if others have one, got {some(rows, 2)}. "
            "Write a list of names."
        )
    if number is None:
        return [row[name] for row in rows], None
    return _in_order(path, [(_number(row[number]), row[number], row[name]) for row in rows])


def _in_order(path: Path, classes: list[tuple[int, object, str]]) -> tuple[list[str], int | None]:
    """Names in the order of their numbers, and the first; of each class the number, as it is written, and the name."""
    numbers = sorted(number for number, *_ in classes)
    first = 1 if numbers and numbers[0] == 1 else 0
    if numbers != list(range(first, first + len(classes))):
        written = some([text for _, text, _ in classes])
        raise ManifestError(
            f"{path}: numbers of classes must be 0 to {len(classes) - 1}, each once, got {written}. They may begin at "
            "1 too. Correct the file; if the numbers are part of the names, write a json list of the names."
        )
    return [name for *_, name in sorted(classes, key=lambda row: row[0])], first


def _from_lines(path: Path, lines: list[str]) -> tuple[tuple[str, ...], int | None]:
    lines = [line.strip() for line in lines]
    while lines and not lines[-1]:
        lines.pop()
    start = next((number for number, line in enumerate(lines) if not line.startswith("# ")), 0)  # comments, as in lists
    later = lines[start + 1 :]
    if re.fullmatch(r"\w+:", lines[start] if lines else "") and all(_IN_YAML.match(line) for line in later):
        start += bool(later)  # the key of a list or mapping in yaml
    header = _SEPARATOR.split(lines[start].lower().replace('"', "")) if len(lines) > start + 1 else []
    has_header = set(header) != {""} and set(header) - {""} <= _HEADERS and bool(header)
    start += has_header
    body = lines[start:]
    for pattern, form in _NUMBERED:
        rows = [pattern.fullmatch(line) for line in body]
        found = [(int(row["number"]), unquoted(row["name"])) for row in rows if row]
        if not _are_numbered(found, len(body)):
            continue
        problems = Problems(path)
        for number, (line, row) in enumerate(zip(body, rows, strict=True), start=1 + start):
            if row is None:
                problems.add(number, f"a class must be {form!r} as in most lines, got {line!r}. Correct the line.")
        problems.check()
        names, first = _in_order(path, [(number, number, name) for number, name in found])
        return check_classes(names, origin=str(path), start=start), first
    if len(header) > 1 and has_header:
        raise ManifestError(
            f"{path}:{start}: below the header {lines[start - 1]!r} each line must be a class's number and its name. "
            "Correct the file, or write one name per line without a header."
        )
    _refuse_first_line(path, lines, start, has_header=has_header)
    if has_header:
        log.warning("%s:%d: %r is taken as a header, not as a class", path, start, lines[start - 1])
    if body and all(line.startswith("- ") for line in body):  # a list in yaml
        body = [unquoted(line.removeprefix("- ").strip(), "\"'") for line in body]
    elif body and all(re.fullmatch(r'"(?:[^"]|"")+"', line) for line in body):  # a csv of one column
        body = [unquoted(line) for line in body]
    return check_classes(body, origin=str(path), start=start), None


def _are_numbered(found: list[tuple[int, str]], num_lines: int) -> bool:
    """Whether the lines that have a number and a name are meant so: "jump 1" and "jump 2" are names."""
    if 2 * len(found) <= num_lines:
        return False
    numbers = sorted(number for number, _ in found)
    names = {class_key(name) for _, name in found}
    are_all = numbers[0] < 2 and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return len(names) == len(found) or (are_all and len(names) > 1)


def _refuse_first_line(path: Path, lines: list[str], start: int, *, has_header: bool) -> None:
    """Raise ManifestError for a first line that is likely no class: a comment, or a header of other columns."""
    if has_header or start >= len(lines) - 1:
        return
    first, later = lines[start], lines[start + 1 :]
    if re.match(r"#\S", first) and not any(line.startswith("#") for line in later):
        raise ManifestError(
            f"{path}:{start + 1}: a comment must begin with '# ', got {first!r}. Write the space; or "
            "write a json list of the names if it is a class."
        )
    for separator in ",;\t":
        fields = [field.strip(' "') for field in first.lower().split(separator)]
        if len(fields) > 1 and _HEADERS.intersection(fields) and all(separator in line for line in later):
            raise ManifestError(
                f"{path}:{start + 1}: a class file must have a class's number and its name as columns, or the name "
                f"alone, got the header {first!r}. Leave the other columns out."
            )


def unquoted(name: str, quotes: str = '"') -> str:
    """A field without its quotes, of which those inside are written twice."""
    is_quoted = len(name) > 1 and name[0] == name[-1] and name[0] in quotes
    return name[1:-1].replace(name[0] * 2, name[0]) if is_quoted else name


def _number(value: object) -> int:
    """A class's number, as a number or as text; -1 for anything else."""
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdecimal() else -1
    return value if isinstance(value, int) and not isinstance(value, bool) else -1


def check_classes(names: Sequence[Any], *, origin: str, start: int = 0) -> tuple[str, ...]:
    """Refuse class names that are empty or stand twice, and an empty list.

    `origin`, and the number of lines before the names, `start`, are for the message.
    """
    seen: dict[str, int] = {}
    problems = Problems(origin)
    for number, name in enumerate(names, start=1 + start):
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
    """Write class names, one per line, or as a json list if lines would be read otherwise; errors as `write_table`."""
    path, names = Path(path), list(classes)
    try:
        are_lines = _parse(path, names) == (tuple(names), None)
    except ManifestError:
        are_lines = False
    text = "".join(f"{name}\n" for name in names)
    write_text(path, text if are_lines else json.dumps(names, ensure_ascii=False, indent=0) + "\n")


# ---- writings of a name ----------------------------------------------------------------------------


def class_key(name: str) -> str:
    """What two writings of a class have in common: copies differ in spaces and underscores, and a Mac's in accents."""
    return unicodedata.normalize("NFC", name).replace("_", " ")


def same_classes(first: Iterable[str], second: Iterable[str]) -> bool:
    """Whether two lists have the same classes in the same order, however they write spaces."""
    return [class_key(name) for name in first] == [class_key(name) for name in second]


def distinct_classes(names: Iterable[str], *, origin: str) -> tuple[str, ...]:
    """Sorted class names; of two writings of one class the first, with a warning that names `origin`."""
    writings: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        writings.setdefault(class_key(name), []).append(name)
    for several in writings.values():
        if len(several) > 1:
            text = "%s: %s are one class, called %r: names of classes that differ in spaces and underscores are equal"
            log.warning(text, origin, some(several), several[0])
    return tuple(several[0] for several in writings.values())


def is_slip(one: str, other: str) -> bool:
    """Whether two names differ in case alone, or in a letter that was changed, left out or swapped with the next.

    Digits are no letters ("wave1", "wave2"), and names of up to three letters differ in one without being slips.
    """
    short, long = sorted((class_key(one).casefold(), class_key(other).casefold()), key=len)
    if short == long:
        return True
    if len(long) < 4 or len(long) - len(short) > 1:
        return False
    same = next(
        (place for place, letters in enumerate(zip(short, long, strict=False)) if len(set(letters)) > 1), len(short)
    )
    short, long = short[same:], long[same:]
    if any(letter.isdigit() for letter in short[:1] + long[:1]):
        return False
    is_swapped = len(short) == len(long) and long[:2] == short[1::-1] and long[2:] == short[2:]
    return is_swapped or long[1:] in (short, short[1:])
