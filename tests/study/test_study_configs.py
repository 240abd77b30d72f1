"""The studies of the repository: each reads, and fit takes what it sets."""

from pathlib import Path

import pytest
import yaml

from video_gn.study import read_study
from video_gn.study.settings import as_word, flatten

ROOT = Path(__file__).resolve().parent.parent.parent
STUDIES = sorted((ROOT / "configs/study").glob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_a_study_of_the_repository(path):
    study = read_study(path)
    text = path.read_text()
    norms, columns, seeds = len(study.norms), len(study.columns), len(study.seeds)
    assert f"video-gn study -c {path.relative_to(ROOT)}" in text
    assert f"# Cells      {len(study.cells)} = {norms} " in text
    assert len(study.cells) == norms * columns * seeds


def test_there_are_studies():
    assert {path.stem for path in STUDIES} >= {"table8", "batch_sizes", "groups", "weizmann"}


def test_table_8_as_a_study_is_table_8_as_configs():
    study = read_study(ROOT / "configs/study/table8.yaml")
    assert len(study.cells) == 6
    for cell in study.cells:
        name = cell.name.removesuffix("_s0")
        config = yaml.safe_load((ROOT / f"configs/kinetics400/i3d_r50_{name}.yaml").read_text())
        resolved = {key: value for key, value in study.resolved(cell).items() if not key.endswith("_group")}
        if cell.norm == "BN":
            assert resolved.pop("model.net.init_args.num_groups") is None
        assert resolved == flatten(config)


def test_weizmanns_seeds_hold_out_each_person_once():
    study = read_study(ROOT / "configs/study/weizmann.yaml")
    people = [p for seed in study.seeds for p in _held_out(study, seed)]
    assert sorted(people) == ["daria", "denis", "eli", "ido", "ira", "lena", "lyova", "moshe", "shahar"]
    assert _held_out(study, 0) == ["daria", "lyova", "shahar"]


def _held_out(study, seed):
    return next(c for c in study.cells if c.seed == seed).settings["data.split.val_groups"]


def test_fit_takes_every_setting_of_the_repositorys_studies():
    from video_gn.commands._settings import config_parser

    parser = config_parser()
    parser.exit_on_error = False
    for path in STUDIES:
        study = read_study(path)
        for norm in study.norms:
            cell = [c for c in study.cells if c.norm == norm][-1]
            words = [as_word(key, value) for key, value in cell.settings.items()]
            parsed = parser.parse_args(["-c", str(study.base_path), *words]).as_dict()
            flat = flatten(parsed)
            for key, value in cell.settings.items():
                assert _plain(flat[key]) == value, (path.name, norm, key)


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
