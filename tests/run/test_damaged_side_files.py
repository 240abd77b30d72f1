"""What lies beside a run's checkpoints may be damaged: it is set aside and said so, and no resume ends."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from runs import TINY, run

from video_gn.damage import read_settings
from video_gn.errors import ConfigError, RefusedError, UnwritableError
from video_gn.files import hold
from video_gn.run.broken_videos import BrokenVideos
from video_gn.run.directory import RunDirectory
from video_gn.run.metrics_csv import MetricsCSV
from video_gn.run.metrics_file import read_metrics, whole_metrics

ROWS = "step,epoch,lr,train/loss,val/loss,val/top1,val/top5,clips\n1,0,0.1,3,,,,4\n2,0,0.1,2,,,,8\n"


def start_training(path, step):
    trainer = SimpleNamespace(is_global_zero=True, global_step=step, callbacks=[], loggers=[])
    MetricsCSV(path).on_train_start(trainer, None)


@pytest.mark.parametrize(
    ("content", "kept", "message"),
    [
        (b"", 0, "line 1: it must name step, epoch and other columns, once each"),
        (bytes(200), 0, "line 1"),
        (ROWS.encode() + bytes(50) + b"\n", 2, "line 4: a row must have 8 fields, got 1"),
        (ROWS.encode() + b"3,0,x,,,,,\n4,0,0.1,,,,,\n", 2, "line 4: could not convert string to float: 'x'"),
        (ROWS.encode() + b"1e400,0,0.1,,,,,\n", 2, "line 4: step must be a whole number, got inf"),
        (ROWS.encode() + b"1" * 400 + b",0,0.1,,,,,\n", 2, "line 4: step must be a whole number, got inf"),
        (ROWS.encode() + b"3,,0.1,,,,,\n", 2, "line 4: epoch must be a whole number, got nan"),
        (ROWS.encode() + b'"' + b"x" * 200_000 + b'",0,0.1,,,,,\n', 2, "line 4: field larger than field limit"),
        (ROWS.replace("step", "stop").encode(), 0, "line 1: it must name step, epoch and other columns"),
        (ROWS.encode().replace(b"0.1,2", b"\xff\xfe,2"), 1, "line 3: could not convert string to float"),
    ],
)
def test_rows_before_the_damage_of_a_metrics_csv_are_kept(tmp_path, caplog, content, kept, message):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    rows, problem = whole_metrics(path)
    assert len(rows) == kept and problem.startswith(message)
    with pytest.raises(ValueError, match=message.split(":")[0]):
        read_metrics(path)
    start_training(path, 5)
    assert (tmp_path / "metrics.csv.damaged").read_bytes() == content
    assert read_metrics(path) == rows
    assert len(caplog.messages) == 1 and "metrics.csv.damaged" in caplog.text
    assert f"up to step {kept}" in caplog.text or not kept
    path.write_bytes(content)
    start_training(path, 1)  # rows after the checkpoint's step are dropped as ever
    assert [row["step"] for row in read_metrics(path)] == [1][:kept]
    assert (tmp_path / "metrics.csv.damaged-2").read_bytes() == content


def test_no_checkpoint_is_saved_where_the_run_directory_was_removed(tmp_path):
    """Another run may have taken the place, and this one holds no lock there."""
    trainer = SimpleNamespace(is_global_zero=True, global_step=0, callbacks=[], loggers=[])
    metrics = MetricsCSV(tmp_path / "run/metrics.csv")
    metrics.on_save_checkpoint(trainer, None, {})  # not yet begun: nothing to lose
    metrics.on_train_start(trainer, None)
    metrics.on_save_checkpoint(trainer, None, {})
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(UnwritableError, match=r"run/metrics\.csv could not be written: .*If it was removed meanwhile"):
        metrics.on_save_checkpoint(trainer, None, {})


def test_a_torn_last_line_of_a_metrics_csv_is_no_damage(tmp_path, caplog):
    for size in range(len(ROWS.splitlines()[0]) + 1, len(ROWS)):
        (tmp_path / "metrics.csv").write_text(ROWS[:size])
        start_training(tmp_path / "metrics.csv", 5)
        assert len(read_metrics(tmp_path / "metrics.csv")) == ROWS[:size].count("\n") - 1
    assert not caplog.messages and os.listdir(tmp_path) == ["metrics.csv"]


def put_in_place(path, kind):
    """What is no file, in a file's place; a pipe without a writer would have its reader wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "directory":
        (path / "inside").mkdir(parents=True)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"loop": path.name, "nowhere": "/nowhere/at/all"}[kind])


