import json
import sys

import pytest
from runs import TINY, run

from video_gn.__main__ import main
from video_gn.bench import fit
from video_gn.bench.fit import _Replay, _steps, bench_fit, format_page
from video_gn.errors import ConfigError, RunError


@pytest.fixture
def forked(tmp_path, monkeypatch):
    """Training in a process that is forked after the imports; its words."""
    seen = []

    def call(command, **_):
        assert command[1:4] == ["-m", "video_gn", "fit"]
        seen.append(command[3:])
        status, printed = run(command[3:], tmp_path)
        sys.stdout.write(printed)
        return type("Done", (), {"returncode": status})

    monkeypatch.setattr(fit.subprocess, "run", call)
    return seen


@pytest.mark.slow
def test_the_page_and_the_figures(tiny_videos, tmp_path, monkeypatch, forked, capsys):
    settings = [*TINY, "--data.batch_size=2", "--model.optimizer.name=adamw", "--trainer.gradient_clip_val=1"]
    words = ["--steps=5", "--rounds=2", *settings, f"--data.train={tiny_videos}", f"--output={tmp_path}/figures.json"]
    assert main(["bench", "fit", *words]) == 0
    found = json.loads((tmp_path / "figures.json").read_text())
    printed = capsys.readouterr().out
    assert found["command"] == "fit" and found["settings"]["words"] == [*settings, f"--data.train={tiny_videos}"]
    assert found["clips"] == [2, 1, 8, 3, 32, 32] and found["net"]["width"] == 4
    assert found["machine"]["device"] == "cpu" and found["rounds"] == 2
    loop, bare = (found["contenders"][name]["median_ms"] for name in ("fit", "bare"))
    assert found["speed"] == bare / loop
    assert 0 < found["from_files"]["wait_ms"] < found["from_files"]["step_ms"]
    assert f"speed of fit / of the bare loop: {found['speed']:.3f}, target at least 0.98" in printed
    assert format_page(found) in printed
    assert not any(tmp_path.glob("runs"))  # the run's own directory is a temporary one


def test_what_cannot_be_measured(tiny_videos, forked):
    with pytest.raises(ConfigError, match="steps must be at least 4, got 3"):
        bench_fit([], steps=3, rounds=1)
    with pytest.raises(ConfigError, match="an epoch must have at least 4 batches, got 3"):
        _Replay([1, 2, 3], 20)
    with pytest.raises(RunError, match="the training must run to its end, got exit status 2"):
        bench_fit([*TINY, "--data.train=nowhere"], steps=4, rounds=1)


def test_seconds_of_steps():
    assert _steps([10.0, 11.0, 13.0, 16.0], 3) == [1.0, 2.0, 3.0]
    assert _steps([10.0, 16.0], 3) == [2.0]


def test_batches_come_from_memory_after_the_first_epoch():
    def loader():
        made.append(0)
        return iter("abcdef")

    made = []
    batches = type("Loader", (), {"__len__": lambda self: 6, "__iter__": lambda self: loader()})()
    replay = _Replay(batches, 4)
    assert len(replay) == 4
    assert [list(replay) for _ in range(3)] == [list("abcd")] * 3
    assert len(made) == 1 and len(replay.waits) == 4


def test_other_commands_take_no_settings_of_fit(capsys):
    assert main(["bench", "weights", "--data.train=videos"]) == 2
    assert "there is no option --data.train. See `video-gn bench weights --help`." in capsys.readouterr().err
