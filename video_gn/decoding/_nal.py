"""Reads the packets of H.264 and HEVC: where decoding may begin, and which of them hold a picture's second field."""

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
    has_b_picture: bool = False  # it holds a bidirectional picture (known for MPEG-1, 2 and 4 only)
    has_sets: bool = True  # it carries every parameter set that its pictures need
    has_new_sets: bool = False  # it carries a parameter set that the container's header does not have
    # A picture of one field: its parity (1 or 2) and its picture's number. Another of the same number and of the
    # other parity that comes next belongs to the same frame.
    field: tuple[int, int] | None = None
    is_broken: bool = False  # pictures before it are missing that it, or others, may refer to
    # MPEG-1 and 2: what of its sequence header starts a decoder anew (MPEG-4: the header of its video object layer);
    # whether it begins a group of pictures; the picture's number in the group in the order of showing; the number of
    # its last row of macroblocks (0: unknown).
    sequence: bytes = b""
    begins_group: bool = False
    number: int = 0
    last_row: int = 0
    # H.264, if asked for: the picture's place in the order of showing, among those of all packets. None: unknown.
    place: int | None = None


Inspector = Callable[[bytes], PacketFacts]


class Bits:
    """Reads bits, the highest first; past the end it reads zeros."""

    def __init__(self, data: bytes, start: int = 0) -> None:
        self.data, self.at = data, start * 8

    def read(self, count: int) -> int:
        value = 0
        for _ in range(count):
            byte = self.data[self.at >> 3] if self.at >> 3 < len(self.data) else 0
            value = value << 1 | (byte >> (7 - (self.at & 7)) & 1)
            self.at += 1
        return value

    def read_golomb(self) -> int:
        """An unsigned exponential Golomb code, of at most 32 bits (H.264 9.1)."""
        num_zeros = 0
        while num_zeros < 32 and not self.read(1):
            num_zeros += 1
        return (1 << num_zeros) - 1 + self.read(num_zeros)


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
# More than there are places between two IDR pictures (H.264 8.2.1: numbers of 32 bits).
_PLACES = 1 << 36
# What a slice's first numbers take, generously.
_HEAD_BYTES = 16


class _NalCodec(NamedTuple):
    """How H.264 and HEVC differ. Source: H.264 table 7-1, HEVC table 7-1, ISO/IEC 14496-15."""

    type_shift: int
    type_mask: int
    length_size_at: int  # in the container's header, a byte whose low two bits are the length's size less 1
    set_types: frozenset[int]
    needed_set_types: frozenset[int]
    picture_types: frozenset[int]
    restart_types: frozenset[int]
    broken_type: int | None  # a restart some of whose leading pictures are lost
    delimiter_type: int


_H264 = _NalCodec(
    # Sequence and picture parameter sets are 7 and 8, slices 1 to 5, IDR slices 5.
    0,
    0x1F,
    4,
    frozenset({7, 8}),
    frozenset({7, 8}),
    frozenset(range(1, 6)),
    frozenset({5}),
    None,
    9,
)
_HEVC = _NalCodec(
    # Video, sequence and picture parameter sets are 32 to 34, slices 0 to 31, BLA, IDR and CRA slices 16 to 21.
    # What follows a CRA picture on the screen may not refer to what came before it (HEVC 3.x, trailing pictures).
    1,
    0x3F,
    21,
    frozenset({32, 33, 34}),
    frozenset({33, 34}),
    frozenset(range(32)),
    frozenset(range(16, 22)),
    16,
    35,
)
_H264_INFORMATION = 6


_CODECS = {"h264": _H264, "hevc": _HEVC}


def is_torn(codec: str, extradata: bytes, data: bytes) -> bool:
    """Whether a packet breaks off within a NAL unit that is stored with its length: FFmpeg then decodes none of it."""
    length_size = _length_size(_CODECS[codec], extradata) if codec in _CODECS else 0
    at = 0
    while length_size and at + length_size <= len(data):
        at += length_size + int.from_bytes(data[at : at + length_size], "big")
    return at > len(data)


