"""`video-gn data scan | prepare`, and trainings over what they write."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from runs import TINY, run

from video_gn import processes
from video_gn.__main__ import main


@pytest.fixture
def broken(tiny_videos, tmp_path):
    """The tiny videos, two of them broken, and a list of them that has one more."""
    videos = tmp_path / "videos"
    shutil.copytree(tiny_videos, videos)
    (videos / "one/00.mp4").write_text("<html>")
    (videos / "two/01.mp4").write_bytes(b"")
    rows = [f"videos/{p.parent.name}/{p.name} {p.parent.name}" for p in sorted(videos.rglob("*.mp4"))]
    (tmp_path / "list.txt").write_text("\n".join([*rows, "videos/two/gone.mp4 two"]) + "\n")
    return tmp_path


def weights(run_dir):
    return torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_broken_files_never_reach_an_epoch_and_are_counted_in_a_test(broken, ending):
    status, printed = run(["data", "scan", "list.txt", f"--output=scan.{ending}", "--num_workers=1"], broken)
    assert status == 3, printed
    assert "31" in printed and "28" in printed
    words = [*TINY, f"--data.train=scan.{ending}", "--data.split.val_fraction=0.3", f"--run_dir={broken / 'run'}"]
    status, printed = run(["fit", *words, "--trainer.max_epochs=2", "--data.max_broken_fraction=0"], broken)
    assert status == 0, printed
    assert "that a scan found broken are left out of training" in printed
    assert "could not be read (" not in printed, "no worker has met one"
    assert not (broken / "run/failures.csv").exists()
    status, printed = run(["test", *words, f"--data.test=scan.{ending}", "--data.views.num_clips=2"], broken)
    assert status == 3, printed
    metrics = json.loads((broken / "run/test/metrics.json").read_text())
    assert (metrics["num_videos"], metrics["num_failed"]) == (31, 3)
    reasons = {Path(f["path"]).name: f["reason"] for f in metrics["failed"]}
    assert set(reasons) == {"00.mp4", "01.mp4", "gone.mp4"}
    assert "missing" in reasons["gone.mp4"]


@pytest.mark.parametrize(("words", "expected"), [([], None), (["--full"], None), (["--timeout_seconds=5"], 5.0)])
def test_a_scan_chooses_its_own_time_limit_unless_one_is_given(monkeypatch, tmp_path, words, expected):
    """One minute for a file, ten with --full: `scan` decides it from None."""
    seen = []

    class Stop(Exception):
        pass

    def scan(*args, timeout_seconds, **settings):
        seen.append(timeout_seconds)
        raise Stop

    monkeypatch.setattr("video_gn.prepare.scan.scan", scan)
    with pytest.raises(Stop):
        main(["data", "scan", "videos", f"--output={tmp_path / 'scan.csv'}", *words])
    assert seen == [expected]


def test_a_training_over_shards_is_the_one_over_loose_files(tiny_videos, tmp_path):
    shutil.copytree(tiny_videos, tmp_path / "videos")
    status, printed = run(["data", "prepare", "videos", "shards", "--copy", "--shards=7"], tmp_path)
    assert status == 0, printed
    assert len(list((tmp_path / "shards").glob("*.tar"))) == 5
    words = ["--trainer.max_epochs=2", "--trainer.limit_val_batches=1"]
    lists = {"loose": "videos", "packed": "shards/videos.csv", "whole": "shards/videos-{000000..000004}.tar"}
    for name, data in lists.items():
        status, printed = run(["fit", *TINY, *words, f"--data.train={data}", f"--run_dir={tmp_path / name}"], tmp_path)
        assert status == 0, printed
    one, two, three = (weights(tmp_path / name) for name in lists)
    assert all(torch.equal(one[k], two[k]) and torch.equal(one[k], three[k]) for k in one)
    infer = ["infer", "shards/videos-000000.tar", "--checkpoint=whole/checkpoints/last.ckpt", "--output=labels.json"]
    status, printed = run([*infer, "--num_workers=0"], tmp_path)
    assert status == 0, printed
    labelled = [video["path"] for video in json.loads((tmp_path / "labels.json").read_text())["videos"]]
    assert len(labelled) == 7 and all(path.startswith("shards/videos-000000.tar::") for path in labelled)


def test_prepared_videos_train_and_what_failed_is_named(broken):
    words = ["data", "prepare", "list.txt", "made", "--num_workers=1", "--short_side_px=32"]
    status, printed = run(words, broken)
    assert status == 3, printed
    with (broken / "made/failed.csv").open() as file:
        assert sorted(Path(r["path"]).name for r in csv.DictReader(file)) == ["00.mp4", "01.mp4", "gone.mp4"]
    fit = ["fit", *TINY, "--data.train=made/manifest.csv", f"--run_dir={broken / 'run'}", "--trainer.max_epochs=1"]
    status, printed = run(fit, broken)
    assert status == 0, printed
    assert "28 videos of 3 classes" in printed
    status, printed = run(words, broken)
    assert "0 of them new" in printed


def test_all_parts_are_prepared_and_kept(tiny_videos, tmp_path, monkeypatch, capsys):
    """Of folders, of their scan, and of a list whose parts have names of their own."""
    monkeypatch.setattr(processes, "START_METHOD", "fork")
    monkeypatch.chdir(tmp_path)
    for part, stems in (("Train", ("00", "01")), ("dev", ("02",)), ("test_set", ("03",))):
        for label in ("one", "two"):
            for stem in stems:
                target = tmp_path / "videos" / part / label / f"{stem}.mp4"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(tiny_videos / label / f"{stem}.mp4", target)
    lines = [f"videos/Train/one/00.mp4,one,{fold}" for fold in ("fold1", "fold2")]
    Path("folds.csv").write_text("\n".join(["path,label,split", *lines, "videos/dev/two/02.mp4,two,fold2"]) + "\n")
    for name in ("x.dat", "Thumbs.db"):
        Path("videos/Train/one", name).touch()
    assert main(["data", "scan", "videos", "--output=scan.csv", "--num_workers=1"]) == 0
    assert "videos/Train: what is no video by its ending is left out: 1 .dat\n" in capsys.readouterr().err
    wanted = {
        "videos": ["train/one/00", "train/one/01", "train/two/00", "train/two/01", "val/one/02", "val/two/02"],
        "folds.csv": ["fold1/one/00", "fold2/one/00", "fold2/two/02"],
    }
    wanted["videos"] += ["test/one/03", "test/two/03"]
    wanted["scan.csv"] = wanted["videos"]
    for source, want in wanted.items():
        out = tmp_path / f"{source}-out"
        status = main(["data", "prepare", source, str(out), "--num_workers=1", "--short_side_px=32"])
        assert status == 0, capsys.readouterr().err
        with (out / "manifest.csv").open() as file:
            rows = [(row["path"], row["label"], row["split"]) for row in csv.DictReader(file)]
        assert rows == [(f"{name}.mp4", name.split("/")[1], name.split("/")[0]) for name in want]
        assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.mp4")) == sorted(p for p, *_ in rows)


def test_failures_of_all_parts_are_named(tiny_videos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for part in ("train", "val"):
        for name in ("one", "two"):
            (tmp_path / "videos" / part / name).mkdir(parents=True)
            shutil.copy(tiny_videos / name / "00.mp4", tmp_path / "videos" / part / name)
    for name in ("train/one/empty.mp4", "val/two/none.mp4"):
        (tmp_path / "videos" / name).touch()
    assert main(["data", "prepare", "videos", "out", "--copy", "--shards=5"]) == 3
    with Path("out/failed.csv").open() as file:
        assert [Path(row["path"]).name for row in csv.DictReader(file)] == ["empty.mp4", "none.mp4"]


def test_fit_and_test_with_a_test_part_alone(tiny_videos, tmp_path):
    """No video is trained on and tested, whatever the case of the folders' names."""
    for path in sorted(tiny_videos.glob("[ot]*/*.mp4")):
        target = tmp_path / "videos" / ("Test" if path.stem > "07" else "Training") / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    words = [*TINY, "--data.train=videos", "--data.views.num_clips=1", "--run_dir=run"]
    status, printed = run(["fit", *words, "--trainer.max_epochs=1", "--trainer.limit_train_batches=2"], tmp_path)
    assert status == 0, printed
    assert "videos (train): 24 videos of 3 classes" in printed and "tests use its part 'test'" in printed
    status, printed = run(["test", *words], tmp_path)
    assert status == 0, printed
    with (tmp_path / "run/test/predictions.csv").open() as file:
        tested = [Path(row["video"]).parts[-3:] for row in csv.DictReader(file)]
    assert sorted(tested) == [("Test", name, f"0{n}.mp4") for name in ("one", "three", "two") for n in (8, 9)]
    shutil.rmtree(tmp_path / "videos/Test")
    for name in ("two", "three"):
        shutil.rmtree(tmp_path / "videos/Training" / name)
    status, printed = run(["fit", *words[:-1], "--run_dir=other"], tmp_path)
    assert status == 2 and "classes must be at least 2 to be told apart, got 'one' alone" in printed


def test_copy_asks_for_a_number(tiny_videos, tmp_path):
    status, printed = run(["data", "prepare", tiny_videos, "out", "--copy"], tmp_path)
    assert status == 2
    assert "--copy packs files unchanged: give the number of videos of each tar file with --shards" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prepare", "VIDEOS", "out", "--short_side_px=3"], "short_side_px must be even and at least 16, got 3"),
        (["scan", "VIDEOS", "--output=out.txt"], "target must end in one of"),
        (
            ["scan", "VIDEOS", "--output=out.csv", "--full", "--headers_only"],
            "full and headers_only must not both be set",
        ),
        (["scan", "VIDEOS", "--output=out.csv", "--timeout_seconds=-1"], "timeout_seconds must be above 0, got -1"),
    ],
)
def test_options_that_do_not_fit(tiny_videos, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["data", *(str(tiny_videos) if word == "VIDEOS" else word for word in words)]) == 2
    assert f"video-gn: error: {message}" in capsys.readouterr().err
