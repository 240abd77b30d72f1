"""Whole videos of many codecs and containers, with the habits that follow the standards and trip up readers."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from fields import write_fields
from media import numbered_frame, write_numbered_video
from mp4_boxes import MATRICES, set_matrix

WHOLE, ODD, DAMAGED = "whole", "odd", "damaged"


@dataclass(frozen=True)
class Made:
    """A written file: what it is, in words, and how much may be asked of its readers."""

    path: Path
    name: str
    state: str  # WHOLE: every back end that knows it reads it; ODD: PyAV reads it; DAMAGED: read or refused
    is_plain: bool = False  # every back end reads it


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


def write_any(rng: random.Random, folder: Path, *, codec: str, ext: str = "", name: str = "made", **more) -> Path:
    """A video with drawn settings, in a drawn container; `more` is for `write_numbered_video`."""
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


_MP4_FLAGS = ["faststart", "frag_keyframe+empty_moov", "frag_every_frame+empty_moov", "frag_keyframe+default_base_moof"]
_OPTIONS: dict[str, list[dict[str, str]]] = {
    "mp4": [{"movflags": flags} for flags in _MP4_FLAGS],
    "mov": [{"movflags": flags} for flags in _MP4_FLAGS],
    "mkv": [{"live": "1"}, {"cluster_time_limit": "200"}, {"write_crc32": "0"}, {"reserve_index_space": "4096"}],
    "webm": [{"live": "1"}, {"cluster_time_limit": "200"}],
    "ts": [{"muxrate": "3000000"}, {"mpegts_flags": "resend_headers"}, {"pes_payload_size": "0"}],
    "flv": [{"flvflags": "add_keyframe_index"}, {"flvflags": "no_duration_filesize"}],
    "asf": [{"packet_size": "1024"}],
}
_SOUNDS = {
    "mp4": "aac", "mov": "pcm_s16le", "mkv": "aac", "ts": "mp2", "m2ts": "ac3", "mpg": "mp2", "vob": "mp2",
    "avi": "pcm_s16le", "flv": "aac", "nut": "pcm_s16le", "mxf": "pcm_s16le", "webm": "opus",
}  # fmt: skip


def habits(rng: random.Random, ext: str) -> dict:
    """Options of a container, and sound, for some files."""
    more: dict = {}
    if ext in _OPTIONS and rng.random() < 0.5:
        more["container_options"] = rng.choice(_OPTIONS[ext])
    if ext in _SOUNDS and rng.random() < 0.4:
        more["audio"] = _SOUNDS[ext]
    return more


def _plain(rng: random.Random, folder: Path) -> Made:
    codec = rng.choice([*_COMMON, rng.choice(sorted(_CODECS))])
    ext = rng.choice(_CODECS[codec][0].split())
    more = habits(rng, ext)
    path = write_any(rng, folder, codec=codec, ext=ext, **more)
    return Made(path, f"as it is, {more}", WHOLE)


def _everyday(rng: random.Random, folder: Path) -> Made:
    codec, ext = rng.choice(sorted(_PLAIN))
    more = habits(rng, ext)
    # decord needs a duration in the header; an edit list may hide a packet behind fragments of a frame.
    if any(word in str(more) for word in ("live", "frag_every_frame")):
        del more["container_options"]
    path = write_any(rng, folder, codec=codec, ext=ext, pix_fmt="yuv420p", size=(64, 48), **more)
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


def _exif(orientation: int) -> bytes:
    """A JPEG segment with one EXIF entry."""
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    body = b"Exif\0\0" + b"II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def _matrix(rng: random.Random, folder: Path) -> Made:
    if rng.random() < 0.2:
        path = write_any(rng, folder, codec="mjpeg", ext="mjpeg")
        orientation = rng.randint(1, 8)
        path.write_bytes(path.read_bytes().replace(b"\xff\xd8", b"\xff\xd8" + _exif(orientation)))
        return Made(path, f"EXIF {orientation}", WHOLE)
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


WHOLE_KINDS: dict[str, Callable[[random.Random, Path], Made]] = {
    "everyday": _everyday,
    "plain": _plain,
    "palette": _palette,
    "matrix": _matrix,
    "colors": _colors,
    "fields": _fields,
    "times": _times,
    "open": _open,
}
