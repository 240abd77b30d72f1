"""The measurement of what commands cost before they work."""

import json

import pytest

from video_gn.bench import start
from video_gn.errors import VideoGNError


@pytest.mark.slow
def test_the_page_and_the_figures():
    found = start.bench_start(rounds=1)
    assert json.loads(json.dumps(found)) == found
    medians = {name: figures["median_ms"] for name, figures in found["contenders"].items()}
    beyond = (medians["fit, to the first batch"] - medians["import lightning"]) / 1000
    assert found["fit_beyond_lightning_seconds"] == pytest.approx(beyond)
    page = start.format_page(found)
    assert all(f"  {name} " in page for name in medians)
    assert f"beyond `import lightning`: {beyond:.2f} s, target at most 1: " in page


def test_time_of_the_child_alone():
    sum(range(10_000_000))  # this process's own time does not count
    assert start._seconds("pass", 0) < start._seconds("sum(range(30_000_000))", 0)


def test_bad_input():
    with pytest.raises(VideoGNError, match=r"(?s)a command to be measured failed:.*no command 'nothing'"):
        start._run(start._COMMAND.format(words=["nothing"]))
