"""Files of results: labels of videos and their clips (`infer`, `predict`)."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from video_gn.clips import VideoNote
from video_gn.files import whole_file


def top_labels(scores_Y: np.ndarray, classes: Sequence[str], top_k: int) -> list[dict[str, Any]]:
    """The best classes and their scores, best first; of equal scores the lower number first.

    Args:
        scores_Y: softmax scores.
        classes: names by number; where it is empty, numbers are written.
        top_k: how many, at most Y.
    """
    order = np.argsort(-scores_Y, kind="stable")[:top_k]
    return [{"label": classes[i] if classes else str(i), "score": round(float(scores_Y[i]), 6)} for i in order]


def video_result(
    note: VideoNote, scores_KY: np.ndarray, classes: Sequence[str], *, num_crops: int = 1, top_k: int = 5
) -> dict[str, Any]:
    """One video's entry: its best labels over all views, and each clip's over its crops.

    Args:
        note: path, frames and times.
        scores_KY: softmax scores of clips times crops, a clip's crops side by side.
        classes: names by number.
        num_crops: crops of a clip.
        top_k: labels to keep.
    """
    scores = np.asarray(scores_KY, dtype=np.float64)
    per_clip = scores.reshape(-1, num_crops, scores.shape[-1]).mean(1)
    return {
        "path": note.path,
        "num_frames": note.num_frames,
        "fps": round(note.fps, 6),
        "top": top_labels(scores.mean(0), classes, top_k),
        "clips": [
            {
                "start_seconds": round(start, 3),
                "end_seconds": round(end, 3),
                "top": top_labels(clip_scores, classes, top_k),
            }
            for (start, end), clip_scores in zip(note.clip_seconds, per_clip, strict=True)
        ],
    }


def write_results(path: str | Path, videos: Iterable[dict[str, Any]], failed: Iterable[dict[str, str]]) -> None:
    """Write results as json or csv, by the ending, under the final name only when whole.

    The csv has a row for each label of a video (`clip` empty) and of each of its clips, and a row with
    `reason` for each failed video. One entry is held at a time.

    Args:
        path: ends in .json or .csv.
        videos: entries of `video_result`; gone through first.
        failed: {"path", "reason"}.

    Raises:
        ValueError: for another ending.
    """
    path = Path(path)
    check_ending(path)
    with whole_file(path) as file:
        (_write_json if path.suffix == ".json" else _write_csv)(file, videos, failed)


def _write_json(file: IO[str], videos: Iterable[dict[str, Any]], failed: Iterable[dict[str, str]]) -> None:
    """What `json.dumps({"videos": [...], "failed": [...]}, indent=2)` gives, entry by entry."""
    parts: tuple[tuple[str, Iterable[Any]], ...] = (("videos", videos), ("failed", failed))
    before = "{"
    for name, entries in parts:
        file.write(f'{before}\n  "{name}": [')
        separator = "\n"
        for entry in entries:
            # Line breaks within strings are escaped: these are json's own.
            text = json.dumps(entry, indent=2, ensure_ascii=False).replace("\n", "\n    ")
            file.write(f"{separator}    {text}")
            separator = ",\n"
        file.write("]" if separator == "\n" else "\n  ]")
        before = ","
    file.write("\n}\n")


def _write_csv(file: IO[str], videos: Iterable[dict[str, Any]], failed: Iterable[dict[str, str]]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["path", "clip", "start_seconds", "end_seconds", "rank", "label", "score", "reason"])
    for video in videos:
        for rank, top in enumerate(video["top"], 1):
            writer.writerow([video["path"], "", "", "", rank, top["label"], top["score"], ""])
        for number, clip in enumerate(video["clips"]):
            for rank, top in enumerate(clip["top"], 1):
                span = (clip["start_seconds"], clip["end_seconds"])
                writer.writerow([video["path"], number, *span, rank, top["label"], top["score"], ""])
    for failure in failed:
        writer.writerow([failure["path"], "", "", "", "", "", "", failure["reason"]])


def check_ending(path: str | Path) -> None:
    """Raise ValueError unless results can be written under this name."""
    if Path(path).suffix not in (".json", ".csv"):
        raise ValueError(f"output must end in .json or .csv, got {str(path)!r}")
