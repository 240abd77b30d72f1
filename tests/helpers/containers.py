"""Videos of many codecs and containers, whole and with faults of the container; a file's number is its seed.

`make(number, folder)` writes one. Whole files follow the standards, if not habit: palettes, mirrors, fields, open GOPs,
variable rates. Odd ones break a rule without losing a picture's bytes: they begin in the middle, are spliced, lie about
times. Damaged ones have lost bytes.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from fields import write_fields
from media import numbered_frame, write_numbered_video

WHOLE, ODD, DAMAGED = "whole", "odd", "damaged"


@dataclass(frozen=True)
class Made:
    """A written file: what it is, in words, and how much may be asked of its readers."""

    path: Path
    name: str
    state: str  # WHOLE: every back end that knows it reads it; ODD: PyAV reads it; DAMAGED: read or refused
    is_plain: bool = False  # every back end reads it


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


# Boxes of an mp4 file


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


# Whole files


def _h264(rng: random.Random, **more: str) -> dict:
    gop, bframes = rng.choice([1, 3, 12, 12, 250]), rng.choice([0, 0, 2, 3, 5])
    return {"codec": "libx264", "gop": gop, "bframes": min(bframes, gop - 1), **more}


# codec: (containers, pixel formats). Every pair of codec and container can be written and read by FFmpeg 8.
_CODECS: dict[str, tuple[str, str]] = {
    "libx264": ("mp4 mov mkv ts m2ts flv avi h264 mpg nut 3gp", "yuv420p yuv422p yuv444p yuv420p10le yuvj420p gray"),
    "libx265": ("mp4 mov mkv ts hevc", "yuv420p yuv420p10le yuv444p"),
    "mpeg4": ("mp4 avi mkv ts m4v mov asf nut", "yuv420p"),
    "mpeg2video": ("ts mpg mkv m2v mov mxf vob mp4 avi", "yuv420p yuv422p"),
    "mpeg1video": ("mpg m1v ts mkv avi", "yuv420p"),
    "libvpx": ("webm mkv ivf avi", "yuv420p"),
    "libvpx-vp9": ("webm mkv mp4 ivf", "yuv420p yuv444p"),
    "libsvtav1": ("mp4 mkv webm ivf obu", "yuv420p"),
    "mjpeg": ("avi mov mkv mjpeg", "yuvj420p yuvj422p yuvj444p"),
    "ffv1": ("mkv avi nut", "yuv420p yuv444p10le gray bgr0 yuv420p16le"),
    "huffyuv": ("avi nut", "yuv422p rgb24"),
    "ffvhuff": ("avi nut", "yuv420p yuv422p10le"),
    "utvideo": ("avi nut", "yuv420p gbrp yuv422p"),
    "magicyuv": ("avi nut", "yuv420p gbrp gray"),
    "prores_ks": ("mov mkv", "yuv422p10le yuv444p10le"),
    "flv": ("flv avi", "yuv420p"),
    "wmv1": ("asf avi", "yuv420p"),
    "wmv2": ("asf avi", "yuv420p"),
    "msmpeg4": ("avi asf", "yuv420p"),
    "svq1": ("mov avi", "yuv410p"),
    "snow": ("avi mkv", "yuv420p"),
    "jpeg2000": ("mov mkv", "rgb24 yuv420p"),
    "png": ("mov avi", "rgb24 rgba gray"),
    "rawvideo": ("avi mkv nut y4m", "yuv420p"),
    "rv10": ("rm", "yuv420p"),
    "asv1": ("avi", "yuv420p"),
    "gif": ("gif", "bgr8"),
    "apng": ("apng", "rgb24 rgba"),
    "zmbv": ("avi", "bgr0"),
    "cfhd": ("mov", "yuv422p10le gbrp12le"),
}
# Codecs that take their share; every other one has the share of one of these.
_COMMON = ["libx264"] * 4 + ["libx265", "mpeg4", "mpeg2video", "libvpx", "libvpx-vp9", "libsvtav1", "mjpeg"]
# Their encoders want whole blocks.
_NO_ODD_SIZE = {
    "libx264",
    "libx265",
    "huffyuv",
    "utvideo",
    "flv",
    "snow",
    "svq1",
    "cfhd",
    "rv10",
    "libsvtav1",
    "wmv1",
    "wmv2",
    "msmpeg4",
    "prores_ks",
    "asv1",
}
_PLAIN = {("libx264", "mp4"), ("libx264", "mkv"), ("libx264", "mov"), ("libvpx-vp9", "webm")}


def write_any(rng: random.Random, folder: Path, *, codec: str = "", ext: str = "", name: str = "made", **more) -> Path:
    """A video of a drawn codec, in a drawn container; `more` is for `write_numbered_video`."""
    codec = codec or rng.choice([*_COMMON, rng.choice(sorted(_CODECS))])
    containers, pix_fmts = (text.split() for text in _CODECS[codec])
    ext = ext or rng.choice(containers)
    sizes = [(64, 48), (64, 48), (80, 64), (63, 47), (50, 38)]
    size = rng.choice([s for s in sizes if codec not in _NO_ODD_SIZE or s[0] % 16 == 0])
    if codec == "cfhd":
        size = (128, 96)
    options = _h264(rng) if codec == "libx264" else {"codec": codec, "gop": rng.choice([1, 5, 12]), "bframes": 2}
    if codec in ("mpeg1video", "mpeg4") or ext in ("avi", "asf"):
        options["bframes"] = rng.choice([0, 0, options["bframes"]])
    options |= {"size": size, "pix_fmt": pix_fmts[0] if rng.random() < 0.7 else rng.choice(pix_fmts)}
    num_frames = more.pop("num_frames", rng.randint(20, 60))
    return write_numbered_video(folder / f"{name}.{ext}", num_frames, **{**options, **more})


def _plain(rng: random.Random, folder: Path) -> Made:
    path = write_any(rng, folder)
    return Made(path, "as it is", WHOLE)


def _everyday(rng: random.Random, folder: Path) -> Made:
    codec, ext = rng.choice(sorted(_PLAIN))
    path = write_any(rng, folder, codec=codec, ext=ext, pix_fmt="yuv420p", size=(64, 48))
    return Made(path, "everyday", WHOLE, is_plain=True)


def _write_palette(rng: random.Random, path: Path, codec: str, pix_fmt: str, num_frames: int, *, changes: bool) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        colors = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 256, (256, 4), dtype=np.uint8)
        colors[:, 3] = 255
        for i in range(num_frames):
            indices = numbered_frame(i)[..., 0]
            if changes and i % 7 == 6:
                colors = np.roll(colors, 1, axis=0)
            if pix_fmt == "pal8":
                frame = av.VideoFrame.from_ndarray((indices, colors), format="pal8")
            else:
                frame = av.VideoFrame.from_ndarray(indices, format="gray")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


_PALETTES = [
    *(("rawvideo", ext) for ext in ("avi", "mov", "nut")),
    *(("msrle", ext) for ext in ("avi", "mov")),
    *(("png", ext) for ext in ("mov", "avi")),
    *(("zmbv", ext) for ext in ("avi",)),
    *(("smc", ext) for ext in ("mov",)),
    *(("qtrle", ext) for ext in ("mov",)),
    *(("tiff", ext) for ext in ("mov",)),
]


def _palette(rng: random.Random, folder: Path) -> Made:
    codec, ext = rng.choice(_PALETTES)
    changes = rng.random() < 0.5
    pix_fmt = "gray" if codec == "qtrle" else "pal8"
    path = folder / f"made.{ext}"
    _write_palette(rng, path, codec, pix_fmt, rng.randint(20, 40), changes=changes)
    return Made(path, f"palette of {codec}{', changing' if changes else ''}", WHOLE)


def _matrix(rng: random.Random, folder: Path) -> Made:
    codec = rng.choice(["libx264", "libx264", "mpeg4", "mjpeg", "prores_ks"])
    ext = "mov" if codec in ("mjpeg", "prores_ks") else rng.choice(["mp4", "mov"])
    path = write_any(rng, folder, codec=codec, ext=ext)
    matrix = rng.choice(MATRICES)
    set_matrix(path, matrix)
    return Made(path, f"matrix {matrix}", WHOLE)


def _colors(rng: random.Random, folder: Path) -> Made:
    options = {
        "colorspace": rng.choice(["bt709", "bt470bg", "smpte170m", "smpte240m", "bt2020nc", "fcc"]),
        "color_range": rng.choice(["tv", "pc"]),
        "aspect": rng.choice(["1/1", "4/3", "12/11", "1/2"]),
    }
    codec = rng.choice(["libx264", "libx264", "libvpx-vp9", "mpeg4", "mpeg2video"])
    ext = rng.choice(["mp4", "mkv"])
    path = write_any(rng, folder, codec=codec, ext=ext, codec_options=options)
    return Made(path, f"colours {options}", WHOLE)


def _fields(rng: random.Random, folder: Path) -> Made:
    how = rng.choice(["paff", "paff", "mbaff", "mpeg2"])
    if how == "paff":
        ext = rng.choice(["mp4", "mkv", "ts", "h264", "avi"])
        split = rng.random() < 0.5
        gop, second = rng.choice([1, 6, 100]), rng.choice("IP")
        path = write_fields(folder / f"made.{ext}", rng.randint(16, 30), gop=gop, second=second, is_split=split)
        return Made(path, f"fields, I{second}, GOP {gop}{', a packet a field' if split else ''}", WHOLE)
    flags = {"flags": "+ilme+ildct"}
    if how == "mbaff":
        params = f"keyint=12:scenecut=0:bframes={rng.choice([0, 2])}:{rng.choice(['tff', 'bff'])}=1"
        ext = rng.choice(["mp4", "mkv", "ts"])
        path = write_any(rng, folder, codec="libx264", ext=ext, size=(64, 64), codec_options={"x264-params": params})
    else:
        path = write_any(rng, folder, codec="mpeg2video", size=(64, 64), codec_options=flags)
    return Made(path, f"interlaced, {how}", WHOLE)


def _times(rng: random.Random, folder: Path) -> Made:
    num_frames = rng.randint(20, 50)
    codec, exts = rng.choice(
        [
            ("libx264", "mp4 mkv mov ts flv avi nut"), ("mpeg4", "avi mp4 mkv"), ("libvpx-vp9", "webm mkv"),
            ("libvpx", "webm avi"), ("mjpeg", "avi mkv mov"), ("ffv1", "mkv avi nut"),
        ]
    )  # fmt: skip
    steps = rng.choice([[33, 34], [20, 60, 40], [40, 40, 40, 400], [1, 100], [40, 40, 2000], [7]])
    pts, at = [], 0
    for _ in range(num_frames):
        pts.append(at)
        at += rng.choice(steps)
    ext = rng.choice(exts.split())
    start = rng.choice([0, 0, 1000, 0 if ext == "avi" else 86_400_000, -200 if ext in ("mp4", "mov", "mkv") else 0])
    more = {"container_options": {"avoid_negative_ts": "disabled"}} if start < 0 else {}
    path = write_any(
        rng, folder, codec=codec, ext=ext, num_frames=num_frames, pts_ms=pts, start_ms=start, bframes=2, **more
    )
    return Made(path, f"times, steps of {steps} ms from {start}", WHOLE)


def _open(rng: random.Random, folder: Path) -> Made:
    keyint = rng.choice([6, 12, 20])
    common = f"keyint={keyint}:min-keyint={keyint}:scenecut=0"
    kind = rng.choice(["h264", "h264-refresh", "hevc", "mpeg2video", "mpeg4"])
    if kind == "h264":
        params = f"{common}:bframes={rng.choice([2, 3, 5])}:open-gop=1:ref={rng.choice([1, 3, 5])}"
        ext = rng.choice(["mp4", "mkv", "ts", "h264", "avi"])
        path = write_any(rng, folder, codec="libx264", ext=ext, codec_options={"x264-params": params})
    elif kind == "h264-refresh":
        params = f"keyint={keyint}:intra-refresh=1:bframes={rng.choice([0, 2])}"
        path = write_any(
            rng, folder, codec="libx264", ext=rng.choice(["mp4", "ts"]), codec_options={"x264-params": params}
        )
    elif kind == "hevc":
        params = f"{common}:bframes={rng.choice([2, 4])}:open-gop=1:log-level=none:pools=1"
        path = write_any(rng, folder, codec="libx265", codec_options={"x265-params": params})
    else:
        path = write_any(rng, folder, codec=kind, gop=keyint, bframes=2)
    return Made(path, f"open GOP of {kind}", WHOLE)


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
_ELEMENTARY = ["h264", "hevc", "m2v", "m1v", "m4v", "mjpeg", "obu"]
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
    made = rng.choice([_plain, _plain, _palette, _fields, _open, _splice])(rng, folder)
    data = bytearray(made.path.read_bytes())
    damage = rng.choice(sorted(DAMAGES))
    DAMAGES[damage](rng, data)
    made.path.write_bytes(data)
    return Made(made.path, f"{made.name} ({damage})", DAMAGED)


KINDS: dict[str, Callable[[random.Random, Path], Made]] = {
    "everyday": _everyday,
    "plain": _plain,
    "palette": _palette,
    "matrix": _matrix,
    "colors": _colors,
    "fields": _fields,
    "times": _times,
    "open": _open,
    "middle": _middle,
    "splice": _splice,
    "reconfigured": _reconfigured,
    "tables": _tables,
    "untimed": _untimed,
    "lost": _lost_packets,
    "bytes": _bytes,
}


def make(number: int, folder: Path) -> Made:
    """Write the file of a number into a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = list(KINDS)[number % len(KINDS)]
    made = KINDS[kind](random.Random(number), folder)
    return Made(made.path, f"{kind}: {made.path.suffix[1:]}, {made.name}", made.state, made.is_plain)
