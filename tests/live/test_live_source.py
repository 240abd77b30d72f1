"""What is a live source, how it is called in messages, and what is said of one that is not there."""

from __future__ import annotations

import io
import os
import socket
import sys
from pathlib import Path

import pytest
from streams import events, watched

from video_gn.errors import ConfigError
from video_gn.live.source import masked, parse_source


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://camera/1", "rtsp://camera/1"),
        ("rtsp://admin:secret@camera:554/1", "rtsp://***@camera:554/1"),
        ("rtsp://admin:se/cr@et@camera/1", "rtsp://***@camera/1"),
        ("http://token@camera/a?mail=b", "http://***@camera/a?mail=b"),
        ("rtsp:/admin:secret@camera/1", "rtsp:/***@camera/1"),
        ("admin:secret@camera/1", "admin:***@camera/1"),
        ("udp://@239.0.0.1:1234", "udp://@239.0.0.1:1234"),
        ("/dev/video0", "/dev/video0"),
    ],
)
def test_passwords_are_masked(text, shown):
    assert masked(text) == shown


def test_kinds(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    kinds = {
        "-": "pipe",
        str(tmp_path / "pipe"): "pipe",
        "/dev/null": "camera",
        "rtsp://a/b": "url",
        "RTSPS://a/b": "url",
        "http://a/b": "url",
        "https://a/b": "url",
        "udp://@:1": "url",
        "tcp://a:1": "url",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO())
        sources = {text: parse_source(text) for text in kinds}
    assert {text: source.kind for text, source in sources.items()} == kinds
    assert {source.kind for source in sources.values() if not source.reconnects} == {"pipe"}


@pytest.mark.parametrize(
    "text", ["file:///etc/passwd", "concat:a|b", "pipe:0", "ftp://user:secret@host/a", "http:/a", "."]
)
def test_what_is_no_live_source(text):
    with pytest.raises(ConfigError, match=r"--live must be a camera \(/dev/video0\), rtsp://, .*, got '") as error:
        parse_source(text)
    assert "secret" not in str(error.value)


def test_a_file(tmp_path):
    (tmp_path / "a.mp4").touch()
    with pytest.raises(ConfigError, match=r"got the file '.*a\.mp4'\. Leave --live out to label a file"):
        parse_source(str(tmp_path / "a.mp4"))


def test_a_camera_that_is_not_there(monkeypatch):
    with pytest.raises(ConfigError, match="must name a source that is there, got 'subfile,,:a'"):
        parse_source("subfile,,:a")
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [Path("/dev/video2")])
    with pytest.raises(ConfigError, match=r"got '/dev/video99' \(No such .*\)\. Cameras here: /dev/video2\. Other"):
        parse_source("/dev/video99")


def test_standard_input_of_a_terminal(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)
    with pytest.raises(ConfigError, match="must have a stream on standard input, got a terminal"):
        parse_source("-")


def reason_of(address, caplog):
    status, entries = watched(address)
    assert status == 3 and events(entries) == ["ended"]
    assert "secret" not in caplog.text + str(entries)
    assert "***@" in caplog.text
    return entries[0]["reason"]


def test_a_refused_port(caplog):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # nobody listens there
        for scheme in ("tcp", "http", "rtsp"):
            reason = reason_of(f"{scheme}://admin:secret@127.0.0.1:{held.getsockname()[1]}/live", caplog)
            assert reason.startswith("cannot be opened (Connection refused). Check the address")


def test_an_unknown_host(caplog):
    reason = reason_of("rtsp://admin:secret@no-such-host.invalid/live", caplog)
    assert reason.startswith("its host 'no-such-host.invalid' is not known (")


def test_a_device_that_is_no_camera():
    status, entries = watched("/dev/null")
    assert status == 3
    assert (
        entries[0]["reason"]
        == "cannot be opened (Inappropriate ioctl for device). Is it a camera, free, and may this user read it?"
    )
