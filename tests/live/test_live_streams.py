"""Real streams of known colours on the loopback: pipes, TCP, HTTP, HLS, RTSP; what ends, stalls, breaks, changes."""

from __future__ import annotations

import io
import os
import threading
from itertools import count, pairwise
from types import SimpleNamespace

import pytest
from streams import (
    colour_predictor,
    events,
    http_server,
    labels,
    rtsp_server,
    sends,
    stop_when,
    tcp_server,
    transport_stream,
    watched,
    windows,
    write_colours,
)

from video_gn.live import reading

STOPPED = 128 + 15


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(reading, "FIRST_DELAY_SECONDS", 0.01)
    monkeypatch.setenv("VIDEO_GN_DECODE_TIMEOUT_SECONDS", "20")


@pytest.fixture
def fifo(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def write_into(path, *parts, between=()):
    """A thread that writes parts into a pipe, waiting for an event before each but the first."""

    def work():
        with path.open("wb", buffering=0) as pipe:
            for number, part in enumerate(parts):
                if number:
                    between[number - 1].wait(60)
                pipe.write(part)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def until(label):
    return stop_when(lambda entries: "top" in entries[-1] and labels(entries)[-1] == label)


def test_a_pipe_window_by_window(fifo, tmp_path):
    # Each colour is written once the one before was labelled, as a camera sends while the network computes. FFmpeg
    # looks at 20 frames before it gives the first.
    colours = ("red", "green", "blue")
    parts = [transport_stream((colour, 40), start=40 * n) for n, colour in enumerate(colours)]
    was_labelled = threading.Event(), threading.Event()
    write_into(fifo, *parts, between=was_labelled)

    def on_entry(entries):
        for colour, event in zip(("red", "green"), was_labelled, strict=True):
            if colour in labels(entries):
                event.set()

    status, entries = watched(fifo, on_entry, output=tmp_path / "out.jsonl")
    assert status == 0
    assert set(labels(entries)) == set(colours)
    assert events(entries) == ["connected", "ended"]
    for entry in windows(entries):
        assert entry["end_seconds"] - entry["start_seconds"] == pytest.approx(0.8)
        assert entry["time_seconds"] == pytest.approx(entry["start_seconds"] + 0.4)
        assert entry["latency_seconds"] >= 0 and entry["received_at"].endswith("+00:00")
        first, last = int(entry["start_seconds"] / 2), int((entry["end_seconds"] - 0.01) / 2)
        assert first != last or entry["top"][0]["label"] == colours[first]
    starts = [entry["start_seconds"] for entry in windows(entries)][:-1]  # the end is a window whatever its distance
    assert all(b - a >= 0.79 for a, b in pairwise(starts))
    assert entries[-1]["reason"] == "the source ended"
    assert entries[-1]["frames_read"] == 120 and entries[-1]["windows"] == len(windows(entries))
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert len(lines) == len(entries)


@pytest.mark.parametrize(
    ("container", "options"),
    [
        ("matroska", {}),
        ("flv", {}),
        ("mp4", {"movflags": "+frag_keyframe+empty_moov"}),
        ("mpegts", {"codec": "mpeg2video", "fps": 25}),
        ("avi", {}),
    ],
)
def test_what_can_be_piped(fifo, container, options):
    write_into(fifo, write_colours(io.BytesIO(), [("green", 40)], container_format=container, **options).getvalue())
    status, entries = watched(fifo)
    assert status == 0 and set(labels(entries)) == {"green"}
    assert entries[-1]["frames_read"] == 40


@pytest.mark.parametrize("container", ["mpjpeg", "h264"])
def test_a_stream_without_times_has_this_machines_clock(fifo, container, monkeypatch):
    ticks = count()
    monkeypatch.setattr(reading, "time", SimpleNamespace(monotonic=lambda: next(ticks) / 10))
    video = write_colours(
        io.BytesIO(), [("green", 16)], container_format=container, codec="mjpeg" if container == "mpjpeg" else "libx264"
    )
    write_into(fifo, video.getvalue())
    status, entries = watched(fifo)
    assert status == 0 and set(labels(entries)) == {"green"}
    # A packet each tenth of a second, instead of each twentieth.
    assert windows(entries)[-1]["end_seconds"] - windows(entries)[-1]["start_seconds"] == pytest.approx(1.6)


def test_an_mp4_with_its_index_at_the_end(fifo, tmp_path, caplog):
    video = write_colours(tmp_path / "a.mp4", [("red", 20)]).read_bytes()
    index = video.index(b"moov") - 4
    free = (100_000).to_bytes(4) + b"free" + bytes(99_992)  # FFmpeg can go back by what its buffer holds
    write_into(fifo, video[:index] + free + video[index:])
    status, entries = watched(fifo)
    assert status == 3
    assert "An mp4 needs its index in front" in entries[-1]["reason"]
    assert "An mp4 needs its index in front" in caplog.text


def test_a_pipe_that_is_too_short(fifo):
    write_into(fifo, transport_stream(("red", 12)))
    status, entries = watched(fifo)
    assert status == 3
    assert entries[-1]["reason"] == "the source ended before a window was full"


def test_a_pipe_that_nobody_writes_into(fifo, monkeypatch):
    monkeypatch.setenv("VIDEO_GN_DECODE_TIMEOUT_SECONDS", "0.1")
    status, entries = watched(fifo)
    assert status == 3
    assert entries[-1]["reason"].startswith("sent nothing for 0.1 seconds. Is it sending?")


@pytest.mark.slow
def test_a_pipe_that_pauses_goes_on(fifo, monkeypatch):
    monkeypatch.setenv("VIDEO_GN_DECODE_TIMEOUT_SECONDS", "1")
    data = transport_stream(("red", 40), ("green", 40))
    goes_on = threading.Event()
    write_into(fifo, data[: len(data) // 2], data[len(data) // 2 :], between=[goes_on])

    def on_entry(entries):
        if "stalled" in events(entries):
            goes_on.set()

    status, entries = watched(fifo, on_entry)
    assert status == 0
    assert events(entries) == ["connected", "stalled", "ended"]
    assert labels(entries)[-1] == "green"


def test_tcp_that_ends_is_connected_again():
    holds, was_labelled = threading.Event(), threading.Event()
    data = [transport_stream((colour, 40)) for colour in ("red", "green")]

    def second(connection):
        was_labelled.wait(60)  # a new connection drops what waits for a window
        sends(data[1], then=holds)(connection)

    def on_entry(entries):
        until("green")(entries)
        if "red" in labels(entries):
            was_labelled.set()

    with tcp_server(sends(data[0]), second) as address:
        status, entries = watched(address, on_entry, every_seconds=0.0)
    holds.set()
    assert status == STOPPED
    assert events(entries) == ["connected", "lost", "reconnected", "ended"]
    lost = next(entry for entry in entries if entry.get("event") == "lost")
    assert lost["reason"] == "the source ended" and lost["retry_seconds"] == 0.01
    assert set(labels(entries)) == {"red", "green"}
    assert entries[-1]["reason"] == "stopped by SIGTERM"


def test_delays_grow_until_frames_come(monkeypatch):
    monkeypatch.setattr(reading, "MAX_DELAY_SECONDS", 0.03)
    data = transport_stream(("red", 20))
    nothing = sends(b"")
    with tcp_server(sends(data), nothing, nothing, nothing, sends(data), nothing) as address:
        status, entries = watched(address, stop_when(lambda entries: events(entries).count("lost") == 6))
    assert status == STOPPED
    delays = [entry["retry_seconds"] for entry in entries if entry.get("event") == "lost"]
    assert delays == [0.01, 0.02, 0.03, 0.03, 0.01, 0.02]


@pytest.mark.slow
def test_an_rtsp_stream_that_stalls(monkeypatch):
    monkeypatch.setenv("VIDEO_GN_DECODE_TIMEOUT_SECONDS", "1")
    holds = threading.Event()
    with rtsp_server(transport_stream(("red", 40)), then=holds) as address:
        _, entries = watched(address, stop_when(lambda entries: len(events(entries)) == 3))
    holds.set()
    assert events(entries) == ["connected", "stalled", "reconnected", "ended"]


@pytest.mark.slow
def test_a_stall_is_told_and_connected_again(monkeypatch):
    monkeypatch.setenv("VIDEO_GN_DECODE_TIMEOUT_SECONDS", "1")
    holds = threading.Event()
    data = [transport_stream((colour, 40)) for colour in ("red", "green")]
    with tcp_server(sends(data[0], then=holds), sends(data[1], then=holds)) as address:
        status, entries = watched(address, until("green"), every_seconds=0.0)
    holds.set()
    assert status == STOPPED
    assert events(entries) == ["connected", "stalled", "reconnected", "ended"]


def test_a_source_that_never_sends(monkeypatch):
    monkeypatch.setenv("VIDEO_GN_DECODE_TIMEOUT_SECONDS", "0.2")
    holds = threading.Event()
    with tcp_server(sends(b"", then=holds)) as address:
        for source in (address, address.replace("tcp", "rtsp"), address.replace("tcp", "http"), "udp://127.0.0.1:0"):
            status, entries = watched(source)
            assert status == 3
            assert entries[-1]["reason"].startswith("sent nothing for 0.2 seconds. Is it sending?")
    holds.set()


def test_http():
    with http_server({"/live.ts": ("video/mp2t", transport_stream(("green", 20)))}) as address:
        status, entries = watched(f"{address}/live.ts", until("green"))
        assert status == STOPPED and labels(entries) == ["green"]
        status, entries = watched(f"{address}/other.ts")
    assert status == 3
    assert "404 Not Found" in entries[-1]["reason"]


def test_a_cameras_mjpeg_by_http():
    pictures = write_colours(io.BytesIO(), [("blue", 60)], container_format="mpjpeg", codec="mjpeg").getvalue()
    with http_server({"/video": ("multipart/x-mixed-replace;boundary=ffmpeg", pictures)}) as address:
        status, entries = watched(f"{address}/video", stop_when(lambda entries: "lost" in events(entries)))
    assert status == STOPPED
    assert entries[0]["container"] == "mpjpeg" and entries[-1]["frames_read"] == 60


def playlist(*names):
    segments = "".join(f"#EXTINF:1,\n{name}\n" for name in names)
    return ("application/x-mpegURL", f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n{segments}#EXT-X-ENDLIST\n".encode())


def test_hls():
    files = {"/live.m3u8": playlist("a.ts"), "/a.ts": ("video/mp2t", transport_stream(("blue", 20)))}
    with http_server(files) as address:
        status, entries = watched(f"{address}/live.m3u8", until("blue"))
    assert status == STOPPED and labels(entries) == ["blue"]


@pytest.mark.parametrize("prefix", ["file://", "file:", "", "subfile,,start,0,end,0,,:", "concat:", "pipe:", "fd:"])
def test_a_playlist_reads_no_local_file(tmp_path, prefix):
    secret = tmp_path / "secret.ts"
    secret.write_bytes(transport_stream(("red", 40)))
    with http_server({"/live.m3u8": playlist(f"{prefix}{secret}")}) as address:
        status, entries = watched(f"{address}/live.m3u8", stop_when(windows))
    assert status == 3 and not windows(entries)


@pytest.mark.parametrize("content", [b"ffconcat version 1.0\nfile secret.ts\n", b"v=0\r\nm=video 0 RTP/AVP 33\r\n"])
def test_a_list_from_the_network_is_refused(fifo, content):
    with http_server({"/live": ("text/plain", content)}) as address:
        status, entries = watched(f"{address}/live")
    assert status == 3 and not windows(entries)


def test_a_playlist_in_a_pipe_is_refused(fifo, tmp_path):
    (tmp_path / "secret.ts").write_bytes(transport_stream(("red", 40)))
    write_into(fifo, playlist(str(tmp_path / "secret.ts"))[1])
    status, entries = watched(fifo)
    assert status == 3 and not windows(entries)


def test_rtsp():
    with rtsp_server(transport_stream(("red", 30), ("green", 30))) as address:
        status, entries = watched(address, until("green"))
    assert status == STOPPED and labels(entries)[-1] == "green"
    assert entries[0]["container"] == "rtsp"


def test_a_size_that_changes(fifo):
    parts = [
        transport_stream(("red", 20)),
        transport_stream(("green", 20), start=20, size=(40, 64)),
        transport_stream(("blue", 20), start=40, size=(96, 64)),
    ]
    write_into(fifo, b"".join(parts))
    status, entries = watched(fifo)
    assert status == 0
    assert events(entries) == ["connected", "size_changed", "size_changed", "ended"]
    changed = [(entry["width"], entry["height"]) for entry in entries if entry.get("event") == "size_changed"]
    assert changed == [(40, 64), (96, 64)]
    assert entries[-1]["frames_read"] == 60 and labels(entries)[-1] == "blue"


def test_lost_packets_are_counted(fifo):
    data = transport_stream(("red", 60), gop=30, size=(128, 96), grain=100)
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    kept = [packet for number, packet in enumerate(packets) if number < 10 or number % 4]
    write_into(fifo, b"".join(kept))
    status, entries = watched(fifo)
    assert status == 0
    assert entries[-1]["frames_damaged"] > 0
    assert set(labels(entries)) == {"red"}


def test_frames_that_come_too_fast_are_counted(fifo, monkeypatch):
    data = transport_stream(("red", 400))
    was_labelled, is_read = threading.Event(), threading.Event()
    write_into(fifo, data[: len(data) // 10], data[len(data) // 10 :], between=[was_labelled])
    finish = reading.Newest.finish

    def finished(self, error=None):
        finish(self, error)
        is_read.set()

    monkeypatch.setattr(reading.Newest, "finish", finished)

    def on_entry(entries):
        if windows(entries):
            was_labelled.set()
            is_read.wait(60)

    status, entries = watched(fifo, on_entry)
    assert status == 0 and len(windows(entries)) == 2
    first, last = windows(entries)
    assert (last["frames_read"], last["end_seconds"]) == (400, 20.0)
    unseen = round((last["start_seconds"] - first["end_seconds"]) * 20)
    assert last["frames_skipped"] == unseen + round(first["start_seconds"] * 20)


def test_scores_are_those_of_the_same_frames_in_a_file(tmp_path, fifo):
    write_into(fifo, write_colours(tmp_path / "a.mkv", [("red", 8), ("green", 8)]).read_bytes())
    status, entries = watched(fifo, every_seconds=100.0)
    predictor = colour_predictor()
    predictor.num_clips = 1
    assert status == 0
    whole = [entry for entry in windows(entries) if entry["start_seconds"] == 0.0]
    assert whole[0]["top"] == predictor.predict(tmp_path / "a.mkv", top_k=5)["top"]
