"""What the console script sets before torch is imported."""

import os

import pytest

from video_gn import __main__ as script
from video_gn import cli


@pytest.mark.parametrize(("command", "name", "wanted"), [
    ("fit", "THP_MEM_ALLOC_ENABLE", "1"),
    ("predict", "THP_MEM_ALLOC_ENABLE", "1"),
    ("infer", "THP_MEM_ALLOC_ENABLE", "1"),
    ("test", "OMP_WAIT_POLICY", "PASSIVE"),
])  # fmt: skip
def test_memory_and_threads_are_torchs_for_long_runs(monkeypatch, command, name, wanted):
    seen = []
    monkeypatch.setattr(cli, "run_lightning", lambda *_: seen.append(os.environ[name]) or 0)
    monkeypatch.setattr(cli, "run_infer", lambda *_: seen.append(os.environ[name]) or 0)
    words = [command, "v.mp4", "--checkpoint", "c.ckpt"] if command == "infer" else [command]
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k != name})
    assert script.main(words) == 0
    # Whoever runs it knows better.
    os.environ[name] = "0"
    assert script.main(words) == 0
    assert seen == [wanted, "0"]
