"""Strips of frames for the page: small JPEGs of a few videos, read in other processes within a time limit."""

from __future__ import annotations

import base64
import io
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup

from video_gn.decoding import open_video
from video_gn.decoding.tar_members import is_member
from video_gn.errors import DecodeError, FrameCountError, RunError
from video_gn.processes import Lost, num_cores, run_tasks

if TYPE_CHECKING:
    from PIL.Image import Image

_NUM_FRAMES = 5
# px of a frame in the strip: five of them are shown 420 px wide, on screens of two dots for a px.
_WIDTH, _HEIGHT = 168, 96
_QUALITY = 70  # some 15 kB a strip
# A video that takes longer, such as hours of film on a slow file system, and all of them, get no strip.
_VIDEO_SECONDS, _ALL_SECONDS = 10.0, 60.0
_MAX_WORKERS = 4
# It imports torch and PyAV, which takes longer than a video: once, before the workers start.
_IMPORTS = "video_gn.decoding.raw"


class Strip(NamedTuple):
    """A video's frames, or why there are none."""

    uri: Markup | str = ""  # data:image/jpeg;base64,... (markup, so that it is not cut as texts are)
    width: int = 0  # px of the picture, as are the next
    height: int = 0
    problem: str = ""


def read_strips(paths: Sequence[str]) -> dict[str, Strip]:
    """A strip for each path: frames evenly spread over the whole file, in order of time, side by side."""
    found = {path: Strip(problem="not found") for path in paths}
    # Of a member of a tar, the tar. pathlib's way would raise for a name that is too long.
    there = [p for p in found if os.path.exists(p.partition("::")[0] if is_member(p) else p)]  # noqa: PTH110
    found.update(dict.fromkeys(there, Strip(problem=f"not read within {_ALL_SECONDS:g} seconds, as all of them")))
    deadline: float | None = None  # counted from the first one: before it, processes start
    results = run_tasks(
        there, read_strip, num_workers=min(_MAX_WORKERS, num_cores()), stall_seconds=_VIDEO_SECONDS, preload=_IMPORTS
    )
    try:
        for path, strip in results:
            found[path] = Strip(problem=strip.reason) if isinstance(strip, Lost) else strip
            deadline = deadline or time.monotonic() + _ALL_SECONDS
            if time.monotonic() >= deadline:
                break
    except RunError as error:  # processes cannot be started: the page goes without
        found.update({path: Strip(problem=str(error)) for path in there if not found[path].uri})
    return found


def reason_of_none(strips: Mapping[str, Strip]) -> str:
    """Why no video has a strip, by its first one; "" if any has, or none was asked for."""
    problems = [f"{video}: {strip.problem}" for video, strip in strips.items()]
    return problems[0] if problems and not any(strip.uri for strip in strips.values()) else ""


def read_strip(path: str, beat: Callable[[], None]) -> Strip:
    """The strip of a video; a task of `run_tasks`."""
    from PIL import Image

    try:
        with open_video(path, short_side_px=2 * _HEIGHT) as reader:
            for attempt in (0, 1):
                count = reader.info.num_frames
                # The middles of equal parts: of 100 frames 10, 30, 50, 70 and 90.
                places = sorted({(2 * part + 1) * count // (2 * _NUM_FRAMES) for part in range(_NUM_FRAMES)})
                try:
                    frames = [Image.fromarray(frame.numpy()) for frame in reader.frames_at(places)]
                    break
                except FrameCountError:  # the count is now corrected
                    if attempt:
                        raise
    except DecodeError as error:
        return Strip(problem=error.reason)
    scale = min(_WIDTH / frames[0].width, _HEIGHT / frames[0].height)
    width, height = (max(1, round(scale * size)) for size in frames[0].size)
    picture = Image.new("RGB", (width * len(frames), height))
    for place, frame in enumerate(frames):
        picture.paste(frame.resize((width, height), Image.Resampling.BILINEAR), (place * width, 0))
    return as_strip(picture)


def as_strip(picture: Image) -> Strip:
    """A picture as a page holds it."""
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=_QUALITY)
    text = base64.b64encode(data.getvalue()).decode()
    return Strip(Markup(f"data:image/jpeg;base64,{text}"), picture.width, picture.height)
