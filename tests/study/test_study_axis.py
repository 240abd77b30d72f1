"""A study whose batch sizes are only those of the statistics: every step has the same number of clips."""

import csv
import functools

import pytest
import torch
from fake_study import BASE, Commands, write_study

from video_gn.errors import ConfigError
from video_gn.report.study_figures import StudyData, curves_figure, error_figure
from video_gn.study import collect, read_study, run_study, tables
from video_gn.study.collecting import write_csv
from video_gn.study.table import markdown
from video_gn.training.optimizer import OptimizerConfig, build_optimizer

AXIS = {"optimizer_batch_size": 16}


@pytest.fixture
def write(tmp_path):
    return functools.partial(write_study, tmp_path)


def test_every_cells_step_has_the_same_clips_and_the_same_rate(write):
    study = read_study(write(**AXIS))
    assert [cell.name for cell in study.cells[:4]] == [
        "bn_16x2_b8_s0", "gn_16x2_b8_s0", "bn_16x2_b2_s0", "gn_16x2_b2_s0"
    ]  # fmt: skip
    rates = set()
    for cell in study.cells:
        settings = study.resolved(cell)
        size, accumulated = settings["data.batch_size"], settings["trainer.accumulate_grad_batches"]
        assert (size, accumulated) == (cell.batch_size, 16 // cell.batch_size)
        config = OptimizerConfig(lr=settings["model.optimizer.lr"], reference_batch_size=8)
        optimizer = build_optimizer(torch.nn.Linear(1, 1), config, global_batch_size=size * accumulated)
        rates |= {group["lr"] for group in optimizer.param_groups}
    assert rates == {0.04}


def test_one_size_of_a_step_needs_no_rule_of_the_rate(write):
    model = BASE["model"] | {"optimizer": {"reference_batch_size": None}}
    assert read_study(write(BASE | {"model": model}, settings={"trainer.max_steps": 9}, **AXIS)).cells


@pytest.mark.parametrize(
    ("changes", "words", "match"),
    [
        ({"optimizer_batch_size": 12}, (), "optimizer_batch_size must be a multiple of each batch size, so also of 8"),
        ({"optimizer_batch_size": None}, (), "not given"),
        ({"optimizer_batch_size": "16"}, (), "optimizer_batch_size must be a multiple .* got '16'"),
        ({"settings": {"trainer.accumulate_grad_batches": 2}}, (), r"accumulate_grad_batches is set by the study"),
        ({"seeds": {0: {"trainer.accumulate_grad_batches": 2}}}, (), r"accumulate_grad_batches is set by the study"),
        ({}, ("--trainer.accumulate_grad_batches=2",), "line: trainer.accumulate_grad_batches is varied or set"),
    ],
)  # fmt: skip
def test_words_against_it(write, changes, words, match):
    if match == "not given":
        assert read_study(write(**AXIS | changes)).optimizer_batch is None
        return
    with pytest.raises(ConfigError, match=match):
        read_study(write(**AXIS | changes), words)


def test_tables_and_figures_say_it(write, tmp_path):
    path, out = write(**AXIS), tmp_path / "out"
    commands = Commands()
    run_study(path, out=out, cell="0/1", runner=commands)
    assert commands.words["fit", "gn_16x2_b2_s1"]["trainer.accumulate_grad_batches"] == "8"
    results = collect(read_study(path), out)
    assert tables(results)[0].heads[1:] == (
        ("clip 16x2", "statistics of 8 of 16"),
        ("clip 16x2", "statistics of 2 of 16"),
    )
    text = markdown(results)
    assert "clip 16x2, statistics of 2 of 16" in text and "batch 2" not in text
    assert "Every step averages the gradients of 16 clips of one process" in text
    assert "so the steps of an epoch are 2 with statistics of 8, 10 with statistics of 2." in text
    write_csv(results, out / "study.csv")
    with (out / "study.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["batch_size"], row["optimizer_batch_size"]) for row in rows} == {("8", "16"), ("2", "16")}


def test_pictures_say_it():
    columns = (("16x2", 8), ("16x2", 2))
    data = StudyData(("BN",), columns, {("BN", column): [10.0] for column in columns}, step_clips=16)
    assert error_figure(data).axes[0].get_xlabel() == "clips in the statistics (of 16 in a step)"
    assert curves_figure(data).axes[0].get_title() == "statistics of 8 of 16 clips"
    one = StudyData(("BN",), columns[:1], {("BN", columns[0]): [10.0]}, step_clips=16)
    assert error_figure(one).axes[0].get_xlabel() == "statistics of 8 of 16 clips"
