"""A study from nothing, by its command: it makes videos, pre-trains and fine-tunes, also if it is killed on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from test_study_run import nested

from video_gn.run.metrics_file import read_metrics

WORDS = [
    "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1", "--trainer.max_epochs=4", "--model.net.width=8",
    "--model.net.norm=group", "--model.net.num_groups=2", "--model.net.dropout=0.1", "--model.optimizer.lr=0.02",
    "--model.optimizer.reference_batch_size=4", "--data.clip.num_frames=8", "--data.clip.stride=2",
    "--data.augment.short_side_px=[32, 36]", "--data.augment.crop_px=32", "--data.augment.flip=0",
    "--data.views.short_side_px=32", "--data.views.crop_px=32", "--data.views.num_clips=2", "--data.batch_size=4",
    "--data.loader.num_workers=0", "--checkpoint.every_n_steps=2",
]  # fmt: skip
STUDY = {
    "base": "base.yaml",
    "norms": {"BN": {"norm": "batch"}, "GN": {"norm": "group", "num_groups": 2}},
    "batch_sizes": [2],
    "optimizer_batch_size": 4,
    "seeds": [3],
    "synthetic": {"train_per_class": 2, "val_per_class": 2},
    "pretrain": {"settings": {"trainer.max_epochs": 6, "data.batch_size": 4}},
}
RUNS = ("pretrain/bn_s3", "pretrain/gn_s3", "cells/bn_8x2_b2_s3", "cells/gn_8x2_b2_s3")


def start(directory, videos, out):
    words = ["study", "-c", "study.yaml", "--out", out, "--data.train", str(videos)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (directory / f"{out}.txt").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "video_gn", *words], cwd=directory, env=environment, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip


def kill_at(process, metrics, num_rows):
    """SIGKILL to a study and what it has started, once a training has logged so many steps."""
    deadline = time.monotonic() + 300
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) > num_rows):
        assert process.poll() is None and time.monotonic() < deadline, metrics
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.timeout(900)  # some twenty processes, each of which imports torch
def test_a_killed_study_gives_the_results_of_one_that_was_not(tmp_path, tiny_videos):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(nested(WORDS)))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    assert start(tmp_path, tiny_videos, "whole").wait() == 0, (tmp_path / "whole.txt").read_text()
    for run in (RUNS[0], RUNS[3]):
        process = start(tmp_path, tiny_videos, "killed")
        kill_at(process, tmp_path / "killed" / run / "metrics.csv", 5)
    last = start(tmp_path, tiny_videos, "killed")
    log = tmp_path / "killed.txt"
    assert last.wait() == 0, log.read_text()
    for run in RUNS:
        one, other = (tmp_path / name / run for name in ("whole", "killed"))
        rows = read_metrics(one / "metrics.csv")
        assert len(rows) >= 20 and rows == read_metrics(other / "metrics.csv"), run
        tests = [json.loads((run / "test/metrics.json").read_text())["top1"] for run in (one, other)]
        assert tests[0] == tests[1], run
    for run, sessions in zip(RUNS, (2, 1, 1, 2), strict=True):
        assert len(json.loads((tmp_path / "killed" / run / "cell.json").read_text())["sessions"]) == sessions
    for run in RUNS[2:]:
        told = json.loads((tmp_path / "whole" / run / "weights.json").read_text())
        assert told["path"].endswith(f"pretrain/{run[6:8]}_s3/checkpoints/last.ckpt"), told
        assert "a fresh classifier" in json.dumps(told), "three classes, not eight"
    table = (tmp_path / "killed/table.md").read_text()
    assert "statistics of 2 of 4" in table and "Top-1 % of the pre-trainings" in table
    assert Path(tmp_path / "killed/synthetic/val").is_dir()
