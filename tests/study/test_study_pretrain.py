"""A study that pre-trains each norm and seed first, with commands that only write what a run leaves."""

import fcntl
import json
import shutil
import threading
import time

import pytest
from fake_study import Commands, write_study

from video_gn.errors import ConfigError
from video_gn.study import CellDirectory, collect, read_study, run_study, tables
from video_gn.study.table import markdown

RECIPE = {"trainer.max_epochs": 9, "data.train": "moving", "data.batch_size": 4}
PRETRAIN = {"pretrain": {"settings": RECIPE}, "settings": {"trainer.max_epochs": 3}}
ORDER = [
    "pretrain/bn_s0", "bn_16x2_b8_s0", "pretrain/gn_s0", "gn_16x2_b8_s0", "bn_16x2_b2_s0", "gn_16x2_b2_s0",
    "pretrain/bn_s1", "bn_16x2_b8_s1", "pretrain/gn_s1", "gn_16x2_b8_s1", "bn_16x2_b2_s1", "gn_16x2_b2_s1",
]  # fmt: skip


@pytest.fixture
def write(tmp_path):
    return lambda *args, **changes: write_study(tmp_path, *args, **PRETRAIN | changes)


def directories(commands, command="fit"):
    return [name for word, name in commands.calls if word == command]


# ---- the plan ---------------------------------------------------------------------------------


def test_what_a_pretraining_and_its_cells_set(write):
    path = write(norms={"BN": {"norm": "batch"}, "GN": {"norm": "group", "num_groups": 2, "model.optimizer.lr": 0.5}})
    words = ["--data.train=mine", "--trainer.devices=1", "--data.loader.num_workers=1", "--data.split.fraction=0.5"]
    study = read_study(path, words)
    start = study.cells[-1].start
    assert (start.name, start.folder, start.clip) == ("gn_s1", "pretrain", "16x2")
    assert start.settings == {
        "model.net.init_args.norm": "group",
        "model.net.init_args.num_groups": 2,
        "model.net.init_args.channels_per_group": None,
        "model.optimizer.lr": 0.5,
        **RECIPE,
        "seed_everything": 1,
    }, "no fold, no settings of the cells"
    assert study.pretrain.words == ("--trainer.devices=1", "--data.loader.num_workers=1"), "the machine's alone"
    cell = study.cells[-1]
    assert cell.settings["model.weights"] == "{out}/pretrain/gn_s1/checkpoints/last.ckpt"
    assert (study.resolved(cell)["trainer.max_epochs"], study.resolved(cell)["data.train"]) == (3, "mine")
    assert [c.name for c in study.pretrain.cells] == ["bn_s0", "gn_s0", "bn_s1", "gn_s1"]
    rate = {"pretrain": {"settings": RECIPE | {"model.optimizer.lr": 0.1}}}
    study = read_study(write(norms={"GN": {"norm": "group", "model.optimizer.lr": 0.5}}, reference=None, **rate))
    assert study.pretrain.cells[0].settings["model.optimizer.lr"] == 0.1, "a rate of its own"
    assert study.cells[0].settings["model.optimizer.lr"] == 0.5


def test_lines_that_start_from_anothers(write):
    of_bn = {name: {"norm": name, "pretrain": "BN"} for name in ("sync_batch", "frozen_batch", "batch_renorm")}
    precise = {"norm": "batch", "precise_bn.num_batches": 9, "pretrain": "BN"}
    lines = {"BN": {"norm": "batch"}, **of_bn, "precise": precise, "LN": {"norm": "layer"}}
    same = {"G1": {"norm": "group", "num_groups": 1, "pretrain": "LN"}}  # as many groups in each layer
    study = read_study(write(norms=lines | same, seeds=[0]))
    assert [cell.name for cell in study.pretrain.cells] == ["bn_s0", "ln_s0"]
    assert [cell.start.name for cell in study.cells[:7]] == ["bn_s0"] * 5 + ["ln_s0"] * 2


