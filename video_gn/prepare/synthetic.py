"""Makes a data set of H.264 videos in which the class is the motion alone: something to learn from without a download.

Shapes move over a textured background in one of eight ways. What shows the class:

- One frame: nothing. Each shape's place, orientation and size each run around a circle: the frame is a torus, a turn
  ends where it began, and the smallest size follows the largest. Each starts anywhere with equal chance, so in every
  frame of every class each is uniform and independent of the others, whichever of them moves. There is no motion
  blur. Scenes are shared: the n-th video of each class shows the same shapes, colours, background, start and speed,
  and only the motion and the noise differ, so even in a small set no colour goes with a class.
- Frames without their order: the pair of opposites at most, since a motion played backwards is its opposite.
- Compression: nothing. Each frame is coded by itself with a fixed quantizer, independent of all other frames.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from statistics import NormalDist
from typing import Any

import av
import numpy as np

from video_gn.checks import check_integer
from video_gn.errors import RunError, SettingError
from video_gn.files import whole_path, write_json
from video_gn.processes import num_cores
from video_gn.shown import count

log = logging.getLogger(__name__)

# Motion -> (what runs around its circle, direction). With y pointing down, growing angles turn clockwise.
MOTIONS = {
    "clockwise": ("angle", 1),
    "counter-clockwise": ("angle", -1),
    "down": ("y", 1),
    "growing": ("size", 1),
    "left": ("x", -1),
    "right": ("x", 1),
    "shrinking": ("size", -1),
    "up": ("y", -1),
}
CLASSES = tuple(sorted(MOTIONS))

# Outlines, scaled to touch the unit circle. None looks the same after less than a whole turn.
_OUTLINES = {
    "L": ((-0.55, -0.85), (-0.05, -0.85), (-0.05, 0.4), (0.6, 0.4), (0.6, 0.85), (-0.55, 0.85)),
    "T": ((-0.75, -0.75), (0.75, -0.75), (0.75, -0.25), (0.25, -0.25), (0.25, 0.85), (-0.25, 0.85), (-0.25, -0.25),
          (-0.75, -0.25)),
    "arrow": ((0.95, 0.0), (0.2, 0.75), (0.2, 0.25), (-0.85, 0.25), (-0.85, -0.25), (0.2, -0.25), (0.2, -0.75)),
    "flag": ((-0.6, -0.9), (0.75, -0.4), (-0.2, 0.1), (-0.2, 0.9), (-0.6, 0.9)),
    "wedge": ((1.0, 0.0), (-0.6, 0.55), (-0.6, -0.55)),
    "bolt": ((-0.1, -0.95), (0.55, -0.75), (0.2, -0.15), (0.6, -0.05), (-0.5, 0.9), (-0.1, 0.15), (-0.5, 0.1)),
}  # fmt: skip
SHAPES = {
    name: np.array(corners, dtype=np.float32) / np.float32(max(np.hypot(*corner) for corner in corners))
    for name, corners in _OUTLINES.items()
}

_NUM_SHAPES = 4
_VERSION = 3  # to be raised when the same parameters give other pictures
_DESCRIPTION = "dataset.json"
_SIZE_RANGE = (0.16, 0.46)  # radius over the frame's short side; below a half, or a shape would overlap itself
_PERIOD_FRAMES = (26.0, 36.0)  # once around the circle: 8 frames at stride 2 show about half of it
_GROUND_RANGE = (20.0, 120.0)  # of the background's mean red, green and blue, of 255
# A shape is brighter than its background by at least this, of 255 between black and white: its outside is told from its
# inside by a small part of its outline, without which growing and shrinking look alike there.
_MIN_BRIGHTER = 90.0
_NOISE_LEVELS = 4.0  # standard deviation of each frame's own noise
# Normal noise from random bytes, several times faster than exact draws.
_NOISE = np.array([NormalDist(0, _NOISE_LEVELS).inv_cdf((i + 0.5) / 256) for i in range(256)], dtype=np.float32)
_MAP_SIDE = 512  # side of an outline's map of distances: a step is 0.2 px of the largest shape in a 96 px frame
_MAP_REACH = 1.3  # the map covers [-1.3, 1.3], in radii
_PROCESSES_FROM = 64  # number of videos that makes other processes worth their start of half a second
_CODEC_OPTIONS = {
    # One quantizer for all: rate control would look at other frames. One thread and no x264 thread count in
    # the stream: the same files on any number of cores.
    "preset": "veryfast",
    "x264-params": "keyint=1:qp=27:threads=1:lookahead-threads=1:aq-mode=0:mbtree=0:scenecut=0:rc-lookahead=0",
}


@dataclass(frozen=True)
class Shape:
    """One of a scene's moving shapes."""

    outline: str  # a name of `SHAPES`
    mirrored: bool
    color: np.ndarray  # float (3,), RGB in [0, 255]
    start: dict[str, float]  # x, y, angle and size in the first frame, each in [0, 1) of its circle


