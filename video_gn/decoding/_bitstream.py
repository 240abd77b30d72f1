"""Reads from a packet's own bytes how many pictures it shows, and whether decoding may begin at it.

A container's key-frame flag is not enough for random access. With an open GOP, H.264's flagged packet is a
plain I picture, and pictures after it may still refer to earlier ones; VP8 packets may show nothing; MPEG-4 in AVI
packs two pictures into a packet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from video_gn.decoding._nal import Bits, Inspector, PacketFacts, make_h264, make_h264_with_places, make_hevc

# Made once, since a file has thousands of packets.
_PLAIN, _INTRA = PacketFacts(), PacketFacts(is_restart=True)


def make_inspector(
    codec: str, extradata: bytes, *, is_intra: bool = False, with_places: bool = False
) -> Inspector | None:
    """The function that reads the packets of a codec, by FFmpeg's name of it, or None for one that is not known here.

    `extradata` is the codec's header as the container stores it, or empty. `is_intra`: whether FFmpeg says that no
    picture of the codec refers to another. Other unknown codecs are decoded from the start. `with_places`: whether to
    read `PacketFacts.place`, of H.264.
    """
    if with_places and codec == "h264":
        return make_h264_with_places(extradata)
    if codec in _MAKERS:
        return _MAKERS[codec](extradata)
    return _INSPECTORS.get(codec) or ((lambda data: _INTRA) if is_intra and codec not in _NOT_INTRA else None)


def mpeg4_layer(data: bytes) -> bytes:
    """MPEG-4's video object layer header (ISO/IEC 14496-2, 6.2.3) with its start code; empty if there is none."""
    at = data.find(b"\0\0\1")
    while at >= 0 and not (at + 3 < len(data) and 0x20 <= data[at + 3] <= 0x2F):
        at = data.find(b"\0\0\1", at + 3)
    end = data.find(b"\0\0\1", at + 3)
    return b"" if at < 0 else data[at : end if end >= 0 else len(data)].rstrip(b"\0")


def is_interlaced(layer: bytes) -> bool:
    """Whether MPEG-4's video object layer header says that pictures may be interlaced."""
    return _read_layer(layer)[1]


def _mpeg4_time_bits(data: bytes) -> int | None:
    """Width of a picture's time field, from the video object layer header."""
    layer = mpeg4_layer(data)
    return _read_layer(layer)[0] if layer else None


def _read_layer(layer: bytes) -> tuple[int, bool]:
    """Width of a picture's time field, and whether pictures may be interlaced."""
    bits = Bits(layer, 4)
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
    time_bits = max(1, (bits.read(16) - 1).bit_length())
    bits.read(1)
    if bits.read(1):
        bits.read(time_bits)  # a fixed rate
    bits.read(1 + 13 + 1 + 13 + 1)  # width, height, markers
    return time_bits, bits.read(1) == 1


def _make_mpeg4(extradata: bytes) -> Inspector:
    time_bits = _mpeg4_time_bits(extradata)

    def is_coded(data: bytes, start: int) -> bool:
        if time_bits is None:
            return True
        word = int.from_bytes(data[start : start + 16], "big") << 8 * max(0, start + 16 - len(data))
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
        layer = mpeg4_layer(data[:at]) if at > 0 else b""
        while at >= 0 and at + 4 < len(data):
            kinds.append(data[at + 4] >> 6)  # 0 I, 1 P, 2 B, 3 S
            num_coded += is_coded(data, at + 4)
            at = data.find(b"\0\0\1\xb6", at + 4)
        return make(num_coded, len(kinds), kinds[:1] == [0], 2 in kinds, sequence=layer)

    # Thousands of packets say the same.
    make = cache(PacketFacts)
    return inspect


def _vp8(data: bytes) -> PacketFacts:
    # RFC 6386, 9.1: the lowest bit is 0 in key frames, bit 4 says that the frame is shown.
    first = data[0]
    return PacketFacts(num_shown=first >> 4 & 1, is_restart=not first & 1)


def _vp9(data: bytes) -> PacketFacts:
    # VP9 specification, 6.2: marker, profile, show_existing_frame, frame_type (0 for key), show_frame.
    bits = Bits(data)
    bits.read(2)
    if bits.read(1) + 2 * bits.read(1) == 3:
        bits.read(1)
    if bits.read(1):
        return _PLAIN
    is_key, is_shown = not bits.read(1), bits.read(1) == 1
    is_superframe = data[-1] & 0xE0 == 0xC0  # annex B: hidden frames and one that is shown
    return PacketFacts(num_shown=int(is_shown or is_superframe), is_restart=is_key)


def _av1(data: bytes) -> PacketFacts:
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


def _mjpeg(data: bytes) -> PacketFacts:
    # Huffman (FFC4) and quantization tables (FFDB) may be left to an earlier picture.
    head = data[: data.find(b"\xff\xda")]
    has_huffman, has_quantization = b"\xff\xc4" in head, b"\xff\xdb" in head
    return PacketFacts(
        is_restart=True, has_sets=has_huffman and has_quantization, has_new_sets=has_huffman or has_quantization
    )


