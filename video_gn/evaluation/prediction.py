"""What a predictor says of a video: the entry of `infer`'s json, with typed properties and a page for a notebook."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any, TypedDict, cast

import numpy as np

from video_gn.decoding import VideoReader, open_video
from video_gn.errors import DecodeError
from video_gn.shown import count, shown

UNSURE = "unsure"  # label of segments whose best score is below the threshold


class Label(TypedDict):
    """A class and its softmax score."""

    label: str
    score: float


class Clip(TypedDict):
    """A clip's best labels; times from the first frame shown."""

    start_seconds: float
    end_seconds: float
    top: list[Label]


class Segment(TypedDict):
    """A time of one label, or of "unsure"."""

    label: str
    start_seconds: float
    end_seconds: float
    score: float


class Timeline(TypedDict):
    """The best labels of windows, each at the time of its middle; `gaps` are [start, end] of what cannot be read."""

    window_seconds: float
    every_seconds: float
    first_frame_seconds: float
    times: list[float]
    top: list[list[Label]]
    gaps: list[list[float]]


@dataclass(frozen=True, eq=False)
class Embedding:
    """A video's features before the classifier, averaged over positions in the frame.

    Args:
        path: Path of the video; "<frames>" for frames in memory.
        video: float32 (C,), the mean over clips; C is 32 x the network's width, 2048 as a rule.
        clips: float32 (K, C), of each clip the mean over its crops.
        clip_seconds: Start and end of each clip, from the first frame shown.
    """

    path: str
    video: np.ndarray
    clips: np.ndarray
    clip_seconds: tuple[tuple[float, float], ...]


class Prediction(dict[str, Any]):
    """An entry of `infer`'s json, as a dictionary; its keys as properties, and a picture of it in a notebook.

    The notebook's strip of frames is read from the video when it is shown, unless `keep_pictures` was called.
    """

    embedding: Embedding | None = None  # if it was asked for
    _pictures: list[str] | None = None

    @property
    def path(self) -> str:
        """The video's path; "<frames>" for frames in memory."""
        return cast(str, self["path"])

    @property
    def label(self) -> str:
        """The best label."""
        return self.top[0]["label"]

    @property
    def score(self) -> float:
        """The best label's softmax score."""
        return self.top[0]["score"]

    @property
    def top(self) -> list[Label]:
        """The best labels over all views, best first."""
        return cast(list[Label], self["top"])

    @property
    def clips(self) -> list[Clip]:
        """Each clip's best labels."""
        return cast(list[Clip], self["clips"])

    @property
    def timeline(self) -> Timeline | None:
        """The labels over time; None if none was asked for."""
        return self.get("timeline")

    @property
    def segments(self) -> list[Segment]:
        """What happens when; empty without a timeline."""
        return self.get("segments", [])

    def __repr__(self) -> str:
        if "path" not in self:  # not a result yet, or no longer
            return super().__repr__()
        parts = [_label(top) for top in self.top[:5]]
        facts = [*self._facts(), *(f"{_span(s)} {_label(s)}" for s in self.segments[:5])]
        more = [f"{len(self.segments) - 5} more segments"] if len(self.segments) > 5 else []
        return f"<{shown(self.path)}: {', '.join(parts)}; {', '.join([*facts, *more])}>"

    def keep_pictures(self, reader: VideoReader) -> None:
        """Take the strip's frames from an open video, if it cannot be opened again.

        Raises:
            DecodeError: for a frame that cannot be read.
        """
        seconds = [middle for middle, _ in self._strip()]
        indices = np.searchsorted(reader.frame_seconds, seconds, side="right") - 1
        self._pictures = [_jpeg(frame) for frame in reader.frames_at(np.maximum(indices, 0)).numpy()]

    def _facts(self) -> list[str]:
        return [count(self["num_frames"], "frame"), f"{self['fps']:g} fps", count(len(self.clips), "clip")]

    def _strip(self) -> list[tuple[float, str]]:
        """Times of the strip's frames and what is written below: the clips' middles, or all along a single clip."""
        clips = self.clips
        if len(clips) == 1:
            start, end = clips[0]["start_seconds"], clips[0]["end_seconds"]
            return [(start + (end - start) * (n + 0.5) / _MOST_FRAMES, "") for n in range(_MOST_FRAMES)]
        places = np.unique(np.linspace(0, len(clips) - 1, _MOST_FRAMES).round().astype(int))
        chosen = [clips[place] for place in places.tolist()]
        return [((c["start_seconds"] + c["end_seconds"]) / 2, _label(c["top"][0])) for c in chosen]

    def _repr_html_(self) -> str:
        """Frames, bars of the best labels and the segments; below 100 kB, in the notebook's own colors."""
        if self._pictures is None:
            try:
                with open_video(self.path, short_side_px=2 * _HEIGHT) as reader:
                    self.keep_pictures(reader)
            except (DecodeError, OSError, ValueError):  # gone meanwhile, or never there
                self._pictures = []
        strip = zip(self._pictures or [], self._strip(), strict=False)
        figures = [
            f'<figure><img alt="" src="data:image/jpeg;base64,{picture}"><figcaption>{_clock(at)} {escape(text)}'
            "</figcaption></figure>"
            for picture, (at, text) in strip
        ]
        bars = [
            f'<tr><td>{escape(_cut(top["label"]))}<td class="bar"><i style="width:{100 * top["score"]:.1f}%"></i>'
            f"<td>{top['score']:.3f}"
            for top in self.top[:_MOST_ROWS]
        ]
        best = "".join(escape(_label(top)) for top in self.top[:1])
        return (
            f'<div class="video-gn"><style>{_STYLE}</style><p><b>{best}</b> '
            f"<small>{escape(_cut(self.path, last=True))}, {', '.join(self._facts())}</small></p>"
            f'<div class="strip">{"".join(figures)}</div><table>{"".join(bars)}</table>{_bands(self.segments)}</div>'
        )


