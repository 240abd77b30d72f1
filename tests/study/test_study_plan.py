"""The plan of a study: its cells, and what a file or a command line may not say."""

import functools
import sys

import pytest
from fake_study import BASE, STUDY, write_study

from video_gn.errors import ConfigError
from video_gn.study import pick_cells, read_study
from video_gn.study.settings import as_word, differences, flatten, parse_words


@pytest.fixture
def write(tmp_path):
    return functools.partial(write_study, tmp_path)


def test_cells_are_named_numbered_and_ordered_seed_by_seed(write):
    study = read_study(write())
    assert [(cell.index, cell.name) for cell in study.cells] == list(
        enumerate(
            [
                "bn_16x2_b8_s0", "gn_16x2_b8_s0", "bn_16x2_b2_s0", "gn_16x2_b2_s0",
                "bn_16x2_b8_s1", "gn_16x2_b8_s1", "bn_16x2_b2_s1", "gn_16x2_b2_s1",
            ]
        )
    )  # fmt: skip
    assert study.reference == "BN"


def test_a_seed_more_renumbers_no_cell(write):
    before = [cell.name for cell in read_study(write()).cells]
    after = [cell.name for cell in read_study(write(seeds=STUDY["seeds"] | {7: None})).cells]
    assert after[: len(before)] == before
    assert after[len(before) :] == ["bn_16x2_b8_s7", "gn_16x2_b8_s7", "bn_16x2_b2_s7", "gn_16x2_b2_s7"]


def test_what_a_cell_sets(write):
    study = read_study(write(), ["--data.train", "elsewhere", "--trainer.devices=1"])
    cell = study.cells[7]
    assert cell.settings == {
        "trainer.max_epochs": 3,
        "data.split.val_groups": ["b"],
        "model.net.init_args.norm": "group",
        "model.net.init_args.num_groups": 2,
        "model.net.init_args.channels_per_group": None,
        "data.batch_size": 2,
        "seed_everything": 1,
    }
    resolved = study.resolved(cell)
    assert resolved["data.train"] == "elsewhere" and resolved["trainer.devices"] == 1
    assert resolved["model.net.init_args.width"] == 16, "the base's"
    assert study.cells[6].settings["model.net.init_args.num_groups"] is None, "BN has no groups: the base's are off"


def test_listed_cells_and_clips(write):
    clips = {"16x2": {"num_frames": 16, "stride": 2}, "32x1": {"num_frames": 32, "stride": 1}}
    listed = [{"clip": "16x2", "batch_size": 8}, {"clip": "32x1", "batch_size": 4}]
    study = read_study(write(clips=clips, cells=listed, batch_sizes=None, seeds=[0]))
    assert [cell.name for cell in study.cells] == ["bn_16x2_b8_s0", "gn_16x2_b8_s0", "bn_32x1_b4_s0", "gn_32x1_b4_s0"]
    assert study.cells[2].settings["data.clip.num_frames"] == study.cells[2].num_frames == 32
    product = read_study(write(clips=clips, seeds=None))
    assert product.columns == (("16x2", 8), ("16x2", 2), ("32x1", 8), ("32x1", 2))
    assert product.seeds == (0,)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"norm": {}}, r"s\.yaml: no key 'norm' in a study; there are base, norms, clips, batch_sizes"),
        ({"base": None}, "base must be the path of a config of fit, relative to this file"),
        ({"base": "none.yaml"}, r"none\.yaml cannot be read: No such file"),
        ({"norms": {}}, r"norms must be lines LABEL: .* at least one, got \{\}"),
        ({"norms": {"XN": {"norm": "x"}}}, r"s\.yaml: norms\.XN\.norm must be one of .*batch.*group.*, got 'x'"),
        ({"norms": {"GN": {"num_groups": 2}}}, r"norms\.GN\.norm must be one of .*, got None"),
        ({"norms": {"GN": {"norm": "group", "groups": 2}}}, r"norms\.GN: the net has no setting 'groups'"),
        ({"norms": {"GN": {"norm": "group", "data.batch_size": 2}}}, r"norms\.GN\.data\.batch_size is set by the stu"),
        ({"norms": {"GN": 3}}, r"norms\.GN must be settings, KEY: VALUE, got 3"),
        ({"norms": {"G N": {"norm": "group"}, "g-n": {"norm": "layer"}}}, "'G N' and 'g-n' give the same directory"),
        ({"clips": {}}, "clips must be lines LABEL"),
        ({"clips": {"a": {"frames": 8}}}, r"clips\.a: a clip has no setting 'frames'; there are num_frames, stride"),
        ({"clips": {"a": {"num_frames": 0}}}, r"clips\.a\.num_frames must be a whole number of at least 1, got 0"),
        ({"batch_sizes": []}, r"batch_sizes must be a list of whole numbers, at least one, got \[\]"),
        ({"batch_sizes": [8, 2.5]}, r"batch_sizes must be a list of whole numbers"),
        ({"batch_sizes": [8, 8]}, "batch_sizes must be different from each other"),
        ({"cells": [{"batch_size": 8}]}, "batch_sizes must be left out if cells are listed"),
        ({"cells": [], "batch_sizes": None}, "cells must be a list of"),
        ({"cells": [{"size": 8}], "batch_sizes": None}, r"cells\[0\] must be {clip: LABEL, batch_size: N}"),
        ({"cells": [{"clip": "9x9", "batch_size": 8}], "batch_sizes": None}, r"cells\[0\]\.clip must be one of 16x2"),
        ({"cells": [{"batch_size": 0}], "batch_sizes": None}, r"cells\[0\]\.batch_size must be a whole number"),
        ({"seeds": {}}, "seeds must be SEED"),
        ({"seeds": [1, 1]}, "seeds must be SEED"),
        ({"seeds": ["a"]}, "seeds must be whole numbers of at least 0, got 'a'"),
        ({"seeds": {0: {"data.batch_size": 3}}}, r"seeds\.0\.data\.batch_size is set by the study itself"),
        (
            {"seeds": {0: {"model.net.norm": "batch"}}},
            r"seeds\.0: model\.net\.init_args\.norm is varied or set by the study",
        ),
        ({"settings": {"model.net.norm": "layer"}}, r"settings: model\.net\.init_args\.norm is varied or set"),
        ({"settings": {"data.split.val_groups": []}}, r"settings: data\.split\.val_groups is varied or set"),
        ({"settings": {"seed_everything": 3}}, r"settings\.seed_everything is set by the study itself"),
        ({"settings": 3}, "settings must be settings, KEY: VALUE, got 3"),
        ({"settings": {"trainer.max_steps": 9}}, r"bn_16x2_b8_s0: trainer\.max_steps must be -1, got 9"),
        ({"settings": {"model.schedule.unit": "step", "model.schedule.warmup": 9}}, r"schedule\.unit must be 'epoch'"),
        ({"reference": "LN"}, "reference must be one of the norms BN, GN, got 'LN'"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:30],
)
def test_errors_name_file_and_key(write, changes, match):
    with pytest.raises(ConfigError, match=match):
        read_study(write(**changes))


