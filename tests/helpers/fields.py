"""Field-coded H.264 (PAFF), which no encoder here writes: each field is a picture of uncompressed or copied blocks."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from media import numbered_frame

_SIDE = 64  # px; 4 x 4 macroblocks
_PER_FIELD = 8  # macroblocks


class _Writer:
    """Bits of a NAL unit. Source: H.264, 7.3 and 9.1."""

    def __init__(self) -> None:
        self.bits: list[str] = []

    def u(self, count: int, value: int) -> _Writer:
        self.bits.append(f"{value:0{count}b}")
        return self

    def ue(self, *values: int) -> _Writer:
        for value in values:
            text = f"{value + 1:b}"
            self.bits.append("0" * (len(text) - 1) + text)
        return self

    def align(self) -> _Writer:
        self.bits.append("0" * (-sum(map(len, self.bits)) % 8))
        return self

    def raw(self, data: bytes) -> _Writer:
        self.bits += [f"{byte:08b}" for byte in data]
        return self

    def unit(self, header: int) -> bytes:
        self.u(1, 1).align()
        text = "".join(self.bits)
        body = int(text, 2).to_bytes(len(text) // 8, "big")
        out, zeros = bytearray([header]), 0
        for byte in body:
            if zeros == 2 and byte <= 3:  # a start code must not appear
                out.append(3)
                zeros = 0
            out.append(byte)
            zeros = 0 if byte else zeros + 1
        return b"\0\0\0\1" + bytes(out)


def _parameter_sets() -> bytes:
    sps = _Writer().u(8, 77).u(8, 0).u(8, 30).ue(0, 0, 0, 4, 2).u(1, 0).ue(3, 1)
    sps.u(1, 0).u(1, 0).u(1, 1).u(1, 0).u(1, 0)  # fields, no MBAFF, 8x8 inference, no crop, no VUI
    pps = _Writer().ue(0, 0).u(2, 0).ue(0, 0, 0).u(3, 0).ue(0, 0, 0).u(3, 0b100)
    return sps.unit(0x67) + pps.unit(0x68)


def _field(number: int, frame: int, *, is_bottom: bool, is_copy: bool, is_idr: bool, frame_num: int, poc: int) -> bytes:
    """A field of whole blocks, or one that copies the last field."""
    head = _Writer().ue(0, 5 if is_copy else 7, 0).u(4, frame_num % 16).u(1, 1).u(1, is_bottom)
    if is_idr:
        head.ue(frame % 16)
    head.u(8, poc % 256)
    if is_copy:
        head.u(1, 0).u(1, 0)
    head.u(2 if is_idr else 1, 0)
    head.ue(0, 1)  # no change of the quantizer; no deblocking
    if is_copy:
        return head.ue(_PER_FIELD).unit(0x61)
    luma = numbered_frame(number, (_SIDE, _SIDE))[is_bottom::2, :, 0]
    for at in range(_PER_FIELD):
        row, column = divmod(at, _SIDE // 16)
        block = luma[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        head.ue(25).align().raw(np.ascontiguousarray(block).tobytes() + bytes([96 + number % 64]) * 128)
    return head.unit(0x65 if is_idr else 0x61)


def write_fields(path: Path, num_frames: int, *, gop: int = 6, second: str = "P", is_split: bool = False) -> Path:
    """Write a video of two fields a frame.

    Args:
        path: the name's ending chooses the container.
        num_frames: of two fields each.
        gop: frames from one IDR picture to the next; the others copy every other frame.
        second: "I" or "P", the kind of the second field.
        is_split: whether a packet holds a field, not a frame.

    Returns:
        The path.
    """
    packets: list[bytes] = []
    for frame in range(num_frames):
        at = frame % gop
        is_copy = at % 2 == 1
        fields = [
            _field(
                frame,
                frame,
                is_bottom=bool(bottom),
                is_copy=is_copy or bool(bottom and second == "P"),
                is_idr=at == 0 and not bottom,
                frame_num=at,
                poc=2 * at + bottom,
            )
            for bottom in (0, 1)
        ]
        if at == 0:
            fields[0] = _parameter_sets() + fields[0]
        packets += fields if is_split else [b"".join(fields)]
    if path.suffix == ".h264":
        path.write_bytes(b"".join(packets))
        return path
    raw = path.with_suffix(".fields")
    raw.write_bytes(b"".join(packets))
    step = 1 if is_split else 2
    with av.open(str(raw), format="h264") as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, data in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, 50)
            packet.pts = packet.dts = number * step
            packet.duration = step
            packet.is_keyframe = number * step % (2 * gop) == 0
            target.mux(packet)
    raw.unlink()
    return path
