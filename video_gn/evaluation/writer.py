"""Writes what a test or a prediction found: metrics.json, predictions.csv, scores.npz, predictions.json.

Scores go to disk as they come, so that a long test does not grow in memory, and one that was stopped goes on.
"""

from __future__ import annotations

import csv
import logging
import signal
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback

from video_gn.clips import ClipBatch
from video_gn.errors import StoppedError
from video_gn.evaluation.clip_curve import ClipCurve
from video_gn.evaluation.results import video_result, write_results
from video_gn.evaluation.unfinished import Kept, Part, Place, Unfinished
from video_gn.files import whole_file, whole_path, write_json
from video_gn.lists.manifest import Manifest
from video_gn.run.directory import PREDICT_RESULTS, TEST_METRICS, TEST_PREDICTIONS, TEST_SCORES, TEST_UNFINISHED

log = logging.getLogger(__name__)


class EvaluationWriter(Callback):
    """Collects scores of `test` and `predict` and writes their files into the run directory.

    Args:
        run_dir: the run's directory; files go to its `test/` or `predict/`.
        top_k: labels of a prediction.
        made_with: gives what a test's scores follow from, beside its videos; a test that was stopped goes on where it
            is the same. None always starts anew.
        requeue: asks for the job to be started again, where SIGUSR1 has stopped a test.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        top_k: int = 5,
        made_with: Callable[[], Mapping[str, Any]] | None = None,
        requeue: Callable[[], None] | None = None,
    ) -> None:
        self.run_dir = Path(run_dir)
        self.top_k = top_k
        self.made_with = made_with
        self.requeue = requeue
        self.num_failed = 0
        self._unfinished = Unfinished(self.run_dir / TEST_UNFINISHED)
        self._kept = Kept()
        self._part: Part | None = None
        self._places: dict[int, Place] = {}
        self._notes: dict[int, dict[str, Any]] = {}

    # ---- test --------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """See what an earlier start of the same test has done, before the videos are shared out."""
        if stage != "test":
            return
        manifest = trainer.datamodule.manifests["test"]
        kept = Kept()
        if trainer.is_global_zero:
            settings = None
            if self.made_with is not None:
                settings = {**self.made_with(), "videos": manifest.digest()}
            kept = self._unfinished.open(settings)
            if kept.video_ids:
                log.info("going on with the test: %d of %d videos are done", len(kept.video_ids), len(manifest.records))
        self._kept = trainer.strategy.broadcast(kept)
        trainer.datamodule.tested = self._kept.video_ids

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """Open this process's files."""
        self._places = {}
        self._part = self._unfinished.part(self._kept.start, trainer.global_rank)

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: ClipBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the batch's scores."""
        assert self._part is not None
        for failure in batch.failures:
            self._part.add_failure(failure)
        records = trainer.datamodule.manifests["test"].records
        scores_NKY = outputs.cpu().numpy().astype(np.float32, copy=False)
        for scores_KY, video_id, label in zip(scores_NKY, batch.video_ids.tolist(), batch.labels.tolist(), strict=True):
            self._places[video_id] = self._part.add(video_id, records[video_id].path, label, scores_KY)

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Count what earlier starts have scored, each video in one process; the module computes right after."""
        for video_id in sorted(self._kept.places)[trainer.global_rank :: trainer.world_size]:
            place = self._kept.places[video_id]
            # As the step has it: one video's scores, added up on the device.
            scores_NKY = torch.from_numpy(place.read().copy()).to(pl_module.device)[None]
            ids, labels = torch.tensor([video_id]), torch.tensor([place.label])
            pl_module.test_metric.update(ids, scores_NKY.sum(1), labels, place.shape[0])

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        """Gather over processes; rank 0 writes the files."""
        assert self._part is not None
        self._part.close()
        rows = pl_module.test_metric.rows()  # collective: every process takes part
        mine = (self._places, list(pl_module.failures))
        everyone: list[Any] = [mine]
        if trainer.world_size > 1:
            everyone = [None] * trainer.world_size
            torch.distributed.all_gather_object(everyone, mine)
        found = [*self._kept.failures.values(), *(failure for _, failed in everyone for failure in failed)]
        failures = sorted({(f.video_id, f.path, f.reason) for f in found})
        self.num_failed = len(failures)
        if not trainer.is_global_zero:
            return
        datamodule = trainer.datamodule
        manifest, classes = datamodule.manifests["test"], pl_module.classes or list(datamodule.classes)
        self._write_predictions(self.run_dir / TEST_PREDICTIONS, rows, manifest, classes)
        places = dict(self._kept.places)
        for more, _ in everyone:
            places.update(more)
        results = pl_module.eval_results
        num_clips, num_crops = datamodule.views.num_clips, datamodule.test_crops.num_crops
        curve = ClipCurve(num_clips=num_clips, num_crops=num_crops)
        self._write_scores(self.run_dir / TEST_SCORES, places, rows, curve)
        metrics = {
            "top1": results["top1"],
            "top5": results["top5"],
            "mean_class_accuracy": results["mean_class_accuracy"],
            "num_videos": len(manifest.records),
            "num_failed": len(failures),
            "coverage": len(rows.video_ids) / len(manifest.records),
            "num_clips": num_clips,
            "num_crops": num_crops,
            "by_num_clips": curve.results(),
            "failed": [{"path": path, "reason": reason} for _, path, reason in failures],
            "checkpoint": None if trainer.ckpt_path is None else str(trainer.ckpt_path),
        }
        write_json(self.run_dir / TEST_METRICS, metrics)
        self._unfinished.remove()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Say what is kept of a test, and have a job of SLURM's started again."""
        if self._part is None or trainer.state.fn != "test":
            return
        if trainer.is_global_zero:
            log.info("what was scored is kept in %s; the same command goes on", self._unfinished.directory)
        is_asked = isinstance(exception, StoppedError) and exception.status == 128 + signal.SIGUSR1
        if is_asked and self.requeue is not None:
            self.requeue()  # in each process: whichever leaves first takes the others with it

    def _write_predictions(self, path: Path, rows: Any, manifest: Manifest, classes: Sequence[str]) -> None:
        order = np.argsort(-rows.scores, axis=1, kind="stable")[:, :5]
        with whole_file(path) as file:
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

    @staticmethod
    def _write_scores(path: Path, places: Mapping[int, Place], rows: Any, curve: ClipCurve) -> None:
        """Merge the processes' files into one npz, video by video, in the order of the manifest; `curve` sees each."""
        video_ids = np.array(sorted(places), dtype=np.int64)
        labels = np.asarray(rows.labels, dtype=np.int64)
        with whole_path(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
            for name, array in (("video_ids", video_ids), ("labels", labels)):
                with archive.open(f"{name}.npy", "w") as entry:
                    np.lib.format.write_array(entry, array)
            with archive.open("scores.npy", "w", force_zip64=True) as entry:
                shape = (len(video_ids), int(rows.num_views.max(initial=0)), rows.scores.shape[1])
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_2_0(entry, header)
                for video_id in video_ids.tolist():
                    scores_KY = places[video_id].read()
                    curve.add(scores_KY, places[video_id].label)
                    entry.write(scores_KY.tobytes())

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
            write_results(self.run_dir / PREDICT_RESULTS, [results[i] for i in sorted(results)], failed)
