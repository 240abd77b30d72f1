"""Reads files inside tar shards in place: `train-000000.tar::0001.mp4` is the member `0001.mp4` of a tar.

The places of a shard's members are read once and kept beside it (`train-000000.tar.idx`), so that finding a member
takes a search in an array and one read, of its own header. That header is compared with the index, so a shard that
was replaced or damaged is noticed.
"""

# os.path, not pathlib: this runs for each video that is opened.
# ruff: noqa: PTH123

from __future__ import annotations

import errno
import hashlib
import logging
import os
import posixpath
import stat
import struct
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from video_gn.errors import DecodeError, RunError
from video_gn.files import whole_file

log = logging.getLogger(__name__)

INDEX_SUFFIX = ".idx"
# Between a shard and its member. Ordinary file names do not end in two colons, and a tar is no folder.
SEPARATOR = "::"
# How FFmpeg may open a file: not over the network.
PROTOCOLS = "file,subfile"
_MARK = f".tar{SEPARATOR}"
_MAGIC = b"video-gn tar index 2\n"
_HEAD = struct.Struct("<QQ")  # bytes of the tar, number of members
_BLOCK = tarfile.BLOCKSIZE
# How far the zeros after a tar's last member are looked at: tar fills its last record with them, 10 KiB by default.
_END_BYTES = 1 << 20
_COLUMNS = np.dtype([("name", "<u8"), ("offset", "<u8"), ("size", "<u8"), ("header", "<u4")])


class Member(NamedTuple):
    """Where a member's bytes are."""

    tar_path: str
    offset: int  # first byte, counted from the shard's start
    size: int  # bytes


@dataclass(frozen=True, slots=True, eq=False)
class TarIndex:
    """The members of a shard, 28 bytes each: 240,000 of them fit in every worker."""

    rows: np.ndarray  # of `_COLUMNS`, one for each member, sorted by its name's hash; `header` is a checksum
    num_bytes: int  # of the tar
    damage: str | None = None  # what is wrong with the tar

    def find(self, name: str) -> tuple[int, int, int] | None:
        """(offset, size, checksum of the header) of a member, or None."""
        key = np.uint64(_hash(name))
        place = int(np.searchsorted(self.rows["name"], key))
        if place == len(self.rows) or self.rows["name"][place] != key:
            return None
        row = self.rows[place]
        return int(row["offset"]), int(row["size"]), int(row["header"])


_indices: dict[str, tuple[tuple[int, int, int], TarIndex]] = {}


def is_member(path: str) -> bool:
    """Whether a path has the form `SHARD.tar::MEMBER`."""
    return path.partition(_MARK)[2] != ""


def split_path(path: str) -> tuple[str, str]:
    """`SHARD.tar::MEMBER` -> (shard, member).

    Raises:
        ValueError: for a path of another form.
    """
    shard, mark, member = path.partition(_MARK)
    if not mark or not member:
        raise ValueError(f"path must be SHARD.tar{SEPARATOR}MEMBER, got {path!r}.")
    return f"{shard}.tar", member


def join_path(tar_path: str | os.PathLike[str], member: str) -> str:
    """The path of a shard's member."""
    return f"{os.fspath(tar_path)}{SEPARATOR}{member}"


def locate(path: str) -> Member:
    """Find a shard's member, `SHARD.tar::MEMBER`; a process reads each shard's index once.

    Raises:
        DecodeError: for a shard or member that is missing, a shard that is cut off or differs from its index, or a
            file that has this very name.
        ValueError: for a path of another form.
    """
    tar_path, name = split_path(path)
    if os.path.lexists(path):
        raise DecodeError(
            path, f"a file of this very name exists, and it may also mean {name!r} in {tar_path}. Rename the file"
        )
    index = _index_of(path, tar_path)
    found = index.find(name)
    if found is None:
        raise DecodeError(path, f"the shard has no member {name!r}{f' ({index.damage})' if index.damage else ''}")
    offset, size, checksum = found
    if offset + size > index.num_bytes:
        there = max(0, index.num_bytes - offset)
        raise DecodeError(path, f"the shard is cut off: {there} of the member's {size} bytes are there")
    try:
        with open(tar_path, "rb", buffering=0) as file:
            header = os.pread(file.fileno(), _BLOCK, offset - _BLOCK)
    except OSError as error:
        raise DecodeError(path, f"the shard cannot be read ({error.strerror})") from error
    if zlib.crc32(header) != checksum:
        raise DecodeError(
            path,
            f"the shard is damaged, or was replaced: the bytes before {offset} are not the member's header. "
            f"Remove {tar_path}{INDEX_SUFFIX}, or make the shard again",
        )
    return Member(tar_path, offset, size)


