"""`video-gn infer --live`: options, standard input, signals, and the lines of its output."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading

import pytest
from runs import start
from streams import events, labels, sends, tcp_server, transport_stream, windows, write_colour_checkpoint

from video_gn.__main__ import main


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("live") / "colours.ckpt"
    write_colour_checkpoint(path)
    return path


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["a.mp4"], "--live must stand alone, got PATH too"),
        (["--list", "a.txt"], "--live must stand alone, got --list too"),
        (["--merge", "a.jsonl"], "--live must stand alone, got --merge too"),
        (["--num_clips", "2"], "--live must stand alone, got --num_clips too"),
        (["--output", "a.json"], "--output must end in .jsonl with --live, got 'a.json'"),
        (["--overwrite", "--output", "a.jsonl"], "--live must stand alone, got --overwrite too"),
        (["--render", "a.mp4"], "--live must stand alone, got --render too"),
        (["--backend", "decord"], "--backend must be pyav with --live, got 'decord'"),
        (["--unsure", "0"], "--live must stand alone, got --unsure too"),
        (["--every", "-1"], "--every must be at least 0 with --live, got -1.0"),
    ],
)
def test_options_that_do_not_go_together(more, message, capsys):
    assert main(["infer", "--live", "tcp://127.0.0.1:1", "--checkpoint", "x", *more]) == 2
    assert message in capsys.readouterr().err


def test_labels_of_files_stay_as_they_are(tmp_path, capsys):
    (tmp_path / "a.jsonl.meta.json").touch()
    assert main(["infer", "--live", "tcp://127.0.0.1:1", "--output", str(tmp_path / "a.jsonl")]) == 2
    assert "--output must not hold labels of files, got " in capsys.readouterr().err


def test_no_checkpoint(capsys):
    assert main(["infer", "--live", "tcp://127.0.0.1:1"]) == 2
    assert "--checkpoint must be given" in capsys.readouterr().err


def test_a_source_is_looked_at_before_the_checkpoint(capsys):
    assert main(["infer", "--live", "/dev/video99", "--checkpoint", "x"]) == 2
    assert "/dev/video99" in capsys.readouterr().err


@contextlib.contextmanager
def standard_input(path):
    before = os.dup(0)
    try:
        with path.open("rb") as file:
            os.dup2(file.fileno(), 0)
        yield
    finally:
        os.dup2(before, 0)
        os.close(before)


def test_standard_input(checkpoint, tmp_path, capsys):
    (tmp_path / "a.ts").write_bytes(transport_stream(("blue", 40)))
    output = tmp_path / "out.jsonl"
    output.write_text('{"event": "ended"}\n{"event": "con')  # of a run that was killed
    with standard_input(tmp_path / "a.ts"):
        command = ["infer", "--live", "-", "--checkpoint", str(checkpoint), "--output", str(output), "--top_k=1"]
        command += ["--every=0"]
        assert main(command) == 0
    printed = capsys.readouterr()
    entries = [json.loads(line) for line in printed.out.splitlines()]
    assert set(labels(entries)) == {"blue"} and events(entries) == ["connected", "ended"]
    assert all(len(entry["top"]) == 1 for entry in windows(entries))
    assert output.read_text() == '{"event": "ended"}\n' + printed.out
    assert "standard input: the source ended; " in printed.err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_what_it_had(checkpoint, tmp_path, number):
    holds = threading.Event()
    output = tmp_path / "out.jsonl"
    with tcp_server(sends(transport_stream(("red", 40)), then=holds)) as address:
        command = ["infer", "--live", address, "--checkpoint", checkpoint, "--output", output]
        process = start(command, tmp_path, tmp_path / "log.txt")
        while not output.is_file() or '"top"' not in output.read_text():
            assert process.exitcode is None, (tmp_path / "log.txt").read_text()
            process.join(0.05)
        os.kill(process.pid, number)
        process.join(60)
        holds.set()
    assert process.exitcode == 128 + number
    entries = [json.loads(line) for line in output.read_text().splitlines()]
    assert labels(entries) and set(labels(entries)) == {"red"}
    assert entries[-1]["reason"] == f"stopped by {number.name}"
    printed = (tmp_path / "log.txt").read_text()
    assert f"{address}: stopped by {number.name}; " in printed and "Traceback" not in printed
