"""Files that a user names as a list, class names or a config, and that are no text: refused from their first bytes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from video_gn import damage
from video_gn.commands import _settings
from video_gn.damage import read_text_bytes
from video_gn.errors import ConfigError, ManifestError
from video_gn.labelling.inputs import read_list
from video_gn.lists.class_names import read_numbered_classes
from video_gn.lists.read import read_manifest
from video_gn.study.plan import read_study

# What reads a text, and what it raises.
READERS: dict[str, tuple[Callable[[str], object], type[Exception]]] = {
    "list": (lambda path: read_manifest(path, check_files=False), ManifestError),
    "classes": (read_numbered_classes, ManifestError),
    "--list": (lambda path: list(read_list(path)), ManifestError),
    "study": (read_study, ConfigError),
}
GIB = 1 << 30


@pytest.fixture(autouse=True)
def _short_wait(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(damage, "_PIPE_SECONDS", 0.1)
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 30  # nothing was read to its end, or waited for


def write_sparse(path: Path, start: bytes = b"") -> str:
    path.write_bytes(start)
    os.truncate(path, 64 * GIB)
    return str(path)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("suffix", [".txt", ".json"])
def test_what_is_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str, suffix: str) -> None:
    read, error = READERS[reader]
    pipe = tmp_path / f"pipe{suffix}"
    os.mkfifo(pipe)
    with pytest.raises(error, match=r"pipe\.(txt|json).*no process has written to this pipe for 0\.1 seconds"):
        read(str(pipe))
    with pytest.raises(error, match="/dev/zero.*(a zero byte|not yaml|bytes without)"):
        read("/dev/zero")
    with pytest.raises(error, match=f"holes{suffix}.*(a zero byte|not yaml|bytes without)"):
        read(write_sparse(tmp_path / f"holes{suffix}"))
    with pytest.raises(error, match=f"text{suffix}.*(a zero byte|characters, more than|json)"):
        read(write_sparse(tmp_path / f"text{suffix}", b"x.mp4\n" * 180_000))
    for name, data in (("wide", "x.mp4\n".encode("utf-16")), ("binary", bytes(range(255, 0, -1)) * 99)):
        (tmp_path / f"{name}{suffix}").write_bytes(data)
        with pytest.raises(error, match=f"{name}{suffix}.*(0xff|not a text file|a zero byte)"):
            read(str(tmp_path / f"{name}{suffix}"))
    monkeypatch.setattr(damage, "_MAX_LINE_BYTES", 1 << 20)
    (tmp_path / f"long{suffix}").write_bytes(b"x" * (3 << 20))
    with pytest.raises(error, match=f"long{suffix}.*without a line end"):
        read(str(tmp_path / f"long{suffix}"))


def test_too_much_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damage, "_MAX_TEXT_BYTES", 1 << 20)
    (tmp_path / "list.txt").write_bytes(b"x.mp4 0\n" * (3 << 17))
    with pytest.raises(ManifestError, match=r"list\.txt: the file cannot be read: it has more than 1 MB"):
        read_manifest(tmp_path / "list.txt", check_files=False)
    (tmp_path / "study.yaml").write_bytes(b"a: 1\n" * (3 << 17))
    with pytest.raises(ConfigError, match="cannot be read: it has more than 1 MB"):
        read_study(tmp_path / "study.yaml")


def test_pipes_that_are_written_to(tmp_path: Path) -> None:
    """As by `<(...)` and by `cat list > pipe`: however late it begins, and however slowly it writes."""
    wanted = [f"{i:07}.mp4 0" for i in range(20_000)]  # more than a pipe holds
    text = "\n".join(wanted).encode()

    def write(target: int, *, pause: float) -> None:
        time.sleep(pause)
        with os.fdopen(target, "wb") as file:
            file.write(text[:100])
            file.flush()
            time.sleep(pause)
            file.write(text[100:])

    reading, writing = os.pipe()
    thread = threading.Thread(target=write, args=(writing,), kwargs={"pause": 0.3})
    thread.start()
    assert read_text_bytes(f"/dev/fd/{reading}") == text
    thread.join()
    os.close(reading)
    os.mkfifo(tmp_path / "pipe.txt")
    thread = threading.Thread(target=lambda: write(os.open(tmp_path / "pipe.txt", os.O_WRONLY), pause=0.05))
    thread.start()
    assert len(read_manifest(tmp_path / "pipe.txt", check_files=False)) == len(wanted)
    thread.join()


def test_parquet_that_is_no_file(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    os.mkfifo(tmp_path / "pipe.parquet")
    with pytest.raises(ManifestError, match=r"pipe\.parquet: a parquet file must be a file, got a pipe"):
        read_manifest(tmp_path / "pipe.parquet", check_files=False)


@pytest.mark.parametrize("text", ["[" * 100_000, "- " * 3000 + "x", "{a: " * 101, "a: \xff\n", "a: b: c"])
def test_configs_that_are_no_yaml(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"config\.yaml is not yaml: "):
        _settings._check_text(str(path))
    with pytest.raises(ConfigError, match="is not yaml: |not a text file"):
        read_study(path)
    path.write_bytes(b"a: 1\n" * 300_000)
    with pytest.raises(ConfigError, match="is not yaml: it has 1,500,000 characters, more than 1,000,000"):
        _settings._check_text(str(path))


@pytest.mark.parametrize("text", ["[" * 100_000 + "]" * 100_000, "[1" + "0" * 5000 + "]", '{"a": ' * 90_000])
def test_json_beyond_what_is_read(tmp_path: Path, text: str) -> None:
    for name in ("a.json", "a.jsonl"):
        (tmp_path / name).write_text(text)
        with pytest.raises(ManifestError, match=f"{name}.*json"):
            read_manifest(tmp_path / name, check_files=False)
        with pytest.raises(ManifestError, match=f"{name}.*json|names of classes|class"):
            read_numbered_classes(tmp_path / name)
