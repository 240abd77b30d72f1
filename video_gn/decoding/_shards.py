"""How a video is opened that is a file, or a member of a tar shard: in place, without copying it."""

from __future__ import annotations

import os
from pathlib import Path

from video_gn.decoding.tar_members import is_member, locate
from video_gn.errors import DecodeError

# What FFmpeg may open: a playlist with a video's name must not lead to other files or the network.
PROTOCOLS = "file,subfile"


def member_url(path: str) -> str:
    """What FFmpeg opens for `SHARD.tar::MEMBER`: the member's bytes within the shard.

    Raises:
        DecodeError: see `locate`; and for a member without a byte.
        ValueError: for a path of another form.
    """
    member = locate(path)
    if member.size == 0:
        raise DecodeError(path, "the file is empty (0 bytes)")
    # "file:" keeps FFmpeg from taking "a:b.tar" for a protocol; what follows the colon is taken as it is.
    end = member.offset + member.size
    return f"subfile,,start,{member.offset},end,{end},,:file:{member.tar_path}"


def read_member(path: str) -> bytes:
    """All bytes of a shard's member, for libraries that know no protocols.

    Raises:
        DecodeError: see `locate`; and for a shard that cannot be read.
        ValueError: for a path of another form.
    """
    member = locate(path)
    try:
        with Path(member.tar_path).open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), member.size, member.offset)
            while len(data) < member.size:  # one call gives 2 GB at most
                more = os.pread(file.fileno(), member.size - len(data), member.offset + len(data))
                if not more:
                    raise DecodeError(path, f"the shard is cut off: {len(data)} of {member.size} bytes are there")
                data += more
    except OSError as error:
        raise DecodeError(path, f"the shard cannot be read ({error.strerror})") from error
    return data


__all__ = ["PROTOCOLS", "is_member", "locate", "member_url", "read_member"]
