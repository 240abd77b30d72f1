"""The best step is the same in the report and in the checkpoints."""

import math
import re
from types import SimpleNamespace

import pytest

from video_gn.report import write_report
from video_gn.run import checkpoints
from video_gn.run.checkpoints import RunCheckpoint
from video_gn.run.metrics_file import format_metrics


@pytest.mark.parametrize("figures", [[0.2, 0.5, 0.5, 0.4], [0.0, 0.0], [math.nan, 0.3, math.nan, 0.3, 0.1], [0.1, 0.9]])
@pytest.mark.parametrize("monitor", ["val/top1", "val/top5"])
def test_the_report_names_the_step_of_best_ckpt(tmp_path, monkeypatch, figures, monitor):
    """Also where accuracies tie, and where a validation has none."""
    other = "val/top5" if monitor == "val/top1" else "val/top1"
    monkeypatch.setattr(checkpoints, "epoch_is_over", lambda trainer: True)
    monkeypatch.setattr(checkpoints, "clips_seen", lambda trainer: 0)
    callback, rows = RunCheckpoint(str(tmp_path), monitor=monitor), []
    for epoch, figure in enumerate(figures):
        metrics = {monitor: figure, other: 1 - figure}
        state = {"sanity_checking": False, "state": SimpleNamespace(fn="fit"), "current_epoch": epoch}
        trainer = SimpleNamespace(**state, callback_metrics=metrics, global_step=7 * epoch + 7)
        callback.on_validation_end(trainer, None)
        rows.append({"step": trainer.global_step, "epoch": epoch, **metrics})
    (tmp_path / "metrics.csv").write_text(format_metrics(rows, ["step", "epoch", "val/top1", "val/top5"], header=True))
    (tmp_path / "config.yaml").write_text(f"checkpoint: {{monitor: {monitor}}}\n")
    page = write_report(tmp_path).read_text()
    best = f"{callback.best_step} (epoch {callback.best_step // 7})"
    name = monitor.removeprefix("val/top")
    found = re.search(rf'best validation <span class="nowrap">top-{name}</span> (\S+) at step\s(.*?), last', page)
    assert found.groups() == (f"{100 * callback.best:.1f}%", best)
    assert f"best validation top-{name}</span><b>{found[1]}</b><span>step {best.replace(' (', ', ').strip(')')}" in page
