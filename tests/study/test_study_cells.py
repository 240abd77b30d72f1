"""Running a study: what runs and what does not, with commands that only write what a run leaves."""

import errno
import fcntl
import functools
import signal
import subprocess
import sys
import time

import pytest
from fake_study import BASE, ORDER, Commands, write_study
from rich.console import Console

from video_gn.errors import ConfigError, RunError
from video_gn.study import CellDirectory, collect, list_cells, read_study, run_study
from video_gn.study.cells import CellRecord
from video_gn.study.running import run_child


@pytest.fixture
def write(tmp_path):
    return functools.partial(write_study, tmp_path)


def test_every_cell_is_fitted_and_tested_once(write, tmp_path, caplog):
    caplog.set_level("INFO")
    commands, path = Commands(), write()
    # "0/1" is all of the cells as one part, which draws no figures.
    assert run_study(path, out=tmp_path / "out", cell="0/1", runner=commands) == 0
    assert commands.calls == ORDER
    assert run_study(path, out=tmp_path / "out", cell="0/1", runner=commands) == 0
    assert commands.calls == ORDER, "nothing is run again"
    assert "cell 1 of 8 (gn_16x2_b8_s0): top-1 100.0 %, 0.0 min; 6 to do" in caplog.text
    log = (tmp_path / "out/cells/gn_16x2_b8_s0/log.txt").read_text()
    assert log.startswith(f"$ video-gn fit -c {tmp_path}/base.yaml --run_dir={tmp_path}/out/cells/gn_16x2_b8_s0 ")


def test_a_failing_cell_is_named_and_the_others_go_on(write, tmp_path, caplog):
    failing = {("fit", "gn_16x2_b8_s0"), ("test", "bn_16x2_b2_s1")}
    commands, path, out = Commands(fail=failing), write(), tmp_path / "out"
    assert run_study(path, out=out, runner=commands) == 1
    assert commands.calls == [call for call in ORDER if call != ("test", "gn_16x2_b8_s0")]
    assert "cell 1 of 8 (gn_16x2_b8_s0) failed: fit ended with exit status 2: video-gn: error: no videos" in caplog.text
    study = read_study(path)
    assert [CellDirectory(out, cell).state(study) for cell in study.cells].count("failed") == 2
    text = (out / "table.md").read_text()
    assert "Missing, 2 of 8 cells:" in text and "6 of 8 cells" in text
    assert "- 1, gn_16x2_b8_s0: failed: fit ended with exit status 2: video-gn: error: no videos" in text
    again = Commands()
    assert run_study(path, out=out, cell="0/1", runner=again) == 0
    assert again.calls == [("fit", "gn_16x2_b8_s0"), ("test", "gn_16x2_b8_s0"), ("test", "bn_16x2_b2_s1")]


def test_parts_of_a_study(write, tmp_path):
    commands, path, out = Commands(), write(), tmp_path / "out"
    assert run_study(path, out=out, cell="3", runner=commands) == 0
    assert commands.calls == ORDER[6:8]
    assert not (out / "study.csv").exists()
    assert run_study(path, out=out, cell="1/2", runner=commands) == 0
    assert len(commands.calls) == 8
    assert [result.cell.norm for result in collect(read_study(path), out).cells] == ["GN"] * 4


def test_the_quick_part_of_a_study(write, tmp_path, capsys):
    path, out, commands = write(batch_sizes=[8, 4, 2]), tmp_path / "out", Commands()
    assert run_study(path, out=out, quick=True, runner=commands) == 0
    assert commands.calls == ORDER[:8]
    text = (out / "table.md").read_text()
    assert "4 of 4 cells of --quick" in text and "Missing" not in text and "batch 4" not in text
    capsys.readouterr()
    run_study(path, out=out, quick=True, action="list")
    names = ["0  bn_16x2_b8_s0", "1  gn_16x2_b8_s0", "4  bn_16x2_b2_s0", "5  gn_16x2_b2_s0"]
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == [f"{name}  done" for name in names]
    with pytest.raises(ConfigError, match="--cell must be one of 0, 1, 4, 5 with --quick, got 2. --list numbers the"):
        run_study(path, out=out, quick=True, cell="2", runner=commands)
    assert run_study(path, out=out, cell="1/2", runner=Commands(), quick=True) == 0
    whole = write()
    assert run_study(whole, out=out, cell="0/1", runner=commands) == 0
    assert commands.calls == ORDER, "the whole study goes on from it"