OWN = """
class Normed:
    def __init__(self, num_classes, norm="batch", num_groups=None):
        pass

class Fixed:
    def __init__(self, num_classes):
        pass
"""


def test_a_network_of_ones_own_varies_its_argument_norm(tmp_path, write, monkeypatch):
    (tmp_path / "study_nets.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def base(net):
        return BASE | {"model": BASE["model"] | {"net": {"class_path": net}}}

    study = read_study(write(base("study_nets.Normed")))
    line = {name: value for name, value in study.cells[0].settings.items() if name.startswith("model.net.")}
    assert line == {"model.net.init_args.norm": "batch", "model.net.init_args.num_groups": None}
    assert (
        read_study(write(), ["--model.net.class_path=study_nets.Normed"]).cells[0].settings == study.cells[0].settings
    )
    for net, changes, words in (
        ("study_nets.Fixed", {}, r"whose norm can be chosen, got study_nets\.Fixed without an argument `norm`"),
        ("video_gn.models.i3d_r50_gn", {}, "got video_gn.models.i3d_r50_gn without an argument `norm`"),
        ("study_nets.None", {}, "model.net must be the import path of a class, got 'study_nets.None'"),
        ("study_nets.Normed", {"norms": {"GN": {"norm": "group", "x": 2}}}, "the net has no setting 'x'"),
        ("study_nets.Normed", {"pretrain": {}}, r"pretrain must be left out for study_nets\.Normed"),
    ):
        with pytest.raises(ConfigError, match=words):
            read_study(write(base(net), **changes))


def test_a_fixed_learning_rate_does_not_compare_batch_sizes(write):
    model = BASE["model"] | {"optimizer": {"reference_batch_size": None}}
    with pytest.raises(ConfigError, match="reference_batch_size must be the batch size at which lr holds, got None"):
        read_study(write(BASE | {"model": model}))
    assert read_study(write(BASE | {"model": model}, batch_sizes=[4])).cells, "one batch size needs no rule"


def test_files_that_are_no_studies(tmp_path):
    path = tmp_path / "s.yaml"
    for text, match in (
        ("a: [", "is not yaml"),
        ("3", "must hold settings, KEY: VALUE, got int"),
        ("norms:\n  BN: {norm: batch}\n  BN: {norm: group}\n", "key 'BN' is given twice"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=match):
            read_study(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read: not a text file"):
        read_study(path)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["data.train", "x"], "further settings must be --KEY VALUE, got 'data.train'"),
        (["--data.train"], "--data.train must have a value, got none"),
        (["--data.train", "--x=1"], "--data.train must have a value, got none"),
        (["--data.batch_size", "3"], r"the command line: data\.batch_size is varied or set by the study itself"),
        (
            ["--model.net.norm=layer"],
            r"the command line: model\.net\.init_args\.norm is varied or set by the study itself",
        ),
        (["--run_dir=x"], "the command line: run_dir is varied or set by the study itself"),
        (
            ['--model.net.init_args={"norm": "group"}'],
            r"model\.net\.init_args\.norm is varied or set by the study itself",
        ),
        (["--data=other.yaml"], "the command line: data is varied or set by the study itself"),
    ],
)
def test_words_that_do_not_fit(write, words, match):
    with pytest.raises(ConfigError, match=match):
        read_study(write(), words)


