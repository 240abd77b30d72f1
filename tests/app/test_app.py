"""`video-gn app`: its REST routes by a plain client, its page in a headless Chromium, and what neither may do."""

import asyncio
import contextlib
import http.client
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from browser import chromium
from streams import colour_predictor, write_colour_checkpoint, write_colours

from video_gn.__main__ import main
from video_gn.errors import CheckpointError

PAGE = Path(__file__).resolve().parents[2] / "video_gn/app/README.md"
# Notes each connection and each look-up of a name, has slow.mp4 take an hour, and runs a command.
NOTED = """
import socket, sys, time
log = open(sys.argv[1], "w", buffering=1)
def note(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        log.write(f"{event} {args}\\n")
sys.addaudithook(note)
socket.getaddrinfo("127.0.0.1", 80)
from video_gn.__main__ import main
from video_gn.app.answers import Answers
label = Answers._label
Answers._label = lambda self, upload, **settings: (
    time.sleep(3600) if upload.name == "slow.mp4" else label(self, upload, **settings)
)
sys.exit(main(sys.argv[2:]))
"""


class App:
    """A running app, with one megabyte and ten seconds as its bounds."""

    def __init__(self, here):
        self.here = here
        self.uploads = here / "tmp"
        self.uploads.mkdir()
        words = shlex.split(re.search(r"^video-gn (app .+)$", PAGE.read_text(), re.MULTILINE)[1])
        words = [str(here / "colour.ckpt") if word == "runs/mine" else word for word in words]
        words += ["--port", "0", "--max_mb", "1", "--max_seconds", "10"]
        environment = {**os.environ, "TMPDIR": str(self.uploads), "OMP_NUM_THREADS": "1"}
        environment.pop("GRADIO_ANALYTICS_ENABLED", None)
        self.log = here / "log.txt"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", NOTED, str(here / "connections.txt"), *words], env=environment, stderr=log
            )
        end = time.monotonic() + 120
        while not (found := re.search(r"^http://127\.0\.0\.1:(\d+) ", self.log.read_text(), re.MULTILINE)):
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)
        self.port = int(found[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def ask(self, path, body=None, headers=()):
        """(status, content) of a request; json as an object."""
        request = urllib.request.Request(self.url + path, body, dict(headers))
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, data, kind = answer.status, answer.read(), answer.headers["Content-Type"]
        except urllib.error.HTTPError as error:
            status, data, kind = error.code, error.read(), error.headers["Content-Type"]
        return status, json.loads(data) if kind == "application/json" else data.decode()

    def send(self, content, name="video.mp4", query="", field="file"):
        """POST a form with one file."""
        head = f'--b\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
        body = head.encode() + content + b"\r\n--b--\r\n"
        return self.ask(f"/api/infer{query}", body, {"Content-Type": "multipart/form-data; boundary=b"})

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(30)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    here = tmp_path_factory.mktemp("app")
    write_colour_checkpoint(here / "colour.ckpt")
    write_colours(here / "red.mp4", [("red", 60)])
    write_colours(here / "mixed.mp4", [("green", 60), ("blue", 60)], grain=3)
    write_colours(here / "long.mp4", [("red", 201)])
    (here / "broken.mp4").write_bytes((here / "mixed.mp4").read_bytes()[:2000])
    return here


@pytest.fixture(scope="module")
def app(here):
    app = App(here)
    yield app
    app.process.kill()
    app.process.wait()


# ---- without a server ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_mb", "0"], "--max_mb must be above 0, got 0.0. Leave it out."),
        (["--max_seconds", "nan"], "--max_seconds must be above 0, got nan. Leave it out."),
        ([], "gradio is not installed. Install it: pip install 'video-gn[app]'"),
    ],
)
def test_refusals_before_the_start(words, message, monkeypatch, capsys):
    monkeypatch.setattr("video_gn.commands.app.find_spec", lambda name: None)
    assert main(["app", "no.ckpt", *words]) == 2
    assert capsys.readouterr().err == f"video-gn: error: {message}\n"


