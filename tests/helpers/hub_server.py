"""A small server that speaks as much of the Hugging Face Hub's protocol as downloads and pushes of models take."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
from collections import Counter

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_the_owner"


class HubServer(http.server.ThreadingHTTPServer):
    """Serves `repositories` (name -> file -> bytes), and notes what is asked.

    `refusals` has a status and an X-Error-Code for whole repositories; `cut` sends files without their last byte.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.repositories, self.refusals, self.asked = {}, {}, Counter()
        self.made, self.commits, self.uploaded, self.cut, self.tokens = [], [], {}, False, set()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: HubServer

    def log_message(self, *_):
        pass

    def reply(self, status, body=b"", **headers):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body[:-1] if self.server.cut and self.command == "GET" else body)

    def do_GET(self):
        self.server.asked[self.path] += self.command == "GET"
        if "/resolve/" in self.path:
            self.server.tokens.add(self.headers.get("Authorization"))
        name, _, rest = self.path.lstrip("/").partition("/resolve/")
        if not rest:
            return self.reply(404, X_Error_Code="RepoNotFound") if name else self.reply(200)
        if name in self.server.refusals:
            status, code = self.server.refusals[name]
            return self.reply(status, X_Error_Code=code)
        revision, _, file = rest.partition("/")
        if name not in self.server.repositories:
            return self.reply(401, X_Error_Code="RepoNotFound")
        if revision not in ("main", COMMIT):
            return self.reply(404, X_Error_Code="RevisionNotFound")
        content = self.server.repositories[name].get(file)
        if content is None:
            return self.reply(404, X_Error_Code="EntryNotFound")
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self.reply(200, content, X_Repo_Commit=COMMIT, ETag=etag)

    do_HEAD = do_GET

    def do_PUT(self):
        self.server.uploaded[self.path.rpartition("/")[2]] = self.body()
        self.reply(200)

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_POST(self):
        body = self.body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.reply(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            return self.reply(200, {"url": f"{self.server.address}/owner/name"})
        if self.path == "/api/validate-yaml":
            return self.reply(200, {"warnings": [], "errors": []})
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {n: "lfs" if n.endswith(".safetensors") else "regular" for n in names}
            files = [{"path": n, "uploadMode": mode, "shouldIgnore": False} for n, mode in modes.items()]
            return self.reply(200, {"files": files})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for one in objects:
                one["actions"] = {"upload": {"href": f"{self.server.address}/upload/{one['oid']}"}}
            return self.reply(200, {"transfer": "basic", "objects": objects})
        assert "/commit/main" in self.path, self.path
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.uploaded[value["oid"]]
        self.server.commits.append(files)
        return self.reply(200, {"commitUrl": f"{self.server.address}/owner/name/commit/{COMMIT}", "commitOid": COMMIT})


@contextlib.contextmanager
def hub_server(patch, cache):
    """The server in a thread, with huggingface_hub set to it, without a token, and with an empty cache."""
    from huggingface_hub import constants

    with HubServer() as server:
        patch.setattr(constants, "ENDPOINT", server.address)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            patch.delenv(name, raising=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
