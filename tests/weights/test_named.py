"""Weights by name: fetched once through the package, kept with their hash. No network is needed here."""

import http.server
import socket
import sys
import threading
import urllib.error
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from video_gn.errors import CheckpointError
from video_gn.models import i3d
from video_gn.weights import load_into, named
from video_gn.weights.named import cache_directory, find_weights


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDEO_GN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def fetched(monkeypatch):
    """A fetcher that writes a file and counts its calls."""
    calls = []

    def fetch(model, target):
        calls.append(model)
        save_file({"conv1.weight": torch.ones(4, 3, 7, 7)}, target)

    monkeypatch.setitem(named.FETCHERS, "timm", fetch)
    return calls


def test_a_path_is_a_path(tmp_path):
    assert find_weights(tmp_path / "a.pth") == tmp_path / "a.pth"
    assert str(find_weights("dir/a.pth")) == "dir/a.pth"
    odd = tmp_path / "timm:a"
    odd.touch()
    assert find_weights(odd) == odd, "a file that is there is meant"


def test_a_user_without_a_home(monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    for name in ("VIDEO_GN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(named.Path, "home", nowhere)
    with pytest.raises(CheckpointError, match="got no HOME. Set VIDEO_GN_CACHE"):
        find_weights("timm:resnet50_gn.a1h_in1k")


def test_fetched_once_and_checked_at_each_use(fetched, cache):
    path = find_weights("timm:resnet50_gn.a1h_in1k")
    assert path.parent == cache
    assert find_weights("timm:resnet50_gn.a1h_in1k") == path
    assert fetched == ["resnet50_gn.a1h_in1k"]
    digest = path.with_name(path.name + ".sha256").read_text().split()[0]
    assert find_weights(f"timm:resnet50_gn.a1h_in1k@{digest[:12]}") == path
    with pytest.raises(CheckpointError, match="has SHA-256 .*, not 00000000"):
        find_weights("timm:resnet50_gn.a1h_in1k@00000000")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="has changed since it was fetched.*Delete it to fetch it again"):
        find_weights("timm:resnet50_gn.a1h_in1k")
    path.unlink()
    find_weights("timm:resnet50_gn.a1h_in1k")
    assert len(fetched) == 2


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (urllib.error.URLError("no route to host"), "timm could not fetch these weights .*no route.*give its path"),
        (RuntimeError("Unknown model (x)"), r"Unknown model \(x\)"),
        (KeyError("IMAGENET1K_V7"), "IMAGENET1K_V7"),
        (ModuleNotFoundError("no timm", name="timm"), "needs the package 'timm'. Install it: pip install timm"),
    ],
)
def test_what_cannot_be_fetched(monkeypatch, cache, error, match):
    def fetch(model, target):
        Path(target).write_bytes(b"half")
        raise error

    monkeypatch.setitem(named.FETCHERS, "timm", fetch)
    with pytest.raises(CheckpointError, match=match):
        find_weights("timm:x")
    assert [p.name for p in cache.iterdir()] == [".timm-x.lock"], "no half file is left"


def test_many_processes_fetch_once(monkeypatch, cache, tmp_path):
    import multiprocessing
    import time

    def fetch(model, target):
        with (tmp_path / "calls").open("a") as file:
            file.write("x")
        time.sleep(0.2)
        save_file({"conv1.weight": torch.ones(4, 3, 7, 7)}, target)

    monkeypatch.setitem(named.FETCHERS, "timm", fetch)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=find_weights, args=("timm:x",)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [p.exitcode for p in processes] == [0] * 4
    assert (tmp_path / "calls").read_text() == "x"


def test_a_cache_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VIDEO_GN_CACHE", str(tmp_path / "file/cache"))
    with pytest.raises(CheckpointError, match=r"file/cache: cannot keep weights .*Set VIDEO_GN_CACHE"):
        find_weights("timm:x")


def test_a_hash_is_long_enough_and_in_any_case(fetched):
    with pytest.raises(CheckpointError, match="must have 8 to 64 digits, got 3"):
        find_weights("timm:x@abc")
    path = find_weights("timm:x")
    digest = path.with_name("timm-x.sha256").read_text().split()[0]
    assert find_weights(f"timm:x@{digest[:9].upper()}") == path


def test_unknown_packages_are_named():
    with pytest.raises(CheckpointError, match="can be named from timm, torchvision, pytorchvideo and hf, not 'keras'"):
        find_weights("keras:resnet50")


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.delenv("VIDEO_GN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_directory() == tmp_path / "x/video_gn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory().parts[-2:] == (".cache", "video_gn")


def test_timm_brings_its_weights_and_preprocessing(monkeypatch):
    import timm

    monkeypatch.setattr(named, "unreachable", lambda _: None)
    real = timm.create_model
    net = real("resnet50_gn", pretrained=False)
    net.pretrained_cfg = {**net.pretrained_cfg, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1)}
    asked = []

    def create_model(name, *, pretrained):
        asked.append((name, pretrained))
        return net

    monkeypatch.setattr(timm, "create_model", create_model)
    ours = i3d(50, layout="nonlocal", norm="group", num_groups=32, num_classes=10)
    report = load_into(ours, "timm:resnet50_gn.a1h_in1k")
    assert asked == [("resnet50_gn.a1h_in1k", True)]
    assert (report.norm, report.preprocessing.mean, report.preprocessing.std) == (
        "group",
        (0.5, 0.4, 0.3),
        (0.2, 0.2, 0.1),
    )
    assert torch.equal(ours.state_dict()["blocks.0.norm.bias"], net.state_dict()["bn1.bias"])
    monkeypatch.setitem(sys.modules, "timm", None)
    load_into(ours, "timm:resnet50_gn.a1h_in1k")  # from the cache: neither package nor network


