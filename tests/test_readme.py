"""Every command of the README pages is taken out of the page and run as printed; every link leads somewhere."""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from media import write_numbered_video
from runs import run, run_with, start
from small import write_small_configs
from torchvision.models import resnet50

from video_gn.models import i3d
from video_gn.weights.keymaps import KEYMAPS

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [
    README,
    *sorted(p for top in ("configs", "scripts", "tests", "video_gn") for p in (ROOT / top).rglob("README.md")),
]
# Measurements take minutes at the size that the pages name.
SMALLER = {
    "bench data": "video.mp4 --rounds 1",
    "bench fit": "--steps 4 --rounds 1",
    "bench infer": "--num_videos 1 --num_clips 1 --size 32 --width 4 --rounds 1",
    "bench test": "--num_videos 2 --num_clips 2 --size 32 --width 4 --rounds 1",
    "bench train": "--frames 8 --size 32 --width 8 --formats channels_last_3d --no_memory --rounds 1",
    "bench weights": "--rounds 1",
}


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(page, language):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def commands(page):
    return [line for block in blocks(page, "bash") for line in block.splitlines() if line.strip()]


def prose(page):
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def place(tiny_videos, tmp_path_factory):
    """A directory where the pages' paths exist: small configs under the same names, small videos, Kinetics csvs."""
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
    for name in ("video.mp4", "video.ts"):
        write_numbered_video(here / name, 40)
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
        patch.setattr("video_gn.bench.data._MEMORY_VIDEOS", 4)
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


def execute(command, here, more=""):
    """Run a command of a page in a directory."""
    words, _, stdin = command.partition(" < ")
    words = shlex.split(f"{words} {more}")
    if words[0] == "video-gn":
        status, printed = run_with(start, words[1:], here, stdin=stdin or None)
    else:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, *words[1:]], cwd=here, env=environment, capture_output=True, text=True)
        status, printed = done.returncode, done.stdout + done.stderr
    assert status == 0, f"{command}\n{printed}"


@pytest.fixture(scope="module")
def after_first(place):
    """The directory after the first page's commands: the other pages go on from there."""
    for command in commands(README):
        execute(command, place)
    return place


def test_there_are_pages_and_commands():
    assert {name_of(page) for page in PAGES} >= {
        "README.md",
        "configs/README.md",
        "configs/study/README.md",
        "scripts/slurm/README.md",
        "tests/README.md",
        "video_gn/README.md",
        *(f"video_gn/{folder}/README.md" for folder in ("bench", "data", "decoding", "labelling", "run", "weights")),
    }
    lines = [line for page in PAGES for line in commands(page)]
    assert len(commands(README)) >= 6 and len(lines) >= 25
    assert all(line.startswith(("video-gn ", "python ")) for line in lines), lines
    assert len(set(lines)) == len(lines)


def test_the_first_page(after_first):
    here = after_first
    assert len(json.loads((here / "labels.json").read_text())["videos"]) == 30
    assert (here / "runs/i3d_r50_gn_32x2_b4/test/metrics.json").is_file()
    assert (here / "runs/i3d_r50_gn_32x2_b4/weights.json").is_file()
    table = README.read_text().partition("## What a run leaves")[2].partition("\n## ")[0]
    rows = [re.findall(r"`([^`]+)`", line.split("|")[1]) for line in table.splitlines() if line.startswith("| `")]
    names = {name for row in rows for name in row}
    assert {"config.yaml", "test/metrics.json", "report.html"} <= names
    # The last three are left by other runs: a broken video, a stopped test, a second training.
    for name in names - {"weights.json", "predict/predictions.json", "failures.csv", "test/unfinished/", "previous/"}:
        assert (here / "runs/mine" / ("checkpoints" if name == "last.ckpt" else "") / name).exists(), name


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.needs_engines if page.parent.name == "export" else ())
        for page in PAGES[1:]
        if commands(page)
    ],
    ids=name_of,
)
def test_the_commands_of_a_folders_page(after_first, page):
    for command in commands(page):
        if not command.startswith("video-gn bench"):
            execute(command, after_first)