def member_url(path: str) -> str:
    """The URL by which FFmpeg reads the member's bytes within its shard.

    Raises:
        DecodeError: see `locate`; also for a member without a byte.
    """
    member = locate(path)
    if member.size == 0:
        raise DecodeError(path, "the file is empty (0 bytes)")
    # "file:" keeps FFmpeg from taking "a:b.tar" for a protocol; nothing after its colon is special.
    end = member.offset + member.size
    return f"subfile,,start,{member.offset},end,{end},,:file:{member.tar_path}"


def read_member(path: str) -> bytes:
    """All bytes of a shard's member, for libraries that do not know FFmpeg's protocols.

    Raises:
        DecodeError: see `locate`; also for a shard that cannot be read.
    """
    member = locate(path)
    try:
        with open(member.tar_path, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), member.size, member.offset)
            while len(data) < member.size:  # one call gives 2 GB at most
                more = os.pread(file.fileno(), member.size - len(data), member.offset + len(data))
                if not more:
                    raise DecodeError(path, f"the shard is cut off: {len(data)} of {member.size} bytes are there")
                data += more
    except OSError as error:
        raise DecodeError(path, f"the shard cannot be read ({error.strerror})") from error
    return data


def exists(path: str) -> bool:
    """Whether a shard has this member, for lists; False for a shard that cannot be read."""
    try:
        tar_path, name = split_path(path)
        return _index_of(path, tar_path).find(name) is not None
    except (DecodeError, ValueError):
        return False


def _index_of(path: str, tar_path: str) -> TarIndex:
    try:
        status = os.stat(tar_path)  # noqa: PTH116
    except OSError as error:
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        reason = "is missing" if missing else f"cannot be read ({error.strerror})"
        raise DecodeError(path, f"the shard {reason}") from error
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError(path, "the shard is a directory, pipe or device, not a tar file")
    key = _state(status)
    known = _indices.get(tar_path)
    if known is not None and known[0] == key:
        return known[1]
    try:
        index = read_index(tar_path)
    except OSError as error:
        raise DecodeError(path, f"the shard cannot be read ({error.strerror})") from error
    _indices[tar_path] = (key, index)
    return index


