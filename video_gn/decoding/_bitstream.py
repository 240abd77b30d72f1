"""Reads from a packet's own bytes how many pictures it shows, and whether decoding may begin at it.

A container's key-frame flag is not enough for random access. With an open GOP, H.264's flagged packet is a
plain I picture, and pictures after it may still refer to earlier ones; VP8 packets may show nothing; MPEG-4 in AVI
packs two pictures into a packet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple


class PacketFacts(NamedTuple):
    """One packet."""

    num_shown: int = 1  # pictures to be shown
    num_pictures: int = 1  # all pictures, hidden and empty ones included
    # Its first picture needs nothing from before, nor does any picture that follows it both in the file and on the
    # screen. (Pictures that follow it in the file but are shown before it may.)
    is_restart: bool = False
    has_b_picture: bool = False  # it holds a bidirectional picture (known for MPEG-4 only)
    has_sets: bool = True  # it carries every parameter set that its pictures need
    has_new_sets: bool = False  # it carries a parameter set that the container's header does not have


Inspector = Callable[[bytes], PacketFacts]

_PLAIN = PacketFacts()  # most packets: made once, since a file has thousands of them


def make_inspector(codec: str, extradata: bytes) -> Inspector | None:
    """The function that reads the packets of a codec, by FFmpeg's name of it, or None for one that is not known here.

    `extradata` is the codec's header as the container stores it, or empty. Unknown codecs are decoded from the start.
    """
    make = _INSPECTORS.get(codec)
    return None if make is None else make(extradata)


def _nal_units(data: bytes, length_size: int) -> Iterator[tuple[int, int]]:
    """Start and end of each NAL unit; a length_size of 0 means start codes (Annex B)."""
    if length_size:
        at = 0
        while at + length_size < len(data):
            start = at + length_size
            at = start + int.from_bytes(data[at:start], "big")
            yield start, min(at, len(data))
        return
    at = data.find(b"\0\0\1")
    while at >= 0:
        start = at + 3
        at = data.find(b"\0\0\1", start)
        yield start, at if at >= 0 else len(data)


_PLAIN_NAL = PacketFacts(has_sets=False)


class _NalCodec(NamedTuple):
    """How H.264 and HEVC differ. Source: H.264 table 7-1, HEVC table 7-1, ISO/IEC 14496-15."""

    type_shift: int
    type_mask: int
    length_size_at: int  # in the container's header, a byte whose low two bits are the length's size less 1
    set_types: frozenset[int]
    needed_set_types: frozenset[int]
    picture_types: frozenset[int]
    restart_types: frozenset[int]


_NAL_CODECS = {
    # Sequence and picture parameter sets are 7 and 8, slices 1 to 5, IDR slices 5.
    "h264": _NalCodec(0, 0x1F, 4, frozenset({7, 8}), frozenset({7, 8}), frozenset(range(1, 6)), frozenset({5})),
    # Video, sequence and picture parameter sets are 32 to 34, slices 0 to 31, BLA, IDR and CRA slices 16 to 21.
    # What follows a CRA picture on the screen may not refer to what came before it (HEVC 3.x, trailing pictures).
    "hevc": _NalCodec(
        1, 0x3F, 21, frozenset({32, 33, 34}), frozenset({33, 34}), frozenset(range(32)), frozenset(range(16, 22))
    ),
}


def _make_nal(codec: str) -> Callable[[bytes], Inspector]:
    rule = _NAL_CODECS[codec]

    def make(extradata: bytes) -> Inspector:
        is_boxed = len(extradata) > rule.length_size_at and extradata[0] == 1
        length_size = (extradata[rule.length_size_at] & 3) + 1 if is_boxed else 0

        plain = rule.picture_types - rule.restart_types

        def inspect(data: bytes) -> PacketFacts:
            # The short way for most packets: they begin with a picture that is no restart.
            if is_boxed and len(data) > length_size and data[length_size] >> rule.type_shift & rule.type_mask in plain:
                return _PLAIN_NAL
            found: set[int] = set()
            has_new = False
            for start, end in _nal_units(data, length_size):
                if start >= end:
                    continue
                kind = data[start] >> rule.type_shift & rule.type_mask
                if kind in rule.set_types:
                    found.add(kind)
                    has_new = has_new or data[start:end].rstrip(b"\0") not in extradata
                elif kind in rule.picture_types:
                    return PacketFacts(
                        is_restart=kind in rule.restart_types,
                        has_sets=rule.needed_set_types <= found,
                        has_new_sets=has_new,
                    )
            return PacketFacts(num_shown=0, num_pictures=0, has_sets=False, has_new_sets=has_new)

        return inspect

    return make


class _Bits:
    """Reads bits, the highest first; past the end it reads zeros."""

    def __init__(self, data: bytes, start: int) -> None:
        self.data, self.at = data, start * 8

    def read(self, count: int) -> int:
        value = 0
        for _ in range(count):
            byte = self.data[self.at >> 3] if self.at >> 3 < len(self.data) else 0
            value = value << 1 | (byte >> (7 - (self.at & 7)) & 1)
            self.at += 1
        return value


def _mpeg4_time_bits(data: bytes) -> int | None:
    """Width of a picture's time field, from the video object layer header (ISO/IEC 14496-2, 6.2.3)."""
    at = data.find(b"\0\0\1")
    while at >= 0 and not (at + 3 < len(data) and 0x20 <= data[at + 3] <= 0x2F):
        at = data.find(b"\0\0\1", at + 3)
    if at < 0:
        return None
    bits = _Bits(data, at + 4)
    bits.read(1 + 8)  # random access, object type
    if bits.read(1):
        bits.read(4 + 3)  # version, priority
    if bits.read(4) == 15:
        bits.read(8 + 8)  # pixel aspect ratio
    if bits.read(1):  # control parameters
        bits.read(2 + 1)  # chroma format, low delay
        if bits.read(1):
            bits.read(79)  # buffer model
    bits.read(2 + 1)  # shape, marker
    return max(1, (bits.read(16) - 1).bit_length())


