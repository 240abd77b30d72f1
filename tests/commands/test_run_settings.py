"""Where a command takes its settings and its checkpoint from, if a run is given and no config."""

import hashlib
import json
import logging
import shutil
from pathlib import Path

import pytest
import yaml
from jsonargparse import Namespace
from runs import TINY, run
from small import data_module

import video_gn
from video_gn.commands._run_settings import RunWords, Start, log_differences, settle_lists, with_run_config
from video_gn.errors import ConfigError


@pytest.fixture
def a_run(tmp_path, monkeypatch):
    """A run directory with files of hardly any content."""
    monkeypatch.chdir(tmp_path)
    for name in ("config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "test/config.yaml"):
        path = tmp_path / "runs/mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a: 1\n")
    return tmp_path / "runs/mine"


OWN = ["--config", "runs/mine/config.yaml"]
NEVER_BEST = ["--ckpt_path=null"]
ONE_NODE = ["--trainer.num_nodes=1"]


@pytest.mark.parametrize("command", ["test", "validate", "predict", "data show"])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--run_dir runs/mine", [*OWN, *NEVER_BEST, *ONE_NODE, "--run_dir=runs/mine"]),
        ("--run_dir=runs/mine --a 1", [*OWN, *NEVER_BEST, *ONE_NODE, "--a", "1", "--run_dir=runs/mine"]),
        # a run's config is its run's, wherever it was written; it is not tested where it began
        ("-c runs/mine/config.yaml", [*OWN, *NEVER_BEST, "--run_dir=runs/mine"]),
        ("-c runs/mine", [*OWN, *NEVER_BEST, "--run_dir=runs/mine"]),
        ("-c runs/mine/config.yaml --run_dir b", [*OWN, *NEVER_BEST, "--run_dir=b"]),
        # options override configs, whatever their order
        ("--a 1 -c a.yaml --run_dir runs/mine", ["--config", "a.yaml", "--a", "1", "--run_dir=runs/mine"]),
        ("-c runs/mine/config.yaml -c a.yaml", [*OWN, "--config", "a.yaml", *NEVER_BEST, "--run_dir=runs/mine"]),
        (
            "--ckpt_path runs/mine/checkpoints/last.ckpt --run_dir b",
            [*OWN, *NEVER_BEST, *ONE_NODE, "--run_dir=b", "--ckpt_path=runs/mine/checkpoints/last.ckpt"],
        ),
        ("--ckpt_path runs/mine", [*OWN, *NEVER_BEST, *ONE_NODE, "--run_dir=runs/mine", "--ckpt_path=runs/mine"]),
        # as it was: all settings are options
        ("--model.net=i3d --run_dir runs/mine", ["--model.net=i3d", "--run_dir=runs/mine"]),
        ("-c runs/mine/test/config.yaml", ["--config", "runs/mine/test/config.yaml"]),
        ("--help", ["--help"]),
    ],
)
def test_the_config_of_a_run(a_run, command, words, expected):
    assert with_run_config(command, words.split()).words == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--run_dir runs/mine", ["--run_dir=runs/mine"]),  # a new training needs a config
        ("--run_dir runs/mine --ckpt_path null", ["--run_dir=runs/mine"]),
        ("--run_dir runs/mine --ckpt_path last", [*OWN, *ONE_NODE, "--run_dir=runs/mine", "--ckpt_path=last"]),
        ("-c runs/mine/config.yaml", [*OWN, "--run_dir=runs/mine"]),
        ("--ckpt_path last", ["--ckpt_path=last"]),
    ],
)
def test_the_config_of_a_training(a_run, words, expected):
    assert with_run_config("fit", words.split()).words == expected


def test_a_resumes_config_is_newer_and_a_launcher_counts_the_processes(a_run, monkeypatch):
    for number in (9, 10):
        (a_run / f"config.resume-{number:03d}.yaml").write_text("a: 1\n")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    found = with_run_config("fit", ["--run_dir", "runs/mine", "--ckpt_path=last"])
    assert str(found.config) == "runs/mine/config.resume-010.yaml"
    assert found.words[2:4] == ["--trainer.num_nodes=1", "--trainer.devices=auto"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--run_dir runs/none", "runs/none does not exist, so its settings are not known. Give --run_dir"),
        ("--run_dir runs", "runs has no config.yaml, so its settings are not known. Give --run_dir"),
        ("--ckpt_path elsewhere.ckpt", "must have a run or a config, got neither"),
        ("", "data show must have a run or a config, got neither. Give --run_dir of a training, or -c CONFIG."),
    ],
)
def test_without_any_config(a_run, words, message):
    with pytest.raises(ConfigError, match=message):
        with_run_config("data show", words.split())