def _length_size(rule: _NalCodec, extradata: bytes) -> int:
    """Bytes of a NAL unit's length; 0 for start codes (Annex B)."""
    is_boxed = len(extradata) > rule.length_size_at and extradata[0] == 1
    return (extradata[rule.length_size_at] & 3) + 1 if is_boxed else 0


def make_hevc(extradata: bytes) -> Inspector:
    """HEVC's inspector; see `make_inspector`."""
    return _make(_HEVC, extradata, None)


def make_h264(extradata: bytes) -> Inspector:
    """H.264's inspector; see `make_inspector`."""
    return _make(_H264, extradata, _slices_of(extradata))


def make_h264_with_places(extradata: bytes) -> Inspector:
    """H.264's inspector that also reads `PacketFacts.place`; see `make_inspector`."""
    slices = _slices_of(extradata)
    inspect, length_size = _make(_H264, extradata, slices), _length_size(_H264, extradata)

    def inspect_place(data: bytes) -> PacketFacts:
        facts = inspect(data)  # notes the parameter sets
        place = slices.place(data, length_size)
        return PacketFacts(has_sets=False, place=place) if facts is _PLAIN_NAL else facts._replace(place=place)

    return inspect_place


def _slices_of(extradata: bytes) -> _Slices:
    slices = _Slices()
    for start, end in _boxed_sets(extradata) if _length_size(_H264, extradata) else _nal_units(extradata, 0):
        slices.note(extradata[start:end].rstrip(b"\0"))
    return slices


def _make(rule: _NalCodec, extradata: bytes, slices: _Slices | None) -> Inspector:
    length_size, shift, mask = _length_size(rule, extradata), rule.type_shift, rule.type_mask
    plain = rule.picture_types - rule.restart_types

    def inspect(data: bytes) -> PacketFacts:
        # The short way for most packets: they begin with a picture that is no restart, in streams after a delimiter.
        at = length_size or data.find(b"\0\0\1") + 3
        if not length_size and at < len(data) and data[at] >> shift & mask == rule.delimiter_type:
            at = data.find(b"\0\0\1", at) + 3
        if (length_size or 3) <= at < len(data) and data[at] >> shift & mask in plain:
            if not slices:
                return _PLAIN_NAL
            _, field, is_broken = slices.read(data[at : at + _HEAD_BYTES])
            return PacketFacts(has_sets=False, field=field, is_broken=is_broken) if field or is_broken else _PLAIN_NAL
        found: set[int] = set()
        has_new = is_recovery = False
        for start, end in _nal_units(data, length_size):
            if start >= end:
                continue
            kind = data[start] >> shift & mask
            if kind in rule.set_types:
                found.add(kind)
                unit = data[start:end].rstrip(b"\0")
                if unit not in extradata:
                    has_new = True
                    if slices:
                        slices.note(unit)
            elif slices and kind == _H264_INFORMATION:
                is_recovery = is_recovery or _is_exact_recovery(data[start + 1 : end])
            elif kind in rule.picture_types:
                is_restart = kind in rule.restart_types
                field, is_broken = None, kind == rule.broken_type
                if slices:
                    is_intra, field, is_broken = slices.read(data[start : start + _HEAD_BYTES])
                    is_restart = is_restart or (is_recovery and is_intra)
                return PacketFacts(
                    is_restart=is_restart,
                    has_sets=rule.needed_set_types <= found,
                    has_new_sets=has_new,
                    field=field,
                    is_broken=is_broken,
                )
        return PacketFacts(num_shown=0, num_pictures=0, has_sets=False, has_new_sets=has_new)

    return inspect


