"""Reads a file of weights of any writer: the content tells the container, and nothing in it is executed."""

from __future__ import annotations

import os
import pickle
import re
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch

from video_gn import damage
from video_gn.errors import CheckpointError

# What torch.save wrote first before 1.6, in each pickle protocol. Source: torch/serialization.py, MAGIC_NUMBER.
TORCH_MAGIC = tuple(pickle.dumps(0x1950A86A20F9469CFC6C, protocol) for protocol in range(6))
HEAD_BYTES = 4096
CHUNK_BYTES = 1 << 20
AGAIN = "Download or copy it again"
# In the metadata of safetensors of ours: the CRC-32 of the whole file, with zeros in the place of its own digits.
CHECKSUM = "video_gn_crc32"
NO_CHECKSUM = "0" * 8
_CHECKSUM = re.compile(rb'"%s":"([^"]{8})"' % CHECKSUM.encode())

# First bytes -> (what the file is, what to do).
FOREIGN_FILES: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself", "Run `git lfs pull` where it comes from"),
    (b"\x1f\x8b", "compressed (gzip)", "Unpack it and name the file inside"),
    (b"BZh", "compressed (bzip2)", "Unpack it and name the file inside"),
    (b"\xfd7zXZ\x00", "compressed (xz)", "Unpack it and name the file inside"),
    (b"\x28\xb5\x2f\xfd", "compressed (zstd)", "Unpack it and name the file inside"),
    (b"7z\xbc\xaf\x27\x1c", "compressed (7z)", "Unpack it and name the file inside"),
    (b"Rar!", "compressed (rar)", "Unpack it and name the file inside"),
    (b"\x89HDF\r\n", "an HDF5 file", "Save its weights with torch.save or safetensors"),
    (b"\x93NUMPY", "one numpy array", "Save all arrays by name with torch.save or safetensors"),
    (b"\x1aE\xdf\xa3", "a video (Matroska)", "Name a checkpoint"),
    (b"RIFF", "a video or sound (RIFF)", "Name a checkpoint"),
    (b"\x89PNG", "an image (PNG)", "Name a checkpoint"),
    (b"\xff\xd8\xff", "an image (JPEG)", "Name a checkpoint"),
    (b"%PDF", "a PDF", "Name a checkpoint"),
)

# What unpickling, torch and safetensors raise over damaged or hostile bytes.
DAMAGE = (*damage.DAMAGE, pickle.UnpicklingError, AssertionError, tarfile.TarError, safetensors.SafetensorError)


@dataclass(frozen=True)
class FileContent:
    """What a file of weights holds.

    Args:
        path: File it was read from.
        container: "torch", "torch (before 1.6)", "safetensors" or "caffe2 pickle".
        content: Tree of dicts, lists and tuples with tensors, numbers, strings, bytes, None, dtypes and `Foreign`.
        foreign: Dotted names of the objects that became inert placeholders, sorted.
        metadata: The metadata of a safetensors file, else empty.
    """

    path: str
    container: str
    content: Any
    foreign: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)


def read_file(path: str | os.PathLike[str], *, header_only: bool = False, mapped: bool = True) -> FileContent:
    """Read a file of weights without running anything in it.

    Args:
        path: File to read; its ending is not looked at.
        header_only: For safetensors, return names, shapes and dtypes alone, as tensors on the meta device. Other
            containers are read in full.
        mapped: Map torch's files and safetensors instead of reading them: values are read when they are used, so the
            file must stay as it is. False reads torch's files into memory, so that the tensors outlive the file.

    Checksums are compared before anything is parsed; with `header_only` those of safetensors are not.

    Raises:
        CheckpointError: for a file that is missing, cut short, damaged, no checkpoint, or a program.
    """
    name = os.fspath(path)
    head, size = _head(name)
    with naming_damage(name):
        container = _recognize(name, head, size)
        if container == "safetensors":
            return _read_safetensors(name, header_only=header_only)
        if container == "caffe2 pickle":
            return _read_caffe2(name, size)
        return _read_torch(name, size, container, mapped=mapped)


