"""A tiny study on video files: two norms, killed half way, gone on with, collected."""

import csv
import json
import statistics
import time

import pytest
import yaml
from runs import TINY, run, start

from video_gn.run.metrics_file import read_metrics
from video_gn.study import list_cells, read_study, run_study

EPOCHS, BATCHES = 3, 6
FILES = ("study.csv", "table.md", "error_by_norm.png", "error_by_norm.svg", "curves.png", "curves.svg")


def nested(words):
    """Words of a command line as a config's nested settings."""
    config = {}
    for word in words:
        key, value = word.removeprefix("--").split("=")
        *path, last = key.split(".")
        if path[:2] == ["model", "net"]:
            path.append("init_args")
        part = config
        for name in path:
            part = part.setdefault(name, {})
        part[last] = yaml.safe_load(value)
    net = config["model"].pop("net")
    config["model"]["net"] = {"class_path": "video_gn.models.i3d", **net}
    return config


def tiny_base(directory, videos):
    config = nested([word for word in TINY if word != "--model.net=video_gn.models.i3d"])
    config["model"]["optimizer"]["reference_batch_size"] = 4
    config["trainer"] |= {"max_epochs": EPOCHS, "limit_train_batches": BATCHES, "callbacks": [
        # Relative: each cell writes into its own directory.
        {"class_path": "runs.StepLog", "init_args": {"path": "steps.txt"}}
    ]}  # fmt: skip
    config["data"]["views"]["num_clips"] = 2
    config["data"]["train"] = str(videos)
    config["checkpoint"] = {"every_n_steps": 2}
    path = directory / "base.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def write_study(directory, **changes):
    content = {
        "base": "base.yaml",
        "norms": {"BN": {"norm": "batch"}, "GN": {"norm": "group", "num_groups": 2}},
        "batch_sizes": [4],
        "seeds": [3],
    } | changes
    path = directory / "tiny.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}, sort_keys=False))
    return path


def forked(words, log):
    return run(words, log.parent, log)[0]


def killed_in_the_second_cell(words, log):
    """As `forked`, but GN's training and the study die after some checkpoint."""
    if words[0] != "fit" or "gn_" not in str(log):
        return forked(words, log)
    process = start(words, log.parent, log)
    steps, deadline = log.parent / "steps.txt", time.monotonic() + 60
    while not (steps.exists() and len(steps.read_text().splitlines()) > 6):
        assert process.is_alive() and time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    process.kill()
    process.join()
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def killed(tiny_videos, tmp_path_factory):
    directory = tmp_path_factory.mktemp("study")
    tiny_base(directory, tiny_videos)
    path = write_study(directory)
    with pytest.raises(KeyboardInterrupt):
        run_study(path, out=directory / "out", runner=killed_in_the_second_cell)
    cells = directory / "out/cells"
    return path, {p: p.stat().st_mtime_ns for p in (cells / "bn_8x2_b4_s3").rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def finished(killed):
    path, _ = killed
    out = path.parent / "out"
    assert run_study(path, out=out, runner=forked) == 0
    return path, out


def test_a_study_goes_on_where_it_was_killed(killed, finished):
    _, before = killed
    _, out = finished
    bn, gn = out / "cells/bn_8x2_b4_s3", out / "cells/gn_8x2_b4_s3"
    assert {p: p.stat().st_mtime_ns for p in before} == before, "a finished cell is not touched"
    assert [line for line in (bn / "steps.txt").read_text().splitlines() if line.startswith("start")] == ["start 0"]
    starts = [int(line.split()[1]) for line in (gn / "steps.txt").read_text().splitlines() if line.startswith("start")]
    assert starts[0] == 0 and len(starts) == 2
    assert 2 <= starts[1] < EPOCHS * BATCHES, "the second process begins at a checkpoint of the first"
    assert [row["step"] for row in read_metrics(gn / "metrics.csv")] == list(range(1, EPOCHS * BATCHES + 1))
    record = json.loads((gn / "cell.json").read_text())
    assert len(record["sessions"]) == 2 and all(end >= start for start, end in record["sessions"])
    assert record["settings"]["model.net.init_args.norm"] == "group"


def test_the_cells_differ_in_the_norm_alone(finished):
    _, out = finished
    bn, gn = (yaml.safe_load((out / f"cells/{n}_8x2_b4_s3/config.yaml").read_text()) for n in ("bn", "gn"))
    assert (bn["seed_everything"], bn["data"]["batch_size"], bn["trainer"]["max_epochs"]) == (3, 4, EPOCHS)
    for config, norm, groups in ((bn, "batch", None), (gn, "group", 2)):
        net = config["model"]["net"]["init_args"]
        assert (net.pop("norm"), net.pop("num_groups")) == (norm, groups)
        config.pop("run_dir"), config["checkpoint"].pop("directory"), config.pop("ckpt_path")
    assert bn == gn


def test_what_it_writes(finished):
    _, out = finished
    assert all((out / name).stat().st_size for name in FILES)
    assert not list(out.glob(".*.tmp*"))
    with (out / "study.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["cell"], row["name"]) for row in rows] == [("0", "bn_8x2_b4_s3"), ("1", "gn_8x2_b4_s3")]
    for row in rows:
        cell = out / "cells" / row["name"]
        test = json.loads((cell / "test/metrics.json").read_text())
        assert test["checkpoint"].endswith("last.ckpt")
        assert float(row["top1"]) == pytest.approx(test["top1"], abs=1e-6)
        assert row["top5"] == "" and test["top5"] is None
        metrics = read_metrics(cell / "metrics.csv")
        losses = [r["train/loss"] for r in metrics if r["epoch"] == EPOCHS - 1]
        assert len(losses) == BATCHES
        assert float(row["train_loss"]) == pytest.approx(statistics.fmean(losses), abs=1e-6)
        assert float(row["val_loss"]) == pytest.approx(metrics[-1]["val/loss"], abs=1e-6)
        assert (row["epochs"], row["steps"], row["num_videos"]) == (str(EPOCHS), str(EPOCHS * BATCHES), "6")
        assert f"| {100 * test['top1']:.1f} |" in (out / "table.md").read_text()
    assert "2 of 2 cells" in (out / "table.md").read_text()


def test_a_finished_study_runs_nothing(finished, capsys):
    path, out = finished

    def none(words, log):
        raise AssertionError(words)

    assert run_study(path, out=out, runner=none) == 0
    assert run_study(path, out=out, runner=none, cell="1") == 0
    list_cells(read_study(path), out)
    assert capsys.readouterr().out.splitlines()[-2:] == ["  0  bn_8x2_b4_s3  done", "  1  gn_8x2_b4_s3  done"]
