"""Writes the segments of a video as subtitles, WebVTT or SubRip, for any player."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from video_gn.files import write_text
from video_gn.shown import shown

SUFFIXES = (".vtt", ".srt")


def write_subtitles(path: str | Path, videos: Iterable[dict[str, Any]], failed: Iterable[dict[str, str]] = ()) -> None:
    """Write a cue for each segment of the one video, whole or not at all; nothing if the video could not be read.

    Times are those that a player shows, which counts from the file's earliest stream.
    """
    is_vtt = Path(path).suffix == ".vtt"
    for video in videos:
        cues = ["WEBVTT\n"] if is_vtt else []
        shift = video["timeline"]["first_frame_seconds"]
        for number, segment in enumerate(video["segments"], 1):
            times = [_clock(segment[name] + shift, "." if is_vtt else ",") for name in ("start_seconds", "end_seconds")]
            label = escape(shown(segment["label"]), quote=False) if is_vtt else shown(segment["label"])
            cues.append(f"{number}\n{' --> '.join(times)}\n{label} {segment['score']:.2f}\n")
        write_text(path, "\n".join(cues))


def _clock(seconds: float, point: str) -> str:
    """3725.5 as 01:02:05.500."""
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds // 1000, 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}{point}{milliseconds % 1000:03d}"