def _mpeg2(data: bytes) -> PacketFacts:
    # ISO/IEC 13818-2, 6.2.2 and 6.2.3; MPEG-1 alike. Pictures refer to the two nearest I or P pictures, so that
    # nothing reaches past an I picture but the B pictures that are shown before it.
    at = data.find(b"\0\0\1\0")
    if at < 0 or at + 6 > len(data):
        return PacketFacts(num_shown=0, num_pictures=0)
    header = data.find(b"\0\0\1\xb3", 0, at)
    kind, order = data[at + 5] >> 3 & 7, data[at + 4] << 2 | data[at + 5] >> 6
    extension = data.find(b"\0\0\1\xb5", at, at + 32)
    structure = data[extension + 6] & 3 if 0 < extension < len(data) - 6 else 3
    is_field = structure in (1, 2)
    return PacketFacts(
        # A sequence header sets back the quantization matrices. The second field of an I picture may be a P field.
        is_restart=kind == 1 and not is_field and header >= 0,
        has_b_picture=kind == 3,
        field=(structure, order) if is_field and data.find(b"\0\0\1\0", at + 4) < 0 else None,
        sequence=_sequence(data, header, at),
        begins_group=data.find(b"\0\0\1\xb8", 0, at) >= 0,
        number=order,
        # In MPEG-2 each row begins a slice.
        last_row=_last_row(data) if extension > 0 and not is_field else 0,
    )


def _sequence(data: bytes, header: int, until: int) -> bytes:
    """Size, shape of pixels and rate of a sequence header, profile and kind of chroma of MPEG-2's extension of it."""
    if header < 0:
        return b""
    extension = data.find(b"\0\0\1\xb5", header, until)
    return data[header + 4 : header + 8] + (data[extension + 4 : extension + 6] if extension >= 0 else b"")


def _last_row(data: bytes) -> int:
    """Number of the row of macroblocks that a packet's last slice begins; 0 without slices."""
    at = data.rfind(b"\0\0\1", 0, len(data) - 1)
    while at >= 0 and not 1 <= data[at + 3] <= 0xAF:
        at = data.rfind(b"\0\0\1", 0, at)
    return data[at + 3] if at >= 0 else 0


def lacks_pictures(facts: Sequence[PacketFacts]) -> bool:
    """Whether MPEG-1 or 2 lacks pictures on the way, or ends of pictures: FFmpeg does not say so.

    A group's pictures are numbered without holes. Its first ones may be gone, with those that they refer to; and so
    may, at the end of the file, those between the last two that are no B pictures. At a header that differs, FFmpeg
    drops the picture that it holds back.
    """
    ends = [*facts[:-1], *(fact for fact in facts[-1:] if fact.is_restart)]
    is_torn = len({fact.last_row for fact in ends if fact.last_row}) > 1
    groups: list[list[PacketFacts]] = [[]]
    for fact in facts:
        if fact.begins_group:
            groups.append([])
        groups[-1].append(fact)
    while groups[-1] and groups[-1].pop().has_b_picture:
        pass
    numbers = [sorted(fact.number for fact in group) for group in groups[1:]]
    is_changed = len({fact.sequence for fact in facts if fact.sequence}) > 1
    return is_torn or is_changed or any(n != list(range(n[0], n[0] + len(n))) for n in numbers if n)


def _kind(is_first: Callable[[bytes], bool]) -> Inspector:
    """For codecs whose pictures refer to the one before alone: decoding may begin at each I picture.

    `is_first` says whether a packet, of at least 16 bytes, holds an I picture.
    """
    return lambda data: _INTRA if is_first(data if len(data) >= 16 else data.ljust(16, b"\xff")) else _PLAIN


def _is_h263_intra(data: bytes) -> bool:
    """ITU-T H.263, 5.1: start code, time, and the kind of picture: by the short header or the extended one."""
    word = int.from_bytes(data[:8], "big")
    if word >> 42 != 0b100000:
        return False
    if word >> 26 & 7 != 7:
        return not word >> 25 & 1
    return word >> 23 & 7 == 1 and word >> 2 & 7 == 0


def _is_flv1_intra(data: bytes) -> bool:
    """Flash's H.263 (SWF file format, H263VIDEOPACKET): start code, version, time, size, kind."""
    word = int.from_bytes(data[:16], "big")
    size = {0: 16, 1: 32}.get(word >> 95 & 7, 0)
    return word >> 111 == 1 and word >> (93 - size) & 3 == 0


# FFmpeg calls these intra, but they repeat pictures, refer to earlier ones, or put several into a packet.
_NOT_INTRA = frozenset({"fraps", "lagarith", "mss2", "mszh", "smvjpeg", "zlib"})

# Of codecs that need the container's header.
_MAKERS: dict[str, Callable[[bytes], Inspector]] = {"h264": make_h264, "hevc": make_hevc, "mpeg4": _make_mpeg4}
_INSPECTORS: dict[str, Inspector] = {
    "mpeg1video": _mpeg2,
    "mpeg2video": _mpeg2,
    "vp8": _vp8,
    "vp9": _vp9,
    "av1": _av1,
    "mjpeg": _mjpeg,
    # The range coder's first bit, at even chances, says whether a picture sets back all contexts (RFC 9043, 3.8, 4.4).
    "ffv1": _kind(lambda data: data[0] << 8 | data[1] >= 0x7F80),
    "theora": _kind(lambda data: data[0] >> 6 == 0),  # Theora specification, 7.1: a frame, intra
    "msmpeg4v2": _kind(lambda data: data[0] >> 6 == 0),
    "msmpeg4": _kind(lambda data: data[0] >> 6 == 0),
    "msmpeg4v3": _kind(lambda data: data[0] >> 6 == 0),
    "wmv1": _kind(lambda data: data[0] >> 6 == 0),
    "wmv2": _kind(lambda data: data[0] >> 7 == 0),
    "h263": _kind(_is_h263_intra),
    "flv1": _kind(_is_flv1_intra),
    # Pictures that refer to others are not flagged as key frames.
    "png": lambda data: _INTRA,
}
