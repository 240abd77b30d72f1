"""Lightning callback that turns scores into figures and files: val/top1, test/metrics.json, predict/predictions.json.

The module scores batches; this callback holds the metric, the failures, and what a stopped test or prediction resumes
from. Scores go to disk as they come, so that a long test does not grow in memory.

Shape letters: N videos of a batch, K views, Y classes.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback

from video_gn.clips import ClipBatch, Failure
from video_gn.errors import RunError, StoppedError
from video_gn.evaluation.accuracy import MultiViewAccuracy
from video_gn.evaluation.clip_curve import ClipCurve
from video_gn.evaluation.results import video_result, write_predictions, write_results, write_scores
from video_gn.evaluation.scores import check_scores
from video_gn.evaluation.unfinished import Kept, Place, ScoreFiles, Unfinished
from video_gn.files import write_json
from video_gn.run.directory import (
    PREDICT_RESULTS,
    PREDICT_UNFINISHED,
    TEST_METRICS,
    TEST_PREDICTIONS,
    TEST_SCORES,
    TEST_UNFINISHED,
)
from video_gn.run.ranks import gather_objects

log = logging.getLogger(__name__)

_TOP_K = 5  # labels kept for each video of a prediction
# Stage of the trainer -> where it keeps what it has scored, and its name.
_UNFINISHED = {"test": (TEST_UNFINISHED, "test"), "predict": (PREDICT_UNFINISHED, "prediction")}


class EvaluationWriter(Callback):
    """Counts the scores of validation, test and prediction, and writes their files into the run directory.

    Args:
        run_dir: Run directory; files go to its `test/` or `predict/`.
        made_with: Returns the settings that determine the scores, besides the videos; a stopped test or prediction
            resumes if they are the same. None always starts anew.
        requeue: Asks for the job to be started again; called if SIGUSR1 stops a test or prediction.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        made_with: Callable[[], Mapping[str, Any]] | None = None,
        requeue: Callable[[], None] | None = None,
    ) -> None:
        self.run_dir = Path(run_dir)
        self.made_with = made_with
        self.requeue = requeue
        self.num_failed = 0
        self._metric = MultiViewAccuracy(1)
        self._results: dict[str, float | int | None] = {}
        self._failures: list[Failure] = []
        self._unfinished = Unfinished(self.run_dir / TEST_UNFINISHED)
        self._kept = Kept()
        self._files: ScoreFiles | None = None
        self._places: dict[int, Place] = {}
        self._labels: dict[int, dict[str, Any]] = {}
        self._digest: str | None = None  # of the checkpoint

    def _count(self, trainer: Any, scores_NKY: torch.Tensor, batch: ClipBatch, stage: str) -> None:
        self._failures.extend(batch.failures)
        if len(batch):
            self._check(trainer, scores_NKY, batch, stage)
            self._metric.update(batch.video_ids, scores_NKY.sum(1), batch.labels, scores_NKY.shape[1])

    @staticmethod
    def _check(trainer: Any, scores_NKY: torch.Tensor, batch: ClipBatch, stage: str) -> None:
        if bool(scores_NKY.isfinite().all()):
            return
        records = trainer.datamodule.manifests[stage].records
        for scores_KY, video_id in zip(scores_NKY, batch.video_ids.tolist(), strict=True):
            check_scores(scores_KY, video=records[video_id].path, checkpoint=trainer.ckpt_path)

    def _warn_of_failures(self, stage: str) -> None:
        for failure in self._failures:
            log.warning("%s: %s could not be read: %s", stage, failure.path, failure.reason)

    # ---- validation --------------------------------------------------------------------------

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Start counting."""
        self._metric = MultiViewAccuracy(pl_module.net.num_classes).to(pl_module.device)
        self._failures = []

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: ClipBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count a batch."""
        self._count(trainer, outputs, batch, "val")

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log val/loss, val/top1 and val/top5 over the decoded videos."""
        self._warn_of_failures("validation")
        results = self._metric.compute()
        self._metric.reset()
        if results["num_videos"] == 0:
            raise RunError("validation: none of the videos could be read")
        for name, key in (("val/loss", "nll"), ("val/top1", "top1"), ("val/top5", "top5")):
            if results[key] is not None:
                # Every rank has computed the same value from all ranks' videos.
                value = torch.as_tensor(results[key], dtype=torch.float32)
                pl_module.log(name, value, prog_bar=name != "val/top5", rank_zero_only=False)

    # ---- what is kept of a test or prediction --------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Look for what an earlier start of the same command has scored, before the videos are divided among ranks."""
        if stage not in _UNFINISHED:
            return
        name, what = _UNFINISHED[stage]
        self._unfinished = Unfinished(self.run_dir / name, what=what)
        manifest = trainer.datamodule.manifests[stage]
        kept = Kept()
        if trainer.is_global_zero:
            settings = None if self.made_with is None else {**self.made_with(), "videos": manifest.digest()}
            self._digest = (settings or {}).get("checkpoint")
            kept = self._unfinished.open(settings)
            if kept.video_ids:
                words = "resuming the %s: %d of %d videos are done"
                log.info(words, what, len(kept.video_ids), len(manifest.records))
        self._kept = trainer.strategy.broadcast(kept)
        trainer.datamodule.tested = self._kept.video_ids

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Say what is kept, and requeue a SLURM job that SIGUSR1 stops."""
        if self._files is None or trainer.state.fn not in ("test", "predict"):
            return
        if trainer.is_global_zero:
            log.info("the scores so far are kept in %s; the same command resumes", self._unfinished.directory)
        is_asked = isinstance(exception, StoppedError) and exception.status == 128 + signal.SIGUSR1
        if is_asked and self.requeue is not None:
            self.requeue()  # on each rank: whichever leaves first takes the others with it

    # ---- test --------------------------------------------------------------------------------

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """Open this rank's files."""
        self._places = {}
        self._files = self._unfinished.files(self._kept.start, trainer.global_rank)

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: ClipBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count a batch, and keep its scores on disk."""
        assert self._files is not None
        self._count(trainer, outputs, batch, "test")
        for failure in batch.failures:
            self._files.add_failure(failure)
        records = trainer.datamodule.manifests["test"].records
        scores_NKY = outputs.cpu().numpy().astype(np.float32, copy=False)
        for scores_KY, video_id, label in zip(scores_NKY, batch.video_ids.tolist(), batch.labels.tolist(), strict=True):
            self._places[video_id] = self._files.add(video_id, records[video_id].path, label, scores_KY)

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Count what earlier starts have scored, each video on one rank; log test/top1 and test/top5."""
        self._warn_of_failures("test")
        for video_id in sorted(self._kept.places)[trainer.global_rank :: trainer.world_size]:
            place = self._kept.places[video_id]
            # As `_count` has it: one video's scores, added up on the device.
            scores_NKY = torch.from_numpy(place.read().copy()).to(pl_module.device)[None]
            ids, labels = torch.tensor([video_id]), torch.tensor([place.label])
            self._metric.update(ids, scores_NKY.sum(1), labels, place.shape[0])
        self._results = self._metric.compute()
        for key in ("top1", "top5", "mean_class_accuracy"):
            if self._results[key] is not None:
                pl_module.log(f"test/{key}", torch.as_tensor(self._results[key], dtype=torch.float32))

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        """Gather over ranks; rank 0 writes the files."""
        assert self._files is not None
        self._files.close()
        rows = self._metric.rows()  # collective: every rank takes part
        self._failures += self._kept.failures.values()
        places, failures = self._gather(trainer, self._places)
        if not trainer.is_global_zero:
            return
        datamodule = trainer.datamodule
        manifest, classes = datamodule.manifests["test"], pl_module.classes or list(datamodule.classes)
        write_predictions(self.run_dir / TEST_PREDICTIONS, rows, manifest, classes)
        num_clips, num_crops = datamodule.views.num_clips, datamodule.test_crops.num_crops
        curve = ClipCurve(num_clips=num_clips, num_crops=num_crops)
        num_classes = pl_module.net.num_classes
        write_scores(self.run_dir / TEST_SCORES, {**self._kept.places, **places}, rows, curve, num_classes=num_classes)
        metrics = {
            **{name: self._results[name] for name in ("top1", "top5", "mean_class_accuracy")},
            "num_videos": len(manifest.records),
            "num_failed": len(failures),
            "coverage": len(rows.video_ids) / len(manifest.records),
            "num_clips": num_clips,
            "num_crops": num_crops,
            "by_num_clips": curve.results(),
            "failed": failures,
            "checkpoint": None if trainer.ckpt_path is None else str(trainer.ckpt_path),
            "checkpoint_digest": self._digest,
        }
        write_json(self.run_dir / TEST_METRICS, metrics)
        self._unfinished.remove()

    # ---- prediction --------------------------------------------------------------------------

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        """Open this rank's files."""
        self._labels, self._failures = {}, []
        self._files = self._unfinished.files(self._kept.start, trainer.global_rank)

    def on_predict_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: ClipBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep a few labels of each video, not all scores, also on disk."""
        assert self._files is not None
        self._failures.extend(batch.failures)
        self._check(trainer, outputs, batch, "predict")
        for failure in batch.failures:
            self._files.add_failure(failure)
        num_crops = trainer.datamodule.test_crops.num_crops
        for row, note in enumerate(batch.notes):
            scores_KY = outputs[row].cpu().numpy()
            result = video_result(note, scores_KY, pl_module.classes, num_crops=num_crops, top_k=_TOP_K)
            self._labels[video_id := int(batch.video_ids[row])] = result
            self._files.add_result(video_id, result)

    def on_predict_end(self, trainer: Any, pl_module: Any) -> None:
        """Write predict/predictions.json, in the form of `video-gn infer`."""
        assert self._files is not None
        self._files.close()
        self._failures += self._kept.failures.values()
        results, failures = self._gather(trainer, self._labels)
        if trainer.is_global_zero:
            results = {**self._kept.results, **results}
            write_results(self.run_dir / PREDICT_RESULTS, [results[i] for i in sorted(results)], failures)
            self._unfinished.remove()

    def _gather(self, trainer: Any, mine: dict[int, Any]) -> tuple[dict[int, Any], list[dict[str, str]]]:
        """What all ranks have by video id, and their failures, each once; counts them."""
        everyone = gather_objects((mine, self._failures), trainer.world_size)
        by_id = {video_id: value for values, _ in everyone for video_id, value in values.items()}
        found = {failure for _, failures in everyone for failure in failures}
        self.num_failed = len(found)
        ordered = sorted(found, key=lambda f: (f.video_id, f.path, f.reason))
        return by_id, [{"path": failure.path, "reason": failure.reason} for failure in ordered]
