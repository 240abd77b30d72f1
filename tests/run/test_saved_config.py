"""The config that a run saves, and how a resume's differs."""

import logging
from types import SimpleNamespace

from video_gn.run.saved_config import SaveConfig, config_differences


def test_config_differences():
    old = {"a": 1, "b": {"c": [1], "d": None}, "gone": 3, "ckpt_path": None}
    new = {"a": 1, "b": {"c": [2], "d": None, "new": 4}, "ckpt_path": "last"}
    assert config_differences(old, new) == ["b.c: [1] -> [2]", "b.new: None -> 4", "gone: 3 -> None"]
    assert config_differences(old, old) == []


def test_where_a_config_is_saved(tmp_path, caplog):
    def save(text, stage, *, resumes=False, rank=0):
        callback = SaveConfig(tmp_path, text, stage=stage, resumes=resumes)
        trainer = SimpleNamespace(is_global_zero=rank == 0)
        callback.setup(trainer, None, stage)
        if stage == "fit":
            callback.on_train_start(trainer, None)

    save("a: 0", "fit", rank=1)
    assert list(tmp_path.iterdir()) == []
    save("a: 1", "fit", resumes=True)  # an earlier version's run without a config
    save("a: 2", "test")
    with caplog.at_level(logging.WARNING, "video_gn"):
        for value in (1, 3):
            save(f"a: {value}", "fit", resumes=True)
    found = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*.yaml")}
    assert found == {
        "config.yaml": "a: 1",
        "test/config.yaml": "a: 2",
        "config.resume-001.yaml": "a: 1",
        "config.resume-002.yaml": "a: 3",
    }
    assert caplog.messages == [f"config differs from {tmp_path / 'config.yaml'}: a: 1 -> 3"]


def test_a_resume_that_is_refused_leaves_no_config(tmp_path):
    (tmp_path / "config.yaml").write_text("a: 1")
    refused = SaveConfig(tmp_path, "a: 4", stage="fit", resumes=True)
    refused.setup(SimpleNamespace(is_global_zero=True), None, "fit")  # a checkpoint that does not fit is refused next
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