def test_one_video_is_computed_at_a_time(tmp_path, monkeypatch):
    pytest.importorskip("anyio")
    from video_gn.app.answers import Answers, Upload

    write_colours(tmp_path / "red.mp4", [("red", 20)])
    predictor, running, most = colour_predictor(), [], []
    predict = predictor.predict

    def slow(path, **settings):
        running.append(path)
        most.append(len(running))
        time.sleep(0.05)
        running.remove(path)
        return predict(path, **settings)

    monkeypatch.setattr(predictor, "predict", slow)
    answers = Answers(predictor, name="x", max_mb=1, max_seconds=10)

    async def ask():
        uploads = [Upload(tmp_path / "red.mp4", f"{n}.mp4") for n in range(3)]
        return await asyncio.gather(*(answers.entry(upload, timeline=False) for upload in uploads))

    assert [entry["path"] for entry in asyncio.run(ask())] == ["0.mp4", "1.mp4", "2.mp4"]
    assert most == [1, 1, 1]


def test_an_error_of_the_network_is_not_the_videos(tmp_path, monkeypatch):
    pytest.importorskip("anyio")
    from video_gn.app.answers import Answers, Upload, UploadError

    def fail(path, **settings):
        raise CheckpointError(f"{path}: scores must be finite")

    write_colours(tmp_path / "red.mp4", [("red", 20)])
    predictor = colour_predictor()
    monkeypatch.setattr(predictor, "predict", fail)
    answers = Answers(predictor, name="x", max_mb=1, max_seconds=10)
    with pytest.raises(UploadError, match=r"^the video: scores must be finite$") as caught:
        asyncio.run(answers.entry(Upload(tmp_path / "red.mp4", "a.mp4"), timeline=False))
    assert (caught.value.name, caught.value.status) == ("a.mp4", 500)


# ---- REST ----------------------------------------------------------------------------------------

slow = [pytest.mark.slow, pytest.mark.needs_app]


def with_marks(function):
    for mark in slow:
        function = mark(function)
    return function


@with_marks
def test_the_answer_is_infers_json(app, tmp_path, capsys):
    for name in ("red.mp4", "mixed.mp4"):
        output = tmp_path / f"{name}.json"
        words = [str(app.here / name), "--checkpoint", str(app.here / "colour.ckpt"), "--output", str(output)]
        for more, query in (([], ""), (["--every", "0.4"], "?timeline=true")):
            assert main(["infer", *words, *more, "--quiet"]) == 0
            expected = json.loads(output.read_text())
            expected["videos"][0]["path"] = name
            content = (app.here / name).read_bytes()
            assert app.send(content, name, query) == (200, expected)
            expected["videos"][0]["path"] = "upload"
            assert app.ask(f"/api/infer{query}", content, {"Content-Type": "video/mp4"}) == (200, expected)
    status, about = app.ask("/api/health")
    assert (status, about["classes"], about["max_mb"], about["checkpoint"]) == (
        200,
        ["red", "green", "blue"],
        1,
        "colour.ckpt",
    )


@with_marks
def test_what_is_refused_and_its_status(app):
    red, playlist = (app.here / "red.mp4").read_bytes(), b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/x.ts\n"
    big = "a file must have at most 1 MB. Cut it, or start the app with more --max_mb"
    long = "a video must last at most 10 s, got 10.05 s. Cut it, or start the app with more --max_seconds"
    for content, status, reason in (
        (b"", 400, "the file is empty (0 bytes)"),
        (b"hello " * 99, 415, "not a video that FFmpeg can read (Invalid data found when processing input)"),
        ((app.here / "broken.mp4").read_bytes(), 415, "not a video that FFmpeg can read (Invalid data found when proc"),
        (playlist, 415, "not a video, but a playlist or the like: the files that it names are not opened."),
        ((app.here / "long.mp4").read_bytes(), 413, long),
        (red + bytes(1_000_001 - len(red)), 413, big),
    ):
        for got, answer in (app.send(content, "x.mp4"), app.ask("/api/infer", content)):
            assert got == status and answer["videos"] == [], reason
            (failed,) = answer["failed"]
            assert failed["reason"].startswith(reason), failed
    assert app.send(red, field="else")[0] == 200  # the first file of a form, whatever its field
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    for body in (b"", b"--b--\r\n", b"no form", b"--b\r\nContent-Disposition: x\r\n\r\n\r\n--b--\r\n"):
        status, answer = app.ask("/api/infer", body, form)
        assert status == 400 and "form" in answer["failed"][0]["reason"]
    assert not list(app.uploads.glob("upload-*"))


@with_marks
@pytest.mark.parametrize("header", ["transfer-encoding", "content-length"])
def test_a_body_is_bounded_whatever_its_header_says(app, header):
    """By its header before it is read; without one while it is read: the rest need not be sent."""
    connection = http.client.HTTPConnection("127.0.0.1", app.port, timeout=30)
    connection.putrequest("POST", "/api/infer")
    connection.putheader(header, "chunked" if header == "transfer-encoding" else str(10**12))
    connection.endheaders()
    if header == "transfer-encoding":
        for _ in range(11):
            connection.send(b"186a0\r\n" + bytes(100_000) + b"\r\n")
    answer = connection.getresponse()
    assert answer.status == 413 and b"at most 1 MB" in answer.read()
    connection.close()
    assert not list(app.uploads.glob("upload-*"))


