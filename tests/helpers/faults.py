"""Videos with faults of the container; a file's number is its seed.

`make(number, folder)` writes one. Whole files are those of `containers`. Odd ones break a rule without losing a byte of
a picture: they begin in the middle, are spliced, lie about times. Damaged ones have lost bytes.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
from containers import DAMAGED, ODD, WHOLE_KINDS, Made, habits, write_any
from mp4_boxes import Boxes

CLIP_SECONDS = 2

# What bytes can suffer


def flip(rng: random.Random, data: bytearray, first: int, last: int, most: int) -> None:
    """Flip up to `most` bits between two places."""
    for _ in range(rng.randint(1, most)):
        data[rng.randrange(first, last)] ^= 1 << rng.randrange(8)


def _flip_anywhere(rng: random.Random, data: bytearray) -> None:
    flip(rng, data, 0, len(data), rng.choice([1, 10, 200]))


def _flip_ends(rng: random.Random, data: bytearray) -> None:
    """Most of what a container says about its contents lies at one of its ends."""
    first = rng.choice([0, max(0, len(data) - 4096)])
    flip(rng, data, first, min(first + 4096, len(data)), 20)


def _cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(1, len(data)) :]


def _zero(rng: random.Random, data: bytearray) -> None:
    size = round(len(data) * 0.25 * rng.random() ** 3) + 1
    start = rng.randrange(max(1, len(data) - size))
    data[start : start + size] = bytes(len(data[start : start + size]))


def _several(rng: random.Random, data: bytearray) -> None:
    for damage in rng.choices([_flip_anywhere, _flip_ends, _zero], k=2):
        damage(rng, data)
    if rng.random() < 0.3:
        _cut(rng, data)


DAMAGES: dict[str, Callable[[random.Random, bytearray], None]] = {
    "flip": _flip_anywhere,
    "flip-ends": _flip_ends,
    "cut": _cut,
    "zero": _zero,
    "several": _several,
}


# Odd files


def _packets(path: Path) -> Iterator[av.Packet]:
    with av.open(str(path)) as container:
        yield from (p for p in container.demux(container.streams.video[0]) if p.size)


def remux(source: Path, out: Path, change: Callable[[int, av.Packet], bool]) -> Path:
    """Copy the video's packets that `change(number, packet)` lets pass, as it leaves them."""
    with av.open(str(source)) as container, av.open(str(out), "w") as target:
        stream = container.streams.video[0]
        copy = target.add_stream_from_template(stream)
        number = 0
        for packet in container.demux(stream):
            if not packet.size:
                continue
            if change(number, packet):
                packet.stream = copy
                target.mux(packet)
            number += 1
    return out


_STREAMS = {"ts": b"\x47", "m2ts": b"\x47", "mpg": b"\0\0\1\xba", "vob": b"\0\0\1\xba"}
# What can be cut and joined anywhere, with the codecs that it takes.
_CUTTABLE = [
    *(("libx264", ext) for ext in ("ts", "m2ts", "mpg", "h264")),
    *(("libx265", ext) for ext in ("ts", "hevc")),
    *(("mpeg2video", ext) for ext in ("ts", "mpg", "m2v", "vob")),
    *(("mpeg1video", ext) for ext in ("mpg", "m1v")),
    *(("mpeg4", ext) for ext in ("m4v", "ts")),
    *(("mjpeg", ext) for ext in ("mjpeg",)),
]
_OPEN = {
    "libx264": {"x264-params": "keyint=12:min-keyint=12:scenecut=0:bframes=2:open-gop=1"},
    "libx265": {"x265-params": "keyint=12:min-keyint=12:scenecut=0:bframes=3:open-gop=1:log-level=none:pools=1"},
}


def _write_cuttable(rng: random.Random, folder: Path, codec: str, ext: str, name: str = "made") -> Path:
    more: dict = {"codec_options": _OPEN[codec]} if codec in _OPEN and rng.random() < 0.4 else {}
    if rng.random() < 0.3:
        more["gop"] = 12
    more |= habits(rng, ext) if ext in ("ts", "m2ts", "mpg", "vob") else {}
    return write_any(rng, folder, codec=codec, ext=ext, name=name, num_frames=rng.randint(30, 60), **more)


def _unit_places(data: bytes, ext: str) -> list[int]:
    """Where packets of the container, or units of an elementary stream, begin."""
    if ext in ("ts", "m2ts"):
        size = 188 if ext == "ts" else 192
        return list(range(0, len(data), size))
    mark = _STREAMS.get(ext, b"\xff\xd8" if ext == "mjpeg" else b"\0\0\1")
    places, at = [], data.find(mark)
    while at >= 0:
        places.append(at)
        at = data.find(mark, at + 1)
    return places


