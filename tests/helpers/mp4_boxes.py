"""Reads and writes the boxes of an mp4 file."""

from __future__ import annotations

import struct
from pathlib import Path


class Boxes:
    """The tree of an mp4 file whose index comes last, so that nothing in front of it moves."""

    _PARENTS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts"})

    def __init__(self, data: bytes) -> None:
        self.boxes = self._parse(data)

    def _parse(self, data: bytes) -> list[list]:
        boxes, at = [], 0
        while at < len(data):
            size, kind = struct.unpack_from(">I4s", data, at)
            head = 8
            if size == 1:
                size, head = struct.unpack_from(">Q", data, at + 8)[0], 16
            body = data[at + head : at + size]
            boxes.append([kind, self._parse(body) if kind in self._PARENTS else bytearray(body)])
            at += size
        return boxes

    def find(self, kind: bytes, boxes: list[list] | None = None) -> list | None:
        """The first box of a kind: [kind, bytes or boxes]."""
        for box in self.boxes if boxes is None else boxes:
            if box[0] == kind:
                return box
            if isinstance(box[1], list) and (found := self.find(kind, box[1])):
                return found
        return None

    def body(self, kind: bytes) -> bytearray:
        """The bytes of the first box of a kind."""
        found = self.find(kind)
        assert found is not None, kind
        return found[1]

    def write(self, boxes: list[list] | None = None) -> bytes:
        """The file."""
        out = b""
        for kind, body in self.boxes if boxes is None else boxes:
            data = self.write(body) if isinstance(body, list) else bytes(body)
            out += struct.pack(">I4s", len(data) + 8, kind) + data
        return out


# The eight ways to hold a camera: [[a, b], [c, d]] of the header's matrix.
MATRICES = [
    *((a, 0, 0, d) for a in (1, -1) for d in (1, -1)),
    *((0, b, c, 0) for b in (1, -1) for c in (1, -1)),
]


def set_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write a display matrix into the header of an mp4 or mov file."""
    boxes = Boxes(path.read_bytes())
    a, b, c, d = (value << 16 for value in matrix)
    boxes.body(b"tkhd")[40:76] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(boxes.write())
