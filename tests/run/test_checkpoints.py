import os
from types import SimpleNamespace

import pytest
import torch

from video_gn.errors import CheckpointError
from video_gn.run import checkpoints
from video_gn.run.checkpoint_files import read_checkpoint
from video_gn.run.checkpoints import AtomicCheckpointIO, RunCheckpoint, link


def test_a_save_that_breaks_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "checkpoints/last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    real_save = torch.save

    def breaks(content, file):
        file.write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", breaks)
    with pytest.raises(OSError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    monkeypatch.setattr(torch, "save", real_save)
    AtomicCheckpointIO().save_checkpoint({"step": 3}, path)
    assert torch.load(path, weights_only=True) == {"step": 3}
    assert os.listdir(path.parent) == ["last.ckpt"], "what a broken save left is cleared away"


def test_a_link_keeps_its_content_when_the_source_is_replaced(tmp_path, monkeypatch):
    last, best = tmp_path / "last.ckpt", tmp_path / "best.ckpt"
    for content in ("one", "two"):
        part = tmp_path / "part"
        part.write_text(content)
        part.replace(last)
        if content == "one":
            link(last, best)
    assert best.read_text() == "one"
    link(last, best)
    link(last, best)  # a resumed run links what is linked already
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert best.read_text() == "two"

    def no_links(*_):
        raise OSError("not supported")

    monkeypatch.setattr(checkpoints.os, "link", no_links)
    best.unlink()
    link(last, best)
    assert best.read_text() == "two"


@pytest.mark.parametrize("settings", [{"every_n_steps": 0}, {"keep_steps": -1}])
def test_settings_are_checked(settings):
    with pytest.raises(ValueError, match="every_n_steps must be at least 1 and keep_steps at least 0"):
        RunCheckpoint(**settings)


def test_reading(tmp_path):
    path = tmp_path / "a.ckpt"
    whole = {"video_gn": {"net": {}}, "state_dict": {"net.a": torch.ones(2)}, "global_step": 3}
    torch.save(whole, path)
    content = read_checkpoint(path)
    assert content["video_gn"] == {"net": {}}
    assert list(content["state_dict"]) == ["net.a"]
    with pytest.raises(CheckpointError, match=r"has no key 'optimizer_states': it is no checkpoint of a run to resume"):
        read_checkpoint(path, resume=True)
    for key in whole:
        torch.save({k: v for k, v in whole.items() if k != key}, path)
        with pytest.raises(
            CheckpointError, match=rf"a\.ckpt: has no key '{key}': it is no checkpoint of a run\. Weights"
        ):
            read_checkpoint(path)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_nothing_in_a_file_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"video_gn": Evil()}, "evil.ckpt")
    with pytest.raises(CheckpointError, match=r"evil\.ckpt: holds a call of posix\.mkdir: that is a program"):
        read_checkpoint("evil.ckpt")
    assert os.listdir(tmp_path) == ["evil.ckpt"]


@pytest.mark.parametrize(("start", "best_is"), [("last.ckpt", "last"), ("best.ckpt", "best")])
def test_best_is_mended_after_a_kill_and_never_replaced_by_a_later_last(tmp_path, start, best_is):
    (tmp_path / "last.ckpt").write_text("last")
    (tmp_path / "best.ckpt").write_text("best")
    callback = RunCheckpoint(str(tmp_path))
    callback.load_state_dict({"best": 0.5, "best_step": 7})
    (tmp_path / ".last.ckpt.123.tmp").touch()
    trainer = SimpleNamespace(ckpt_path=str(tmp_path / start), is_global_zero=True)
    callback.on_load_checkpoint(trainer, None, {"global_step": 7})
    callback.on_fit_start(trainer, None)
    assert not (tmp_path / ".last.ckpt.123.tmp").exists()
    assert (tmp_path / "best.ckpt").read_text() == best_is


@pytest.mark.parametrize("name", ["optimizer_states", "lr_schedulers"])
def test_a_state_that_lightning_would_begin_anew_is_refused(tmp_path, name):
    with pytest.raises(CheckpointError, match=rf"must have one entry in {name}, got 0.*its weights \(model\.weights\)"):
        RunCheckpoint(str(tmp_path)).on_load_checkpoint(None, None, {"global_step": 7, name: []})


def test_another_runs_best_figure_is_not_taken_over(tmp_path):
    callback = RunCheckpoint(str(tmp_path))
    callback.resumes = False
    callback.load_state_dict({"best": 0.5, "best_step": 7})
    assert callback.best is None
