"""What the console script sets before torch is imported."""

import os

from video_gn import __main__ as script
from video_gn.commands import fit


def test_threads_that_wait_sleep(monkeypatch):
    name, seen = "OMP_WAIT_POLICY", []
    monkeypatch.setattr(fit, "main", lambda *_: seen.append(os.environ[name]) or 0)
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k != name})
    assert script.main(["fit"]) == 0
    # Whoever sets it knows better.
    os.environ[name] = "ACTIVE"
    assert script.main(["test"]) == 0
    assert seen == ["PASSIVE", "ACTIVE"]