def test_other_processes_of_a_launch_read_a_config_that_the_first_has_set_aside(a_run):
    from video_gn.run.directory import RunDirectory

    holder = RunDirectory(a_run)
    holder.lock(".lock")
    holder.set_aside()
    for words in (["-c", "runs/mine/config.yaml"], ["-c", "runs/mine"]):
        found = with_run_config("fit", words)
        assert found.words == ["--config", "runs/mine/previous/001/config.yaml", "--run_dir=runs/mine"]


# ---- through the command line --------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tiny_videos, tmp_path_factory):
    """A run with settings that no config has; it has begun from another's checkpoint, and was moved since."""
    here = tmp_path_factory.mktemp("trained")
    shutil.copytree(tiny_videos, here / "videos")
    words = [*TINY, "--data.train=videos", "--data.split.val_fraction=0.4", "--data.views.num_clips=3"]
    for name, more in (("first", []), ("then", ["--ckpt_path=first/checkpoints/last.ckpt", "--trainer.max_epochs=3"])):
        status, printed = run(["fit", *words, f"--run_dir={name}", "--trainer.max_epochs=1", *more], here)
        assert status == 0, printed
    (here / "runs").mkdir()
    (here / "then").rename(here / "runs/mine")
    return here


def test_a_run_is_tested_and_resumed_as_it_was_trained(trained):
    status, printed = run(["test", "--run_dir=runs/mine"], trained)
    assert status == 0, printed
    assert "settings: runs/mine/config.yaml" in printed
    metrics = json.loads((trained / "runs/mine/test/metrics.json").read_text())
    assert (metrics["num_videos"], metrics["num_clips"]) == (12, 3)
    assert metrics["checkpoint"] == "runs/mine/checkpoints/best.ckpt"
    digest = hashlib.sha256((trained / metrics["checkpoint"]).read_bytes()).hexdigest()
    assert metrics["checkpoint_digest"] == f"SHA-256 {digest}"
    assert not (trained / "then").exists()
    last = trained / "runs/mine/checkpoints/last.ckpt"
    last.rename(trained / "on_another_disk.ckpt")
    last.symlink_to(trained / "on_another_disk.ckpt")
    status, printed = run(
        ["fit", "--ckpt_path=last", "--run_dir=runs/mine", "--trainer.max_epochs=4", "--data.views.num_clips=2"],
        trained,
    )
    assert status == 0, printed
    assert "config differs from runs/mine/config.yaml: trainer.max_epochs: 3 -> 4" in printed
    status, printed = run(["predict", "--run_dir=runs/mine", "--data.predict=videos/one"], trained)
    assert status == 0, printed
    assert "settings: runs/mine/config.resume-001.yaml" in printed
    found = json.loads((trained / "runs/mine/predict/predictions.json").read_text())["videos"]
    assert (len(found), len(found[0]["clips"])) == (10, 2)


def test_a_run_is_shown_and_labels_videos(trained):
    for words in (["runs/mine/config.yaml"], ["--run_dir", "runs/mine"]):
        status, printed = run(["data", "show", *words, "--num_train=1", "--output=a.png"], trained)
        assert status == 0, printed
        assert (trained / "a.png").is_file()
        (trained / "a.png").unlink()
    status, printed = run(["data", "show", "runs/mine", "--data.batchsize=1"], trained)
    assert (status, len(printed.splitlines())) == (2, 1), printed
    status, printed = run(["infer", "videos/one/00.mp4", "--checkpoint=runs/mine", "--output=a.jsonl"], trained)
    assert status == 0, printed
    assert "checkpoint: runs/mine/checkpoints/best.ckpt" in printed
    predictor = video_gn.load(str(trained / "runs/mine"), device="cpu")
    assert predictor.checkpoint == trained / "runs/mine/checkpoints/best.ckpt"