def test_nothing_to_collect(write, tmp_path):
    with pytest.raises(RunError, match="no cell is finished yet .bn_16x2_b8_s0: not started.. Run the study first"):
        run_study(write(), out=tmp_path / "out", action="collect")


def test_a_cell_whose_settings_changed_is_an_error_before_anything_runs(write, tmp_path):
    out, commands = tmp_path / "out", Commands()
    assert run_study(write(), out=out, cell="5", runner=commands) == 0
    changed = write(settings={"trainer.max_epochs": 4})
    match = r"cell 5, gn_16x2_b8_s1, was started with other settings: trainer\.max_epochs: 3 -> 4\. Undo the change, .*"
    with pytest.raises(ConfigError, match=match + "or remove .*cells/gn_16x2_b8_s1 to run the cell again"):
        run_study(changed, out=out, runner=commands)
    with pytest.raises(ConfigError, match=r"data\.train: \"videos\" -> \"moved\""):
        run_study(write(BASE | {"data": BASE["data"] | {"train": "moved"}}), out=out, cell="5", runner=commands)
    assert len(commands.calls) == 2
    assert run_study(write(), out=out, words=["--data.loader.num_workers=3"], cell="5", runner=commands) == 0
    assert len(commands.calls) == 2, "what makes a run faster or slower may change"
    results = collect(read_study(write(settings={"trainer.max_epochs": 4})), out)
    assert {c.index: why for c, why in results.missing}[5] == (
        "started with other settings: trainer.max_epochs: 3 -> 4"
    )


def test_settings_may_be_mended_as_long_as_nothing_was_trained(write, tmp_path):
    path, out = write(), tmp_path / "out"
    failing = Commands(fail={("fit", "bn_16x2_b8_s0")})
    assert run_study(path, out=out, cell="0", words=["--data.train=wrong"], runner=failing) == 1
    assert run_study(path, out=out, cell="0", words=["--data.train=right"], runner=failing) == 1
    directory = CellDirectory(out, read_study(path).cells[0])
    (directory.path / "checkpoints").mkdir()
    (directory.path / "checkpoints/last.ckpt").touch()
    with pytest.raises(ConfigError, match=r"data\.train: \"right\" -> \"other\""):
        run_study(path, out=out, cell="0", words=["--data.train=other"], runner=Commands())


def test_collecting_takes_the_command_lines_settings_as_meant(write, tmp_path):
    out, commands, path = tmp_path / "out", Commands(), write()
    assert run_study(path, out=out, words=["--data.train", "there"], cell="0", runner=commands) == 0
    study = read_study(path)
    assert CellDirectory(out, study.cells[0]).state(study) == "done"
    with pytest.raises(ConfigError, match=r"data\.train: \"there\" -> \"videos\""):
        run_study(path, out=out, runner=commands)
    assert run_study(path, out=out, words=["--data.train=elsewhere"], cell="1", runner=commands) == 0
    assert collect(study, out).notes == [
        'bn_16x2_b8_s0 and gn_16x2_b8_s0 differ also in data.train: "there" -> "elsewhere".'
    ]


