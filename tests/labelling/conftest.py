"""Labels are made in the tests' own process, whose memory others measure."""

import pytest


@pytest.fixture(autouse=True)
def memory_as_it_is(monkeypatch):
    monkeypatch.setenv("VIDEO_GN_KEEP_MEMORY", "0")