def test_a_run_without_a_best_checkpoint_or_any(trained, tmp_path, caplog):
    copy = tmp_path / "copy"
    shutil.copytree(trained / "runs/mine", copy)
    (copy / "checkpoints/best.ckpt").unlink()
    assert video_gn.load(str(copy), device="cpu").checkpoint == copy / "checkpoints/last.ckpt"
    (copy / "checkpoints/last.ckpt").unlink()
    # Weights that the training began from are not the run.
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["model"]["weights"] = str(trained / "runs/mine/checkpoints/best.ckpt")
    for path in copy.glob("config*.yaml"):
        path.write_text(yaml.safe_dump(config))
    status, printed = run(["test", f"--run_dir={copy}"], trained)
    assert (status, printed.splitlines()[-1]) == (
        1,
        f"video-gn: error: no checkpoint in {copy}/checkpoints. Train first, or give --ckpt_path or --run_dir.",
    )
    status, printed = run(["infer", "videos", f"--checkpoint={copy}"], trained)
    assert status == 2
    assert f"{copy}: is a directory without checkpoints/best.ckpt or last.ckpt. Give a run's directory" in printed


# ---- what differs from the training --------------------------------------------------------------

SEES = "the network sees other clips than it was trained with"


def differences(printed):
    return [line for line in printed.splitlines() if line.startswith(("warning: ", "data."))]


def test_a_test_names_each_difference_from_the_training(trained):
    """Also with settings of its own, on the checkpoint of another run."""
    shutil.copytree(trained / "first", trained / "copy")
    own = [*TINY, "--data.train=videos", "--data.split.val_fraction=0.4", "--run_dir=x"]
    more = ["--data.clip.stride=3", "--data.clip.target_fps=20", "--data.views.crop_px=24", "--data.views.crops=three"]
    for words in (["--run_dir=copy"], [*own, "--ckpt_path=copy/checkpoints/last.ckpt"]):
        status, printed = run(["test", *words, *more, "--seed_everything=7", "--data.views.num_clips=2"], trained)
        assert status == 0, printed
        assert differences(printed) == [
            f"warning: data.clip.stride: 2 in the checkpoint's training, 3 here: {SEES}",
            f"warning: data.clip.target_fps: None in the checkpoint's training, 20.0 here: {SEES}",
            f"warning: data.views.crop_px: 32 in the checkpoint's training, 24 here: {SEES}",
            "data.views.num_clips: 3 in the checkpoint's training, 2 here",
            "data.views.crops: center in the checkpoint's training, three here",
            "warning: config differs from copy/config.yaml: seed_everything: 0 -> 7: other videos are held out, so "
            "that the network may have been trained on some that are tested",
        ]
    status, printed = run(["validate", "--run_dir=copy", "--data.views.num_clips=2"], trained)
    assert (status, differences(printed)) == (0, []), printed


def test_weights_that_are_tested_unchanged_are_compared_too(caplog, tiny_videos):
    about = {"clip": {"num_frames": 8, "stride": 8}, "views": {"num_clips": 10, "crops": "center"}}
    data = data_module(tiny_videos)
    with caplog.at_level(logging.INFO, "video_gn.commands"):
        log_differences("predict", Start(about=about), Namespace(), data)
    assert caplog.messages == [
        f"data.clip.stride: 8 in the weights, 2 here: {SEES}",
        "data.views.num_clips: 10 in the weights, 1 here",
    ]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    caplog.clear()
    log_differences("fit", Start(Path("last.ckpt"), about, resumes=True), Namespace(), data)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("command", "lists", "message"),
    [
        ("test", {"train": "gone"}, "data.train must be there, got 'gone', as runs/mine/config.yaml has it. Give --da"),
        ("test", {"train": "here", "val": "gone"}, "data.val must be there"),
        ("fit", {"train": "here", "val": "gone"}, "data.val must be there"),
        ("data show", {"train": "gone", "val": "here"}, "data.train must be there"),
        ("test", {"train": "gone", "test": "here", "val": "gone"}, {"train": None, "test": "here", "val": None}),
        ("test", {"train": "gone", "val": "here"}, {"train": None, "test": None, "val": "here"}),
        ("validate", {"train": "gone", "val": "here"}, {"train": None, "test": None, "val": "here"}),
        ("test", {"train": "told"}, {"train": "told", "test": None, "val": None}),
        ("test", {"train": "{0..9}.tar"}, {"train": "{0..9}.tar", "test": None, "val": None}),
        ("predict", {"train": "gone"}, {"train": "gone", "test": None, "val": None}),
    ],
)
def test_lists_of_a_run_that_are_elsewhere(tmp_path, monkeypatch, command, lists, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").touch()
    options = Namespace(data=Namespace(**({"train": None, "val": None, "test": None} | lists)))
    given = RunWords(["--data.train=told"] if "told" in lists.values() else [], Path("runs/mine/config.yaml"))
    if isinstance(message, str):
        with pytest.raises(ConfigError, match=message):
            settle_lists(command, given, options)
    else:
        settle_lists(command, given, options)
        assert options.data.as_dict() == message