@pytest.mark.parametrize("kind", ["directory", "pipe", "loop", "nowhere"])
def test_what_is_no_file_is_set_aside(tmp_path, kind):
    names = ("config.yaml", "metrics.csv", "failures.csv", "weights.json", "report.html", ".lock", "test/.lock")
    tests = ("test/config.yaml", "test/metrics.json", "test/predictions.csv", "test/scores.npz")
    for name in (*names, *tests, "previous/.displaced"):
        put_in_place(tmp_path / name, kind)
    put_in_place(tmp_path / "tensorboard", "nowhere" if kind == "directory" else kind)
    put_in_place(tmp_path / "test/unfinished", "nowhere" if kind == "directory" else kind)
    run_directory = RunDirectory(tmp_path)
    run_directory.settle_after_kill()
    run_directory.lock(".lock")
    for stage in ("fit", "test"):
        run_directory.set_strange_files_aside(stage)
    RunDirectory(tmp_path).lock("test/.lock")
    for name in (*names, *tests, "tensorboard", "test/unfinished", "previous/.displaced"):
        assert os.path.lexists(tmp_path / f"{name}.damaged"), name
        assert (tmp_path / name).is_file() == name.endswith(".lock"), name


def test_a_lock_that_is_a_link_empties_no_file(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").symlink_to(tmp_path / "mine.txt")
    RunDirectory(tmp_path / "run").lock(".lock")
    (tmp_path / "link").symlink_to(tmp_path / "mine.txt")
    with pytest.raises(OSError, match="symbolic"):
        hold(tmp_path / "link")
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("content", [b"", b"moved", b"moved ..\n", b"moving 001/../..\n", b"\xff\xfe 001\n", bytes(9)])
def test_a_damaged_mark_of_a_displaced_run_moves_nothing(tmp_path, caplog, content):
    for name in ("config.yaml", "previous/001/config.yaml", "previous/.displaced", "previous/01x/a"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    RunDirectory(tmp_path).settle_after_kill()
    found = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert found == [
        ".lock",
        "config.yaml",
        "previous/.displaced.damaged",
        "previous/001/config.yaml",
        "previous/01x/a",
    ]
    assert "Whether one of the earlier runs" in caplog.text
    assert RunDirectory(tmp_path).set_aside() == tmp_path / "previous/002"
    RunDirectory(tmp_path).settle()
    assert (tmp_path / "config.yaml").read_bytes() == content


BOMBS = [
    b"",
    b"a: [1,",
    b"- 1",
    b"\xff\xfe",
    bytes(100),
    b"a: " + b"[" * 100_000,
    b"a0: &a0 [x]\n" + b"".join(b"a%d: &a%d [%s]\n" % (i, i, b",".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 40)),
    b"a0: &a0 {x: 1}\n"
    + b"".join(b"a%d: &a%d {<<: [%s]}\n" % (i, i, b",".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 40)),
    b"a: &a [*a]",
    b"a: " + b"1" * 5000,
    b"a: !!python/object/apply:os.system [id]",
    b"a: 2026-99-99",
    b"x: 1\n" * 400_000,
]


@pytest.mark.parametrize("content", BOMBS, ids=range(len(BOMBS)))
def test_a_damaged_config_is_passed_over_or_named(tmp_path, caplog, content):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ValueError, match="it is not yaml|it must hold settings|it has 2,000,000 bytes"):
        read_settings(tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match=r"config.yaml is damaged \(it .* Give the config .*: -c CONFIG\.") as caught:
        RunDirectory(tmp_path).settings()
    assert len(str(caught.value)) < 600
    (tmp_path / "config.resume-001.yaml").write_text("a: 1")
    assert RunDirectory(tmp_path).settings() == tmp_path / "config.resume-001.yaml"
    (tmp_path / "config.resume-002.yaml").write_bytes(content)
    assert RunDirectory(tmp_path).settings() == tmp_path / "config.resume-001.yaml"
    assert "config.resume-002.yaml is damaged" in caplog.text


def test_a_config_that_is_a_link_to_elsewhere_is_not_read(tmp_path):
    (tmp_path / "secret.yaml").write_text("password: 1")
    (tmp_path / "run").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "run")  # a run on another disk is ordinary
    (tmp_path / "run/config.yaml").write_text("a: 1")
    assert RunDirectory(tmp_path / "linked").settings() == tmp_path / "linked/config.yaml"
    (tmp_path / "run/config.yaml").unlink()
    (tmp_path / "run/config.yaml").symlink_to("../secret.yaml")
    with pytest.raises(ConfigError, match=r"is a link that leads out of .*/run, which is not followed\)"):
        RunDirectory(tmp_path / "run").settings()


