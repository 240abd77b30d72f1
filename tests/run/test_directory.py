"""A run's directory: the names in it, its lock, and where an earlier run goes."""

import ast
import math
import os
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from video_gn.errors import CheckpointError, RunError
from video_gn.files import HeldError, hold, holder
from video_gn.run import directory
from video_gn.run.directory import RunDirectory, checkpoint_of


def test_one_run_at_a_time(tmp_path):
    first, second = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "run")
    first.lock(".lock")
    with pytest.raises(RunError, match=r"run is in use by another run \(process \d+ on"):
        second.lock(".lock", wait_seconds=0.2)
    second.lock("test/.lock")
    first.unlock()
    second.lock(".lock")


def test_an_earlier_run_is_set_aside_whole_and_the_users_files_stay(tmp_path):
    run = RunDirectory(tmp_path)
    assert run.set_aside() is None
    for number in (1, 2):
        (tmp_path / "checkpoints").mkdir()
        for name in ("config.yaml", "config.resume-001.yaml", "metrics.csv", "checkpoints/last.ckpt"):
            (tmp_path / name).write_text(f"{name} {number}")
        (tmp_path / "notes.txt").write_text("mine")
        assert run.set_aside() == tmp_path / "previous" / f"{number:03d}"
        assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "previous"]
    for number in (1, 2):
        assert (
            tmp_path / f"previous/{number:03d}/checkpoints/last.ckpt"
        ).read_text() == f"checkpoints/last.ckpt {number}"


def make_run(path, content):
    for name in ("config.yaml", "checkpoints/last.ckpt", "metrics.csv", "test/metrics.json"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(content)


def tree(path):
    return {str(p.relative_to(path)): p.read_text() for p in path.rglob("*") if p.is_file() and p.name != ".lock"}


def test_a_run_comes_back_unless_the_one_after_it_has_saved_a_checkpoint(tmp_path):
    run = RunDirectory(tmp_path)
    make_run(tmp_path, "first")
    first = tree(tmp_path)
    assert run.settle() is None
    assert tree(tmp_path) == first
    run.set_aside()
    for name in ("config.yaml", "tensorboard/events"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("refused")
    (tmp_path / "checkpoints").mkdir()
    assert run.settle() == tmp_path / "previous/001"
    assert tree(tmp_path) == first
    run.set_aside()
    (tmp_path / "metrics.csv").write_text("step\n1\n")
    assert run.settle() == tmp_path / "previous/001"
    assert tree(tmp_path) == first | {"previous/002/metrics.csv": "step\n1\n"}
    run.set_aside()
    make_run(tmp_path, "second")
    second = tree(tmp_path)
    assert run.settle() is None
    assert tree(tmp_path) == {k: v for k, v in second.items() if k != "previous/.displaced"}


def test_a_kill_at_any_move_loses_nothing(tmp_path, monkeypatch):
    """Each of the moves of a displacement, and of its undoing, may be the last one."""
    renamed = Path.rename

    def interrupted(work, after):
        left = [after]

        def rename(self, target):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return renamed(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", rename)
            try:
                work()
            except KeyboardInterrupt:
                return True
        return False

    for undoing in (False, True):
        kills = 0
        while True:
            path = tmp_path / f"{undoing}{kills}"
            make_run(path, "first")
            first = tree(path)
            run = RunDirectory(path)
            if undoing:
                run.set_aside()
                (path / "config.yaml").write_text("second")
            was_killed = interrupted(run.settle if undoing else run.set_aside, kills)
            RunDirectory(path).settle_after_kill()
            assert tree(path) == first
            kills += 1
            if not was_killed:
                break
        assert kills == 5


def test_a_running_training_is_not_disturbed(tmp_path):
    run = RunDirectory(tmp_path)
    make_run(tmp_path, "first")
    run.lock(".lock")
    run.set_aside()
    RunDirectory(tmp_path).settle_after_kill()
    assert not (tmp_path / "config.yaml").exists()
    run.unlock()
    RunDirectory(tmp_path).settle_after_kill()
    assert (tmp_path / "config.yaml").read_text() == "first"


@pytest.mark.parametrize("name", ["", "checkpoints/last.ckpt"])
def test_a_checkpoint_is_found_after_a_training_in_its_place_was_killed(tmp_path, name):
    run, wanted = RunDirectory(tmp_path), tmp_path / name
    make_run(tmp_path, "first")
    run.lock(".lock")
    run.set_aside()
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises((RunError, CheckpointError)):  # the other training is still running
        run.find_checkpoint(str(wanted))
    run.unlock()
    assert checkpoint_of(wanted).read_text() == "first"
    run.set_aside()
    assert run.find_checkpoint(str(wanted)).read_text() == "first"


def test_a_directory_that_is_only_read_stays_as_it_is(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path)
    make_run(tmp_path, "first")
    run.set_aside()
    before = tree(tmp_path)

    def refused(*args, **more):
        raise PermissionError(13, "Permission denied")

    for name in ("hold", "write_text"):  # its lock, or a file beside it
        with monkeypatch.context() as patch:
            patch.setattr(directory, name, refused)
            run.settle_after_kill()
        assert tree(tmp_path) == before


def test_finding_checkpoints(tmp_path):
    run = RunDirectory(tmp_path)
    assert run.find_checkpoint("last") is None
    assert run.find_checkpoint("best") is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").touch()
    assert run.find_checkpoint("last") == tmp_path / "checkpoints/last.ckpt"
    with pytest.raises(RunError, match=r"ckpt_path 'lost.ckpt' is not a file"):
        run.find_checkpoint("lost.ckpt")


def test_a_damaged_best_one_gives_way_and_a_named_one_does_not(tmp_path, caplog):
    run, place = RunDirectory(tmp_path), tmp_path / "checkpoints"
    place.mkdir()
    for name in ("best", "last", "step-00000003", "step-00000012"):
        torch.save({"a": torch.ones(100)}, place / f"{name}.ckpt")
    assert checkpoint_of(tmp_path) == place / "best.ckpt" and not caplog.text
    order = ["best.ckpt", "last.ckpt", "step-00000012.ckpt", "step-00000003.ckpt"]
    for name, next_name in pairwise(order):
        data = bytearray((place / name).read_bytes())
        data[data.index(torch.ones(9).numpy().tobytes())] ^= 4
        (place / name).write_bytes(data)
        caplog.clear()
        assert checkpoint_of(tmp_path) == place / next_name
        assert caplog.messages[0].startswith(
            f"Taking {place / next_name}: {place / 'best.ckpt'}: damaged: the checksum"
        )
        assert f"{place / name}: damaged" in caplog.text and "again" not in caplog.text
        assert run.whole_checkpoint() == run.find_checkpoint(str(tmp_path)) == place / next_name
        assert run.find_checkpoint("best") == place / "best.ckpt", "what is named is what is taken"
        assert checkpoint_of(place / name) == place / name
    (place / next_name).write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"best\.ckpt: .*last\.ckpt: .*3\.ckpt: .* empty.*No checkpoint of the run"
    ):
        checkpoint_of(tmp_path)


def string_constants(path):
    """Strings of a module, but for the parts of f-strings."""
    tree = ast.parse(path.read_text())
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in parts)
    return {node.value for node in found if isinstance(node.value, str)}


def test_the_names_of_a_runs_files_stand_in_one_place():
    names = {value for name, value in vars(directory).items() if name.isupper() and "." in str(value)}
    assert len(names) > 12
    here = Path(directory.__file__)
    for path in here.parents[1].rglob("*.py"):
        assert path == here or not names & string_constants(path), path


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="--run_dir .*file/run cannot be written: [^ ]+/file is no directory"):
        RunDirectory(tmp_path / "file/run").lock(".lock")