@pytest.mark.parametrize(
    ("changes", "words", "match"),
    [
        ({"norms": {"BN": {"norm": "batch"}, "GN": {"norm": "group", "pretrain": "BN"}}}, (),
         r"norms\.GN must fit the weights of pre-training bn_s0, which has norm batch; got norm group\. Give the line"),
        ({"norms": {"A": {"norm": "group", "num_groups": 4}, "B": {"norm": "group", "num_groups": 2, "pretrain": "A"}}},
         (), r"norms\.B must fit .* a_s0, which has 4 groups; got 2 groups"),
        ({"norms": {"A": {"norm": "batch"}, "B": {"norm": "batch", "pretrain": "C"}}}, (),
         r"norms\.B\.pretrain must be one of the lines with a pre-training of their own, A, got 'C'"),
        ({"norms": {"A": {"norm": "batch", "pretrain": "A"}}}, (), r"A\.pretrain must be one .*, got none, got 'A"),
        ({"pretrain": None, "norms": {"A": {"norm": "batch", "pretrain": "A"}}}, (), r"A\.pretrain needs the study"),
        ({"pretrain": {"epochs": 3}}, (), r"pretrain must be \{base: CONFIG, settings: \{KEY: VALUE\}\}"),
        ({"pretrain": {"base": "none.yaml"}}, (), r"none\.yaml cannot be read: No such file"),
        ({"pretrain": {"settings": {"model.net.norm": "batch"}}}, (), r"settings: model\.net\.init_args\.norm is"),
        ({"pretrain": {"settings": {"seed_everything": 3}}}, (), r"pretrain\.settings\.seed_everything is set"),
        ({"pretrain": {"settings": {"model.net.width": 8}}}, (), r"BN must fit .* which has width 8; got width 16"),
        ({"settings": {"model.weights": "a.ckpt"}}, (), r"settings\.model\.weights is set by the study itself"),
        ({"norms": {"BN": {"norm": "batch", "model.weights": "a.ckpt"}}}, (), r"norms\.BN\.model\.weights is set by"),
        ({}, ("--model.weights=a.ckpt",), r"the command line: model\.weights is varied or set by the study itself"),
    ],
)  # fmt: skip
def test_plans_that_do_not_fit(write, changes, words, match):
    changes = {"reference": None} | changes
    with pytest.raises(ConfigError, match=match):
        read_study(write(**changes), words)


# ---- running ----------------------------------------------------------------------------------


def test_each_pretraining_runs_once_before_its_cells(write, tmp_path, caplog, capsys):
    caplog.set_level("INFO")
    path, out, commands = write(), tmp_path / "out", Commands()
    assert run_study(path, out=out, cell="0/1", words=["--data.train=mine"], runner=commands) == 0
    names = [name.split("/")[-1] for name in ORDER]
    assert directories(commands) == directories(commands, "test") == names
    options = commands.words["fit", "gn_s1"]
    assert options["run_dir"] == str(out / "pretrain/gn_s1")
    assert (options["data.train"], options["data.batch_size"], options["trainer.max_epochs"]) == ("moving", "4", "9")
    options = commands.words["fit", "gn_16x2_b2_s1"]
    assert options["model.weights"] == str(out / "pretrain/gn_s1/checkpoints/last.ckpt")
    assert (options["data.train"], options["trainer.max_epochs"]) == ("mine", "3")
    assert "pre-training bn_s0: training" in caplog.text
    assert "; 7 cells and 2 pre-trainings to do, about 0 min (" in caplog.text
    record = json.loads((out / "cells/gn_16x2_b2_s1/cell.json").read_text())["settings"]
    assert record["pretrain.trainer.max_epochs"] == 9 and len(record["pretrain.sha256"]) == 64
    assert run_study(path, out=out, cell="0/1", words=["--data.train=mine"], runner=commands) == 0
    assert len(commands.calls) == 24, "nothing is run again"
    capsys.readouterr()
    run_study(path, out=out, action="list")
    shown = capsys.readouterr().out
    assert "     pretrain/gn_s0  done\n" in shown and shown.index("pretrain/gn_s1") < shown.index("0  bn_16x2_b8_s0")
    results = collect(read_study(path), out)
    assert tables(results)[-1].rows == (("BN", "75.0", "50.0"), ("GN", "100.0", "75.0"))
    assert "| BN | 75.0 | 50.0 |" in markdown(results) and "starts from the last checkpoint of" in markdown(results)