@dataclass(frozen=True)
class Scene:
    """The common part of all classes' videos with the same number."""

    shapes: tuple[Shape, ...]  # from back to front
    period_frames: float  # for once around the circle, for all shapes
    background: np.ndarray  # float32 (H, W, 3), RGB


@dataclass(frozen=True)
class SyntheticSummary:
    """What `synthesize` did."""

    out: Path
    num_videos: int
    num_written: int  # videos made now; the others existed already
    num_bytes: int  # of all videos


def synthesize(
    out: str | os.PathLike[str],
    *,
    num_train_per_class: int = 40,
    num_val_per_class: int = 10,
    num_frames: int = 48,
    size_px: tuple[int, int] = (72, 72),
    fps: int = 25,
    seed: int = 0,
    num_workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SyntheticSummary:
    """Write `out/train/<class>/<number>.mp4` and `out/val/<class>/<number>.mp4`.

    The same arguments give the same files, bit by bit with the same libraries, for any number of workers; with more
    videos, the first ones are unchanged. The next call keeps the videos that a stopped one has written, and a
    finished data set is not changed.

    Args:
        out: A new or empty directory, or one with the same data set.
        num_train_per_class: Training videos of each of the eight classes, at least 1.
        num_val_per_class: Validation videos of each, at least 0.
        num_frames: Frames of a video, at least 1.
        size_px: Height and width, even, at least 32.
        fps: Frames per second, at least 1.
        seed: At least 0.
        num_workers: Processes; None takes the number of cores. A script that starts more than one must guard its
            main part with `if __name__ == "__main__"`.
        progress: Called with the number of videos that are there, and of all.

    Raises:
        ValueError: for an argument out of its range.
        RunError: for a directory that holds something else.
    """
    check_integer("num_train_per_class", num_train_per_class)
    check_integer("num_val_per_class", num_val_per_class, least=0)
    check_integer("num_frames", num_frames)
    check_integer("fps", fps)
    check_integer("seed", seed, least=0)
    if len(size_px) != 2 or any(side < 32 or side % 2 for side in size_px):
        raise SettingError(f"size_px must be an even height and width of at least 32, got {size_px!r}.")
    num_workers = num_cores() if num_workers is None else check_integer("num_workers", num_workers)
    out = Path(out)
    counts = {"train": num_train_per_class, "val": num_val_per_class}
    parameters = {
        "version": _VERSION,
        "classes": list(CLASSES),
        "num_per_class": counts,
        "num_frames": num_frames,
        "size_px": list(size_px),
        "fps": fps,
        "seed": seed,
    }
    videos = [(split, index) for split, count in counts.items() for index in range(count)]
    paths = {(split, name, index): _path(out, split, name, index) for split, index in videos for name in CLASSES}
    _claim(out, parameters)
    is_there = {key: path.exists() for key, path in paths.items()}
    missing = [(split, index) for split, index in videos if not all(is_there[split, name, index] for name in CLASSES)]
    num_there, num_written = sum(is_there.values()), 0
    if missing:
        log.info("%s: making %d of %d videos", out, len(paths) - num_there, len(paths))
    write = partial(_write_scene, out=out, num_frames=num_frames, size_px=size_px, fps=fps, seed=seed)
    with ExitStack() as stack:
        run: Callable[..., Iterable[int]] = map
        if num_workers > 1 and len(missing) * len(CLASSES) >= _PROCESSES_FROM:
            # Spawned, not forked: the caller may have threads, and a fork would copy their locks in any state.
            num_processes, context = min(num_workers, len(missing)), get_context("spawn")
            pool = ProcessPoolExecutor(num_processes, mp_context=context, initializer=_ignore_interrupts)
            run = stack.enter_context(pool).map
        for written in run(write, missing):
            num_written += written
            if progress is not None:
                progress(num_there + num_written, len(paths))
    write_json(out / _DESCRIPTION, {**parameters, "complete": True})
    num_bytes = sum(path.stat().st_size for path in paths.values())
    log.info("%s: %s, %d of them new, %.1f MB", out, count(len(paths), "video"), num_written, num_bytes / 1e6)
    return SyntheticSummary(out, len(paths), num_written, num_bytes)


def _ignore_interrupts() -> None:
    """For a worker: Ctrl-C ends the main process, and the scenes that are under way are finished."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _write_scene(
    video: tuple[str, int], *, out: Path, num_frames: int, size_px: tuple[int, int], fps: int, seed: int
) -> int:
    """Write the missing videos of a scene; returns their number."""
    split, index = video
    scene = draw_scene(split, index, size_px=size_px, seed=seed)
    missing = [name for name in CLASSES if not _path(out, split, name, index).exists()]
    for name in missing:
        frames = render(scene, name, num_frames=num_frames, rng=_rng(seed, split, index, name))
        _encode(frames, _path(out, split, name, index), fps=fps)
    return len(missing)


def draw_scene(split: str, index: int, *, size_px: tuple[int, int], seed: int) -> Scene:
    """Draw the scene of a part's videos with number `index`; other parts have other scenes. Sizes are (H, W)."""
    rng = _rng(seed, split, index, "scene")
    ground = rng.uniform(*_GROUND_RANGE, size=3)
    shapes = tuple(
        Shape(
            outline=list(SHAPES)[rng.integers(len(SHAPES))],
            mirrored=bool(rng.integers(2)),
            color=_draw_color(rng, ground),
            start={name: float(rng.random()) for name in ("x", "y", "angle", "size")},
        )
        for _ in range(_NUM_SHAPES)
    )
    return Scene(
        shapes,
        period_frames=float(rng.uniform(*_PERIOD_FRAMES)),
        background=ground.astype(np.float32) + _draw_texture(rng, size_px),
    )


def states(shape: Shape, motion: str, *, num_frames: int, period_frames: float) -> dict[str, np.ndarray]:
    """A shape's x, y, angle and size in each frame: float64 (num_frames,) in [0, 1) for each."""
    moving, direction = MOTIONS[motion]
    turns = direction * np.arange(num_frames) / period_frames
    return {name: (start + turns * (name == moving)) % 1.0 for name, start in shape.start.items()}


def render(scene: Scene, motion: str, *, num_frames: int, rng: np.random.Generator | None) -> np.ndarray:
    """Draw the frames of a video, uint8 (num_frames, H, W, 3), RGB; `rng` draws the noise, None for none."""
    moves = [states(s, motion, num_frames=num_frames, period_frames=scene.period_frames) for s in scene.shapes]
    frames = np.empty((num_frames, *scene.background.shape), dtype=np.uint8)
    for t in range(num_frames):
        frame = scene.background.copy()
        for shape, move in zip(scene.shapes, moves, strict=True):
            _paint(frame, shape, {name: float(values[t]) for name, values in move.items()})
        if rng is not None:
            frame += _NOISE.take(rng.integers(0, 256, size=frame.shape, dtype=np.uint8))
        frames[t] = np.clip(frame + np.float32(0.5), 0, 255)
    return frames


def _paint(frame: np.ndarray, shape: Shape, state: dict[str, float]) -> None:
    """Draw a shape over a frame, float32 (H, W, 3)."""
    height, width = frame.shape[:2]
    smallest, largest = _SIZE_RANGE
    radius = min(height, width) * smallest * (largest / smallest) ** state["size"]
    rows, dy = _around(state["y"] * height, radius, height)
    columns, dx = _around(state["x"] * width, radius, width)
    angle = 2 * np.pi * state["angle"]
    # Turned and scaled from px to steps of the map.
    step = radius * 2 * _MAP_REACH / _MAP_SIDE
    cos, sin = np.float32(np.cos(angle) / step), np.float32(np.sin(angle) / step)
    u = (cos * dx)[None, :] + (sin * dy)[:, None]
    v = (cos * dy)[:, None] - (sin * dx)[None, :]
    if shape.mirrored:
        u = -u
    # A corner of the box may lie outside the map: the map's edge is far enough from the shape to stand for it.
    u, v = (np.minimum(np.maximum(x + _MAP_SIDE / 2, 0), _MAP_SIDE - 1).astype(np.int32) for x in (u, v))
    distance = _distances(shape.outline).take(v * _MAP_SIDE + u)
    # An edge is one pixel wide: it covers the pixels on its way in part.
    covered = np.minimum(np.maximum(0.5 - distance * np.float32(radius), 0), 1)[:, :, None]
    color = shape.color.astype(np.float32)
    for down, my_rows in _runs(rows, height):
        for across, my_columns in _runs(columns, width):
            under = frame[down, across]
            under += covered[my_rows, my_columns] * (color - under)


def _runs(pixels: np.ndarray, length: int) -> list[tuple[slice, slice]]:
    """The one or two stretches, past the torus's edge, of an axis's pixels: where in the frame, and in `pixels`."""
    first, count = int(pixels[0]), len(pixels)
    fitting = min(count, length - first)
    runs = [(slice(first, first + fitting), slice(0, fitting)), (slice(0, count - fitting), slice(fitting, count))]
    return runs if fitting < count else runs[:1]


def _around(center: float, radius: float, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of one axis of the torus that a shape may cover, and their middles' distance from its center, in px."""
    first = int(np.floor(center - radius)) - 1
    pixels = np.arange(first, min(int(np.ceil(center + radius)) + 1, first + length))
    return pixels % length, (pixels + 0.5 - center).astype(np.float32)


@cache
def _distances(outline: str) -> np.ndarray:
    """Signed distances to an outline, negative inside, in radii: float32 (_MAP_SIDE, _MAP_SIDE), rows are y."""
    steps = ((np.arange(_MAP_SIDE) + 0.5) / _MAP_SIDE * 2 - 1) * _MAP_REACH
    x, y = np.meshgrid(steps, steps)
    nearest, inside = np.full(x.shape, np.inf), np.zeros(x.shape, dtype=bool)
    corners = SHAPES[outline].astype(np.float64)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        ex, ey = bx - ax, by - ay
        px, py = x - ax, y - ay
        along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, (px - along * ex) ** 2 + (py - along * ey) ** 2)
        # A ray to the right meets this edge: an odd number of them means inside.
        inside ^= ((ay > y) != (by > y)) & ((px * ey < ex * py) == (ey > 0))
    return np.where(inside, -1, 1).astype(np.float32) * np.sqrt(nearest).astype(np.float32)


def _draw_color(rng: np.random.Generator, ground: np.ndarray) -> np.ndarray:
    """An RGB color, float64 (3,), that is brighter than the background's."""
    while True:
        color = rng.uniform(0, 255, size=3)
        if color.mean() - ground.mean() >= _MIN_BRIGHTER:
            return color


def _draw_texture(rng: np.random.Generator, size_px: tuple[int, int]) -> np.ndarray:
    """Smooth noise, its power falling with frequency as in photographs; float32 (H, W, 3), mean 0."""
    height, width = size_px
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((2, height, width))) / frequency ** rng.uniform(0.9, 1.4)
    layers = np.fft.irfft2(spectrum, s=(height, width))
    layers /= layers.std(axis=(1, 2), keepdims=True)
    tints = rng.uniform(-1, 1, size=(2, 3)) + np.array([[1.0], [0.0]])
    tints *= rng.uniform(6, 14) / np.abs(tints).max(axis=1, keepdims=True)
    return np.einsum("lhw,lc->hwc", layers, tints).astype(np.float32)


