"""fit, test, predict and infer from the command line, on video files; and what they say of bad input."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from runs import TINY, run

from video_gn.run.metrics_file import read_metrics

# What a run directory holds after fit and test.
FILES = (
    "config.yaml",
    "checkpoints/best.ckpt",
    "checkpoints/last.ckpt",
    "metrics.csv",
    "test/config.yaml",
    "test/metrics.json",
    "test/predictions.csv",
    "test/scores.npz",
    "report.html",
)


def words(command, videos, run_dir, *more):
    return [command, *TINY, f"--data.train={videos}", f"--run_dir={run_dir}", "--data.views.num_clips=4", *more]


def fit(videos, run_dir, *more):
    return run(words("fit", videos, run_dir, "--trainer.max_epochs=2", *more), run_dir.parent)


@pytest.fixture(scope="module")
def trained(tiny_videos, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    status, printed = fit(tiny_videos, run_dir)
    assert status == 0, printed
    return run_dir, printed


@pytest.fixture(scope="module")
def tested(trained, tiny_videos):
    run_dir, _ = trained
    status, printed = run(words("test", tiny_videos, run_dir), run_dir.parent)
    assert status == 0, printed
    return run_dir, printed


def test_fit_says_what_it_does(trained):
    run_dir, printed = trained
    assert "24 training and 6 validation videos of 3 classes" in printed
    assert "global batch 4 = 1 process(es) x 4 clips x 1 accumulated" in printed
    assert "num_classes: 3, from the data" in printed
    assert str(run_dir) in printed


def test_a_run_directory_has_every_file(tested, tiny_videos):
    """Also after a second fit and a second test, and nothing of the first run is lost."""
    run_dir, _ = tested
    assert [f for f in FILES if not (run_dir / f).is_file()] == []
    copy = run_dir.parent / "twice" / "run"
    shutil.copytree(run_dir, copy)
    first = {f: (copy / f).read_bytes() for f in FILES}
    status, printed = fit(tiny_videos, copy)
    assert status == 0, printed
    assert "an earlier run" in printed
    status, printed = run(words("test", tiny_videos, copy), copy.parent)
    assert status == 0, printed
    assert [f for f in FILES if not (copy / f).is_file()] == []
    assert {f: (copy / "previous/001" / f).read_bytes() for f in FILES} == first
    assert [row["step"] for row in read_metrics(copy / "metrics.csv")] == list(range(1, 13))


def test_the_saved_config_is_resolved_and_runs_again(trained, tmp_path):
    run_dir, _ = trained
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert config["model"]["net"]["init_args"]["num_classes"] == 3
    assert config["run_dir"] == str(run_dir)
    again = tmp_path / "again"
    status, printed = run(["fit", "-c", run_dir / "config.yaml", f"--run_dir={again}"], tmp_path)
    assert status == 0, printed
    assert (again / "metrics.csv").read_text() == (run_dir / "metrics.csv").read_text()


def test_metrics_json_and_predictions_agree_with_the_scores(tested):
    run_dir, _ = tested
    metrics = json.loads((run_dir / "test/metrics.json").read_text())
    scores = np.load(run_dir / "test/scores.npz")
    with (run_dir / "test/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = ["one", "three", "two"]
    assert scores["scores"].shape == (6, 4, 3)
    assert scores["scores"].dtype == np.float32
    np.testing.assert_allclose(scores["scores"].sum(-1), 1, atol=1e-5)
    assert scores["video_ids"].tolist() == list(range(6))
    mean = scores["scores"].astype(np.float64).mean(1)
    right = mean.argmax(1) == scores["labels"]
    assert metrics["top1"] == pytest.approx(right.mean(), abs=1e-12)
    assert metrics["top5"] is None, "there are fewer than five classes"
    per_class = [right[scores["labels"] == c].mean() for c in range(3)]
    assert metrics["mean_class_accuracy"] == pytest.approx(np.mean(per_class), abs=1e-12)
    assert (metrics["num_videos"], metrics["num_failed"], metrics["coverage"]) == (6, 0, 1.0)
    assert (metrics["num_clips"], metrics["num_crops"], metrics["failed"]) == (4, 1, [])
    curve, alone = metrics["by_num_clips"], scores["scores"].argmax(2) == scores["labels"][:, None]
    assert curve["num_clips"] == [1, 2, 3, 4]
    assert curve["top1"][0] == pytest.approx(alone[:, 2].mean(), abs=1e-12)
    assert curve["top1"][-1] == metrics["top1"]
    assert curve["top1_single_view"] == pytest.approx(alone.mean(), abs=1e-12)
    assert list(rows[0]) == ["video", "label", "pred", "score", "top5", "num_views"]
    assert [r["pred"] for r in rows] == [names[i] for i in mean.argmax(1)]
    assert [r["label"] for r in rows] == [names[i] for i in scores["labels"]]
    assert [r["num_views"] for r in rows] == ["4"] * 6
    assert all(Path(r["video"]).is_file() and Path(r["video"]).parent.name == r["label"] for r in rows)


def test_a_test_ends_with_a_table(tested):
    run_dir, printed = tested
    metrics = json.loads((run_dir / "test/metrics.json").read_text())
    rows = dict(re.findall(r"^│ (.+?) +│ (.+?) +│$", printed, re.MULTILINE))
    assert rows["top-1"] == f"{100 * metrics['top1']:.1f} %"
    assert rows["mean class accuracy"] == f"{100 * metrics['mean_class_accuracy']:.1f} %"
    assert (rows["videos"], rows["views"]) == ("6 of 6 (100.0 %)", "4 clips x 1 crop of each video")
    assert "top-5" not in rows, "of three classes"
    assert "DataLoader 0" not in printed


def test_a_checkpoint_stands_alone(trained):
    run_dir, _ = trained
    about = torch.load(run_dir / "checkpoints/best.ckpt", weights_only=True)["video_gn"]
    assert about["classes"] == ["one", "three", "two"]
    assert about["net"]["norm"] == "group"
    assert about["net"]["num_classes"] == 3
    assert about["mean"] == pytest.approx([0.45] * 3)
    assert about["clip"]["num_frames"] == 8
    assert about["clip"]["stride"] == 2
    assert "hyper_parameters" not in torch.load(run_dir / "checkpoints/best.ckpt", weights_only=True)


def scores_of(found):
    tops = [top for video in found["videos"] for part in (video, *video["clips"]) for top in part["top"]]
    return [top["score"] for top in tops]


def without_scores(found):
    return json.loads(json.dumps(found), object_hook=lambda entry: {k: v for k, v in entry.items() if k != "score"})


def test_infer_predict_and_python_agree(trained, tiny_videos, tmp_path):
    run_dir, _ = trained
    best = run_dir / "checkpoints/best.ckpt"
    status, printed = run(["infer", tiny_videos, "--checkpoint", best, "--output", tmp_path / "a.json"], tmp_path)
    assert status == 0, printed
    assert "30 labelled, 0 failed" in printed
    found = json.loads((tmp_path / "a.json").read_text())
    assert len(found["videos"]) == 30
    assert found["failed"] == []
    status, printed = run(words("predict", tiny_videos, run_dir, f"--data.predict={tiny_videos}"), tmp_path)
    assert status == 0, printed
    predicted = json.loads((run_dir / "predict/predictions.json").read_text())
    # `infer` computes with a copy of the network for inference: scores differ by roundings, of 6 digits too.
    assert scores_of(predicted) == pytest.approx(scores_of(found), abs=2e-6)
    assert without_scores(predicted) == without_scores(found)

    import video_gn

    predictor = video_gn.load(best, device="cpu")
    torch.set_num_threads(1)
    video = found["videos"][3]
    result = predictor.predict(video["path"])
    assert result["num_frames"] == video["num_frames"]
    assert [t["label"] for t in result["top"]] == [t["label"] for t in video["top"]]
    assert [t["score"] for t in result["top"]] == pytest.approx([t["score"] for t in video["top"]], abs=2e-6)


def test_infer_goes_on_past_what_it_cannot_read(trained, tiny_videos, tmp_path):
    run_dir, _ = trained
    good = tiny_videos / "one/00.mp4"
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("<html>")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(good.read_bytes()[:300])
    (tmp_path / "no_videos").mkdir()
    bad = [tmp_path / n for n in ("missing.mp4", "empty.mp4", "text.mp4", "cut.mp4", "no_videos")]
    status, printed = run(
        ["infer", bad[0], good, *bad[1:], "--ckpt_path", run_dir / "checkpoints/best.ckpt", "--output", "x.csv"],
        tmp_path,
    )
    assert status == 3, printed
    with (tmp_path / "x.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {r["path"] for r in rows if r["reason"]} == {str(p) for p in bad}
    assert {r["path"] for r in rows if r["label"]} == {str(good)}
    assert all(str(p) in printed.replace("\n", "") or p.name in printed for p in bad)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--checkpoint", "missing.ckpt"], "missing.ckpt: no such file"),
        (["--checkpoint", "text.ckpt"], "text.ckpt: not a checkpoint"),
        (["--checkpoint", "cut.ckpt"], "cut.ckpt: a zip archive that is cut short"),
        (["--checkpoint", "other.ckpt"], "other.ckpt: holds no tensors"),
        (["--checkpoint", "BEST", "--output", "x.txt"], "must end in .json, .csv, .jsonl"),
        (["--checkpoint", "BEST", "--backend", "vlc"], "--backend must be auto"),
        (["--checkpoint", "BEST", "--top_k", "0"], "must be at least 1"),
    ],
)
def test_infer_with_bad_arguments(trained, tiny_videos, tmp_path, more, message):
    best = trained[0] / "checkpoints/best.ckpt"
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    (tmp_path / "cut.ckpt").write_bytes(best.read_bytes()[:5000])
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    status, printed = run(["infer", tiny_videos, *[str(best) if m == "BEST" else m for m in more]], tmp_path)
    assert status == 2, printed
    assert message in printed
    assert "Traceback" not in printed


def test_a_test_names_and_counts_what_it_cannot_read(trained, tiny_videos, tmp_path):
    run_dir, _ = trained
    videos = tmp_path / "videos"
    shutil.copytree(tiny_videos, videos)
    (videos / "two/broken.mp4").write_text("<html>")
    listed = tmp_path / "list.txt"
    listed.write_text(
        "".join(
            f"videos/{label}/{name} {label}\n"
            for label, name in (("one", "00.mp4"), ("two", "broken.mp4"), ("two", "gone.mp4"), ("three", "03.mp4"))
        )
    )
    status, printed = run(
        [
            "test",
            *TINY,
            f"--data.test={listed}",
            f"--run_dir={tmp_path / 'r'}",
            f"--ckpt_path={run_dir / 'checkpoints/best.ckpt'}",
        ],
        tmp_path,
    )
    assert status == 3, printed
    metrics = json.loads((tmp_path / "r/test/metrics.json").read_text())
    assert (metrics["num_videos"], metrics["num_failed"], metrics["coverage"]) == (4, 2, 0.5)
    assert [Path(f["path"]).name for f in metrics["failed"]] == ["broken.mp4", "gone.mp4"]
    assert all(f["reason"] for f in metrics["failed"])
    assert "broken.mp4" in printed
    assert "2 of 4 (50.0 %); 2 could not be read" in printed
    with (tmp_path / "r/test/predictions.csv").open() as file:
        assert [Path(r["video"]).name for r in csv.DictReader(file)] == ["00.mp4", "03.mp4"]


def test_training_goes_on_past_a_broken_video_up_to_the_ceiling(tiny_videos, tmp_path):
    videos = tmp_path / "videos"
    shutil.copytree(tiny_videos, videos)
    for name in ("one/00.mp4", "two/01.mp4"):
        (videos / name).write_text("<html>")
    held_out = tmp_path / "val"
    shutil.copytree(tiny_videos, held_out)
    more = [f"--data.val={held_out}", "--trainer.max_epochs=1", "--trainer.limit_val_batches=1"]
    status, printed = run(words("fit", videos, tmp_path / "a", *more, "--data.max_broken_fraction=0.1"), tmp_path)
    assert status == 0, printed
    assert printed.count("another video takes its place") == 2
    assert "2 of 30 training videos could not be read" in printed
    assert len(read_metrics(tmp_path / "a/metrics.csv")) == 30 // 4, "the number of steps does not change"
    status, printed = run(words("fit", videos, tmp_path / "b", *more, "--data.max_broken_fraction=0.05"), tmp_path)
    assert status == 1, printed
    assert "more than data.max_broken_fraction = 0.05 allows" in printed
    assert "Traceback" not in printed


def bad_list(path, text):
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("unknown key", "no setting model.net.widht. Did you mean model.net.width?"),
        ("unknown trainer key", "max_epocs"),
        ("missing list", "nothing.txt"),
        ("bad line", "bad.txt:2"),
        ("label outside", "list.txt:1"),
        ("classes disagree", "val.txt"),
        ("empty", "empty"),
        ("no train", "data.train is not set"),
        ("batch too large", "do not fill one batch"),
        ("groups do not divide", "must divide"),
        ("no checkpoint file", "is not a file"),
    ],
)
def test_bad_input_is_an_error_before_any_training(tiny_videos, tmp_path, case, message):
    one = tiny_videos / "one/00.mp4"
    more = {
        "unknown key": ["--model.net.widht=4"],
        "unknown trainer key": ["--trainer.max_epocs=3"],
        "missing list": ["--data.train=nothing.txt"],
        "bad line": [f"--data.train={bad_list(tmp_path / 'bad.txt', f'{one} one{chr(10)}two{chr(10)}')}"],
        "label outside": [
            f"--data.train={bad_list(tmp_path / 'list.txt', f'{one} four{chr(10)}')}",
            "--data.source.classes=[one, two]",
        ],
        "classes disagree": [f"--data.val={bad_list(tmp_path / 'val.txt', f'{one} nine{chr(10)}')}"],
        "empty": [f"--data.train={(tmp_path / 'empty').mkdir() or tmp_path / 'empty'}"],
        "no train": ["--data.train=null"],
        "batch too large": ["--data.batch_size=100"],
        "groups do not divide": ["--model.net.num_groups=3"],
        "no checkpoint file": ["--ckpt_path=gone.ckpt"],
    }[case]
    status, printed = run(words("fit", tiny_videos, tmp_path / "run", *more), tmp_path)
    assert status in (1, 2), printed
    assert message in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "run/metrics.csv").exists()


def test_a_checkpoint_of_other_classes_or_another_net_is_refused(trained, tiny_videos, tmp_path):
    best = trained[0] / "checkpoints/best.ckpt"
    two = tmp_path / "two_classes"
    for label in ("one", "two"):
        shutil.copytree(tiny_videos / label, two / label)
    status, printed = run(words("fit", two, tmp_path / "a", f"--ckpt_path={best}"), tmp_path)
    assert status == 2, printed
    assert "the checkpoint has 3 classes, the data 2" in printed
    status, printed = run(
        words("test", tiny_videos, tmp_path / "b", f"--ckpt_path={best}", "--model.net.width=8"), tmp_path
    )
    assert status == 2, printed
    assert "width: 4 there, 8 here" in printed
    assert "Traceback" not in printed


@pytest.mark.slow  # a run waits 15 s for another one to end
def test_a_directory_that_is_in_use_is_refused(tiny_videos, tmp_path):
    from video_gn.run.directory import RunDirectory

    holder = RunDirectory(tmp_path / "run")
    holder.lock(".lock")
    status, printed = run(words("fit", tiny_videos, tmp_path / "run", "--trainer.max_epochs=1"), tmp_path)
    assert status == 2
    assert "is in use by another run" in printed
    holder.unlock()


def test_validate_gives_the_figures_that_fit_logged(trained, tiny_videos):
    run_dir, printed = trained
    best = torch.load(run_dir / "checkpoints/best.ckpt", weights_only=True)["global_step"]
    wanted = next(line for line in printed.splitlines() if line.startswith(f"step {best}: val/loss"))
    status, printed = run(words("validate", tiny_videos, run_dir), run_dir.parent)
    assert status == 0, printed
    assert wanted.replace(f"step {best}", "validation") in printed
    top1 = float(re.search(r"val/top1 ([\d.]+)", wanted)[1])
    assert re.search(rf"│ top-1 +│ {100 * top1:.1f} % +│", printed) and "DataLoader 0" not in printed


def test_two_processes_see_every_video_once_and_agree_with_one(trained, tiny_videos, tmp_path):
    """Six videos over two gloo processes; files are equal byte for byte."""
    run_dir, _ = trained
    best = run_dir / "checkpoints/best.ckpt"
    outputs = {}
    for devices in (1, 2):
        out = tmp_path / str(devices)
        command = words("test", tiny_videos, out, f"--ckpt_path={best}", f"--trainer.devices={devices}")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        script = Path(sys.executable).with_name("video-gn")
        done = subprocess.run([script, *map(str, command)], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        outputs[devices] = [(out / "test" / n).read_bytes() for n in ("metrics.json", "predictions.csv", "scores.npz")]
    assert outputs[1] == outputs[2]


def test_a_checkpoint_from_elsewhere_begins_a_new_run(trained, tiny_videos, tmp_path):
    """What lies in the run directory is set aside, and the other run's best figure is not this one's."""
    run_dir, _ = trained
    here = tmp_path / "run"
    shutil.copytree(run_dir, here)
    other = run_dir / "checkpoints/last.ckpt"
    command = words("fit", tiny_videos, here, "--trainer.max_epochs=3", f"--ckpt_path={other}")
    status, printed = run(command, tmp_path)
    assert status == 0, printed
    assert (here / "previous/001/checkpoints/best.ckpt").is_file()
    assert [row["step"] for row in read_metrics(here / "metrics.csv")] == list(range(13, 19))
    assert torch.load(here / "checkpoints/best.ckpt", weights_only=True)["global_step"] == 18


def test_only_some_classes(tiny_videos, tmp_path):
    only = ["--data.source.only_classes=[one, two]", f"--data.val={tiny_videos}", "--trainer.max_epochs=1"]
    status, printed = run(words("fit", tiny_videos, tmp_path / "run", *only), tmp_path)
    assert status == 0, printed
    assert "20 training and 20 validation videos of 2 classes" in printed
    assert "20 videos are in both the training and the val list" in printed
    status, printed = run(words("test", tiny_videos, tmp_path / "run", *only[:2]), tmp_path)
    assert status == 0, printed
    assert json.loads((tmp_path / "run/test/metrics.json").read_text())["num_videos"] == 20


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--trainer.precision=bf16-true", "trainer.precision must be one of 32-true"),
        ("--trainer.log_every_n_steps=0", "log_every_n_steps must be at least 1"),
        ("--trainer.max_epochs=-1", "the schedule needs an end"),
        ("--trainer.val_check_interval=3 --trainer.accumulate_grad_batches=2", "must be a multiple of"),
        ("--checkpoint.monitor=val/top5", "checkpoint.monitor must be val/top1 for 3 classes"),
        ("--checkpoint.every_n_steps=0", "every_n_steps must be at least 1"),
        ("--data.backend=vlc", "backend must be one of"),
    ],
)
def test_settings_that_cannot_be_honoured(tiny_videos, tmp_path, option, message):
    status, printed = run(
        words("fit", tiny_videos, tmp_path / "run", "--trainer.max_epochs=1", *option.split()), tmp_path
    )
    assert status == 2, printed
    assert message in printed
    assert "Traceback" not in printed
