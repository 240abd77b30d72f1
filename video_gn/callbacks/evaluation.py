"""Writes what a test or a prediction found: metrics.json, predictions.csv, scores.npz, predictions.json.

Scores go to disk as they come, so that a long test does not grow in memory.
"""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from lightning import Callback

from video_gn.clips import ClipBatch
from video_gn.data.manifest import Manifest
from video_gn.results import video_result, write_results

log = logging.getLogger(__name__)


class EvaluationWriter(Callback):
    """Collects scores of `test` and `predict` and writes their files into the run directory.

    Args:
        run_dir: the run's directory; files go to its `test/` or `predict/`.
        top_k: labels of a prediction.
    """

    def __init__(self, run_dir: Path, *, top_k: int = 5) -> None:
        self.run_dir = Path(run_dir)
        self.top_k = top_k
        self.num_failed = 0
        self._part: IO[bytes] | None = None
        self._ids: list[int] = []
        self._num_views = 0
        self._notes: dict[int, dict[str, Any]] = {}

    # ---- test --------------------------------------------------------------------------------

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """Open this process's file of scores."""
        directory = self.run_dir / "test"
        directory.mkdir(parents=True, exist_ok=True)
        self._ids = []
        self._part = self._part_path(directory, trainer.global_rank).open("wb")

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: ClipBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Append the batch's scores."""
        if len(batch) == 0:
            return
        assert self._part is not None
        scores_NKY = outputs.cpu().numpy().astype(np.float32, copy=False)
        self._num_views = scores_NKY.shape[1]
        self._ids.extend(batch.video_ids.tolist())
        self._part.write(scores_NKY.tobytes())

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        """Gather over processes; rank 0 writes the files."""
        assert self._part is not None
        self._part.close()
        directory = self.run_dir / "test"
        rows = pl_module.test_metric.rows()  # collective: every process takes part
        mine = (self._ids, self._num_views, [(f.video_id, f.path, f.reason) for f in pl_module.failures])
        everyone: list[Any] = [mine]
        if trainer.world_size > 1:
            everyone = [None] * trainer.world_size
            torch.distributed.all_gather_object(everyone, mine)
        failures = sorted({failure for _, _, found in everyone for failure in found})
        self.num_failed = len(failures)
        if not trainer.is_global_zero:
            return
        datamodule = trainer.datamodule
        manifest, classes = datamodule.manifests["test"], pl_module.classes or list(datamodule.classes)
        self._write_predictions(directory / "predictions.csv", rows, manifest, classes)
        parts = [(self._part_path(directory, rank), ids) for rank, (ids, _, _) in enumerate(everyone)]
        num_views = max(views for _, views, _ in everyone)
        self._write_scores(directory / "scores.npz", parts, num_views, rows)
        results = pl_module.eval_results
        num_crops = datamodule.test_crops.num_crops
        metrics = {
            "top1": results["top1"],
            "top5": results["top5"],
            "mean_class_accuracy": results["mean_class_accuracy"],
            "num_videos": len(manifest.records),
            "num_failed": len(failures),
            "coverage": len(rows.video_ids) / len(manifest.records),
            "num_clips": datamodule.views.num_clips,
            "num_crops": num_crops,
            "failed": [{"path": path, "reason": reason} for _, path, reason in failures],
            "checkpoint": None if trainer.ckpt_path is None else str(trainer.ckpt_path),
        }
        write_json(directory / "metrics.json", metrics)

    @staticmethod
    def _part_path(directory: Path, rank: int) -> Path:
        return directory / f".scores-{rank:05d}.f32"

    def _write_predictions(self, path: Path, rows: Any, manifest: Manifest, classes: Sequence[str]) -> None:
        order = np.argsort(-rows.scores, axis=1, kind="stable")[:, :5]
        part = path.with_name(f".{path.name}.tmp")
        with part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["video", "label", "pred", "score", "top5", "num_views"])
            for row, video_id in enumerate(rows.video_ids):
                label = rows.labels[row]
                best = order[row]
                writer.writerow(
                    [
                        manifest.records[video_id].path,
                        classes[label] if label >= 0 else "",
                        classes[best[0]],
                        f"{rows.scores[row, best[0]]:.6f}",
                        "|".join(classes[i] for i in best),
                        rows.num_views[row],
                    ]
                )
        part.replace(path)

    @staticmethod
    def _write_scores(path: Path, parts: list[tuple[Path, list[int]]], num_views: int, rows: Any) -> None:
        """Merge the processes' files into one npz, video by video, in the order of the manifest."""
        num_classes = rows.scores.shape[1]
        place = {}
        maps = []
        for file, ids in parts:
            if ids:
                maps.append(np.memmap(file, np.float32, "r", shape=(len(ids), num_views, num_classes)))
                place.update({video_id: (len(maps) - 1, row) for row, video_id in enumerate(ids)})
        video_ids = np.array(sorted(place), dtype=np.int64)
        labels = np.asarray(rows.labels, dtype=np.int64)
        part = path.with_name(f".{path.name}.tmp")
        with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
            for name, array in (("video_ids", video_ids), ("labels", labels)):
                with archive.open(f"{name}.npy", "w") as entry:
                    np.lib.format.write_array(entry, array)
            with archive.open("scores.npy", "w", force_zip64=True) as entry:
                shape = (len(video_ids), num_views, num_classes)
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_2_0(entry, header)
                for video_id in video_ids.tolist():
                    which, row = place[video_id]
                    entry.write(np.ascontiguousarray(maps[which][row]).tobytes())
        part.replace(path)
        del maps
        for file, _ in parts:
            with contextlib.suppress(FileNotFoundError):
                file.unlink()

    # ---- predict -----------------------------------------------------------------------------

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        """Forget an earlier prediction."""
        self._notes = {}
        pl_module.failures = []

    def on_predict_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: ClipBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep each video's result: a few labels, not all scores."""
        pl_module.failures.extend(batch.failures)
        num_crops = trainer.datamodule.test_crops.num_crops
        for row, note in enumerate(batch.notes):
            scores_KY = outputs[row].cpu().numpy()
            result = video_result(note, scores_KY, pl_module.classes, num_crops=num_crops, top_k=self.top_k)
            self._notes[int(batch.video_ids[row])] = result

    def on_predict_end(self, trainer: Any, pl_module: Any) -> None:
        """Write predict/predictions.json, in the form of `video-gn infer`."""
        mine = (self._notes, [(f.video_id, f.path, f.reason) for f in pl_module.failures])
        everyone: list[Any] = [mine]
        if trainer.world_size > 1:
            everyone = [None] * trainer.world_size
            torch.distributed.all_gather_object(everyone, mine)
        results = {video_id: result for notes, _ in everyone for video_id, result in notes.items()}
        failures = sorted({failure for _, found in everyone for failure in found})
        self.num_failed = len(failures)
        if trainer.is_global_zero:
            failed = [{"path": path, "reason": reason} for _, path, reason in failures]
            write_results(self.run_dir / "predict" / "predictions.json", [results[i] for i in sorted(results)], failed)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file under its final name only when it is whole."""
    part = path.with_name(f".{path.name}.tmp")
    # A path may hold bytes that are no text; they go through as they are.
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    part.write_text(text, encoding="utf-8", errors="surrogateescape")
    part.replace(path)
