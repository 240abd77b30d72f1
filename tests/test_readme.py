"""Every command of the README is taken out of the page and run as printed; only paths are replaced."""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import run
from small import write_small_configs
from torchvision.models import resnet50

from video_gn.models import i3d
from video_gn.weights.keymaps import KEYMAPS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def place(tiny_videos, tmp_path_factory):
    """A directory where the README's paths exist: small configs under the same names, small videos, Kinetics csvs."""
    here = tmp_path_factory.mktemp("readme")
    write_small_configs(here)
    shutil.copytree(ROOT / "scripts", here / "scripts")
    shutil.copytree(tiny_videos, here / "videos")
    rows = {"train": [], "val": []}
    for number, video in enumerate(sorted((here / "videos").rglob("*.mp4"))):
        name = f"{number:011d}"
        video.rename(video.with_name(f"{name}_000010_000020.mp4"))
        rows["val" if number % 5 == 0 else "train"].append(f"{video.parent.name},{name},10,20")
    for split, lines in rows.items():
        text = ["label,youtube_id,time_start,time_end,split", *(f"{line},{split}" for line in lines)]
        (here / f"{split}.csv").write_text("\n".join(text) + "\n")
    shutil.copy(next((here / "videos").rglob("*.mp4")), here / "video.mp4")
    (here / "videos.txt").write_text(
        "".join(f"{v.relative_to(here)}\n" for v in sorted((here / "videos").rglob("*.mp4")))
    )
    (here / "weizmann").mkdir()
    people = ("daria", "lyova", "shahar", "ira", "lena")
    videos = enumerate(sorted((here / "videos").rglob("*.mp4")))
    lines = [f"{video},{video.parent.name},{people[number % 5]}" for number, video in videos]
    (here / "weizmann/labels.csv").write_text("\n".join(["path,label,person", *lines]) + "\n")
    write_weights(here)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIDEO_GN_CACHE", str(here / "cache"))
        yield here


def write_weights(here):
    """An image network: as a file of width 4, and as what timm and torchvision would have brought into the cache."""
    net = i3d(50, layout="nonlocal", norm="batch", width=4, num_classes=1000)
    state = {KEYMAPS["torchvision"].to_theirs(k): v.sum(2) if v.ndim == 5 else v for k, v in net.state_dict().items()}
    torch.save(state, here / "resnet50.pth")
    (here / "cache").mkdir()
    affine = {k: v for k, v in state.items() if "running" not in k and "num_batches" not in k}
    fetched = {
        "timm-resnet50_gn.a1h_in1k": affine,
        "torchvision-resnet50.IMAGENET1K_V1": state,
        "torchvision-resnet50": resnet50().state_dict(),
    }
    for name, tensors in fetched.items():
        torch.save(tensors, here / "cache" / name)
        digest = hashlib.sha256((here / "cache" / name).read_bytes()).hexdigest()
        (here / "cache" / f"{name}.sha256").write_text(f"{digest}  {name}\n")


def test_there_are_commands():
    assert len(COMMANDS) >= 9
    assert all(c.startswith(("video-gn ", "python ")) for c in COMMANDS), COMMANDS


def test_the_commands_run_in_their_order(place):
    for command in COMMANDS:
        words = shlex.split(command)
        if words[0] == "video-gn":
            status, printed = run(words[1:], place)
        else:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                [sys.executable, *words[1:]], cwd=place, env=environment, capture_output=True, text=True
            )
            status, printed = done.returncode, done.stdout + done.stderr
        assert status == 0, f"{command}\n{printed}"
    assert len(json.loads((place / "labels.json").read_text())["videos"]) == 30
    assert (place / "labels.csv").is_file()
    assert (place / "many.json").read_bytes() == (place / "labels.json").read_bytes()
    assert (place / "runs/batch_norm/checkpoints/best.ckpt").is_file()
    for name in ("study.csv", "table.md", "error_by_norm.png", "curves.svg"):
        assert (place / "runs/study/weizmann" / name).is_file()
    assert (place / "runs/i3d_r50_gn_32x2_b4/test/metrics.json").is_file()
    assert (place / "runs/i3d_r50_gn_32x2_b4/weights.json").is_file()
    table = README.partition("### What a run leaves")[2].partition("\n## ")[0]
    assert "`config.yaml`" in table
    for name in re.findall(r"^\| `(\w+\.\w+)`", table, re.MULTILINE):
        if name == "failures.csv":
            continue  # there only where a video is broken; another test has one
        assert (place / "runs" / ("from_imagenet" if name == "weights.json" else "mine") / name).is_file()
    for block in blocks("python"):
        done = subprocess.run([sys.executable, "-c", block], cwd=place, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert ("'label'" if "predict" in block else "inflated") in done.stdout


def test_the_two_scripts_are_run_by_ci_and_stand_first():
    first = re.search(r"^```\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)[1]
    assert first.splitlines() == ["bash scripts/demo.sh", "bash scripts/test.sh"]
    ci = (ROOT / ".ci/run").read_text()
    for command in first.splitlines():
        assert command in ci
        assert os.access(ROOT / command.split()[1], os.X_OK)


def test_paths_and_settings_that_the_page_names_exist():
    text = README + (ROOT / "CHANGELOG.md").read_text()
    for path in re.findall(r"(?:configs|scripts)/[\w/]+\.(?:yaml|sh|py)", text):
        assert (ROOT / path).is_file(), path
    assert "@@" not in text