def _middle(rng: random.Random, folder: Path) -> Made:
    if rng.random() < 0.6:
        codec, ext = rng.choice(_CUTTABLE)
        path = _write_cuttable(rng, folder, codec, ext)
        data = path.read_bytes()
        places = [p for p in _unit_places(data, ext) if p < 0.6 * len(data)]
        first = rng.choice(places)
        path.write_bytes(data[first:])
        return Made(path, f"begins in the middle, at byte {first}", ODD)
    codec, exts = rng.choice(
        [
            ("libx264", "mp4 mkv avi flv mov"), ("libx265", "mp4 mkv"), ("mpeg4", "avi mp4 mkv"),
            ("libvpx-vp9", "webm mp4"), ("libvpx", "webm avi"), ("mpeg2video", "mkv mov"),
            ("wmv2", "asf"), ("flv", "flv"), ("snow", "avi"), ("huffyuv", "avi"),
        ]
    )  # fmt: skip
    ext = rng.choice(exts.split())
    whole = _write_cuttable(rng, folder, codec, ext, name="whole")
    first = rng.randrange(1, 20)
    path = remux(whole, folder / f"made.{ext}", lambda number, packet: number >= first)
    return Made(path, f"begins in the middle, at packet {first}", ODD)


def _splice(rng: random.Random, folder: Path) -> Made:
    codec, ext = rng.choice(_CUTTABLE)
    parts = []
    for i in range(2):
        path = _write_cuttable(rng, folder, codec, ext, name=f"part{i}")
        data = path.read_bytes()
        places = _unit_places(data, ext)
        cut = rng.choice(places) if rng.random() < 0.5 else (0 if i else len(data))
        parts.append(data[cut:] if i else data[:cut] or data)
    path = folder / f"made.{ext}"
    path.write_bytes(b"".join(parts))
    return Made(path, f"spliced of {len(parts[0])} and {len(parts[1])} bytes", ODD)


def _reconfigured(rng: random.Random, folder: Path) -> Made:
    """An mp4 file with two headers of the codec, the second from the middle on."""
    codec = rng.choice(["libx264", "libx264", "mpeg4", "libx265"])
    bframes = rng.choice([0, 2])
    parts = [
        write_any(
            rng, folder, codec=codec, ext="mp4", name=f"part{i}", num_frames=20, gop=6, bframes=bframes, size=size,
            first_number=20 * i,
        )
        for i, size in enumerate([(64, 48), rng.choice([(64, 48), (80, 64)])])
    ]  # fmt: skip
    path = folder / "made.mp4"
    with av.open(str(parts[0])) as first, av.open(str(path), "w") as target:
        copy = target.add_stream_from_template(first.streams.video[0])
        end = 0
        for i, part in enumerate(parts):
            packets = list(_packets(part))
            shift = i and end - packets[0].dts
            for packet in packets:
                packet.stream = copy
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                end = packet.dts + packet.duration
                target.mux(packet)
    boxes, other = Boxes(path.read_bytes()), Boxes(parts[1].read_bytes())
    entries = boxes.body(b"stsd")
    entries[4:8] = struct.pack(">I", 2)
    entries += other.body(b"stsd")[8:]
    sizes = boxes.body(b"stsz")
    count = struct.unpack_from(">I", sizes, 8)[0]
    lengths = struct.unpack_from(f">{count}I", sizes, 12)
    start = struct.unpack_from(">I", boxes.body(b"stco"), 8)[0]
    offsets = np.concatenate(([start], start + np.cumsum(lengths)[:-1])).tolist()
    boxes.body(b"stco")[:] = struct.pack(f">II{count}I", 0, count, *offsets)
    boxes.body(b"stsc")[:] = struct.pack(">II6I", 0, 2, 1, 1, 1, 21, 1, 2)
    path.write_bytes(boxes.write())
    return Made(path, "two headers of the codec", ODD)


def _wild(rng: random.Random) -> int:
    return rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, rng.randrange(1 << 32), rng.randrange(1 << 16)])