def _state(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino


def read_index(tar_path: str | os.PathLike[str]) -> TarIndex:
    """The members of a shard: from the index beside it, or from the shard if that is absent or stale.

    A whole shard's index is then written beside it, if the directory allows it.

    Raises:
        OSError: if the shard cannot be read.
    """
    tar_path = Path(tar_path)
    kept = _kept_index(tar_path)
    if kept is not None:
        return kept
    index = build_index(tar_path)
    if index.damage:
        log.warning("%s: %s", tar_path, index.damage)
    else:
        _keep_index(tar_path, index)
    return index


def _kept_index(tar_path: Path) -> TarIndex | None:
    """The index beside a shard; None if it is absent or stale."""
    beside = tar_path.with_name(tar_path.name + INDEX_SUFFIX)
    status = tar_path.stat()
    try:
        found = beside.stat()
        if stat.S_ISREG(found.st_mode) and found.st_mtime_ns >= status.st_mtime_ns:
            index = _parse(beside.read_bytes())
            if index is not None and index.num_bytes == status.st_size:
                return index
        log.debug("%s is stale", beside)
    except OSError:
        pass  # there is none
    return None


def _keep_index(tar_path: Path, index: TarIndex) -> None:
    try:
        write_index(tar_path, index)
    except RunError as error:
        log.debug("%s", error)  # a data set may be read-only


def list_members(tar_path: str) -> dict[str, Member | None]:
    """The files of a whole tar by name, in its order, from all of its headers; notes its index on the way.

    A name is without "./" at its start; of two members with one name the later one counts, as tar has it. None stands
    for what cannot be read in place: links and sparse files.

    Raises:
        DecodeError: for a tar that is missing, damaged or cut off, and for a name that leads out of the folder in
            which the tar would be unpacked.
    """
    try:
        status = os.stat(tar_path)  # noqa: PTH116
        if not stat.S_ISREG(status.st_mode):
            raise DecodeError(tar_path, "a directory, pipe or device, not a tar file")
        key = _state(status)
        headers = _read_headers(tar_path)
    except OSError as error:
        raise DecodeError(tar_path, f"the tar cannot be read ({error.strerror})") from error
    if headers.damage is not None:
        raise DecodeError(tar_path, f"{headers.damage}. Copy or download it again")
    index = _to_index(headers)
    if _kept_index(Path(tar_path)) is None:
        _keep_index(Path(tar_path), index)
    _indices[tar_path] = (key, index)
    members: dict[str, Member | None] = {}
    for name, place in headers.found.items():
        plain = posixpath.normpath(name)
        if plain.startswith("/") or plain.partition("/")[0] == "..":
            raise DecodeError(tar_path, f"a member's name must not lead out of the tar, got {name!r}. Make it anew")
        members[plain] = Member(tar_path, *place[:2])
    return members | dict.fromkeys(headers.others)


def build_index(tar_path: str | os.PathLike[str]) -> TarIndex:
    """Read the headers of a shard; of one that is cut off, as far as they reach.

    Raises:
        OSError: if the shard cannot be read.
    """
    return _to_index(_read_headers(tar_path))


class _Headers(NamedTuple):
    found: dict[str, tuple[int, int, int]]  # offset, size and the header's checksum of each regular file
    others: list[str]  # links and sparse files
    num_bytes: int  # of the tar
    damage: str | None


def _to_index(headers: _Headers) -> TarIndex:
    """The index, in which "./a.mp4" is found as "a.mp4" too."""
    places = {posixpath.normpath(name): place for name, place in headers.found.items()} | headers.found
    rows = np.array([(_hash(name), *place) for name, place in places.items()], dtype=_COLUMNS)
    return TarIndex(np.sort(rows, order="name"), headers.num_bytes, headers.damage)


def _read_headers(tar_path: str | os.PathLike[str]) -> _Headers:
    found: dict[str, tuple[int, int, int]] = {}
    others: list[str] = []
    damage = None
    with open(tar_path, "rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        end = 0
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (info := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # tarfile would keep all of them
                    end = info.offset_data + -(-info.size // _BLOCK) * _BLOCK
                    if info.isreg() and not info.issparse():
                        header = os.pread(file.fileno(), _BLOCK, info.offset_data - _BLOCK)
                        found[info.name] = (info.offset_data, info.size, zlib.crc32(header))
                    elif not info.isdir():
                        others.append(info.name)
        except tarfile.TarError as error:
            damage = f"the shard is damaged or no tar: {error}"
        tail = os.pread(file.fileno(), _END_BYTES, end)
        if damage is None and tail[: 2 * _BLOCK] != bytes(2 * _BLOCK):
            damage = f"the shard is cut off or damaged at byte {end}"
        elif damage is None and tail.strip(b"\0"):
            damage = f"the shard goes on after its end at byte {end}, as several tars in one file do"
    return _Headers(found, others, num_bytes, damage)


def write_index(tar_path: str | os.PathLike[str], index: TarIndex) -> None:
    """Write a shard's index beside it, whole or not at all; errors are those of `video_gn.files.whole_path`."""
    tar_path = Path(tar_path)
    content = _MAGIC + _HEAD.pack(index.num_bytes, len(index.rows)) + index.rows.tobytes()
    with whole_file(tar_path.with_name(tar_path.name + INDEX_SUFFIX), "wb") as file:
        file.write(content + struct.pack("<I", zlib.crc32(content)))


def _parse(data: bytes) -> TarIndex | None:
    """The index in a file's bytes; None if they are anything else."""
    start = len(_MAGIC) + _HEAD.size
    if len(data) < start + 4 or not data.startswith(_MAGIC):
        return None
    content, checksum = data[:-4], struct.unpack("<I", data[-4:])[0]
    num_bytes, count = _HEAD.unpack_from(content, len(_MAGIC))
    if zlib.crc32(content) != checksum or len(content) != start + count * _COLUMNS.itemsize:
        return None
    return TarIndex(np.frombuffer(content, dtype=_COLUMNS, offset=start), num_bytes)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")