def test_what_the_folders_commands_leave(after_first):
    here = after_first
    assert (here / "labels.csv").is_file()
    assert (here / "many.json").read_bytes() == (here / "labels.json").read_bytes()
    assert (here / "runs/batch_norm/checkpoints/best.ckpt").is_file()
    assert (here / "runs/mine/predict/predictions.json").is_file()
    for name in ("study.csv", "table.md", "error_by_norm.png", "curves.svg"):
        assert (here / "runs/study/weizmann" / name).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for page in PAGES for c in commands(page) if c.startswith("video-gn bench")])
def test_a_measurement_at_a_smaller_size(place, command):
    execute(command, place, SMALLER[" ".join(command.split()[1:3])])


@pytest.mark.parametrize(("page", "place_of_block"), [(p, n) for p in PAGES for n, _ in enumerate(blocks(p, "python"))])
def test_python(after_first, page, place_of_block, monkeypatch, capsys):
    monkeypatch.chdir(after_first)
    block = blocks(page, "python")[place_of_block]
    exec(compile(block, name_of(page), "exec"), {})
    printed = capsys.readouterr().out
    assert bool(printed) == ("print(" in block)
    assert "'label'" in printed or "predict(" not in block
    assert "inflated" in printed or "load_into" not in block


def test_the_two_scripts_are_run_by_ci():
    page, ci = README.read_text(), (ROOT / ".ci/run").read_text()
    for command in ("bash scripts/demo.sh", "bash scripts/test.sh"):
        assert f"`{command}`" in page and command in ci
        assert os.access(ROOT / command.split()[1], os.X_OK)


def test_the_first_page_is_short():
    assert len(README.read_text().splitlines()) <= 220


def anchors(page):
    """The anchors that GitHub gives to a page's headings."""
    heads = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = prose(page)
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists() and found.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name_of)
def test_files_that_a_page_names_exist(page):
    text = page.read_text()
    assert "@@" not in text
    named = set(re.findall(r"(?:configs|scripts|tests|video_gn)/[\w/]+\.(?:yaml|sh|py|sbatch|md)", text))
    if page.name == "README.md":
        named |= set(re.findall(r"`((?:[\w-]+/)*[\w-]+\.(?:py|sbatch))`", text))
    if page.parent.name == "video_gn":
        named |= set(re.findall(r"`([\w/]+/)`", text))
    for path in named:
        assert any((place / path).exists() for place in (ROOT, page.parent, ROOT / "video_gn")), path


def test_the_packages_page_names_every_folder_and_config():
    package = ROOT / "video_gn"
    text = (package / "README.md").read_text()
    for path in package.iterdir():
        if path.suffix == ".py" and path.name != "__init__.py":
            assert f"`{path.name}`" in text, path.name
        elif path.is_dir() and (path / "__init__.py").is_file():
            assert f"`{path.name}/`" in text, path.name
    text = (ROOT / "configs/README.md").read_text() + (ROOT / "configs/study/README.md").read_text()
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert path.name in text or path.parent.name == "kinetics400", path


def test_settings_that_a_page_names_exist(place):
    status, printed = run(["fit", "--help_all"], place)
    assert status == 0
    groups = "data|model|trainer|checkpoint|guard|averaging|precise_bn|ddp"
    named = {name for page in PAGES for name in re.findall(rf"`(?:--)?((?:{groups})\.[\w.]+)", page.read_text())}
    # Options of `i3d`, and a file.
    named = {name for name in named if not name.startswith("model.net.") and name != "model.safetensors"}
    assert len(named) > 20
    assert not {name for name in named if f"--{name}" not in printed}


def test_pictures_are_small():
    assert sum(path.stat().st_size for path in (ROOT / "scripts/pictures").iterdir()) < 600_000


def test_extras_are_those_of_the_package():
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = set(tomllib.load(file)["project"]["optional-dependencies"])
    rows = README.read_text().partition("| extra")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", rows, re.MULTILINE)) == extras
    asked = {
        name for page in PAGES for names in re.findall(r"\.\[([\w,]+)\]", page.read_text()) for name in names.split(",")
    }
    assert asked and asked <= extras
