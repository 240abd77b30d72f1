"""Weights of the Hugging Face Hub, from a server on this machine: one file, and an error for all that goes wrong."""

import pickle
import struct
import sys

import pytest
from hub_server import COMMIT, TOKEN, hub_server
from safetensors.torch import save
from small import ABOUT

from video_gn.errors import CheckpointError
from video_gn.models import i3d
from video_gn.weights import named
from video_gn.weights.build import load_net
from video_gn.weights.named import find_weights

pytestmark = pytest.mark.needs_hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hub_server(monkeypatch, tmp_path / "cache") as server:
        yield server


def test_fetched_once_and_then_from_the_cache(hub, monkeypatch, caplog):
    hub.repositories["a/b"] = {"model.safetensors": save({})}
    path = find_weights("hf:a/b")
    assert path.read_bytes() == save({}) and path == find_weights(f"hf:a/b@{COMMIT}") == find_weights("hf:a/b@main")
    assert hub.asked["/a/b/resolve/main/model.safetensors"] == 1
    hub.repositories.clear()
    hub.shutdown()
    hub.server_close()
    assert find_weights("hf:a/b") == path
    assert "hf:a/b: taken from the cache, since 127.0.0.1" in caplog.text
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert find_weights("hf:a/b") == path
    assert "taken from the cache, since HF_HUB_OFFLINE is set" in caplog.text
    with pytest.raises(CheckpointError, match="^hf:a/c: is not in the cache of huggingface_hub, and HF_HUB_OFFLINE is"):
        find_weights("hf:a/c")


def test_without_a_network(hub):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(
        CheckpointError, match=r"not in the cache of huggingface_hub, and 127.* cannot be reached: Conn"
    ):
        find_weights("hf:a/b")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        (
            "hf:no/thing",
            "has no such repository, or it is private. Check the name; for a private one log in .*HF_TOKEN",
        ),
        ("hf:ga/ted", "is gated. Ask for access on its page, then log in"),
        ("hf:dis/abled", r"does not allow it \(403\)"),
        ("hf:a/b@v9", "has no such revision. Check what is after @"),
        ("hf:a/other", "has no model.safetensors: it is no model of `video-gn hub push`"),
        ("hf:a/pickle", "its model.safetensors is of another format, so it is not read"),
        ("hf:a/empty", "its model.safetensors is of another format"),
        ("hf:a/down", r"127.* failed \(Server error '501 Not Impl.*Try again later\.$"),
        *(
            (f"hf:{name}", "must be hf:OWNER/NAME or hf:OWNER/NAME@")
            for name in ("b", "a/b/c", "../b", "a/b@../../x", "a/b@", "")
        ),
    ],
)
def test_what_cannot_be_fetched(hub, name, match):
    hub.refusals = {"ga/ted": (403, "GatedRepo"), "dis/abled": (403, "Other"), "a/down": (501, "")}
    hub.repositories = {
        "a/b": {"model.safetensors": save({})},
        "a/other": {"pytorch_model.bin": b"", "config.json": b"{}"},
        "a/pickle": {"model.safetensors": pickle.dumps({"x": print})},
        "a/empty": {"model.safetensors": b""},
    }
    with pytest.raises(CheckpointError, match=match) as caught:
        find_weights(name)
    assert str(caught.value).startswith(f"{name}: ") and "\n" not in str(caught.value)


def test_a_download_that_is_cut_short(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    hub.repositories["a/b"] = {"model.safetensors": save({}) + b" " * 99}
    hub.cut = True
    with pytest.raises(CheckpointError, match="^hf:a/b: .* failed"):
        find_weights("hf:a/b")


def test_what_a_hostile_file_says(hub):
    net = i3d(50, norm="none", width=4, num_classes=3).state_dict()
    words = {**ABOUT, "net": {"depth": 50, "width": 4, "layout": "__import__('os')", "norm": "none", "num_classes": 3}}
    for name, metadata in {
        "net": {"video_gn": str(words).replace("'", '"').replace("None", "null").replace('("os")', "")},
        "json": {"video_gn": "{'net': 1"},
    }.items():
        hub.repositories[f"a/{name}"] = {"model.safetensors": save(net, metadata)}
    huge = struct.pack("<Q", 1 << 40) + b"{" + b" " * 99
    hub.repositories["a/header"] = {"model.safetensors": huge}
    for name, match in {
        "net": "describes a network that cannot be built|layout",
        "json": "is no JSON",
        "header": "model.safetensors",
    }.items():
        with pytest.raises(CheckpointError, match=match):
            load_net(f"hf:a/{name}")


def test_a_token_is_sent(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    seen = []
    monkeypatch.setattr(named, "unreachable", lambda address: seen.append(address))
    hub.repositories["a/b"] = {"model.safetensors": save({})}
    find_weights("hf:a/b")
    assert seen == [hub.address] and hub.tokens == {f"Bearer {TOKEN}"}


def test_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        CheckpointError, match=r"needs the package 'huggingface_hub'. Install it: pip install 'video-gn\[hub"
    ):
        find_weights("hf:a/b")