# ---- a lock that a dead node left on a file server -----------------------------------------------


def in_job(monkeypatch, job, restarts):
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    if restarts:  # Slurm sets none at the first start
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))


@pytest.mark.parametrize("restarts", [1, 12])
def test_a_jobs_later_start_takes_over_what_its_earlier_one_held(tmp_path, monkeypatch, restarts):
    in_job(monkeypatch, "417", restarts - 1)
    first = hold(tmp_path / ".lock", wait_seconds=0)
    in_job(monkeypatch, "417", restarts)
    second = hold(tmp_path / ".lock", wait_seconds=math.inf)  # which would wait for ever
    assert f", job 417, start {restarts + 1}\n" in (tmp_path / ".lock").read_text()
    # A third one, which waited for the first one's file, is not let in when that is freed.
    first.close()
    in_job(monkeypatch, "418", 0)
    with pytest.raises(HeldError, match=rf"process \d+ on \S+, job 417, start {restarts + 1}$"):
        hold(tmp_path / ".lock", wait_seconds=0.1)
    second.close()
    hold(tmp_path / ".lock", wait_seconds=0).close()


@pytest.mark.parametrize(
    ("job", "restarts"),
    [
        ("417", 1),  # the same start: another process of it
        ("417", 0),
        ("41", 2),
        ("4170", 2),
        (None, 0),
    ],
)
def test_another_jobs_lock_is_left_alone(tmp_path, monkeypatch, job, restarts):
    in_job(monkeypatch, "417", 1)
    file = hold(tmp_path / ".lock", wait_seconds=0)
    if job is None:
        monkeypatch.delenv("SLURM_JOB_ID")
    else:
        in_job(monkeypatch, job, restarts)
    with pytest.raises(HeldError, match="job 417, start 2$"):
        hold(tmp_path / ".lock", wait_seconds=0.1)
    assert holder(tmp_path / ".lock").endswith("job 417, start 2")
    file.close()
    assert holder(tmp_path / ".lock") is None


def test_a_wait_for_another_run_is_told_once(tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr("video_gn.files._SILENT_SECONDS", 0.1)
    with hold(tmp_path / ".lock"):
        for seconds in (0, 0.05, 0.3):
            with pytest.raises(HeldError):
                hold(tmp_path / ".lock", wait_seconds=seconds)
    assert len(caplog.messages) == 1
    assert re.search(rf"\.lock is in use by another run \(process {os.getpid()} on \S+\): waiting 0\.3 s", caplog.text)
