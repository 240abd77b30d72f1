"""The config that a run saves, and how a resume's differs."""

import logging
from types import SimpleNamespace

from video_gn.run.saved_config import SaveConfig, config_differences


def test_config_differences():
    old = {"a": 1, "b": {"c": [1], "d": None}, "gone": 3, "ckpt_path": None}
    new = {"a": 1, "b": {"c": [2], "d": None, "new": 4}, "ckpt_path": "last"}
    assert config_differences(old, new) == ["b.c: [1] -> [2]", "b.new: None -> 4", "gone: 3 -> None"]
    assert config_differences(old, old) == []
    old, new = ({"run_dir": name, "checkpoint": {"directory": f"{name}/checkpoints"}} for name in ("runs/a", "runs/b"))
    assert config_differences(old, new) == ["run_dir: 'runs/a' -> 'runs/b'"], "one is enough"


def test_where_a_config_is_saved(tmp_path, caplog):
    def save(text, stage, *, resumes=False, rank=0):
        callback = SaveConfig(tmp_path, text, stage=stage, resumes=resumes)
        trainer = SimpleNamespace(is_global_zero=rank == 0)
        callback.setup(trainer, None, stage)
        if stage == "fit":
            callback.on_train_start(trainer, None)
        else:
            assert not (tmp_path / "test/config.yaml").exists()  # until there are results
            callback.on_test_end(trainer, None)

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


def test_a_test_says_what_results_it_replaces(tmp_path, caplog):
    def test_with(text):
        caplog.clear()
        callback = SaveConfig(tmp_path, text, stage="test", resumes=False)
        callback.setup(SimpleNamespace(is_global_zero=True), None, "test")
        stored = (tmp_path / "test/config.yaml").read_text() if caplog.messages else ""
        (tmp_path / "test").mkdir(exist_ok=True)
        (tmp_path / "test/metrics.json").write_text("{}")
        callback.on_test_end(SimpleNamespace(is_global_zero=True), None)
        return caplog.text, stored

    first = "ckpt_path: best.ckpt\ndata: {views: {num_clips: 10}, loader: {num_workers: 1}, batch_size: 1}"
    assert test_with(first) == ("", "")
    assert test_with(first) == ("", "")
    assert test_with(first.replace("1}, batch_size: 1", "2}, batch_size: 2")) == ("", "")
    told, stored = test_with(first.replace("10", "3"))
    assert "test holds the results of another test (data.views.num_clips: 10 -> 3): they are replaced when" in told
    assert "num_clips: 10" in stored  # until then they lie together
    told, _ = test_with(first.replace("10", "3").replace("best", "last"))
    assert "(checkpoint: best.ckpt -> last.ckpt)" in told
    (tmp_path / "test/config.yaml").write_text("\0")
    assert test_with(first) == ("", "")
