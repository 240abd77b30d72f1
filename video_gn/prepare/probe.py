"""Finds out the facts of one video file: from its header, from its packets, or by decoding it whole."""

# os.path, not pathlib: this runs for each of 240,000 files.
# ruff: noqa: PTH116, PTH123

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from typing import IO, Literal

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from video_gn.clips import VideoInfo
from video_gn.decoding import open_video
from video_gn.decoding.frame_folders import FolderError, folder_state
from video_gn.decoding.opening import open_stream
from video_gn.decoding.probe import DEFAULT_FPS, PacketTable, header_fps, read_table, timing_of
from video_gn.decoding.tar_members import Member, is_member, locate
from video_gn.errors import DecodeError, FrameCountError
from video_gn.lists.scan_columns import FileFacts

Depth = Literal["headers", "packets", "full"]
# Memory for the frames that `full` holds at a time.
_DECODED_BYTES = 64 << 20
# ISO 14496-12, 8.3.2.3: the matrix of a picture that is shown as stored.
_UNITY = b"".join(n.to_bytes(4, "big") for n in (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30))
# Matroska's element ProjectionPoseRoll, and how much of a file is searched for it.
_POSE_ROLL = b"\x76\x75"
_HEAD_BYTES = 4096
_MAX_MOOV_BYTES = 64 << 20


def probe(path: str, depth: Depth) -> FileFacts:
    """Facts of a file or frame folder; `error` says what is wrong with it.

    Depth "headers" believes the header; "packets" counts packets, as training does; "full" decodes every frame.
    """
    size, mtime = file_state(path)
    try:
        facts = _probe(path, depth)
    except DecodeError as error:
        facts = FileFacts(error=error.reason)
    except MemoryError:
        facts = FileFacts(error="there is not enough memory to read it")
    return facts._replace(size_bytes=size, mtime_ns=mtime)


def _probe(path: str, depth: Depth) -> FileFacts:
    try:
        return _from_frames(path) if depth == "full" else _from_packets(path, headers_only=depth == "headers")
    except FolderError:
        return _from_pictures(path, is_full=depth == "full")


def file_state(path: str) -> tuple[int | None, int | None]:
    """Size and time of the last change of a file, or of a frame folder's pictures; None if it is missing.

    Of a tar's member its size, and the time of the tar.
    """
    try:
        if is_member(path):
            member = locate(path)
            return member.size, os.stat(member.tar_path).st_mtime_ns
        status = os.stat(path)
        return folder_state(path) if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_mtime_ns)
    except (OSError, ValueError, DecodeError):
        return None, None


def _from_pictures(path: str, *, is_full: bool) -> FileFacts:
    """Facts of a frame folder: from its pictures' names and the first one's head, or from all of them."""
    with open_video(path) as reader:
        for index in range(reader.info.num_frames) if is_full else ():
            reader.frames_at([index])
        return _facts_of(reader.info, interval=1)


def _facts_of(info: VideoInfo, *, interval: int) -> FileFacts:
    return FileFacts(
        num_frames=info.num_frames,
        fps=round(info.fps, 6),
        duration_seconds=round(info.duration_seconds, 6),
        width=info.width,
        height=info.height,
        codec=info.codec,
        rotation=info.rotation_degrees,
        key_frame_interval=interval,
    )


def _from_packets(path: str, *, headers_only: bool) -> FileFacts:
    container, stream = open_stream(path)
    try:
        if headers_only:
            facts = _from_header(container, stream)
        else:
            facts = _from_table(path, read_table(path, container, stream), stream)
        # JPEG pictures may have a rotation each, in their EXIF data.
        is_turned = facts.codec == "mjpeg" or _may_be_turned(path, container.format.name)
    finally:
        container.close()
    if is_turned:
        # PyAV gives the angle of decoded frames only.
        with open_video(path, "pyav") as reader:
            info = reader.info
        facts = facts._replace(width=info.width, height=info.height, rotation=info.rotation_degrees)
    return facts


