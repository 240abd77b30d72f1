import json

import pytest

from video_gn.__main__ import main
from video_gn.bench.test import EvalSetup, bench_test, format_page
from video_gn.errors import ConfigError, DecodeError

TINY = {"num_videos": 3, "num_clips": 1, "frames": 8, "size": 32, "width": 4, "num_processes": 2}


@pytest.mark.slow
def test_the_page_and_the_figures(tiny_videos):
    videos = [str(path) for path in sorted(tiny_videos.rglob("*.mp4"))[:2]]
    found = bench_test(EvalSetup(**TINY), videos=videos, rounds=1)
    page = format_page(found)
    assert json.loads(json.dumps(found)) == found
    assert found["same_results"] and found["target"] == 0.6
    one, two = (found["contenders"][name]["median_ms"] for name in ("1 process", "2 processes"))
    assert found["ratio"] == two / one
    assert f"time of several / of one: {found['ratio']:.2f}, target at most 0.6" in page
    assert "results are the same to the last bit" in page
    assert "missed" in format_page(found | {"ratio": 0.61}) and "met" in format_page(found | {"ratio": 0.6})
    assert "at most" not in format_page(found | {"target": None})
    assert "DIFFER" in format_page(found | {"same_results": False})


def test_numbers_that_are_too_small(capsys):
    with pytest.raises(ConfigError, match="num_processes must be at least 2, got 1"):
        bench_test(EvalSetup(**TINY | {"num_processes": 1}), videos=(), rounds=1)
    for option in ("--num_videos", "--rounds"):
        assert main(["bench", "test", f"{option}=0"]) == 2
        assert f"{option} must be at least 1, got 0" in capsys.readouterr().err


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(DecodeError, match=r"a\.mp4"):
        bench_test(EvalSetup(**TINY), videos=[str(tmp_path / "a.mp4")], rounds=1)


def test_the_options_of_the_command_line(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr("video_gn.bench.test.bench_test", lambda setup, **_: seen.append(setup))
    monkeypatch.setattr("video_gn.bench.test.format_page", lambda result: "page")
    assert main(["bench", "test", "--size=64", "--num_processes=3"]) == 0
    assert seen == [EvalSetup(num_videos=8, num_clips=10, frames=8, size=64, width=64, num_processes=3)]
    assert capsys.readouterr().out == "page"