def test_a_damaged_list_of_failures_keeps_its_rows(tmp_path, caplog):
    table = tmp_path / "failures.csv"
    videos = BrokenVideos(0.5, ["a", "-b", "=c", "d\udcff"], table=table)
    videos.broken = {"-b": "-1 frames", "=c": "=1+1", "d\udcff": "x\ny"}
    videos._write()
    assert "\n'-b" in table.read_text(errors="surrogateescape")
    videos.broken = {"a": "new"}
    videos._write()
    assert not caplog.messages
    whole = table.read_bytes()
    for cut in (b"", bytes(30), b'"', b"more\n"):
        table.write_bytes(whole[:40] + cut if cut != b"more\n" else whole + cut)
        videos._write()
        assert b"a,new" in table.read_bytes()
    assert "failures.csv.damaged" in caplog.text


def test_a_resume_whose_side_files_are_all_damaged(tiny_videos, tmp_path):
    words = ["fit", *TINY, f"--data.train={tiny_videos}", "--data.split.val_fraction=0.4", "--run_dir=run"]
    status, printed = run([*words, "--trainer.max_epochs=1"], tmp_path)
    assert status == 0, printed
    here = tmp_path / "run"
    rows = read_metrics(here / "metrics.csv")
    for name in ("config.yaml", "config.resume-001.yaml", ".lock", "previous/.displaced", "failures.csv"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_bytes(b"\0\x1b[2J\xff")
    with (here / "metrics.csv").open("ab") as file:
        file.write(bytes(512) + b"\n")
    put_in_place(here / "weights.json", "directory")
    status, printed = run(["fit", "--run_dir=run", "--ckpt_path=last"], tmp_path)
    assert status == 2 and "is damaged (it is not yaml" in printed and "-c CONFIG." in printed, printed
    status, printed = run([*words, "--trainer.max_epochs=2", "--ckpt_path=last"], tmp_path)
    assert status == 0 and "Traceback" not in printed, printed
    assert read_metrics(here / "metrics.csv")[: len(rows)] == rows
    assert len(read_metrics(here / "metrics.csv")) > len(rows)
    damaged = ("config.yaml", "config.resume-001.yaml", "metrics.csv", "weights.json", "previous/.displaced")
    assert all((here / f"{name}.damaged").exists() for name in damaged)
    assert "config.yaml is damaged" in printed and "metrics.csv is damaged (line " in printed
    # The resume has stored its own settings: they are the run's from now on.
    status, printed = run(["test", "--run_dir=run"], tmp_path)
    assert status == 0, printed
    for config in here.glob("config*.yaml"):
        config.write_bytes(b"")
    status, printed = run(["test", "--run_dir=run"], tmp_path)
    assert status == 2, printed
    assert "config.resume-001.yaml is damaged (it must hold settings" in printed or "is damaged" in printed
    assert "Traceback" not in printed and "Give the config that it was trained with: -c CONFIG." in printed
    with pytest.raises(RefusedError, match="cannot be written"):
        RunDirectory(Path("/proc/self/run")).lock(".lock")