def _boxed_sets(extradata: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of each parameter set in an mp4's header (ISO/IEC 14496-15, 5.3.3.1)."""
    at = 5
    for mask in (0x1F, 0xFF):
        count = extradata[at] & mask if at < len(extradata) else 0
        at += 1
        for _ in range(count):
            size = int.from_bytes(extradata[at : at + 2], "big")
            yield at + 2, at + 2 + size
            at += 2 + size


def _unescape(data: bytes) -> bytes:
    """Without the bytes that keep start codes out of a NAL unit (H.264 7.4.1)."""
    return data.replace(b"\0\0\3", b"\0\0")


def _is_exact_recovery(unit: bytes) -> bool:
    """Whether supplemental information promises that all pictures from this one on are exact (H.264 D.2.8).

    Then they may be decoded from here: the recovery point is this picture, the match exact, no link broken.
    """
    data = _unescape(unit)
    at = 0
    while at + 2 < len(data):
        kind_and_size = [0, 0]
        for which in range(2):
            while at + 1 < len(data) and data[at] == 0xFF:
                kind_and_size[which] += 0xFF
                at += 1
            kind_and_size[which] += data[at]
            at += 1
            if at >= len(data):
                return False
        if kind_and_size[0] == 6:
            return data[at] >> 5 == 0b110  # no frames until recovery, exact, no broken link
        at += kind_and_size[1]
    return False


class _Beginning(NamedTuple):
    """A slice up to its picture's number."""

    is_intra: bool
    left: int  # bits of its head after the number
    mask: int  # of the number; 0 if its parameter sets are not known
    may_be_field: bool
    may_leave_out: bool  # whether numbers may be left out
    order_bits: int  # of the picture's place in the order of showing; 0 if it is not all that tells the place


class _Slices:
    """Reads the first numbers of H.264's slices (7.3.2.1 to 7.3.3).

    They tell I pictures, fields, and whether pictures are missing: the number of a picture is that of the last one
    that others may refer to, plus 1 (7.4.3, frame_num).
    """

    def __init__(self) -> None:
        # By a sequence parameter set's number: bits of a picture's number, whether fields may be coded by themselves,
        # whether a slice names its colour plane, whether numbers may be left out, `_Beginning.order_bits`.
        self._sequences: dict[int, tuple[int, bool, bool, bool, int]] = {}
        # By a picture parameter set's number: that of its sequence parameter set, whether fields have their own places.
        self._sequence_of: dict[int, tuple[int, bool]] = {}
        self._sequence_units: set[bytes] = set()
        # What `_read_beginning` gives for a slice's first byte, if the byte holds all of it: most slices begin alike.
        self._beginnings: dict[int, _Beginning] = {}
        self._last: int | None = None  # number of the last picture that others may refer to
        self._last_place: int | None = None  # likewise; None before the first IDR picture
        self._base = 0  # of the places of pictures since the last IDR picture

    def note(self, unit: bytes) -> None:
        """Read a parameter set, from its NAL unit."""
        self._beginnings.clear()
        bits = Bits(_unescape(unit), 1)
        if unit[0] & 0x1F == 8:
            number = bits.read_golomb()
            self._sequence_of[number] = (bits.read_golomb(), bits.read(2) & 1 == 1)
        elif unit[0] & 0x1F == 7:
            self._sequence_units.add(unit)
            profile = bits.read(8)
            bits.read(16)
            number = bits.read_golomb()
            has_planes = _skip_colours(bits) if profile in _HIGH_PROFILES else False
            num_bits = bits.read_golomb() + 4
            order = bits.read_golomb()
            order_bits = bits.read_golomb() + 4 if order == 0 else 0
            if order == 1:
                bits.read(1)
                bits.read_golomb()
                bits.read_golomb()
                for _ in range(min(bits.read_golomb(), 255)):
                    bits.read_golomb()
            bits.read_golomb()
            may_leave_out = bits.read(1) == 1
            bits.read_golomb()
            bits.read_golomb()
            if num_bits <= 16:  # else it is damaged
                may_be_field = not bits.read(1)
                order_bits = 0 if may_be_field or may_leave_out or order_bits > 16 else order_bits
                self._sequences[number] = (num_bits, may_be_field, has_planes, may_leave_out, order_bits)

    def read(self, head: bytes) -> tuple[bool, tuple[int, int] | None, bool]:
        """Whether a slice is an I slice, `PacketFacts.field` and `is_broken`; `head`: the first bytes of its unit."""
        word, beginning = self._begin(head)
        is_intra, left, mask, may_be_field, may_leave_out, _ = beginning
        if not mask:
            self._last = None
            return is_intra, None, False
        number = word >> left & mask
        field = None
        if may_be_field and word >> left - 1 & 1:
            field = (1 + (word >> left - 2 & 1), number)
        is_broken = False
        if head[0] & 0x1F != 5 and self._last is not None and not may_leave_out:
            step = number - self._last & mask
            is_broken = step != 1 and not (field and step == 0)
        if head[0] & 0x60:
            self._last = number
        return is_intra, field, is_broken

    def place(self, data: bytes, length_size: int) -> int | None:
        """The place of a packet's only picture in the order of showing (8.2.1.1).

        None where that is not known: if it may be a field, with several pictures or none, before the first IDR picture,
        and if sequence parameter sets differ.
        """
        head = b""
        for start, end in _nal_units(data, length_size):
            # A picture's first slice begins with its first block: a set bit.
            if start + 1 < end and data[start + 1] & 0x80 and data[start] & 0x1F in (1, 5):
                if head:
                    return None
                head = data[start : start + _HEAD_BYTES]
        if not head or len(self._sequence_units) != 1:
            return None
        word, (_, left, _, _, _, num_bits) = self._begin(head)
        if head[0] & 0x1F == 5:
            _, left = _golomb(word, left)
            self._base += _PLACES
            self._last_place = self._base
        if self._last_place is None or not num_bits:
            return None
        half = 1 << num_bits - 1
        step = (word >> max(0, left - num_bits)) - self._last_place & 2 * half - 1
        place = self._last_place + (step if step <= half else step - 2 * half)
        if head[0] & 0x60:
            self._last_place = place
        return place

    def _begin(self, head: bytes) -> tuple[int, _Beginning]:
        """A slice's first bytes as a number, and what they say; `head` as in `read`."""
        if len(head) < _HEAD_BYTES or b"\0\0\3" in head:
            head = head[:1] + _unescape(head[1:]).ljust(_HEAD_BYTES - 1, b"\xff")
        word = int.from_bytes(head, "big")
        return word, self._beginnings.get(head[1]) or self._read_beginning(word, head[1])

    def _read_beginning(self, word: int, first_byte: int) -> _Beginning:
        left = 8 * _HEAD_BYTES - 8
        _, after = _golomb(word, left)
        kind, after = _golomb(word, after)
        parameters, after = _golomb(word, after)
        sequence, has_field_places = self._sequence_of.get(parameters, (-1, False))
        num_bits, may_be_field, has_planes, may_leave_out, order_bits = self._sequences.get(
            sequence, (0, False, False, False, 0)
        )
        beginning = _Beginning(
            kind % 5 == 2,
            after - 2 * has_planes - num_bits,
            (1 << num_bits) - 1,
            may_be_field,
            may_leave_out,
            0 if has_field_places else order_bits,
        )
        if left - after <= 8:
            self._beginnings[first_byte] = beginning
        return beginning


def _golomb(word: int, left: int) -> tuple[int, int]:
    """`Bits.read_golomb` of the last `left` bits of a number, and the bits that are left then; 32 bits stay there."""
    rest = word & (1 << left) - 1
    after = left - 2 * (left - rest.bit_length()) - 1
    return ((rest >> after) - 1, after) if after >= 32 else (0, left)


# Profiles whose sequence parameter sets say how colours are coded (H.264 7.3.2.1.1).
_HIGH_PROFILES = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})


def _skip_colours(bits: Bits) -> bool:
    """Whether colour planes are coded apart."""
    chroma = bits.read_golomb()
    has_planes = chroma == 3 and bits.read(1) == 1
    bits.read_golomb()
    bits.read_golomb()
    bits.read(1)
    if bits.read(1):
        for i in range(8 if chroma != 3 else 12):
            last = following = 8
            for _ in range(16 if i < 6 else 64) if bits.read(1) else ():
                if following:
                    code = bits.read_golomb()
                    following = (last + (code + 1 >> 1 if code & 1 else -(code >> 1))) % 256
                last = following or last
    return has_planes