def _encode(frames: np.ndarray, path: Path, *, fps: int) -> None:
    """Write an H.264 mp4, whole or not at all."""
    # bitexact: no library versions and times in the file.
    options = {"fflags": "+bitexact"}
    with whole_path(path) as part, av.open(f"file:{part}", "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=fps, options=dict(_CODEC_OPTIONS))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _claim(out: Path, parameters: dict[str, Any]) -> None:
    """Make the directory, or check that it holds this data set."""
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: out must be a directory, got a file. Choose another name.")
    there = sorted(path.name for path in out.iterdir()) if out.exists() else []
    if not there:
        write_json(out / _DESCRIPTION, {**parameters, "complete": False})
        return
    try:
        found = dict(json.loads((out / _DESCRIPTION).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise RunError(
            f"{out}: out must be new, empty or a data set of the same parameters, got {there[:3]}. "
            "Choose another directory."
        ) from None
    except (OSError, TypeError, ValueError) as error:
        raise RunError(f"{out / _DESCRIPTION}: the description cannot be read: {error}. Remove {out}.") from error
    found.pop("complete", None)
    differ = sorted(key for key in {*found, *parameters} if found.get(key) != parameters.get(key))
    if differ:
        values = ", ".join(f"{key} {found.get(key)!r} and not {parameters.get(key)!r}" for key in differ)
        raise RunError(f"{out}: out must be a data set of the same parameters, got {values}. Choose another directory.")


def _path(out: Path, split: str, name: str, index: int) -> Path:
    return out / split / name / f"{index:04d}.mp4"


def _rng(seed: int, split: str, index: int, use: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(split.encode()), index, zlib.crc32(use.encode())])