def test_a_cell_that_another_process_runs(write, tmp_path, capsys, caplog):
    path, out = write(), tmp_path / "out"
    study = read_study(path)
    directory = CellDirectory(out, study.cells[2])
    directory.path.mkdir(parents=True)
    with (directory.path / ".cell.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("process 7 on node3\n")
        file.flush()
        with pytest.raises(RunError, match=r"cell 2, bn_16x2_b2_s0, is being run by another process .process 7 on"):
            run_study(path, out=out, cell="2", runner=Commands())
        list_cells(study, out, Console(soft_wrap=True))
        assert "  2  bn_16x2_b2_s0  running\n" in capsys.readouterr().out
        commands = Commands()
        assert run_study(path, out=out, cell="0/1", runner=commands) == 0
        assert commands.calls == [call for call in ORDER if call[1] != "bn_16x2_b2_s0"]
        assert "is being run by another process" in caplog.text
    assert directory.state(study) == "open"


def test_a_training_that_outlives_its_study(write, tmp_path, monkeypatch, caplog):
    """As after a kill of the study alone: it may end within a while, and is no failure of the cell."""
    monkeypatch.setattr("video_gn.files.LEFT_OVER_SECONDS", 0.3)
    path, out, commands = write(), tmp_path / "out", Commands()
    directory = CellDirectory(out, read_study(path).cells[2])
    directory.path.mkdir(parents=True)
    with (directory.path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("process 8 on node3\n")
        file.flush()
        with pytest.raises(RunError, match=r"cell 2, bn_16x2_b2_s0, is being run by another process .process 8 on"):
            run_study(path, out=out, cell="2", runner=commands)
        assert run_study(path, out=out, cell="0/4", runner=commands) == 0
    assert run_study(path, out=out, cell="2", runner=commands) == 0
    assert [name for _, name in commands.calls[-2:]] == ["bn_16x2_b2_s0"] * 2


def test_a_directory_that_cannot_be_written(write, tmp_path, monkeypatch):
    def refuse(path, **_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("video_gn.files.hold", refuse)
    with pytest.raises(RunError, match=r"bn_16x2_b2_s0/\.cell\.lock could not be written: Permission denied"):
        run_study(write(), out=tmp_path / "out", cell="2", runner=Commands())


def test_directories_that_are_not_ours(write, tmp_path):
    path, out = write(), tmp_path / "out"
    directory = CellDirectory(out, read_study(path).cells[0])
    (directory.path / "checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"bn_16x2_b8_s0 holds a run without cell\.json: move it away"):
        run_study(path, out=out, runner=Commands())
    (directory.path / "cell.json").write_text("{")
    with pytest.raises(RunError, match=r"cell\.json cannot be read .* Move .*bn_16x2_b8_s0 away to run the cell again"):
        run_study(path, out=out, runner=Commands())


def test_minutes_are_those_of_all_attempts(write, tmp_path):
    path, out = write(), tmp_path / "out"

    def killed(words, log):
        time.sleep(0.3)
        log.write_text("epoch 1\n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(path, out=out, cell="0", runner=killed)
    directory = CellDirectory(out, read_study(path).cells[0])
    assert directory.state(read_study(path)) == "started"
    assert directory.read().sessions[0][1] is None
    assert run_study(path, out=out, cell="0", runner=Commands()) == 0
    (start, end), (second, _) = directory.read().sessions
    assert start + 0.3 <= end <= second
    assert directory.read().minutes >= 0.3 / 60


def test_an_attempt_that_left_no_file_ends_when_it_began(write, tmp_path):
    directory, record = CellDirectory(tmp_path, read_study(write()).cells[0]), CellRecord({}, sessions=[[10.0, None]])
    directory.begin(record)
    assert record.sessions[0] == [10.0, 10.0] and record.sessions[1][1] is None


def test_a_command_in_a_process_of_its_own(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("before\n")
    assert run_child(["--version"], log) == 0
    assert run_child(["nothing"], log) == 2
    told = log.read_text().splitlines()
    assert told[0] == "before" and told[1].startswith("video-gn ") and "no command 'nothing'" in told[2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_stopped_study_stops_its_child(tmp_path, number):
    """The signal comes to the study alone: the child gets SIGTERM, and the study waits for its end."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from video_gn.errors import StoppedError\n"
        "from video_gn.study import running\n"
        "child = 'import signal, sys, time; signal.signal(15, lambda *a: sys.exit(\"ended\"));'\n"
        "child += 'print(\"up\", flush=True); time.sleep(60)'\n"
        "real = running.subprocess.Popen\n"
        "running.subprocess.Popen = lambda words, **k: real([sys.executable, '-c', child], **k)\n"
        "try:\n"
        f"    running.run_child([], Path({str(tmp_path / 'log.txt')!r}))\n"
        "except StoppedError as error:\n"
        "    sys.exit(error.status)\n"
    )
    study = subprocess.Popen([sys.executable, "-c", code])
    log, deadline = tmp_path / "log.txt", time.monotonic() + 60
    while not (log.exists() and "up" in log.read_text()):
        assert study.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    study.send_signal(number)
    assert study.wait(30) == 128 + number
    assert log.read_text().split() == ["up", "ended"]
