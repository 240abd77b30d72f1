"""What packets say of themselves, on bytes written by hand."""

from __future__ import annotations

import pytest

from video_gn.decoding._bitstream import PacketFacts, make_inspector

SPS, PPS = b"\x67\x42\x00\x1e", b"\x68\xce\x38"
AVCC = b"\x01\x42\x00\x1e\xff\xe1" + len(SPS).to_bytes(2, "big") + SPS + b"\x01" + len(PPS).to_bytes(2, "big") + PPS


def boxed(*units: bytes) -> bytes:
    return b"".join(len(unit).to_bytes(4, "big") + unit for unit in units)


def coded(*units: bytes) -> bytes:
    return b"".join(b"\0\0\0\1" + unit for unit in units)


def inspect(codec: str, data: bytes, extradata: bytes = b"") -> PacketFacts:
    inspector = make_inspector(codec, extradata)
    assert inspector is not None
    return inspector(data)


def test_unknown_codec_has_no_inspector() -> None:
    assert make_inspector("wmv3", b"") is None


@pytest.mark.parametrize(("pack", "extradata"), [(boxed, AVCC), (coded, b"")])
def test_h264_idr_is_a_restart_and_other_pictures_are_not(pack, extradata) -> None:
    sei = b"\x06\x05\x01\xff\x80"
    assert inspect("h264", pack(sei, b"\x65\x88"), extradata).is_restart
    assert not inspect("h264", pack(sei, b"\x41\x9a"), extradata).is_restart
    assert not inspect("h264", pack(b"\x01\x9a"), extradata).is_restart
    assert inspect("h264", pack(sei), extradata).num_shown == 0


def test_h264_parameter_sets() -> None:
    other = b"\x68\xce\x39"
    facts = inspect("h264", boxed(SPS, PPS, b"\x65\x88"), AVCC)
    assert facts.has_sets and not facts.has_new_sets
    facts = inspect("h264", boxed(SPS, other, b"\x65\x88"), AVCC)
    assert facts.has_sets and facts.has_new_sets
    facts = inspect("h264", boxed(other, b"\x65\x88"), AVCC)
    assert not facts.has_sets and facts.has_new_sets
    facts = inspect("h264", coded(SPS, PPS, b"\x65\x88"))
    assert facts.has_sets and facts.has_new_sets


def test_delimiters_before_pictures() -> None:
    for codec, delimiter, plain, restart in (
        ("h264", b"\x09\x10", b"\x41\x9a", b"\x65\x88"),
        ("hevc", bytes([70, 1, 0x10]), bytes([2, 1, 0xAF]), bytes([38, 1, 0xAF])),
    ):
        for unit in (plain, restart):
            assert inspect(codec, coded(delimiter, unit)) == inspect(codec, coded(unit))
            assert inspect(codec, coded(delimiter, unit)).is_restart is (unit == restart)
        assert inspect(codec, coded(delimiter)).num_shown == 0


def test_h264_broken_lengths_end_quietly() -> None:
    assert inspect("h264", b"\xff\xff\xff\xff\x09", AVCC).num_shown == 0
    assert inspect("h264", b"\0\0\0\0\0\0\0\2\x65\x88", AVCC).is_restart
    assert inspect("h264", b"\0", AVCC).num_shown == 0


@pytest.mark.parametrize(
    ("kind", "is_restart"), [(1, False), (8, False), (16, True), (19, True), (20, True), (21, True)]
)
def test_hevc_random_access_pictures(kind: int, is_restart: bool) -> None:
    unit = bytes([kind << 1, 1, 0xAF])
    assert inspect("hevc", coded(unit)).is_restart is is_restart


def test_hevc_needs_sequence_and_picture_sets() -> None:
    vps, sps, pps, idr = (bytes([kind << 1, 1, 2]) for kind in (32, 33, 34, 19))
    assert inspect("hevc", coded(vps, sps, pps, idr)).has_sets
    assert inspect("hevc", coded(sps, pps, idr)).has_sets
    assert not inspect("hevc", coded(vps, sps, idr)).has_sets


