"""Pictures and frames that a machine cannot hold: one sentence, before anything is allocated for them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from media import numbered_frame, read_numbers, write_numbered_video
from PIL import Image

from video_gn.decoding import _base, open_video
from video_gn.errors import DecodeError

TOO_LARGE = r"must have at most 134 million pixels, got 12000 x 12000\. Make a smaller copy"


def write_picture(path: Path, side: int) -> None:
    """A black PNG of a bit for each pixel, which zlib shrinks to a thousandth."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    packer = zlib.compressobj()
    data = b"".join(packer.compress(bytes(1 + side // 8)) for _ in range(side)) + packer.flush()
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    parts = (struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def write_video(path: Path, told: int, real: int) -> None:
    """VP8 in IVF, whose header tells of square pictures of one side, and its key frames of another one."""
    data = b"DKIF" + struct.pack("<HH4sHHIIII", 0, 32, b"VP80", told, told, 25, 1, 5, 0)
    with av.open(str(write_numbered_video(path.with_name("small.webm"), 5, codec="libvpx"))) as source:
        for number, packet in enumerate(p for p in source.demux(video=0) if p.size):
            frame = bytes(packet)
            if frame[3:6] == b"\x9d\x01\x2a":
                frame = frame[:6] + struct.pack("<HH", real, real) + frame[10:]
            data += struct.pack("<IQ", len(frame), number) + frame
    path.write_bytes(data)


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_videos_of_too_large_pictures(tmp_path: Path, backend: str) -> None:
    write_video(tmp_path / "told.ivf", told=12000, real=12000)
    with pytest.raises(DecodeError, match=f"its pictures {TOO_LARGE}"):
        open_video(tmp_path / "told.ivf", backend)
    write_video(tmp_path / "untold.ivf", told=64, real=12000)
    with pytest.raises(DecodeError, match="none of its 5 video packets can be decoded"):
        open_video(tmp_path / "untold.ivf", backend)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_folders_of_too_large_pictures(tmp_path: Path) -> None:
    for number in range(1, 9):
        write_picture(tmp_path / f"img_{number}.png", 12000)
    with pytest.raises(DecodeError, match=f"the picture img_1.png {TOO_LARGE}"):
        open_video(tmp_path)
    write_picture(tmp_path / "img_1.png", 16000)  # Pillow's own limit
    with pytest.raises(DecodeError, match=r"the picture img_1\.png cannot be read \(.*exceeds limit"):
        open_video(tmp_path)


@pytest.mark.parametrize("kind", ["pyav", "decord", "folder"])
def test_more_frames_than_the_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    if kind == "folder":
        path = tmp_path
        for number in range(20):
            Image.fromarray(numbered_frame(number)).save(path / f"{number}.png")
    else:
        path = write_numbered_video(tmp_path / "video.mp4", 20)
    frame_bytes = 64 * 48 * 3
    monkeypatch.setattr(_base, "_ALWAYS_BYTES", frame_bytes)
    monkeypatch.setattr(_base, "_free_bytes", lambda: 8.5 * frame_bytes)
    with open_video(path, "auto" if kind == "folder" else kind) as reader:
        with pytest.raises(
            DecodeError, match=r"64 x 48 pixels take more memory than is free: 9 of them 0\.0 GB\. Read fewer"
        ):
            reader.frames_at(range(9))
        assert read_numbers(reader.frames_at(range(8))) == list(range(8))
        with monkeypatch.context() as context:

            def refuse(shape: tuple[int, ...], **kwargs: Any) -> np.ndarray:
                if len(shape) == 4:
                    raise MemoryError
                return real(shape, **kwargs)

            real = np.empty
            context.setattr(np, "empty", refuse)  # as beyond the shell's limit
            with pytest.raises(DecodeError, match="take more memory than is free"):
                reader.frames_at([3])
        assert read_numbers(reader.frames_at([3, 19])) == [3, 19]


def test_the_free_memory_is_found() -> None:
    assert 10_000_000 < _base._free_bytes() < 2**50
