"""Writes results: labels of videos and their clips (`infer`, `predict`), predictions.csv and scores.npz (`test`)."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from video_gn.clips import VideoNote
from video_gn.files import whole_file, whole_path
from video_gn.shown import csv_line

if TYPE_CHECKING:
    from video_gn.evaluation.accuracy import VideoRows
    from video_gn.evaluation.clip_curve import ClipCurve
    from video_gn.evaluation.unfinished import Place
    from video_gn.lists.manifest import Manifest


def top_labels(scores_Y: np.ndarray, classes: Sequence[str], top_k: int) -> list[dict[str, Any]]:
    """The best classes and their softmax scores, best first; of equal scores the lower class number first.

    At most `top_k` of them; without class names the numbers are written.
    """
    order = np.argsort(-scores_Y, kind="stable")[:top_k]
    return [{"label": classes[i] if classes else str(i), "score": round(float(scores_Y[i]), 6)} for i in order]


def video_result(
    note: VideoNote, scores_KY: np.ndarray, classes: Sequence[str], *, num_crops: int = 1, top_k: int = 5
) -> dict[str, Any]:
    """One video's entry: its best labels over all views, and each clip's over its crops.

    Softmax scores lie clip by clip, a clip's crops side by side; class names are by number, or empty.
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
    """Write results as json or csv, by the ending of the name, whole or not at all.

    The csv has a row for each label of a video (`clip` empty) and of each of its clips, and a row with
    `reason` for each failed video, {"path", "reason"}; texts are cells of `video_gn.shown.csv_cell`. A timeline's
    windows, segments and gaps follow the clips, with "window 0", "segment 0" or "gap 0" in the column `clip`. Videos,
    entries of `video_result`, are taken first; only one entry is in memory at a time.

    Raises:
        ValueError: for another ending.
    """
    path = Path(path)
    if path.suffix not in (".json", ".csv"):
        raise ValueError(f"output must end in .json or .csv, got {str(path)!r}")
    with whole_file(path) as file:
        (_write_json if path.suffix == ".json" else _write_csv)(file, videos, failed)


def _write_json(file: IO[str], videos: Iterable[dict[str, Any]], failed: Iterable[dict[str, str]]) -> None:
    """Write what `json.dumps({"videos": [...], "failed": [...]}, indent=2)` gives, entry by entry."""
    parts: tuple[tuple[str, Iterable[Any]], ...] = (("videos", videos), ("failed", failed))
    before = "{"
    for name, entries in parts:
        file.write(f'{before}\n  "{name}": [')
        separator = "\n"
        for entry in entries:
            # Line breaks within strings are escaped: these are between json's tokens.
            text = json.dumps(entry, indent=2, ensure_ascii=False, allow_nan=False).replace("\n", "\n    ")
            file.write(f"{separator}    {text}")
            separator = ",\n"
        file.write("]" if separator == "\n" else "\n  ]")
        before = ","
    file.write("\n}\n")


def _write_csv(file: IO[str], videos: Iterable[dict[str, Any]], failed: Iterable[dict[str, str]]) -> None:
    file.write(csv_line(["path", "clip", "start_seconds", "end_seconds", "rank", "label", "score", "reason"]))
    for video in videos:
        path = video["path"]
        for rank, top in enumerate(video["top"], 1):
            file.write(csv_line([path, "", "", "", rank, top["label"], top["score"], ""]))
        for name, start, end, labels in _spans(video):
            for rank, top in enumerate(labels, 1):
                file.write(csv_line([path, name, start, end, rank, top["label"], top["score"], ""]))
            if not labels:
                file.write(csv_line([path, name, start, end, "", "", "", ""]))
    for failure in failed:
        file.write(csv_line([failure["path"], "", "", "", "", "", "", failure["reason"]]))


def _spans(video: dict[str, Any]) -> Iterator[tuple[int | str, float, float, list[dict[str, Any]]]]:
    """Name, start, end and labels of a video's clips, and of its timeline's windows, segments and gaps."""
    for number, clip in enumerate(video["clips"]):
        yield number, clip["start_seconds"], clip["end_seconds"], clip["top"]
    timeline = video.get("timeline")
    if timeline is None:
        return
    half = timeline["window_seconds"] / 2
    for number, (time, top) in enumerate(zip(timeline["times"], timeline["top"], strict=True)):
        yield f"window {number}", round(time - half, 3), round(time + half, 3), top
    for number, segment in enumerate(video["segments"]):
        yield f"segment {number}", segment["start_seconds"], segment["end_seconds"], [segment]
    for number, (start, end) in enumerate(timeline["gaps"]):
        yield f"gap {number}", start, end, []


def write_predictions(path: Path, rows: VideoRows, manifest: Manifest, classes: Sequence[str]) -> None:
    """Write predictions.csv, a row for each decoded video; texts are cells of `video_gn.shown.csv_cell`."""
    with whole_file(path) as file:
        file.write(csv_line(["video", "label", "pred", "score", "top5", "num_views"]))
        for row, (video_id, label, best) in enumerate(zip(rows.video_ids, rows.labels, rows.best, strict=True)):
            path, names = manifest.records[video_id].path, [classes[i] for i in best]
            score = f"{rows.best_scores[row]:.6f}"
            right = classes[label] if label >= 0 else ""
            file.write(csv_line([path, right, names[0], score, "|".join(names), rows.num_views[row]]))


def write_scores(
    path: Path, places: Mapping[int, Place], rows: VideoRows, curve: ClipCurve, *, num_classes: int
) -> None:
    """Write scores.npz from all ranks' files, video by video, in the order of the manifest; `curve` sees each."""
    video_ids = np.array(sorted(places), dtype=np.int64)
    labels = np.asarray(rows.labels, dtype=np.int64)
    with whole_path(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for name, array in (("video_ids", video_ids), ("labels", labels)):
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, array)
        with archive.open("scores.npy", "w", force_zip64=True) as entry:
            shape = (len(video_ids), int(rows.num_views.max(initial=0)), num_classes)
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(entry, header)
            for video_id in video_ids.tolist():
                scores_KY = places[video_id].read()
                curve.add(scores_KY, places[video_id].label)
                entry.write(scores_KY.tobytes())