@with_marks
def test_other_websites_are_refused(app):
    """What browsers send: a foreign form or script, a name that its owner lets point here, and the page itself."""
    video, own = (app.here / "red.mp4").read_bytes(), f"127.0.0.1:{app.port}"
    for status, headers in (
        (403, {"Origin": "https://elsewhere.example", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}),
        (403, {"Origin": "http://localhost:1", "Sec-Fetch-Site": "same-site"}),
        (403, {"Origin": "https://elsewhere.example"}),
        (403, {"Origin": "null"}),
        (403, {"Host": f"elsewhere.example:{app.port}", "Sec-Fetch-Site": "same-origin"}),
        (403, {"Host": f"127.0.0.1.elsewhere.example:{app.port}"}),
        (403, {"Host": "localhost.elsewhere.example"}),
        (200, {"Origin": f"http://{own}"}),
        (200, {"Host": f"localhost:{app.port}", "Origin": "https://labels.example", "Sec-Fetch-Site": "same-origin"}),
        (200, {"Host": f"[::1]:{app.port}", "Sec-Fetch-Site": "none"}),
    ):
        assert app.ask("/api/infer", video, {"Content-Type": "text/plain", **headers})[0] == status, headers
        # A script of another website may ask, but browsers keep the answer from it, unless the host is its own.
        assert app.ask("/api/health", None, headers)[0] == (status if "Host" in headers else 200), headers


@with_marks
def test_an_upload_that_does_not_go_on_ends(tmp_path, monkeypatch):
    from starlette.requests import Request

    from video_gn.app import server

    monkeypatch.setattr(server, "_IDLE_SECONDS", 0.01)
    request = Request({"type": "http", "headers": []}, asyncio.Event().wait)
    with pytest.raises(server.UploadError, match=r"^nothing more came for 0\.01 s$") as caught:
        asyncio.run(server._receive(request, tmp_path, 100, "too large"))
    assert caught.value.status == 408


@with_marks
def test_names_are_names(app):
    """No name leads to a file, to a host or to a terminal; answers keep it, without its directories."""
    red = (app.here / "red.mp4").read_bytes()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        for name in (
            "../../x.mp4",
            "/etc/passwd",
            "..",
            f"http://{host}/x.mp4",
            f"rtsp://{host}/x",
            f"concat:tcp://{host}|x.mp4",
            f"tcp:{host}",
            "a%03d.jpg",
            "x.tar::y.mp4",
            "<b>&amp;\x1b[31m.mp4",
            "x" * 300 + ".mp4",
        ):
            status, answer = app.send(red, name)
            entry = answer["videos"][0]
            assert (status, entry["path"], entry["top"][0]["label"]) == (200, name.split("/")[-1], "red")
        with pytest.raises(TimeoutError):
            listener.accept()
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    body = '--b\r\nContent-Disposition: form-data; name="f"; filename="<b>\x1b[1m.mp4"\r\n\r\nx\r\n--b--\r\n'
    assert "&lt;b&gt;\\x1b[1m.mp4: not a video" in app.ask("/api/page", body.encode(), headers)[1]


@with_marks
def test_users_at_once_get_their_own_answers(app):
    contents = [(app.here / name).read_bytes() for name in ("red.mp4", "mixed.mp4")]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda n: app.send(contents[n % 2], f"{n}.mp4"), range(6)))
    for number, (status, answer) in enumerate(found):
        assert (status, answer["videos"][0]["path"]) == (200, f"{number}.mp4")
        assert answer["videos"][0]["num_frames"] == (60, 120)[number % 2]