@contextmanager
def naming_damage(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn whatever a damaged file raises while it is read (`DAMAGE`) into a `CheckpointError` with its path."""
    try:
        yield
    except DAMAGE as error:
        lines = str(error).strip().splitlines()
        reason = "more memory than there is" if isinstance(error, MemoryError) else lines[0] if lines else ""
        advises_trust = "weights_only" in str(error)  # torch's advice is to run what is in the file
        reason = reason.split(". ")[0] if advises_trust else reason
        reason = "".join(c if c.isprintable() else "?" for c in reason)[:200] or type(error).__name__
        refusal = CheckpointError(f"{path}: damaged, or not a checkpoint ({reason}). {AGAIN}")
        raise refusal from (None if advises_trust else error)


def check_bytes(path: str | os.PathLike[str]) -> None:
    """Compare the checksums that a file has; nothing in it is parsed.

    Raises:
        CheckpointError: for a file that is missing, cut short, damaged, or no checkpoint.
    """
    name = os.fspath(path)
    head, size = _head(name)
    with naming_damage(name):
        container = _recognize(name, head, size)
        if container == "torch":
            _check_zip(name, size)
        elif container == "safetensors":
            _check_safetensors(name)


def without_advice(errors: Iterable[CheckpointError]) -> list[str]:
    """The errors of files without the advice to get the file again, for who has another one."""
    return [str(error).partition(f". {AGAIN}")[0] for error in errors]


def _head(path: str) -> tuple[bytes, int]:
    """The first bytes and the size."""
    if Path(path).is_dir():
        raise CheckpointError(f"{path}: is a directory. Name the file of weights in it")
    if not Path(path).exists():
        raise CheckpointError(f"{path}: no such file. Check the path")
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: is no regular file. Copy it to one")
    try:
        with Path(path).open("rb") as file:
            head, size = file.read(HEAD_BYTES), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}). Check its permissions") from error
    if size == 0:
        raise CheckpointError(f"{path}: is empty (0 bytes). {AGAIN}")
    return head, size


def _recognize(path: str, head: bytes, size: int) -> str:
    """The container's name, from the first bytes; CheckpointError says what another file is."""
    header_bytes = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header_bytes < 1 << 32:  # as text these eight bytes would be a far larger number
        if 8 + header_bytes > size:
            raise CheckpointError(f"{path}: a safetensors file that is cut short in its header. {AGAIN}")
        return "safetensors"
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "torch"
    for magic, what, advice in FOREIGN_FILES:
        if head.startswith(magic):
            raise CheckpointError(f"{path}: {what}, not a checkpoint. {advice}")
    if head[257:262] == b"ustar" or (head.startswith(TORCH_MAGIC) and _is_tar(path)):
        # Both in torch's way of reading tars, which writes files, and in what to do they are one case.
        raise CheckpointError(
            f"{path}: a tar archive. Unpack it and name the file inside; if torch before 0.1.10 wrote it, "
            "load it there and save it again"
        )
    if head.startswith(TORCH_MAGIC):
        return "torch (before 1.6)"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<body")):
        raise CheckpointError(
            f"{path}: an HTML page, not a checkpoint: the download brought an error or login page. "
            "Download it again from the file's own address"
        )
    if head[4:8] == b"ftyp":
        raise CheckpointError(f"{path}: a video (MP4), not a checkpoint. Name a checkpoint")
    # A pickle starts with its protocol, or before protocol 2 with a container or a class.
    if (head[:1] == b"\x80" and head[1:2] and head[1] <= pickle.HIGHEST_PROTOCOL) or head[:1] in (
        b"(",
        b"}",
        b"]",
        b"c",
    ):
        return "caffe2 pickle"
    raise CheckpointError(
        f"{path}: not a checkpoint: it begins with {head[:8]!r}, like no file of torch, safetensors or pickle. "
        "Name a file of weights, or download it again"
    )


def _is_tar(path: str) -> bool:
    try:
        with tarfile.open(path, "r:"):
            return True
    except tarfile.TarError:
        return False


def _read_safetensors(path: str, *, header_only: bool) -> FileContent:
    content: dict[str, torch.Tensor] = {}
    if not header_only:
        _check_safetensors(path)
    with safetensors.safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  (it is no dict)
            try:
                tensor = file.get_tensor(name)  # mapped: its values are not read here
            except safetensors.SafetensorError as e:
                raise CheckpointError(f"{path}: {name!r} has a dtype that torch has not ({e}). Convert it") from e
            content[name] = tensor.to("meta") if header_only else tensor
        metadata = dict(file.metadata() or {})
    return FileContent(path, "safetensors", content, metadata=metadata)


def _read_caffe2(path: str, size: int) -> FileContent:
    from video_gn.weights._recipes import plain
    from video_gn.weights._unpickle import Reading, bind

    reading = Reading(path, size, strict=True)
    with Path(path).open("rb") as file:
        content = plain(bind(reading).load(file), reading.foreign)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: a pickle of a {type(content).__name__}, not of a dict of weights. Name another")
    return FileContent(path, "caffe2 pickle", content)


def _check_zip(path: str, size: int) -> dict[str, int]:
    """Compare the checksum of each record in a zip of torch.

    Returns:
        Bytes of each storage, by key.

    Raises:
        CheckpointError: for a damaged zip, or one that holds something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_entries(path, size, entries)
            # `torch.serialization.set_crc32_options(False)` writes none: zeros.
            for entry in entries if any(entry.CRC for entry in entries) else ():
                with archive.open(entry) as record:
                    while record.read(CHUNK_BYTES):
                        pass
    except zipfile.BadZipFile as error:
        words = re.match(r"Bad CRC-32 for file '(.*)'", str(error))
        what = f"damaged: the checksum of {words[1]} is wrong" if words else None
        what = what or f"a zip archive that is cut short or damaged ({error})"
        raise CheckpointError(f"{path}: {what}. {AGAIN}, in full") from error
    root = entries[0].filename.split("/")[0]
    return {entry.filename.removeprefix(f"{root}/data/"): entry.file_size for entry in entries}


def _check_entries(path: str, size: int, entries: list[zipfile.ZipInfo]) -> None:
    """Refuse a zip whose records are not what torch.save writes, or not told apart."""
    names = [entry.filename for entry in entries]
    root = names[0].split("/")[0] if names else ""
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise CheckpointError(
            f"{path}: a TorchScript archive, which holds code. Load it with torch.jit.load where you trust it, and "
            "save its state_dict() with torch.save"
        )
    if f"{root}/archive_format" in names:
        raise CheckpointError(
            f"{path}: a program of torch.export, whose reader evaluates text of the file. Load it with "
            "torch.export.load where you trust it; here take the checkpoint, or an .onnx of video-gn export"
        )
    if f"{root}/data.pkl" not in names:
        raise CheckpointError(
            f"{path}: a zip archive, but not one of torch.save. Unpack it and name the file of weights inside"
        )
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(  # torch would map the compressed bytes as values
            f"{path}: a torch file whose zip was packed again with compression. Use the original file"
        )
    # torch's reader and Python's may take different ones of two, and each of many costs a pass over the same bytes.
    if len({name.lower() for name in names}) < len(names) or sum(entry.file_size for entry in entries) > size:
        raise CheckpointError(f"{path}: damaged: a zip archive whose records overlap. {AGAIN}, in full")


# ---- checksums of safetensors ----------------------------------------------------------------------


def write_checksum(path: str | os.PathLike[str]) -> None:
    """Write the checksum of a safetensors file into its metadata, which must have `CHECKSUM`: `NO_CHECKSUM`."""
    found = _find_checksum(path)
    assert found is not None
    with Path(path).open("r+b") as file:
        file.seek(found[1])
        file.write(b"%08x" % found[2])


def _check_safetensors(path: str) -> None:
    found = _find_checksum(path)
    if found is not None and found[0] != b"%08x" % found[2]:
        raise CheckpointError(f"{path}: damaged: its checksum is wrong. {AGAIN}, in full")


def _find_checksum(path: str | os.PathLike[str]) -> tuple[bytes, int, int] | None:
    """The digits in a file, their place, and the CRC-32 of the file as it is; None for a file without a checksum."""
    with Path(path).open("rb") as file:
        header = file.read(8)
        header += file.read(int.from_bytes(header, "little"))
        found = _CHECKSUM.search(header)
        if found is None:
            return None
        start, end = found.span(1)
        crc = zlib.crc32(header[:start] + NO_CHECKSUM.encode() + header[end:])
        while chunk := file.read(CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
    return found[1], start, crc


# ---- torch's files ---------------------------------------------------------------------------------


def _read_torch(path: str, size: int, container: str, *, mapped: bool) -> FileContent:
    """Let torch do zip, storages, byte order and mapping, and our unpickler everything else.

    `weights_only=True` would refuse a file for any foreign object beside its weights; it also lets a tensor enlarge its
    storage, and a deeply nested key crashes the process. With `weights_only=False` torch uses the unpickler that it is
    given, which imports and calls nothing.
    """
    from video_gn.weights._recipes import plain
    from video_gn.weights._unpickle import Reading, bind

    records = _check_zip(path, size) if container == "torch" else None
    reading = Reading(path, size, strict=False, records=records)
    options: dict[str, Any] = {"weights_only": False, "pickle_module": bind(reading), "encoding": "latin1"}
    if os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0").lower() in ("1", "y", "yes", "true"):
        options = {"weights_only": True}  # who sets this wants torch's own unpickler, and foreign objects refused
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch on pickle protocols and on storages
        if path.endswith(".safetensors"):  # by this ending torch would take it for what it is not
            with Path(path).open("rb") as file:
                tree = torch.load(file, map_location="cpu", mmap=False, **options)
        else:
            tree = torch.load(path, map_location="cpu", mmap=mapped and container == "torch", **options)
        content = plain(tree, reading.foreign)
    if container != "torch" and reading.storages != set(reading.last or ()):
        raise CheckpointError(f"{path}: the values of some of its tensors are missing. {AGAIN}")
    return FileContent(path, container, content, foreign=tuple(sorted(reading.foreign)))