def test_a_failed_pretraining_fails_its_cells_alone(write, tmp_path, caplog):
    path, out = write(), tmp_path / "out"
    commands = Commands(fail={("fit", "gn_s0")})
    assert run_study(path, out=out, cell="0/1", runner=commands) == 1
    assert directories(commands) == [n.split("/")[-1] for n in ORDER if n not in ("gn_16x2_b8_s0", "gn_16x2_b2_s0")]
    text = "cell 3 of 8 (gn_16x2_b2_s0) failed: its pre-training gn_s0 failed: fit ended with exit status 2"
    assert text in caplog.text and "pretrain/gn_s0/log.txt" in caplog.text
    missing = {cell.name: why for cell, why in collect(read_study(path), out).missing}
    assert missing["gn_16x2_b8_s0"].startswith("its pre-training gn_s0 failed: fit ended") and len(missing) == 2
    again = Commands()
    assert run_study(path, out=out, cell="0/1", runner=again) == 0
    assert directories(again) == ["gn_s0", "gn_16x2_b8_s0", "gn_16x2_b2_s0"]


def test_a_pretraining_that_another_process_runs_is_waited_for(write, tmp_path, caplog):
    caplog.set_level("INFO")
    path, out, commands = write(), tmp_path / "out", Commands()
    directory = out / "pretrain/gn_s0"
    directory.mkdir(parents=True)

    def other():
        time.sleep(1.5)
        run_cell_of_other(path, out)
        file.close()

    with (directory / ".cell.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("process 7 on node3\n")
        file.flush()
        thread = threading.Thread(target=other)
        thread.start()
        assert run_study(path, out=out, cell="1", runner=commands) == 0
        thread.join()
    assert directories(commands) == ["gn_16x2_b8_s0"]
    assert caplog.text.count("in use by another run (process 7 on node3): waiting\n") == 1
    assert "pre-training gn_s0: finished by another process" in caplog.text


def run_cell_of_other(path, out):
    from video_gn.study.running import run_cell

    study = read_study(path)
    run_cell(study.pretrain, CellDirectory(out, study.cells[1].start), runner=Commands())


def test_a_pretraining_is_taken_from_whatever_machine_made_it(write, tmp_path):
    path, out = write(), tmp_path / "out"
    assert run_study(path, out=out, cell="1", words=["--trainer.accelerator=cpu"], runner=Commands()) == 0
    commands = Commands()
    assert run_study(path, out=out, cell="3", words=["--trainer.accelerator=gpu"], runner=commands) == 0
    assert directories(commands) == ["gn_16x2_b2_s0"]
    assert {cell.name for cell, _ in collect(read_study(path), out).missing}.isdisjoint({"gn_16x2_b2_s0"})


# ---- bad input --------------------------------------------------------------------------------


@pytest.fixture
def half(write, tmp_path):
    """A study of which GN's pre-training and its first cell are there."""
    path, out = write(), tmp_path / "out"
    assert run_study(path, out=out, cell="1", runner=Commands()) == 0
    return path, out


def refused(path, out, match, *, cell="3"):
    commands = Commands()
    with pytest.raises(ConfigError, match=match):
        run_study(path, out=out, cell=cell, runner=commands)
    assert not commands.calls, "nothing runs"


def test_the_study_may_be_moved(half, tmp_path):
    path, out = half
    out.rename(tmp_path / "moved")
    commands = Commands()
    assert run_study(path, out=tmp_path / "moved", cell="3", runner=commands) == 0
    assert directories(commands) == ["gn_16x2_b2_s0"]
    assert commands.words["fit", "gn_16x2_b2_s0"]["model.weights"].startswith(str(tmp_path / "moved/pretrain"))
    assert len(collect(read_study(path), tmp_path / "moved").cells) == 2


def test_another_recipe_for_a_pretraining_that_ran(write, half):
    path, out = half
    path = write(pretrain={"settings": RECIPE | {"trainer.max_epochs": 20}})
    refused(
        path, out, r"pre-training gn_s0 was started with other settings: trainer\.max_epochs: 9 -> 20\. Undo the ch"
    )
    study = read_study(path)
    assert CellDirectory(out, study.cells[1]).state(study) == "changed"
    missing = {cell.name: why for cell, why in collect(study, out).missing}
    assert missing["gn_16x2_b8_s0"] == "started with other settings: pretrain.trainer.max_epochs: 9 -> 20"
    assert run_study(path, out=out, cell="0", runner=Commands()) == 0, "BN was not pre-trained yet"


def test_a_pretraining_that_was_run_again(half):
    path, out = half
    shutil.rmtree(out / "pretrain/gn_s0")
    refused(path, out, r"cell 1, gn_16x2_b8_s0, .* pretrain\.sha256: \"\w{64}\" -> not set", cell="0/1")
    study = read_study(path)
    again = Commands()
    again.calls.append(("other", "call"))  # so that its checkpoint is another
    from video_gn.study.running import run_cell

    run_cell(study.pretrain, CellDirectory(out, study.cells[1].start), runner=again)
    refused(path, out, r"cell 1, gn_16x2_b8_s0, .* pretrain\.sha256: \"\w{64}\" -> \"\w{64}\"", cell="0/1")
    assert run_study(path, out=out, cell="3", runner=Commands()) == 0, "a cell that had not begun"
    results = collect(study, out)
    assert [r.cell.name for r in results.cells] == ["gn_16x2_b2_s0"], "no table holds both"


@pytest.mark.parametrize("what", ["missing", "of another norm", "stopped"])
def test_a_checkpoint_that_is_not_the_pretrainings(half, caplog, what):
    path, out = half
    checkpoint = out / "pretrain/gn_s0/checkpoints/last.ckpt"
    if what == "missing":
        checkpoint.unlink()
    else:
        checkpoint.write_text("weights of bn_s0")
    if what == "stopped":  # a training that was begun again, and its record
        record = json.loads((out / "pretrain/gn_s0/cell.json").read_text())
        (out / "pretrain/gn_s0/cell.json").write_text(json.dumps(record | {"fit_done": False, "sha256": None}))
        refused(path, out, r"gn_16x2_b8_s0, was started with other .* pretrain\.sha256: .* -> not set", cell="0/1")
        return
    commands = Commands()
    assert run_study(path, out=out, cell="3", runner=commands) == 1
    assert not commands.calls
    told = "is missing" if what == "missing" else "is not the one that the pre-training ended with"
    assert f"pretrain/gn_s0/checkpoints/last.ckpt {told}. Put it back, or remove" in caplog.text
    assert len(collect(read_study(path), out).cells) == 1, "what was trained before stays"


def test_a_pretraining_of_another_norm_in_its_place(half):
    path, out = half
    assert run_study(path, out=out, cell="0", runner=Commands()) == 0
    shutil.rmtree(out / "pretrain/gn_s0")
    shutil.copytree(out / "pretrain/bn_s0", out / "pretrain/gn_s0")
    refused(path, out, r"pre-training gn_s0 was .*model\.net\.init_args\.norm: \"batch\" -> \"group\"")
