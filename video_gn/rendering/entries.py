"""A video's result as it is drawn: windows, segments, and a number for each label's colour."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from video_gn.evaluation.prediction import UNSURE


@dataclass(frozen=True)
class Timeline:
    """What is drawn of an entry of `video-gn infer`. Times are in seconds from the first frame.

    Args:
        times: float64 (W,), the windows' middles, ascending; of a video without a timeline a single one.
        top: For each window its best labels, {"label", "score"}, best first.
        segments: {"label", "start_seconds", "end_seconds", "score"}, ascending.
        gaps: (start, end) of parts that could not be read.
        duration_seconds: End of the video.
        first_frame_seconds: When a player shows the first frame.
        numbers: Of the labels that win a segment or a window: from 0, those that take the most time first.
    """

    times: np.ndarray
    top: Sequence[Sequence[Mapping[str, Any]]]
    segments: Sequence[Mapping[str, Any]]
    gaps: Sequence[tuple[float, float]]
    duration_seconds: float
    first_frame_seconds: float
    numbers: Mapping[str, int]

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Timeline:
        """Read an entry; one without a timeline, or without a window, has the video's labels all along."""
        line, duration = entry.get("timeline", {}), entry["num_frames"] / entry["fps"]
        if not line.get("times"):
            line = {**line, "times": [duration / 2], "top": [entry["top"]]}
        segments = entry.get("segments", [])
        taken: Counter[str] = Counter()
        for segment in segments:
            taken[segment["label"]] += segment["end_seconds"] - segment["start_seconds"]
        won = Counter(best[0]["label"] for best in line["top"] if best)
        labels = sorted({*taken, *won} - {UNSURE}, key=lambda label: (-taken[label], -won[label], label))
        ends = [segment["end_seconds"] for segment in segments] + [end for _, end in line.get("gaps", ())]
        return cls(
            times=np.asarray(line["times"], np.float64),
            top=line["top"],
            segments=segments,
            gaps=[(start, end) for start, end in line.get("gaps", ())],
            duration_seconds=max([duration, *ends]),
            first_frame_seconds=line.get("first_frame_seconds", 0.0),
            numbers={label: number for number, label in enumerate(labels)},
        )

    def window_at(self, seconds: float) -> int:
        """The window whose middle is nearest."""
        return int(np.searchsorted((self.times[1:] + self.times[:-1]) / 2, seconds))

    def segment_at(self, seconds: float) -> int | None:
        """The segment that a time lies in."""
        number = bisect.bisect_right(self.segments, seconds, key=lambda segment: segment["start_seconds"]) - 1
        return number if number >= 0 and seconds < self.segments[number]["end_seconds"] else None


def clock(seconds: float) -> str:
    """A time as a player shows it: 0:07, 12:34, 1:02:03."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
