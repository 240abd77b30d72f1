"""Reads files that may be damaged or come from elsewhere: whatever they hold, within bounds of time and memory."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import logging
import os
import select
import stat
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import yaml

from video_gn.files import naming_unwritable

log = logging.getLogger(__name__)

# All that the parsers of text, csv, json, yaml, zip and npy raise for bytes that are not theirs.
DAMAGE = (
    OSError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError, MemoryError,
    SyntaxError, EOFError, csv.Error, yaml.YAMLError, zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError,
)  # fmt: skip
# The settings of a run are some 5 kB; a table of 400,000 videos that all failed is some 100 MB.
MAX_SETTINGS_BYTES = 1_000_000
MAX_BYTES = 256_000_000
_MAX_DEPTH = 50  # the parser that is written in C crashes the process at some ten thousand
# Of lists and configs that a user names. How long a pipe is waited for that no process has opened for writing.
_PIPE_SECONDS = 60.0
_MAX_TEXT_BYTES = 1 << 30  # some ten million lines
_MAX_LINE_BYTES = 1 << 24
_JSON = (b"[", b"{")  # may be one long line


def in_words(error: BaseException) -> str:
    """What is wrong with a file, as one short line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 200 else text[:200] + ' ...'}"


def check_file(path: Path, *, within: Path | None = None, max_bytes: int = MAX_BYTES) -> None:
    """Refuse what is no file, such as a pipe whose reader would wait, and a file that is larger than any of its kind.

    `within` is the directory that a link must not lead out of: a run from elsewhere may link to anybody's files.

    Raises:
        ValueError: It says what the path is; FileNotFoundError and other errors of the system pass.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise ValueError("it is no file")
    if within is not None and not path.resolve().is_relative_to(within.resolve()):
        raise ValueError(f"it is a link that leads out of {within}, which is not followed")
    if size > max_bytes:
        raise ValueError(f"it has {size:,} bytes, more than {max_bytes:,}")


def read_settings(path: Path, *, within: Path | None = None) -> dict[str, Any]:
    """Read a yaml file of settings; aliases and nesting are bounded.

    Raises:
        ValueError: For a file that holds no settings, in a line; OSError for one that cannot be read.
    """
    check_file(path, within=within, max_bytes=MAX_SETTINGS_BYTES)
    try:
        content = bounded_yaml(path.read_text(encoding="utf-8"))
    except OSError:
        raise
    except DAMAGE as error:
        raise ValueError(f"it is not yaml: {in_words(error)}") from error
    if not isinstance(content, dict) or not content:
        found = type(content).__name__ if content else "nothing"
        raise ValueError(f"it must hold settings, KEY: VALUE, got {found}")
    return content


def bounded_yaml(text: str) -> Any:
    """Parse yaml whose size with its aliases written out, and nesting, are those of settings.

    Raises:
        ValueError or yaml.YAMLError: For other texts.
    """
    return yaml.load(text, Loader=_BoundedLoader)


def read_yaml_text(path: str | os.PathLike[str]) -> str:
    """The text of a config, once it is known to be yaml as `bounded_yaml` parses it.

    Raises:
        OSError: see `read_text_bytes`.
        ValueError or yaml.YAMLError: For other texts.
    """
    text = read_text_bytes(path).decode()
    yaml.compose(text, Loader=_BoundedLoader)
    return text


def read_object(path: Path) -> dict[str, Any]:
    """Read a json file that holds an object.

    Raises:
        ValueError: For other content; OSError, RecursionError and MemoryError may pass: see `DAMAGE`.
    """
    check_file(path)
    value = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
    if not isinstance(value, dict):
        raise ValueError(f"it must hold an object, not {type(value).__name__}")
    return value


class _BoundedLoader(yaml.SafeLoader):
    """Counts the nodes and characters that a text stands for with its aliases written out, and its nesting."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_SETTINGS_BYTES:
            raise ValueError(f"it has {len(text):,} characters, more than {MAX_SETTINGS_BYTES:,}")
        super().__init__(text)
        self._size = self._depth = 0
        self._sizes: dict[str, int] = {}  # by anchor

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        before, self._size, self._depth = self._size, self._size + 1, self._depth + 1
        if isinstance(event, yaml.AliasEvent):
            # An alias within its own anchor stands for an endless text.
            self._size += self._sizes.get(event.anchor, MAX_SETTINGS_BYTES)
        elif isinstance(event, yaml.ScalarEvent):
            self._size += len(event.value)
        if self._size > MAX_SETTINGS_BYTES or self._depth > _MAX_DEPTH:
            raise ValueError(f"it is nested or repeated beyond what settings are, at line {event.start_mark.line + 1}")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if event.anchor and not isinstance(event, yaml.AliasEvent):
            self._sizes[event.anchor] = self._size - before
        return node


def open_text(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a file, pipe or device for reading; `strerror` of its errors says what is wrong.

    A pipe is waited for as long as a process holds it open for writing, as `<(...)` does.

    Raises:
        OSError: the file cannot be read, or nothing writes to the pipe.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")  # opening a pipe would wait for a writer
    try:
        if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
            _await_writer(file.fileno())
        os.set_blocking(file.fileno(), True)
    except BaseException:
        file.close()
        raise
    return file


def _await_writer(pipe: int) -> None:
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    if poll.poll(1000 * _PIPE_SECONDS):
        return
    with contextlib.suppress(BlockingIOError):  # there is a writer, which takes its time
        os.read(pipe, 1)
        raise OSError(errno.ETIMEDOUT, f"no process has written to this pipe for {_PIPE_SECONDS:g} seconds")


def read_text_bytes(path: str | os.PathLike[str]) -> bytes:
    """All bytes of a text; of what has a zero byte, which no text has, only as far as the first few of them.

    Raises:
        OSError: see `open_text`; also for what is too large for a list or a config.
    """
    parts: list[bytes] = []
    total = longest = 0
    with open_text(path) as file:
        while part := file.read(1 << 20):
            parts.append(part)
            total += len(part)
            if b"\0" in part:
                break
            longest = 0 if b"\n" in part or b"\r" in part else longest + len(part)
            if longest > _MAX_LINE_BYTES and not parts[0].lstrip().startswith(_JSON):
                raise OSError(errno.EFBIG, f"it has {longest >> 20} MB without a line end, as no text has")
            if total > _MAX_TEXT_BYTES:
                raise OSError(errno.EFBIG, f"it has more than {_MAX_TEXT_BYTES >> 20} MB")
    return b"".join(parts)


def set_damaged_aside(path: Path, problem: str, so: str) -> None:
    """Rename a damaged file to NAME.damaged, or NAME.damaged-2 and so on, and say so; nothing is removed.

    Args:
        path: File, or what is in its place: a directory, a link, a pipe.
        problem: What is wrong with it.
        so: What is done without it, as a sentence.

    Raises:
        UnwritableError, DiskFullError: if it cannot be renamed.
    """
    number, aside = 1, path.with_name(f"{path.name}.damaged")
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{number}")
    with naming_unwritable(path):
        path.rename(aside)
    log.warning("%s is damaged (%s): it is kept as %s. %s", path, problem, aside.name, so)