ADDRESS = "https://huggingface.co/timm/resnet50_gn.a1h_in1k/resolve/main/model.safetensors"


def test_without_a_network_timm_is_not_asked_again_and_again(monkeypatch):
    import timm
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")
    monkeypatch.setattr(named, "unreachable", lambda address: "no server" if address == ADDRESS else None)

    def create_model(name, *, pretrained):
        assert constants.HF_HUB_OFFLINE, "its own cache alone"
        raise RuntimeError("not in the cache")

    monkeypatch.setattr(timm, "create_model", create_model)
    before = constants.HF_HUB_OFFLINE
    with pytest.raises(CheckpointError, match=r"timm could not fetch these weights \(no server\)") as caught:
        find_weights("timm:resnet50_gn.a1h_in1k")
    assert f"download {ADDRESS} elsewhere" in str(caught.value)
    assert "--model.weights null trains from scratch" in str(caught.value) and "\n" not in str(caught.value)
    assert before == constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("torchvision:resnet50", "https://download.pytorch.org/models/resnet50-0676ba61.pth"),
        ("pytorchvideo:i3d_r50", "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/I3D_8x8_R50.pyth"),
    ],
)
def test_torchs_downloads_wait_some_seconds_for_a_server(monkeypatch, name, address):
    waits = []

    def urlopen(*_, **__):
        waits.append(socket.getdefaulttimeout())
        raise urllib.error.URLError(TimeoutError("timed out"))

    monkeypatch.setattr("torch.hub.urlopen", urlopen)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(cache_directory()))
    with pytest.raises(CheckpointError, match=rf"\(timed out\). Without a network, download {address} elsewhere"):
        find_weights(name)
    assert waits == [15.0] and socket.getdefaulttimeout() is None


def test_whether_a_server_can_be_reached(monkeypatch):
    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(403)

        def log_message(self, *_):
            pass

    monkeypatch.setattr(named, "_PATIENCE_SECONDS", 0.3)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.HTTPServer(("127.0.0.1", 0), Refuses) as server:
        address = f"http://127.0.0.1:{server.server_port}/x"
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert named.unreachable(address) is None, "it answers"
        assert named.unreachable(address) == f"127.0.0.1:{server.server_port} cannot be reached: timed out"
    assert "Connection refused" in named.unreachable(address)
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:1")
    assert named.unreachable(address) is None, "another library may go through that"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("resnet50", "torchvision:resnet50"),
        ("resnet50.pth", "torchvision:resnet50"),
        ("resnet50_gn", "timm:resnet50_gn.a1h_in1k"),
        ("i3d_r50", "pytorchvideo:i3d_r50"),
        ("torchvision:resnet_50", "torchvision:resnet50"),
        ("pytorchvideo:i3d_50", "pytorchvideo:i3d_r50"),
    ],
)
def test_names_that_are_nearly_right(name, meant):
    with pytest.raises(CheckpointError, match=rf"Did you mean {meant}( or .*)?\?"):
        find_weights(name)


def test_torchvision_brings_its_classic_weights(monkeypatch):
    from torchvision.models import ResNet50_Weights, resnet50

    state = resnet50().state_dict()
    asked = []

    def get_state_dict(self, *args, **kwargs):
        asked.append((self, kwargs["check_hash"]))
        return state

    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", get_state_dict)
    ours = i3d(50, layout="nonlocal", norm="batch", num_classes=10)
    report = load_into(ours, "torchvision:resnet50")
    load_into(ours, "torchvision:resnet50.IMAGENET1K_V2")
    assert asked == [(ResNet50_Weights.IMAGENET1K_V1, True), (ResNet50_Weights.IMAGENET1K_V2, True)]
    assert report.preprocessing.mean == (0.485, 0.456, 0.406)
    assert len(report.inflated) == 53
    with pytest.raises(CheckpointError, match="IMAGENET1K_V9"):
        load_into(ours, "torchvision:resnet50.IMAGENET1K_V9")
    with pytest.raises(CheckpointError, match="torchvision could not fetch these weights"):
        load_into(ours, "torchvision:resnet51")


def test_pytorchvideo_brings_its_published_file(monkeypatch):
    source = i3d(50, layout="slowfast", norm="batch", width=4, num_classes=400)
    asked = []

    def download(url, target):
        asked.append(url)
        torch.save({"model_state": source.state_dict()}, target)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    ours = i3d(50, layout="slowfast", norm="batch", width=4, num_classes=400)
    assert len(load_into(ours, "pytorchvideo:i3d_r50").taken) == 320
    assert asked == ["https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/I3D_8x8_R50.pyth"]
    with pytest.raises(CheckpointError, match="it has .*i3d_r50"):
        load_into(ours, "pytorchvideo:x3d_m")