def _make_mpeg4(extradata: bytes) -> Inspector:
    time_bits = _mpeg4_time_bits(extradata)

    def is_coded(data: bytes, start: int) -> bool:
        if time_bits is None:
            return True
        word = int.from_bytes(data[start : start + 16].ljust(16, b"\0"), "big")
        at = 125  # of 128 bits; two have been read: the kind of picture
        while word >> at & 1:  # whole seconds, in unary
            at -= 1
        at -= 1 + 1 + time_bits + 1  # the zero that ends them, marker, time, marker
        return at >= 0 and bool(word >> at & 1)

    def inspect(data: bytes) -> PacketFacts:
        nonlocal time_bits
        if time_bits is None:
            time_bits = _mpeg4_time_bits(data)
        kinds: list[int] = []
        num_coded = 0
        at = data.find(b"\0\0\1\xb6")
        while at >= 0 and at + 4 < len(data):
            kinds.append(data[at + 4] >> 6)  # 0 I, 1 P, 2 B, 3 S
            num_coded += is_coded(data, at + 4)
            at = data.find(b"\0\0\1\xb6", at + 4)
        return PacketFacts(
            num_shown=num_coded,
            num_pictures=len(kinds),
            is_restart=kinds[:1] == [0],
            has_b_picture=2 in kinds,
        )

    return inspect


def _make_vp8(extradata: bytes) -> Inspector:
    def inspect(data: bytes) -> PacketFacts:
        # RFC 6386, 9.1: the lowest bit is 0 in key frames, bit 4 says that the frame is shown.
        first = data[0]
        return PacketFacts(num_shown=first >> 4 & 1, is_restart=not first & 1)

    return inspect


def _make_vp9(extradata: bytes) -> Inspector:
    def inspect(data: bytes) -> PacketFacts:
        # VP9 specification, 6.2: marker, profile, show_existing_frame, frame_type (0 for key), show_frame.
        bits = _Bits(data, 0)
        bits.read(2)
        if bits.read(1) + 2 * bits.read(1) == 3:
            bits.read(1)
        if bits.read(1):
            return _PLAIN
        is_key, is_shown = not bits.read(1), bits.read(1) == 1
        is_superframe = data[-1] & 0xE0 == 0xC0  # annex B: hidden frames and one that is shown
        return PacketFacts(num_shown=int(is_shown or is_superframe), is_restart=is_key)

    return inspect


def _make_av1(extradata: bytes) -> Inspector:
    def inspect(data: bytes) -> PacketFacts:
        # AV1 specification, 5.3 to 5.9: a packet is a temporal unit, which shows one frame. A shown key
        # frame refreshes every reference; decoding starts at one that comes with its sequence header.
        at, has_sequence = 0, False
        while at < len(data):
            header = data[at]
            at += 1 + (header >> 2 & 1)
            size, shift = 0, 0
            if not header >> 1 & 1:
                size = len(data) - at
            else:
                while at < len(data):
                    size |= (data[at] & 0x7F) << shift
                    shift, at = shift + 7, at + 1
                    if not data[at - 1] & 0x80:
                        break
            kind = header >> 3 & 15
            if kind == 1:
                has_sequence = True
            elif kind in (3, 6):  # frame header, frame
                # show_existing_frame 0, frame_type 00 for key, show_frame 1
                is_shown_key = at < len(data) and data[at] >> 4 == 0b0001
                return PacketFacts(is_restart=is_shown_key and has_sequence)
            at += size
        return PacketFacts(num_shown=0)

    return inspect


def _make_mjpeg(extradata: bytes) -> Inspector:
    def inspect(data: bytes) -> PacketFacts:
        # Huffman (FFC4) and quantization tables (FFDB) may be left to an earlier picture.
        head = data[: data.find(b"\xff\xda")]
        has_huffman, has_quantization = b"\xff\xc4" in head, b"\xff\xdb" in head
        return PacketFacts(
            is_restart=True, has_sets=has_huffman and has_quantization, has_new_sets=has_huffman or has_quantization
        )

    return inspect


def _make_intra(extradata: bytes) -> Inspector:
    facts = PacketFacts(is_restart=True)
    return lambda data: facts


_INSPECTORS: dict[str, Callable[[bytes], Inspector]] = {
    "h264": _make_nal("h264"),
    "hevc": _make_nal("hevc"),
    "mpeg4": _make_mpeg4,
    "vp8": _make_vp8,
    "vp9": _make_vp9,
    "av1": _make_av1,
    "mjpeg": _make_mjpeg,
    "prores": _make_intra,
    "dnxhd": _make_intra,
    "rawvideo": _make_intra,
}