def test_settings_as_words_and_back():
    flat = {"a.b": [96, 120], "c": None, "d": True, "e": 0.001, "f": "text", "g": -1}
    assert parse_words([as_word(k, v) for k, v in flat.items()], source="") == flat
    assert parse_words(["--a", "[96,120]", "--b=1e-3", "--c+=x", "--c+=y"], source="") == {
        "a": [96, 120], "b": 0.001, "c+": ["x", "y"]
    }  # fmt: skip
    assert flatten({"a": {"b": {"c": 1}}, "d.e": 2, "f": {}}) == {"a.b.c": 1, "d.e": 2, "f": {}}
    assert flatten({"model": {"net": {"norm": 1, "init_args": {"width": 2}, "class_path": "x"}}}) == {
        "model.net.init_args.norm": 1, "model.net.init_args.width": 2, "model.net.class_path": "x"
    }  # fmt: skip
    assert differences({"a": 1, "b": 2, "data.loader.num_workers": 1}, {"a": 3, "b": 2}) == ["a: 1 -> 3"]
    assert differences({"a": 1}, {"b": "x"}) == ["a: 1 -> not set", 'b: not set -> "x"']


def test_cells_by_number_and_part(write):
    study = read_study(write())
    assert [cell.index for cell in pick_cells(study, "3")] == [3]
    parts = [[cell.index for cell in pick_cells(study, f"{i}/3")] for i in range(3)]
    assert parts == [[0, 3, 6], [1, 4, 7], [2, 5]]
    for text, match in (("8", "must be below 8, got 8"), ("3/3", "I below N"), ("-1", "I or I/N"), ("x", "I or I/N")):
        with pytest.raises(ConfigError, match=match):
            pick_cells(study, text)


@pytest.mark.parametrize(
    ("changes", "words", "clips"),
    [
        ({}, (), ["16x2", "16x2"]),
        ({"settings": {"data.clip.num_frames": 8}}, (), ["8x2", "8x2"]),
        ({}, ("--data.clip.stride=4", '--data.clip={"num_frames": 8}'), ["8x4", "8x4"]),
        ({"settings": {"data.clip.stride": 1}}, ("--data.clip.num_frames", "64"), ["64x1", "64x1"]),
        ({"norms": {"BN": {"norm": "batch"}, "GN": {"norm": "group", "data.clip.stride": 1}}}, (), ["16x2", "16x1"]),
    ],
)
def test_a_cells_clip_is_that_of_all_its_settings(write, changes, words, clips):
    study = read_study(write(seeds=[0], batch_sizes=[8], **changes), words)
    assert [cell.clip for cell in study.cells] == clips
    assert [cell.name for cell in study.cells] == [f"bn_{clips[0]}_b8_s0", f"gn_{clips[1]}_b8_s0"]
    assert [f"{cell.num_frames}" for cell in study.cells] == [clip.split("x")[0] for clip in clips]
    assert study.columns == ((" or ".join(dict.fromkeys(clips)), 8),), "the lines stay comparable in one column"


@pytest.mark.parametrize(
    ("changes", "words", "match"),
    [
        ({"clips": {"16x2": {"num_frames": 16}}}, ["--data.clip.stride=4"], "clips.16x2 must be labelled 16x4, as its"),
        ({"clips": {"16x2": {"num_frames": 16, "stride": 4}}}, [], "labelled 16x4, .* Rename it, or set both"),
        ({"clips": {"32x2": {"num_frames": 32}}, "seeds": {3: {"data.clip.stride": 1}}}, [], "seed 3, got '32x2'"),
        ({}, ["--data.clip=clip.yaml"], "norm BN, seed 0: data.clip must be settings, KEY: VALUE, got 'clip.yaml'"),
        ({"settings": {"data.clip.num_frames": "many"}}, [], r"must be whole numbers of at least 1, got \['many', 2\]"),
    ],
)  # fmt: skip
def test_a_label_that_contradicts_its_cells_clip(write, changes, words, match):
    with pytest.raises(ConfigError, match=match):
        read_study(write(**changes), words)


def test_a_label_of_ones_own_stays(write):
    study = read_study(write(clips={"long": {"num_frames": 32}}), ["--data.clip.stride=4"])
    assert {(cell.clip, cell.num_frames) for cell in study.cells} == {("long", 32)}
    study = read_study(write(cells=[{"clip": "16x2", "batch_size": 4}], batch_sizes=None))
    assert study.columns == (("16x2", 4),) and study.cells[0].name == "bn_16x2_b4_s0"
