"""A headless Chromium, driven by the DevTools protocol over a pipe (no driver, no web socket)."""

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import time

CHROMIUM = shutil.which("chromium")


class Browser:
    """Pages of a Chromium; `asked` has every address that any of them asked for, also those that were stopped."""

    def __init__(self, to_browser, from_browser):
        self._to, self._from = to_browser, from_browser
        self._numbers, self._buffer = itertools.count(1), b""
        self.asked = []

    def call(self, method, session=None, **params):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != number:
            if answer.get("method") == "Network.requestWillBeSent":
                self.asked.append(answer["params"]["request"]["url"])
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self):
        while b"\0" not in self._buffer:
            data = os.read(self._from, 1 << 16)
            assert data, "Chromium has ended"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, url, *, width=390, height=844, dark=False):
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        page.call("Network.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        page.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        page.call("Page.navigate", url=url)
        return page


class Page:
    def __init__(self, browser, session):
        self._browser, self._session = browser, session

    def call(self, method, **params):
        return self._browser.call(method, self._session, **params)

    def evaluate(self, script):
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, script, seconds=30):
        end = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({script})"):
            assert time.monotonic() < end, f"{script}\n{self.evaluate('document.body.innerText')}"
            time.sleep(0.05)

    def choose(self, selector, path):
        """Choose a file, as a person does."""
        document = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=document, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def picture(self):
        """PNG of the whole page, in base64."""
        return self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]


@contextlib.contextmanager
def chromium(directory):
    """A browser with its profile in a directory, which reaches the loopback alone."""
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]
    words += ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    words += [f"--user-data-dir={directory}", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]

    def as_three_and_four():
        os.dup2(os.dup(to_read), 3)
        os.dup2(os.dup(from_write), 4)

    with (directory / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            [CHROMIUM, *words], pass_fds=(3, 4), preexec_fn=as_three_and_four, stdout=log, stderr=log
        )
    os.close(to_read)
    os.close(from_write)
    try:
        yield Browser(to_write, from_read)
    finally:
        os.close(to_write)  # it ends itself
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(from_read)
