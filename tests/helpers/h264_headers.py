"""Changes headers of H.264 videos in their files, in place."""

from __future__ import annotations

from pathlib import Path

import av

from video_gn.decoding._nal import Bits


def _sequence_set(path: Path) -> bytes:
    """The NAL unit of the sequence parameter set."""
    with av.open(str(path)) as container:
        extradata = container.streams.video[0].codec_context.extradata or b""
    at = extradata.index(b"\x67")
    is_boxed = extradata[0] == 1
    end = at + int.from_bytes(extradata[at - 2 : at], "big") if is_boxed else extradata.index(b"\0\0\1", at)
    return extradata[at:end].rstrip(b"\0")


def without_vui(path: Path) -> Path:
    """Take x264's video usability information out of a file: with it goes how many pictures a decoder holds back."""
    old = _sequence_set(path)
    bits = Bits(old, 1)
    profile = bits.read(8)
    bits.read(16)
    bits.read_golomb()
    if profile == 100:  # 4:2:0, 8 bits, without matrices
        assert [bits.read_golomb(), bits.read_golomb(), bits.read_golomb(), bits.read(2)] == [1, 0, 0, 0]
    bits.read_golomb()
    if bits.read_golomb() == 0:
        bits.read_golomb()
    bits.read_golomb()
    bits.read(1)
    bits.read_golomb()
    bits.read_golomb()
    if not bits.read(1):
        bits.read(1)
    bits.read(1)
    if bits.read(1):
        assert [bits.read_golomb() for _ in range(4)]
    at = bits.at
    assert bits.read(1) == 1 and b"\0\0\3" not in old[: at // 8 + 2]
    text = "".join(f"{byte:08b}" for byte in old)[:at] + "01"  # none, and the bit that ends the unit
    new = int(text.ljust(8 * len(old), "0"), 2).to_bytes(len(old), "big")
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    return path
