"""A study's figures, against those computed by hand."""

import csv
import functools
import math

import pytest
from fake_study import Commands, write_study

from video_gn.errors import ConfigError
from video_gn.study import collect, read_study, run_study, spread, tables, write_results
from video_gn.study.collecting import difference_spread, pooled, write_csv
from video_gn.study.table import markdown


@pytest.fixture
def write(tmp_path):
    return functools.partial(write_study, tmp_path)


@pytest.fixture
def results(write, tmp_path):
    path = write()
    run_study(path, out=tmp_path / "out", cell="0/1", runner=Commands())
    return collect(read_study(path), tmp_path / "out")


def test_means_spreads_and_differences(results):
    column = ("16x2", 2)
    bn, gn = results.of("BN", column), results.of("GN", column)
    # By hand: BN 1/4 and 0/4, GN 3/4 and 2/4; differences 0.5 and 0.5.
    value = spread([r.row["top1"] for r in bn])
    assert (value.mean, value.deviation, value.count) == (0.125, pytest.approx(0.25 / math.sqrt(2)), 2)
    value = difference_spread(gn, bn)
    assert (value.mean, value.deviation, value.count) == (0.5, 0.0, 2)
    assert difference_spread(gn[:1], bn[1:]) is None, "no seed is in both"
    value = difference_spread(gn, bn[1:])
    assert (value.mean, value.deviation, value.count) == (0.5, None, 1)
    assert spread([]) is None and spread([1.0]).deviation is None
    assert pooled(bn, 2) == (1, 8) and pooled(gn, 2) == (5, 8)
    assert pooled(gn[:1], 2) is None, "a part of the seeds tests a part of the videos"


def test_the_table(results):
    accuracy, difference, of_all = tables(results)
    assert accuracy.title == "Top-1 %: mean ± sample standard deviation over 2 seeds"
    assert accuracy.heads == (("",), ("clip 16x2", "batch 8"), ("clip 16x2", "batch 2"))
    assert accuracy.rows == (("BN", "62.5 ± 17.7", "12.5 ± 17.7"), ("GN", "87.5 ± 17.7", "62.5 ± 17.7"))
    assert difference.rows == (("GN", "+25.0 ± 0.0", "+50.0 ± 0.0"),)
    assert of_all.rows == (("BN", "62.5 (5 of 8)", "12.5 (1 of 8)"), ("GN", "87.5 (7 of 8)", "62.5 (5 of 8)"))
    text = markdown(results, figures=["curves.png"])
    assert "| GN | 87.5 ± 17.7 | 62.5 ± 17.7 |" in text and "![curves](curves.png)" in text
    # 20 videos: 2 batches of 8, 10 of 2.
    assert "an epoch has (in each process) 16 at batch size 8, 20 at batch size 2 clips." in text


def test_no_pooling_where_seeds_test_the_same_videos(write, tmp_path):
    path = write()
    run_study(path, out=tmp_path / "out", cell="0/1", runner=Commands(held_out=False))
    assert len(tables(collect(read_study(path), tmp_path / "out"))) == 2


@pytest.mark.parametrize("held_out", [True, False])
def test_what_the_bars_of_the_figure_are(write, tmp_path, held_out, monkeypatch):
    path, drawn = write(), []
    run_study(path, out=tmp_path / "out", cell="0/1", runner=Commands(held_out=held_out))
    monkeypatch.setattr("video_gn.report.study_figures.write_figures", lambda data, out: drawn.append(data) or [])
    write_results(read_study(path), tmp_path / "out")
    write_results(read_study(path).quick(), tmp_path / "out")
    (whole, quick), bn = drawn, ("BN", ("16x2", 8))
    # Wilson's interval of 5 right of 8, by hand: 30.6 to 86.3 %.
    assert (bn in whole.intervals) == held_out, "seeds that test the same videos have a spread"
    if held_out:
        assert whole.intervals[bn] == pytest.approx((37.5, 100 - 86.3, 100 - 30.6), abs=0.05)
    assert quick.intervals[bn][0] == 25.0, "one seed tests each video once"


def test_the_table_of_a_part(write, tmp_path):
    path, out = write(), tmp_path / "out"
    for cell in "014":
        run_study(path, out=out, cell=cell, runner=Commands())
    accuracy, difference, of_all = tables(collect(read_study(path), out))
    assert of_all.rows == (("BN", "62.5 (5 of 8)", "–"), ("GN", "–", "–"))
    assert accuracy.rows == (("BN", "62.5 ± 17.7", "–"), ("GN", "100.0 (1 of 2)", "–"))
    assert difference.rows == (("GN", "+25.0 (1 of 2)", "–"),)
    text = markdown(collect(read_study(path), out))
    assert "Missing, 5 of 8 cells:\n\n- not started: 2, 3, 5, 6, 7\n" in text


def test_study_csv(results, tmp_path):
    write_csv(results, tmp_path / "study.csv")
    with (tmp_path / "study.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    row = rows[6]
    assert (row["cell"], row["norm"], row["clip"], row["batch_size"], row["seed"]) == ("6", "BN", "16x2", "2", "1")
    # Its last epoch's rows: steps 21 to 30, half of them 1.0 and half 1.1.
    assert float(row["train_loss"]) == pytest.approx(1.05)
    assert (row["val_loss"], row["top1"], row["mean_class_accuracy"], row["top5"]) == ("1.0", "0.0", "0.0", "")
    assert (row["epochs"], row["steps"], row["num_videos"], row["num_failed"]) == ("3", "30", "4", "0")


@pytest.mark.parametrize("told_by", ["settings", "words"])
def test_every_word_of_the_table_is_of_the_cells_own_settings(write, tmp_path, capsys, told_by):
    """The clip, also where the command line that set it is not repeated; and what else the command line set."""
    out = tmp_path / "out"
    clip = {"data.clip.num_frames": 8, "data.clip.stride": 3}
    path = write(settings=clip | {"trainer.max_epochs": 3}) if told_by == "settings" else write()
    more = ["--trainer.accumulate_grad_batches=2", "--data.loader.num_workers=1"]
    words = more if told_by == "settings" else [*more, "--data.clip.num_frames=8", "--data.clip.stride", "3"]
    run_study(path, out=out, words=words, cell="0/1", runner=Commands())
    assert {directory.name.split("_")[1] for directory in (out / "cells").iterdir()} == {"8x3"}
    capsys.readouterr()
    run_study(path, out=out, action="collect")
    run_study(path, out=out, action="list")
    shown = capsys.readouterr().out
    assert "clip 8x3" in shown and "16x2" not in shown and "  7  gn_8x3_b2_s1  done\n" in shown
    text = (out / "table.md").read_text()
    assert "clip 8x3, batch 2" in text and "16x2" not in text
    assert "2 seeds of " in text and "base.yaml, with " in text and "trainer.accumulate_grad_batches 2" in text
    assert "num_workers" not in text, "it changes no result"
    # 2 batches of 8 accumulated by 2: the steps of the epochs are counted with what the cells were run with.
    assert "an epoch has (in each process) 32 at batch size 8, 40 at batch size 2 clips." in text
    with (out / "study.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["clip"] for row in rows} == {"8x3"} and rows[1]["name"] == "gn_8x3_b8_s0"
    with pytest.raises(ConfigError, match=r"gn_8x3_b8_s0, was started with .*data\.clip\.num_frames: 8 -> 4"):
        run_study(path, out=out, words=[*more, "--data.clip.num_frames=4"], cell="1", runner=Commands())