def _from_header(container: InputContainer, stream: VideoStream) -> FileFacts:
    fps = header_fps(stream) or DEFAULT_FPS
    duration: float | None = None
    if stream.duration is not None and stream.time_base is not None:
        duration = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        duration = container.duration / av.time_base
    num_frames = stream.frames or (round(duration * fps) if duration else 0)
    return _facts(stream, num_frames or None, fps, duration, None)


def _facts(
    stream: VideoStream, num_frames: int | None, fps: float, duration: float | None, interval: int | None
) -> FileFacts:
    context = stream.codec_context
    return FileFacts(
        num_frames=num_frames,
        fps=round(fps, 6),
        duration_seconds=None if duration is None else round(duration, 6),
        width=context.width or None,
        height=context.height or None,
        codec=context.codec.canonical_name,
        rotation=0,
        key_frame_interval=interval,
    )


def _from_table(path: str, table: PacketTable, stream: VideoStream) -> FileFacts:
    if table.num_frames == 0:
        raise DecodeError(path, f"none of its {len(table.pts)} video packets is whole and to be shown")
    timing = timing_of(table, header_fps(stream))
    return _facts(stream, table.num_frames, timing.fps, timing.duration_seconds, key_frame_interval(table))


def key_frame_interval(table: PacketTable) -> int:
    """The most frames from one key frame to the next, or to the end, in the file's order; at least 1."""
    keys = np.flatnonzero(table.is_key)
    shown_before = np.concatenate(([0], np.cumsum(table.is_shown)))
    return max(1, int(np.diff(shown_before[[0, *keys, len(table.is_key)]]).max()))


def _may_be_turned(path: str, format_name: str) -> bool:
    """Whether the container's header may ask for a rotation; a decoded frame then says which."""
    if "mov" in format_name:
        moov = _read_moov(path)
        # The box's name, version, times and so on come before the matrix; 100 bytes hold all of it.
        return any(_UNITY not in moov[box.start() : box.start() + 100] for box in re.finditer(b"tkhd|mvhd", moov))
    if "matroska" in format_name:
        with _open(path) as (file, _):
            return _POSE_ROLL in file.read(_HEAD_BYTES)
    return False


@contextlib.contextmanager
def _open(path: str) -> Iterator[tuple[IO[bytes], int]]:
    """A file, or a tar at its member, open at the video's first byte; and the byte after its last one."""
    name, start, size = locate(path) if is_member(path) else Member(path, 0, os.stat(path).st_size)
    with open(name, "rb") as file:
        file.seek(start)
        yield file, start + size


def _read_moov(path: str) -> bytes:
    """The box with an mp4's header; empty if there is none, as in a file that is cut off."""
    with _open(path) as (file, end):
        at = file.tell()
        while at + 8 <= end:
            file.seek(at)
            head = file.read(16)
            size, name = int.from_bytes(head[:4], "big"), head[4:8]
            if size == 1:  # the true size follows, in 64 bits
                size = int.from_bytes(head[8:16], "big")
            elif size == 0:  # to the end of the file
                size = end - at
            if name == b"moov":
                file.seek(at)
                return file.read(min(size, _MAX_MOOV_BYTES))
            if size < 8:
                break
            at += size
    return b""


def _from_frames(path: str) -> FileFacts:
    container, stream = open_stream(path)
    try:
        interval = key_frame_interval(read_table(path, container, stream))
    finally:
        container.close()
    with open_video(path, "pyav") as reader:
        info = reader.info
        step = max(1, _DECODED_BYTES // (3 * info.width * info.height))
        with contextlib.suppress(FrameCountError):  # decoded to the end: the reader has corrected its facts
            for first in range(0, info.num_frames, step):
                reader.frames_at(np.arange(first, min(first + step, info.num_frames)))
        return _facts_of(reader.info, interval=interval)