@with_marks
def test_no_file_of_the_servers_can_be_read(app):
    checkpoint = str(app.here / "colour.ckpt")
    for path in ("/etc/passwd", checkpoint):
        for url in (
            f"/gradio_api/file={path}",
            f"/file={path}",
            f"/gradio_api/file/{path}",
            f"//gradio_api/file={path}",
            f"/static/../../../../../../../../../..{path}",
            f"/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e{path}",
            f"/assets/{path}",
            f"/static/{path}",
            f"/svelte/{path}",
            "/gradio_api/proxy=http://127.0.0.1:1/",
            "/gradio_api/info",
        ):
            assert app.ask(url)[0] == 404, url
        # An event with a file of the server's: gradio would copy it into its cache.
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        event = json.dumps({"data": [file], "fn_index": 0, "session_hash": "a"}).encode()
        for url in ("/gradio_api/queue/join", "/gradio_api/run/predict", "/gradio_api/call/x", "/gradio_api/upload"):
            assert app.ask(url, event, {"Content-Type": "application/json"})[0] == 404, url
    assert not [p for p in app.uploads.rglob("*") if p.is_file()]


# ---- the page ------------------------------------------------------------------------------------


def label(page, path, *, explain=False):
    page.choose("#video input", path)
    if explain:
        page.evaluate("document.querySelector('#explain input').click()")
    page.evaluate("document.querySelector('#send').click()")


def answer(page):
    page.wait_for("document.querySelector('#answer .video-gn, #answer .failed')")
    return page.evaluate("document.querySelector('#answer').innerText")


@with_marks
@pytest.mark.needs_browser
def test_the_page_in_a_browser(app, tmp_path):
    (tmp_path / "large.mp4").write_bytes(bytes(1_000_001))
    with chromium(tmp_path) as browser:
        first, second = browser.open(app.url), browser.open(app.url, dark=True)
        for page in (first, second):
            page.wait_for("document.querySelector('#send')")
        page = first
        page.evaluate("document.querySelector('#send').click()")
        assert answer(page) == "Choose a video first."
        for path, words in (
            (app.here / "broken.mp4", "broken.mp4: not a video that FFmpeg can read"),
            (app.log, "log.txt: not a video that FFmpeg can read"),
            (tmp_path / "large.mp4", "A file must have at most 1 MB. Cut it, or start the app with more --max_mb"),
            (app.here / "long.mp4", "long.mp4: a video must last at most 10 s"),
        ):
            label(page, path)
            page.wait_for(f"document.querySelector('#answer').innerText.startsWith({json.dumps(words)})")
        # Two at once; the first also asks where the network looks.
        label(first, app.here / "mixed.mp4", explain=True)
        label(second, app.here / "red.mp4")
        first.wait_for("document.querySelector('#answer .video-gn')")
        second.wait_for("document.querySelector('#answer .video-gn')")
        assert "mixed.mp4, 120 frames" in answer(first) and "red.mp4, 60 frames" in answer(second)
        segments = re.findall(r"0:0\d\.\d - 0:0\d\.\d\s+(\w+)", answer(first))
        assert segments == ["green", "blue"]
        for page, num_pictures in ((first, 2), (second, 1)):
            page.wait_for("[...document.images].every(image => image.complete)")
            sizes = page.evaluate("[...document.querySelectorAll('#answer .picture')].map(i => i.naturalWidth)")
            assert len(sizes) == num_pictures and min(sizes) > 500
            assert page.evaluate("[innerWidth, document.documentElement.scrollWidth]") == [390, 390]
        outside = {url for url in browser.asked if not url.startswith((app.url, "data:", "blob:", "about:"))}
    assert len(browser.asked) > 10 and not outside


# ---- its end -------------------------------------------------------------------------------------


@with_marks
def test_connections_and_the_end(app, capsys):
    """Last, since it ends the app: while a video is computed, by Ctrl-C, with all uploads gone."""
    assert main(["app", str(app.here / "none.ckpt"), "--port", str(app.port)]) == 2
    assert capsys.readouterr().err == (
        f"video-gn: error: --host and --port must be free, got 127.0.0.1 {app.port} (Address already in use). Choose "
        "another --port, or 0 for any.\n"
    )

    def send():
        with contextlib.suppress(OSError):  # no answer comes
            app.send((app.here / "red.mp4").read_bytes(), "slow.mp4")

    thread = threading.Thread(target=send)
    thread.start()
    while not list(app.uploads.glob("upload-*/upload.mp4")):
        time.sleep(0.01)
    assert app.stop() == 130
    thread.join()
    lines = [line for line in app.log.read_text().splitlines() if "http://" not in line]
    assert lines[-1] == "video-gn: SIGINT: stopped." and "Traceback" not in app.log.read_text()
    assert not [path for path in app.uploads.rglob("*") if path.is_file()] and not list(app.uploads.glob("upload-*"))
    assert (app.here / "connections.txt").read_text().splitlines() == [
        "socket.getaddrinfo ('127.0.0.1', 80, 0, 0, 0)",
    ]