_MOST_FRAMES, _MOST_ROWS, _MOST_LETTERS, _MOST_BANDS = 8, 10, 60, 200
_WIDTH, _HEIGHT = 128, 72  # px of a frame, at most
# Text and background are the notebook's own, light or dark. On a phone the frames stand in two rows of four.
_STYLE = (
    ".video-gn{max-width:760px}.video-gn p{margin:.3em 0;overflow-wrap:anywhere}.video-gn small{opacity:.7}"
    ".video-gn .strip{display:grid;grid-template-columns:repeat(auto-fill,minmax(82px,1fr));gap:4px}"
    ".video-gn figure{margin:0}.video-gn img{display:block;width:100%}"
    ".video-gn figcaption{font-size:.75em;opacity:.7;overflow-wrap:anywhere}"
    ".video-gn table{width:100%;border-collapse:collapse;font-size:.9em;margin:.3em 0}"
    ".video-gn td{text-align:left;padding:1px 6px 1px 0;overflow-wrap:anywhere;background:none}"
    ".video-gn td:last-child{white-space:nowrap;width:3em;text-align:right}"
    ".video-gn .bar{width:50%}.video-gn .bar i{display:block;height:.8em;min-width:1px;background:#4a86d8}"
    ".video-gn .bands{display:flex;height:1.2em}.video-gn .key{display:inline-block;width:.8em;height:.8em}"
)


def _bands(segments: Sequence[Segment]) -> str:
    """The segments as one line of colors, and as rows."""
    if not segments:
        return ""
    names = list(dict.fromkeys(s["label"] for s in segments if s["label"] != UNSURE))
    # Neighbours in the order of appearance differ most by the golden angle.
    colors = {name: f"hsl({137.5 * n % 360:.0f} 55% 52%)" for n, name in enumerate(names)} | {UNSURE: "#8886"}
    end = max(s["end_seconds"] for s in segments)
    # What stands in the middle of each of so many equal parts: a day has thousands of segments.
    starts = np.array([s["start_seconds"] for s in segments])
    middles = (np.arange(_MOST_BANDS) + 0.5) * end / _MOST_BANDS
    at = np.searchsorted(starts, middles, side="right") - 1
    near = [segments[max(0, n)] for n in at]
    seen = [
        s["label"] if s["start_seconds"] <= t < s["end_seconds"] else "" for s, t in zip(near, middles, strict=True)
    ]
    bands = [(name, len(list(run))) for name, run in groupby(seen)]
    line = "".join(f'<i style="flex:{n};background:{colors.get(name, "none")}"></i>' for name, n in bands)
    rows = [
        f'<tr><td><i class="key" style="background:{colors[s["label"]]}"></i> {_span(s)}'
        f"<td>{escape(_cut(s['label']))}<td>{s['score']:.3f}"
        for s in segments[:_MOST_ROWS]
    ]
    if len(segments) > _MOST_ROWS:
        rows.append(f"<tr><td>and {len(segments) - _MOST_ROWS:,} more<td><td>")
    return f'<div class="bands">{line}</div><table>{"".join(rows)}</table>'


def _jpeg(frame_HWC: np.ndarray) -> str:
    from PIL import Image

    picture, data = Image.fromarray(frame_HWC), io.BytesIO()
    picture.thumbnail((_WIDTH, _HEIGHT))
    picture.save(data, "JPEG", quality=60)
    return base64.b64encode(data.getvalue()).decode()


def _label(entry: Any) -> str:
    return f"{_cut(entry['label'])} {entry['score']:.2f}"


def _span(segment: Segment) -> str:
    return f"{_clock(segment['start_seconds'])} - {_clock(segment['end_seconds'])}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{minutes:.0f}:{rest:04.1f}"


def _cut(text: str, *, last: bool = False) -> str:
    """A name in one line of at most `_MOST_LETTERS` letters: its first ones, or its last."""
    text = shown(text)
    if len(text) <= _MOST_LETTERS:
        return text
    return f"...{text[3 - _MOST_LETTERS :]}" if last else f"{text[: _MOST_LETTERS - 3]}..."
