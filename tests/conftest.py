"""Markers for what a machine may lack: skipped where it is missing, failing under FAIL_WITHOUT_*=1."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import REAL_VIDEOS


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _has_torchcodec() -> bool:
    # Its import loads FFmpeg's shared libraries, which the system brings.
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, RuntimeError, OSError):
        return False
    return True


def _has_slurm() -> bool:
    programs = ("slurmctld", "slurmd", "sbatch", "munged", "unshare", "nsenter", "ip")
    return os.geteuid() == 0 and all(shutil.which(p, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") for p in programs)


def _has_gstreamer() -> bool:
    # Its packages are of the system's Python.
    try:
        code = "import gi; gi.require_version('GstRtspServer', '1.0'); gi.require_version('Gst', '1.0')"
        return subprocess.run(["/usr/bin/python3", "-c", code], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def _has_engines() -> bool:
    return all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"))


NEEDS = {
    "needs_cuda": ("CUDA", _has_cuda),
    "needs_torchcodec": ("TORCHCODEC", functools.cache(_has_torchcodec)),
    "needs_engines": ("ENGINES", _has_engines),
    "needs_hub": ("EXTRAS", lambda: importlib.util.find_spec("huggingface_hub") is not None),
    "needs_trackers": ("EXTRAS", lambda: all(importlib.util.find_spec(name) for name in ("mlflow", "wandb"))),
    "needs_slurm": ("SLURM", _has_slurm),
    "needs_gstreamer": ("GSTREAMER", functools.cache(_has_gstreamer)),
    "needs_app": ("EXTRAS", lambda: importlib.util.find_spec("gradio") is not None),
    "needs_browser": ("BROWSER", lambda: shutil.which("chromium") is not None),
    "needs_real_videos": ("REAL_VIDEOS", lambda: (REAL_VIDEOS / "files.csv").is_file()),
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, (name, present) in NEEDS.items():
        if item.get_closest_marker(marker) and not present():
            if os.environ.get(f"FAIL_WITHOUT_{name}") == "1":
                pytest.fail(f"{marker}: missing here, and FAIL_WITHOUT_{name}=1 is set")
            pytest.skip(f"{marker}: missing here")


@pytest.fixture(autouse=True)
def _own_log_settings() -> Iterator[None]:
    """A command run in this process, by a test or a fixture of several, sets up the logger: no other test sees that."""
    log = logging.getLogger("video_gn")

    def reset() -> None:
        log.handlers, log.level, log.propagate = [], logging.NOTSET, True
        log.manager._clear_cache()

    reset()
    yield
    reset()


@pytest.fixture(scope="session")
def real_videos() -> Path:
    """The directory of real videos; ask for it together with the marker needs_real_videos."""
    return REAL_VIDEOS


@pytest.fixture(scope="session")
def tiny_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three class folders of ten short videos."""
    from media import write_numbered_video

    root = tmp_path_factory.mktemp("tiny") / "videos"
    for label in ("one", "three", "two"):
        for number in range(10):
            path = root / label / f"{number:02d}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_numbered_video(path, 20 + number, size=(48, 40))
    return root
