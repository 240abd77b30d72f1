"""Models that are saved and pushed: the same scores again, and the files that a repository has."""

import json

import pytest
import torch
from hub_server import TOKEN, hub_server
from own_net import MyNet, own_run
from shared_runs import make_run

import video_gn
from video_gn.__main__ import main
from video_gn.errors import CheckpointError, ConfigError
from video_gn.hub import build_card, push, save
from video_gn.models import NORMS
from video_gn.weights.build import load_net
from video_gn.weights.named import find_weights

FILES = {"README.md", "config.json", "model.safetensors"}


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_a_saved_model_gives_equal_scores(tmp_path, norm):
    net = make_run(tmp_path / "run", norm=norm)
    save(tmp_path / "run", tmp_path / "saved", license="mit")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == FILES
    assert len({path.stat().st_mode for path in (tmp_path / "saved").iterdir()}) == 1
    predictor = video_gn.load(tmp_path / "saved", device="cpu")
    frames_VTCHW = torch.randint(256, (2, 8, 3, 32, 32), dtype=torch.uint8)
    expected = video_gn.load(tmp_path / "run", device="cpu").scores(frames_VTCHW)
    assert (predictor.scores(frames_VTCHW) == expected).all() and expected.std() > 0
    assert predictor.classes == ["a", "b", "ç, d"] and predictor.num_clips == 2
    written = load_net(tmp_path / "saved/model.safetensors")[0].state_dict()
    assert all(torch.equal(tensor, written[name]) for name, tensor in net.state_dict().items())
    about = json.loads((tmp_path / "saved/config.json").read_text())
    assert (about["net"]["norm"], about["clip"]["num_frames"], about["mean"]) == (norm, 8, [0.1, 0.2, 0.3])
    assert (tmp_path / "saved/README.md").read_text() == build_card(tmp_path / "run", license="mit")[0]
    assert b"somebody" not in (tmp_path / "saved/model.safetensors").read_bytes()


def test_a_saved_network_of_somebodys_own_takes_its_weights(tmp_path, caplog):
    module = own_run(tmp_path / "run")
    (tmp_path / "run/checkpoints/best.ckpt").rename(tmp_path / "run/checkpoints/last.ckpt")
    save(tmp_path / "run", tmp_path / "saved")
    assert caplog.text.count("last.ckpt") == 1
    assert {path.name for path in (tmp_path / "saved").iterdir()} == FILES
    given = MyNet(3)
    video_gn.load(tmp_path / "saved", net=given)
    assert all(torch.equal(tensor, given.state_dict()[name]) for name, tensor in module.state_dict().items())
    with pytest.raises(CheckpointError, match=r"is of own_net\.MyNet, a network of somebody's own"):
        video_gn.load(tmp_path / "saved")


def test_a_directory_with_files_is_left_alone(tmp_path):
    make_run(tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/README.md").write_text("mine")
    with pytest.raises(ConfigError, match="DIR must be new or empty, got .*mine"):
        save(tmp_path / "run", tmp_path / "mine")
    assert (tmp_path / "mine/README.md").read_text() == "mine"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hub_server(monkeypatch, tmp_path / "cache") as server:
        yield server


@pytest.mark.slow
@pytest.mark.needs_hub
def test_a_run_is_pushed_in_one_commit_and_loaded_from_there(tmp_path, hub, monkeypatch):
    make_run(tmp_path / "run")
    save(tmp_path / "run", tmp_path / "saved")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["hub", "push", str(tmp_path / "run"), "owner/name"]) == 0
    assert [(made["name"], made["organization"]) for made in hub.made] == [("name", "owner")]
    assert hub.made[0].get("private") or hub.made[0].get("visibility") == "private"
    (files,) = hub.commits
    assert files.keys() == FILES
    assert files["config.json"] == (tmp_path / "saved/config.json").read_bytes()
    card = (tmp_path / "saved/README.md").read_text()
    assert files["README.md"].decode() == card.replace("OWNER/NAME", "owner/name") != card

    hub.repositories["owner/name"] = {**files, "pytorch_model.bin": b"\x80\x02", "modeling.py": b"raise SystemExit"}
    frames_VTCHW = torch.randint(256, (2, 8, 3, 32, 32), dtype=torch.uint8)
    found = video_gn.load("hf:owner/name", device="cpu").scores(frames_VTCHW)
    assert (found == video_gn.load(tmp_path / "run", device="cpu").scores(frames_VTCHW)).all()
    assert {path for path in hub.asked if "/resolve/" in path} == {"/owner/name/resolve/main/model.safetensors"}
    path = find_weights("hf:owner/name@main")
    assert path.is_relative_to(tmp_path / "cache") and path.read_bytes() == files["model.safetensors"]


@pytest.mark.slow
@pytest.mark.needs_hub
def test_a_pushed_network_of_somebodys_own_is_loaded_from_there(tmp_path, hub, monkeypatch):
    module = own_run(tmp_path / "run")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["hub", "push", str(tmp_path / "run"), "owner/name"]) == 0
    hub.repositories["owner/name"] = hub.commits[0]
    given = MyNet(3)
    video_gn.load("hf:owner/name", net=given)
    assert all(torch.equal(tensor, given.state_dict()[name]) for name, tensor in module.state_dict().items())


@pytest.mark.slow
@pytest.mark.needs_hub
def test_a_saved_model_is_pushed_with_its_edited_card(tmp_path, hub, monkeypatch):
    make_run(tmp_path / "run")
    save(tmp_path / "run", tmp_path / "saved")
    (tmp_path / "saved/README.md").write_text("# Mine\nhf:OWNER/NAME\n")
    (tmp_path / "saved/notes.txt").write_text("for me alone")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert push(tmp_path / "saved", "owner/name", public=True).startswith(f"{hub.address}/owner/name/commit/")
    assert hub.made[0].get("private") is False or hub.made[0].get("visibility") == "public"
    assert hub.commits[0].keys() == FILES and hub.commits[0]["README.md"] == b"# Mine\nhf:owner/name\n"
    with pytest.raises(ConfigError, match="--license must stand with a run. Write it into .*README.md"):
        push(tmp_path / "saved", "owner/name", license="mit")


@pytest.mark.slow
@pytest.mark.needs_hub
def test_a_push_that_cannot_be(tmp_path, hub, monkeypatch):
    make_run(tmp_path / "run")
    save(tmp_path / "run", tmp_path / "saved")
    for name in ("name", "a/b/c", "../x", "hf:a/b"):
        with pytest.raises(ConfigError, match="the repository must be OWNER/NAME, got"):
            push(tmp_path / "saved", name)
    with pytest.raises(CheckpointError, match=r"hf:owner/name: .* does not allow it \(401\).*HF_TOKEN\.$"):
        push(tmp_path / "saved", "owner/name")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="hf:owner/name: cannot be reached while HF_HUB_OFFLINE is set"):
        push(tmp_path / "saved", "owner/name")
    (tmp_path / "saved/model.safetensors").write_bytes(b"x" * 99)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        push(tmp_path / "saved", "owner/name")
    assert not hub.made and not hub.commits
