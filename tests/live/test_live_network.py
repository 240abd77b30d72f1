"""Streams over UDP, with and without losses, and over RTSP from a server of others."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import pytest
from streams import events, labels, stop_when, transport_stream, udp_sender, watched, windows, write_colours

pytestmark = pytest.mark.slow
STOPPED = 128 + 15
SERVER = Path(__file__).parents[1] / "helpers/gst_rtsp_server.py"


@pytest.mark.parametrize("loses", [False, True])
def test_udp(loses):
    data = transport_stream(("red", 60), ("green", 60), size=(128, 96), grain=100)
    packets = [data[at : at + 7 * 188] for at in range(0, len(data), 7 * 188)]
    kept = [packet for number, packet in enumerate(packets) if not loses or number % 10 != 5]
    with udp_sender(kept) as address:
        status, entries = watched(
            address, stop_when(lambda entries: set(labels(entries)) == {"red", "green"}), every_seconds=0.0
        )
    assert status == STOPPED
    assert events(entries)[0] == "connected" and "lost" not in events(entries)
    if loses:
        assert entries[-1]["frames_damaged"] > 0


@contextlib.contextmanager
def gst_rtsp_server(path, transport):
    server = subprocess.Popen(["/usr/bin/python3", SERVER, path, transport], stdout=subprocess.PIPE, text=True)
    try:
        yield f"rtsp://127.0.0.1:{int(server.stdout.readline())}/live"
    finally:
        server.kill()
        server.wait()


@pytest.mark.needs_gstreamer
@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_rtsp_of_gstreamer(tmp_path, transport):
    path = write_colours(tmp_path / "a.mkv", [("red", 60), ("green", 60)])
    with gst_rtsp_server(path, transport) as address:
        status, entries = watched(address, stop_when(lambda entries: labels(entries)[-1:] == ["green"]))
    assert status == STOPPED
    assert labels(entries)[0] == "red" and events(entries) == ["connected", "ended"]
    assert all(entry["end_seconds"] - entry["start_seconds"] == pytest.approx(0.8) for entry in windows(entries))