def mpeg4_layer(resolution: int) -> bytes:
    # random access 0, object type 1, no identifier, aspect 1, no control, shape 0, marker, resolution, marker
    bits = "0" + "00000001" + "0" + "0001" + "0" + "00" + "1" + f"{resolution:016b}" + "1"
    bits = bits.ljust(-(-len(bits) // 8) * 8, "0")
    return b"\0\0\1\x20" + int(bits, 2).to_bytes(len(bits) // 8, "big")


def mpeg4_picture(kind: int, *, coded: bool, time_bits: int, seconds: int = 0) -> bytes:
    bits = f"{kind:02b}" + "1" * seconds + "0" + "1" + "0" * time_bits + "1" + ("1" if coded else "0")
    bits = bits.ljust(-(-len(bits) // 8) * 8, "0")
    return b"\0\0\1\xb6" + int(bits, 2).to_bytes(len(bits) // 8, "big")


@pytest.mark.parametrize(("resolution", "time_bits"), [(1, 1), (2, 1), (25, 5), (30, 5), (33, 6), (30000, 15)])
@pytest.mark.parametrize("seconds", [0, 3])
def test_mpeg4_empty_pictures(resolution: int, time_bits: int, seconds: int) -> None:
    inspector = make_inspector("mpeg4", mpeg4_layer(resolution))
    assert inspector is not None
    for is_coded in (True, False):
        facts = inspector(mpeg4_picture(1, coded=is_coded, time_bits=time_bits, seconds=seconds))
        assert facts == PacketFacts(num_shown=int(is_coded), num_pictures=1)


def test_mpeg4_kinds_and_packing() -> None:
    layer = mpeg4_layer(25)
    picture = {kind: mpeg4_picture(kind, coded=True, time_bits=5) for kind in range(4)}
    assert inspect("mpeg4", layer + picture[0]) == PacketFacts(is_restart=True, sequence=layer.rstrip(b"\0"))
    assert inspect("mpeg4", picture[1] + picture[2], layer) == PacketFacts(
        num_shown=2, num_pictures=2, has_b_picture=True
    )
    assert inspect("mpeg4", b"\x7f", layer) == PacketFacts(num_shown=0, num_pictures=0)
    # No layer header anywhere: pictures are taken to be there.
    assert inspect("mpeg4", picture[1]).num_shown == 1


def test_mpeg4_layer_with_all_its_options() -> None:
    bits = "0" + "00000001" + "1" + "0001" + "001" + "1111" + "0" * 16 + "1" + "01" + "0" + "1" + "0" * 79
    bits += "00" + "1" + f"{24000:016b}" + "1"
    bits = bits.ljust(-(-len(bits) // 8) * 8, "0")
    layer = b"\0\0\1\x20" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    assert inspect("mpeg4", mpeg4_picture(1, coded=False, time_bits=15), layer).num_shown == 0
    assert inspect("mpeg4", mpeg4_picture(1, coded=True, time_bits=15), layer).num_shown == 1


def test_vp8_hidden_and_key_frames() -> None:
    assert inspect("vp8", bytes([0b10000])) == PacketFacts(is_restart=True)
    assert inspect("vp8", bytes([0b10001])) == PacketFacts()
    assert inspect("vp8", bytes([0b00001])) == PacketFacts(num_shown=0)


def test_vp9_hidden_and_key_frames() -> None:
    # marker 10, profile 0 0, show_existing, type, show, resilient
    assert inspect("vp9", bytes([0b10_00_0_0_1_0, 0])) == PacketFacts(is_restart=True)
    assert inspect("vp9", bytes([0b10_00_0_1_1_0, 0])) == PacketFacts()
    assert inspect("vp9", bytes([0b10_00_0_1_0_0, 0])).num_shown == 0
    assert inspect("vp9", bytes([0b10_00_0_1_0_0, 0xC1])).num_shown == 1  # a superframe
    assert inspect("vp9", bytes([0b10_00_1_000, 0])) == PacketFacts()
    # profile 3 has one more bit
    assert inspect("vp9", bytes([0b10_11_0_0_0_1, 0])) == PacketFacts(is_restart=True)


def test_av1_key_frames_with_their_sequence() -> None:
    delimiter, sequence = b"\x12\x00", b"\x0a\x02\x00\x00"
    key, hidden_key, inter = b"\x32\x01\x10", b"\x32\x01\x00", b"\x32\x01\x30"
    assert inspect("av1", delimiter + sequence + key).is_restart
    assert not inspect("av1", delimiter + key).is_restart
    assert not inspect("av1", sequence + hidden_key).is_restart
    assert not inspect("av1", sequence + inter).is_restart
    assert inspect("av1", sequence + b"\x30\x10").is_restart  # without a size: to the packet's end
    assert inspect("av1", delimiter).num_shown == 0
    assert inspect("av1", b"\x0a\x81\x01" + b"\0" * 129 + key).is_restart  # a size of two bytes


def test_mjpeg_tables() -> None:
    head, scan = b"\xff\xd8", b"\xff\xda\x00"
    assert inspect("mjpeg", head + b"\xff\xdb\xff\xc4" + scan) == PacketFacts(is_restart=True, has_new_sets=True)
    assert inspect("mjpeg", head + scan) == PacketFacts(is_restart=True, has_sets=False)
    assert inspect("mjpeg", head + b"\xff\xdb" + scan).has_sets is False


def test_intra_codecs_start_anywhere() -> None:
    for codec in ("prores", "dnxhd", "rawvideo", "ffvhuff"):
        inspector = make_inspector(codec, b"", is_intra=True)
        assert inspector is not None and inspector(b"\x00") == PacketFacts(is_restart=True)
    assert make_inspector("lagarith", b"", is_intra=True) is None  # repeats pictures


def numbered_slice(number: int, *, is_reference: bool = True, is_first: bool = False) -> bytes:
    """A P slice, or a first I slice, of a stream whose pictures are numbered with 4 bits."""
    bits = "1" + ("011" if is_first else "1") + "1" + f"{number:04b}"
    return bytes([0x65 if is_first else 0x41 if is_reference else 0x01]) + int(bits.ljust(16, "1"), 2).to_bytes(
        2, "big"
    )


@pytest.mark.parametrize(
    ("numbers", "want"),
    [
        ([0, 1, 2, 3], []),
        ([0, 1, 3], [2]),
        ([5, 6, 8, 9], [2]),  # begins in the middle
        ([14, 15, 0, 1], []),  # 4 bits
        ([0, 1, 1], [2]),
        ([0, 1, -2, -2, 2, 3], []),  # below 0: nothing refers to it
        ([0, 1, 2, -4], [3]),
    ],
)
def test_h264_missing_pictures(numbers: list[int], want: list[int]) -> None:
    # Baseline; numbers of 4 bits, the order of display by another 4; 1 reference, none left out, 1 x 1, frames only.
    sequence = bytes([0x67, 66, 0, 30, 0b1_1_1_1_010_0, 0b1_1_1_1_1000])
    inspector = make_inspector("h264", b"\0\0\1" + sequence + b"\0\0\1\x68\xe0")
    assert inspector is not None
    found = [
        inspector(coded(numbered_slice(abs(n), is_reference=n >= 0, is_first=n == 0 and i == 0))).is_broken
        for i, n in enumerate(numbers)
    ]
    assert [i for i, is_broken in enumerate(found) if is_broken] == want
