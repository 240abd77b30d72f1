"""Streams of one colour after another, servers for them on the loopback, and a network that names the colour."""

from __future__ import annotations

import contextlib
import functools
import http.server
import io
import json
import os
import signal
import socket
import socketserver
import struct
import threading
from fractions import Fraction

import av
import numpy as np
import torch
from small import ABOUT

from video_gn.data.crops import TestCrops
from video_gn.data.dataset import ClipConfig
from video_gn.evaluation.predictor import Predictor
from video_gn.live import parse_source, watch
from video_gn.models import i3d

COLOURS = ("red", "green", "blue")
NUM_FRAMES, STRIDE, FPS = 8, 2, 20  # a window is 0.8 s


def colour_net():
    """An I3D whose score of class y is the softmax of 20 times the mean of channel y."""
    net = i3d(50, layout="nonlocal", norm="none", width=4, num_classes=3)
    with torch.no_grad():
        for name, values in net.state_dict().items():
            if "branch1_conv" in name or name == "blocks.0.conv.weight":
                centre = [size // 2 for size in values.shape[2:]]
                values.zero_()
                for channel in range(3):
                    values[(channel, channel, *centre)] = 1
            elif "norm_c" in name or name == "blocks.6.proj.bias":
                values.zero_()
            elif name == "blocks.6.proj.weight":
                values.zero_()
                values[:, :3] = 20 * torch.eye(3)
    return net


@functools.cache
def colour_predictor(**clip):
    return Predictor(
        colour_net(),
        classes=COLOURS,
        clip=ClipConfig(**{"num_frames": NUM_FRAMES, "stride": STRIDE, **clip}),
        crops=TestCrops("center", short_side_px=32, crop_px=32),
        num_clips=1,
        spacing="nonlocal",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )


def write_colour_checkpoint(path):
    net = colour_net()
    about = ABOUT | {"mean": [0.0] * 3, "std": [1.0] * 3, "classes": list(COLOURS)}
    about["clip"] = {**ABOUT["clip"], "num_frames": NUM_FRAMES, "stride": STRIDE}
    state = {f"net.{k}": v for k, v in net.state_dict().items()}
    torch.save({"video_gn": {"net": net.arguments, **about}, "state_dict": state}, path)


def write_colours(
    path,
    parts,
    *,
    start=0,
    fps=FPS,
    size=(48, 40),
    codec="libx264",
    container_format=None,
    gop=FPS,
    grain=0,
    **options,
):
    """Write a video of parts (colour, number of frames), the first frame at frame number `start`; path may be a file.

    With `grain` levels of noise in their colour, frames take many packets.
    """
    noise = np.random.default_rng(0)
    with av.open(path if hasattr(path, "write") else str(path), "w", format=container_format, options=options) as file:
        x264 = {"preset": "ultrafast", "x264-params": f"keyint={gop}:scenecut=0:bframes=0", "threads": "1"}
        stream = file.add_stream(codec, rate=fps, options=x264 if codec == "libx264" else {})
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, fps)
        at = start
        for colour, number in parts:
            pixels = np.zeros((size[1], size[0], 3), np.uint8)
            for _ in range(number):
                pixels[..., COLOURS.index(colour)] = 255 - noise.integers(0, grain + 1, pixels.shape[:2])
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = at, Fraction(1, fps)
                at += 1
                file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def transport_stream(*parts, **settings):
    """As `write_colours`, the bytes of an MPEG transport stream; begins at 0 s, without the usual delay."""
    file = io.BytesIO()
    write_colours(file, parts, container_format="mpegts", mpegts_copyts="1", **settings)
    return file.getvalue()


class Lines(io.TextIOBase):
    """Stands for standard output, and calls a function for each entry of it."""

    def __init__(self, on_entry):
        self.entries = []
        self._on_entry = on_entry

    def write(self, text):
        assert text.endswith("\n") and text.count("\n") == 1
        self.entries.append(json.loads(text))
        self._on_entry(self.entries)
        return len(text)


def stop_when(is_done):
    """For `watched`: SIGTERM once the entries so far are enough."""

    def on_entry(entries):
        if is_done(entries) and entries[-1].get("event") != "ended":
            os.kill(os.getpid(), signal.SIGTERM)

    return on_entry


def watched(source, on_entry=lambda entries: None, *, clip=None, **settings):
    """Run `watch` in this process: (exit status, entries)."""
    lines = Lines(on_entry)
    with contextlib.redirect_stdout(lines):
        status = watch(parse_source(str(source)), colour_predictor(**(clip or {})), **settings)
    return status, lines.entries


def windows(entries):
    return [entry for entry in entries if "top" in entry]


def events(entries):
    return [entry["event"] for entry in entries if "event" in entry]


def labels(entries):
    return [entry["top"][0]["label"] for entry in windows(entries)]


# ---- servers on the loopback; each is a context manager that gives its address ---------------------


@contextlib.contextmanager
def _serving(server):
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


class _Tcp(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False


@contextlib.contextmanager
def tcp_server(*connections):
    """Call a function with the socket of each connection, the last one for all further ones."""
    waiting = list(connections)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            play = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            with contextlib.suppress(ConnectionError):
                play(self.request)

    with _serving(_Tcp(("127.0.0.1", 0), Handler)) as port:
        yield f"tcp://127.0.0.1:{port}"


def sends(data, *, then=None):
    """A connection that sends data, and then waits for an event before it closes."""

    def play(connection):
        connection.sendall(data)
        if then is not None:
            then.wait(60)

    return play


@contextlib.contextmanager
def http_server(files, asked=None):
    """Serve (type, bytes) by path; `asked` gets each path that was asked for."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if asked is not None:
                asked.append(self.path)
            if self.path not in files:
                self.send_error(404)
                return
            kind, data = files[self.path]
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with _serving(server) as port:
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def rtsp_server(data, *, then=None):
    """Serve a transport stream by RTSP (RFC 2326), in RTP packets within the connection (10.12; RFC 2250).

    With `then`, wait for an event before closing.
    """

    def play(connection):
        file = connection.makefile("rb")
        for line in file:
            method = line.split()[0].decode()
            headers = dict(
                part.decode().strip().split(": ", 1) for part in iter(file.readline, b"\r\n") if b": " in part
            )
            more, body = "", ""
            if method == "DESCRIBE":
                body = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:0\r\n"
                more = "Content-Type: application/sdp\r\n"
            elif method == "SETUP":
                more = f"Transport: {headers['Transport']}\r\n"
            answer = f"RTSP/1.0 200 OK\r\nCSeq: {headers['CSeq']}\r\nSession: 1\r\n{more}Content-Length: {len(body)}"
            connection.sendall(f"{answer}\r\n\r\n{body}".encode())
            if method == "PLAY":
                break
        for number, at in enumerate(range(0, len(data), 7 * 188)):
            payload = data[at : at + 7 * 188]
            rtp = struct.pack(">BBHII", 0x80, 33, number & 0xFFFF, number, 1) + payload
            connection.sendall(struct.pack(">BBH", 0x24, 0, len(rtp)) + rtp)
        if then is not None:
            then.wait(60)

    with tcp_server(play) as address:
        yield address.replace("tcp", "rtsp") + "/live"


@contextlib.contextmanager
def udp_sender(packets):
    """Send transport stream packets again and again to an address of this machine, some at a time."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    is_over = threading.Event()

    def send():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            while not is_over.is_set():
                for packet in packets:
                    out.sendto(packet, ("127.0.0.1", port))
                    if is_over.wait(0.001):
                        break

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield f"udp://127.0.0.1:{port}"
    finally:
        is_over.set()
        thread.join(10)