def _tables(rng: random.Random, folder: Path) -> Made:
    """Times, durations and counts of the header that are wrong, while every picture's bytes are there."""
    if rng.random() < 0.25:
        path = write_any(rng, folder, codec=rng.choice(["libx264", "mpeg4", "mjpeg"]), ext="avi", bframes=0)
        data = bytearray(path.read_bytes())
        # After "avih": microseconds a frame at 8, frames at 24. After "strh": scale at 28, rate at 32, length at 40.
        mark, at = rng.choice([(b"avih", 8), (b"avih", 24), (b"strh", 28), (b"strh", 32), (b"strh", 40)])
        struct.pack_into("<I", data, data.find(mark) + at, value := _wild(rng))
        path.write_bytes(data)
        return Made(path, f"{mark.decode()} {at} is {value:#x}", ODD)
    codec = rng.choice(["libx264", "mpeg4", "libx265"])
    path = write_any(rng, folder, codec=codec, ext=rng.choice(["mp4", "mov"]), bframes=rng.choice([0, 2]))
    boxes = Boxes(path.read_bytes())
    said = []
    for _ in range(rng.randint(1, 2)):
        kinds = [k for k in (b"stts", b"ctts", b"elst", b"mdhd", b"mvhd", b"tkhd", b"stss") if boxes.find(k)]
        kind = rng.choice(kinds)
        body, value = boxes.body(kind), _wild(rng)
        if kind in (b"stts", b"ctts"):  # one entry for each frame first, then some of them wild
            step = 8 * rng.randrange((len(body) - 8) // 8)
            at = 8 + step + 4
            if kind == b"stts":
                count, delta = struct.unpack_from(">II", body, 8)
                deltas = [delta] * count
                deltas[rng.choice([0, count - 1, rng.randrange(count)])] = value
                body[:] = struct.pack(f">II{2 * count}I", 0, count, *(n for d in deltas for n in (1, d)))
                at = -1
        elif kind == b"elst":
            at = rng.choice([8, 12])
        elif kind == b"stss":
            at = rng.randrange(2, len(body) // 4) * 4 if len(body) > 8 else 4
        else:
            at = {b"mdhd": rng.choice([12, 16]), b"mvhd": rng.choice([12, 16]), b"tkhd": 20}[kind]
        if at >= 0:
            struct.pack_into(">I", body, at, value)
        said.append(f"{kind.decode()} {at} is {value:#x}")
    path.write_bytes(boxes.write())
    return Made(path, ", ".join(said), ODD)


def _untimed(rng: random.Random, folder: Path) -> Made:
    codec, exts = rng.choice(
        [("libx264", "mkv avi"), ("mpeg4", "avi mkv"), ("libvpx", "webm avi"), ("mjpeg", "avi mkv"), ("ffv1", "mkv")]
    )
    ext = rng.choice(exts.split())
    whole = write_any(rng, folder, codec=codec, ext="mkv", name="whole", bframes=rng.choice([0, 0, 2]), fps=25)
    how = rng.choice(["same", "frozen", "none"])
    held = rng.randrange(2, 15)

    def change(number: int, packet: av.Packet) -> bool:
        if how == "same" and number % held == held - 1:
            packet.pts = packet.pts - 40
        elif how == "frozen" and number >= held:
            packet.pts = held * 40
        elif how == "none" and number % held == 1:
            packet.pts = None
        return True

    try:
        path = remux(whole, folder / f"made.{ext}", change)
    except av.error.FFmpegError:  # the muxer does not want such times
        path, how = whole, "all"
    return Made(path, f"times: {how}, {held}", ODD)


# Damaged files


def _lost_packets(rng: random.Random, folder: Path) -> Made:
    codec, ext = rng.choice([pair for pair in _CUTTABLE if pair[1] in ("ts", "m2ts")])
    path = _write_cuttable(rng, folder, codec, ext)
    size = 188 if ext == "ts" else 192
    data = path.read_bytes()
    packets = [data[at : at + size] for at in range(0, len(data), size)]
    how = rng.choice(["lost", "twice", "swapped", "many lost", "run lost"])
    for _ in range(rng.randint(5, 30) if how == "many lost" else rng.randint(1, 3)):
        at = rng.randrange(3, len(packets) - 1)
        if how == "twice":
            packets.insert(at, packets[at])
        elif how == "swapped":
            packets[at], packets[at + 1] = packets[at + 1], packets[at]
        else:
            del packets[at : at + (rng.randint(2, 20) if how == "run lost" else 1)]
    path.write_bytes(b"".join(packets))
    return Made(path, f"TS packets {how}", DAMAGED)


def _bytes(rng: random.Random, folder: Path) -> Made:
    made = KINDS[rng.choice(["plain", "plain", "palette", "fields", "open", "splice"])](rng, folder)
    data = bytearray(made.path.read_bytes())
    damage = rng.choice(sorted(DAMAGES))
    DAMAGES[damage](rng, data)
    made.path.write_bytes(data)
    return Made(made.path, f"{made.name} ({damage})", DAMAGED)


KINDS: dict[str, Callable[[random.Random, Path], Made]] = {
    **WHOLE_KINDS,
    "middle": _middle,
    "splice": _splice,
    "reconfigured": _reconfigured,
    "tables": _tables,
    "untimed": _untimed,
    "lost": _lost_packets,
    "bytes": _bytes,
}


def shorten(path: Path, out: Path) -> Path:
    """Copy the packets of the first seconds of a file's first video and first audio stream."""
    with av.open(str(path), metadata_errors="ignore") as source, av.open(str(out), "w") as target:
        streams = [*source.streams.video[:1], *source.streams.audio[:1]]
        copies = {s.index: target.add_stream_from_template(s) for s in streams}
        for packet in source.demux(streams):
            if packet.dts is None or packet.dts * packet.time_base > CLIP_SECONDS:
                continue
            packet.stream = copies[packet.stream.index]
            target.mux(packet)
    return out


def make(number: int, folder: Path) -> Made:
    """Write the file of a number into a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = list(KINDS)[number % len(KINDS)]
    made = KINDS[kind](random.Random(number), folder)
    return Made(made.path, f"{kind}: {made.path.suffix[1:]}, {made.name}", made.state, made.is_plain)
