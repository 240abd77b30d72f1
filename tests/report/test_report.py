import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_run import METRICS, checked, make_test, make_training, page_of

from video_gn import report
from video_gn.errors import RunError, UnwritableError
from video_gn.report import reading, write_report

HOSTILE = "</td><script>alert(1)</script>'\"\udc80"


def test_the_page_of_a_whole_run(tmp_path):
    run = tmp_path / "gn <8>"
    make_training(run)
    labels, scores = make_test(run, failed=[("x/<i>broken</i>.mp4", "no video stream"), ("y.mp4", "is empty")])
    mean = scores.astype(np.float64).mean(1)
    top1 = float((mean.argmax(1) == labels).mean())

    page = page_of(run)
    text = checked(page)
    single = float((scores.argmax(2) == labels[:, None]).mean())

    assert (run / "report.html") == write_report(run)
    assert f"top-1{100 * top1:.1f}%" in text
    assert "coverage93.75%30 of 32 videos read" in text
    assert "views of a video4 × 24 clips, 2 crops of each" in text
    assert "ResNet-50 I3D · group norm, 32 groups · clips of 16 frames, stride 2 · batch size 8 in a process" in text
    assert "50 optimizer steps, 5 epochs begun; training loss 0.06 at the last logged step" in text
    assert "best validation top-1 50.0% at step 50 (epoch 5), last 50.0%" in text
    assert f"A single view is right for {100 * single:.1f}% of the videos (mean over views), all views together" in text
    assert "Top-1 by number of clips averaged" in text
    assert "<title>1 clip: top-1 " in page
    assert "x/<i>broken</i>.mp4no video stream" in text
    assert "<b>&\"'</b>" in text
    assert "<i>broken" not in page
    assert "seed7" in text
    assert f"video-gn fit -c '{run}/config.yaml' --run_dir '{run}-again'" in text
    assert f"video-gn test -c '{run}/test/config.yaml' --run_dir '{run}'" in text
    assert f"--checkpoint '{run}/checkpoints/best.ckpt'" in text
    for title in ("Training", "Views and scores", "Confusions", "Classes", "Most confident mistakes", "Failed videos"):
        assert f"<h2>{title}</h2>" in page
    assert "files may come from different tests" not in text
    assert "prefers-color-scheme: dark" in page


def test_the_same_files_give_the_same_page_and_nothing_else_is_left(tmp_path):
    make_training(tmp_path)
    make_test(tmp_path)
    before = {p.name for p in tmp_path.iterdir()}
    assert page_of(tmp_path) == page_of(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} - before == {"report.html"}


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    make_training(tmp_path)
    old = page_of(tmp_path)
    make_training(tmp_path, num_steps=90)

    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(UnwritableError, match="disk full"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == old
    assert [p.name for p in tmp_path.iterdir() if "tmp" in p.name] == []


def test_no_directory_and_an_empty_one(tmp_path):
    with pytest.raises(RunError, match=r"run_dir must be a directory, got '.*nowhere'\. Give the --run_dir"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "other.txt").write_text("x")
    with pytest.raises(RunError, match=r"run_dir must hold at least one of config.yaml, .*none of them. Train or test"):
        write_report(tmp_path)


@pytest.mark.parametrize("name", list(reading.FILES))
def test_each_file_alone_and_each_file_missing(tmp_path, name):
    whole = tmp_path / "whole"
    make_training(whole)
    make_test(whole)
    alone = tmp_path / "alone"
    (alone / name).parent.mkdir(parents=True)
    (alone / name).write_bytes((whole / name).read_bytes())
    text = checked(page_of(alone))
    assert "5 files are missing" in text
    assert "cannot be read" not in text
    (whole / name).unlink()
    text = checked(page_of(whole))
    assert "1 file is missing" in text
    assert f"{name}{reading.FILES[name]}missing" in text


@pytest.mark.parametrize("name", list(reading.FILES))
@pytest.mark.parametrize("part", [0.0, 0.3, 0.5, 0.97])
def test_a_file_that_was_cut_short_is_no_end(tmp_path, name, part):
    make_training(tmp_path)
    make_test(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * part)])
    checked(page_of(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.yaml", b"a: [1,", "config.yaml cannot be read: ValueError: it is not yaml: ParserError"),
        (
            "config.yaml",
            b"- 1\n",
            "config.yaml cannot be read: ValueError: it must hold settings, KEY: VALUE, got list",
        ),
        ("test/metrics.json", b"[1]", "it must hold an object, not list"),
        ("test/metrics.json", b"\xff\xfe", "test/metrics.json cannot be read: JSONDecodeError"),
        (
            "metrics.csv",
            b"a,b\n1,2\n",
            "metrics.csv is damaged at line 1: it must name step, epoch and other columns, once each",
        ),
        (
            "metrics.csv",
            METRICS.encode() + b"1,0,x,,,,\n",
            "metrics.csv is damaged at line 2: could not convert",
        ),
        (
            "metrics.csv",
            METRICS.encode() + b"1,0,1,1,1,1,1\n1,0,1,1,1,1,1,1\n",
            "metrics.csv is damaged at line 3: a row must have 7 fields, got 8; only the 1 row before it is shown.",
        ),
        ("test/predictions.csv", b"", "line 1: its columns must hold video, label, pred, score, top5"),
    ],
)
def test_damage_is_told(tmp_path, name, content, told):
    make_training(tmp_path)
    make_test(tmp_path)
    (tmp_path / name).write_bytes(content)
    assert told in checked(page_of(tmp_path))


def test_values_of_wrong_types_in_metrics_json(tmp_path):
    make_test(tmp_path)
    (tmp_path / "test/metrics.json").write_text('{"top1": "good", "top5": NaN, "num_videos": null, "failed": [3, {}]}')
    assert "top-1–" in checked(page_of(tmp_path))


@pytest.mark.parametrize("curve", [None, [], {}, {"num_clips": [1, 2], "top1": [0.5], "top1_single_view": 0.5}])
def test_a_test_without_accuracies_by_number_of_clips(tmp_path, curve):
    """Earlier versions wrote none; damaged ones count as none."""
    make_test(tmp_path)
    metrics = json.loads((tmp_path / "test/metrics.json").read_text())
    (tmp_path / "test/metrics.json").write_text(json.dumps(metrics | {"by_num_clips": curve}))
    text = checked(page_of(tmp_path))
    assert "test/metrics.json holds no accuracy by number of clips" in text
    assert "A single view" not in text
    assert "Accuracy by score" in text


def test_before_the_test_the_validation_stands_at_the_top(tmp_path):
    make_training(tmp_path)
    text = checked(page_of(tmp_path))
    assert "best validation top-150.0%step 50, epoch 5" in text
    assert "Not tested yet" in text
    assert f"# test the best checkpoint video-gn test -c {tmp_path}/config.yaml --run_dir {tmp_path}" in text


def test_predictions_alone_still_give_accuracy(tmp_path):
    labels, scores = make_test(tmp_path)
    top1 = float((scores.astype(np.float64).mean(1).argmax(1) == labels).mean())
    (tmp_path / "test/metrics.json").unlink()
    text = checked(page_of(tmp_path))
    assert f"top-1{100 * top1:.1f}%" in text
    assert "Counted from test/predictions.csv alone" in text


def test_unlabelled_videos_get_predictions_and_no_accuracy(tmp_path):
    make_test(tmp_path, labelled=False)
    text = checked(page_of(tmp_path))
    assert "No tested video has a label" in text
    assert "95% interval" not in text
    assert "Predicted classes" in text
    assert "Confusions" not in text


def test_no_top5_under_five_classes(tmp_path):
    make_test(tmp_path, classes=["a", "b", "c"])
    metrics = json.loads((tmp_path / "test/metrics.json").read_text())
    (tmp_path / "test/metrics.json").write_text(json.dumps(metrics | {"top5": None}))
    text = checked(page_of(tmp_path))
    assert "top-5–no top-5 under 5 classes" in text
    assert "classvideostop-1predicted" in text


def test_files_of_different_tests_are_noticed(tmp_path):
    make_test(tmp_path)
    metrics = json.loads((tmp_path / "test/metrics.json").read_text())
    (tmp_path / "test/metrics.json").write_text(json.dumps(metrics | {"top1": 0.01}))
    assert "Top-1 is 1.00% in test/metrics.json, but" in checked(page_of(tmp_path))


def test_many_classes_have_no_matrix_and_fold_their_table(tmp_path):
    classes = [f"class {i}" for i in range(60)]
    make_test(tmp_path, classes=classes, num_videos=400)
    page = page_of(tmp_path)
    text = checked(page)
    assert 'class="matrix"' not in page
    assert "60 classes are too many for a matrix" in text
    assert "All 60 classes" in text


def test_a_matrix_of_fifty_classes(tmp_path):
    labels, scores = make_test(tmp_path, classes=[f"class {i}" for i in range(50)], num_videos=400)
    page = page_of(tmp_path)
    checked(page)
    preds = scores.astype(np.float64).mean(1).argmax(1)
    pairs = list(zip(labels.tolist(), preds.tolist(), strict=True))
    assert page.count('class="right"') == len({p for p in pairs if p[0] == p[1]})
    assert page.count('class="wrong"') == len({p for p in pairs if p[0] != p[1]})
    label, pred = pairs[0]
    number, total = pairs.count(pairs[0]), labels.tolist().count(label)
    assert f"class {label} → class {pred}: {number} of {total} ({100 * number / total:.1f}%)</title>" in page


def test_many_failed_videos_are_grouped_and_cut(tmp_path):
    failed = [(f"v{i}.mp4", "is empty" if i % 3 else "no video stream") for i in range(600)]
    make_test(tmp_path, failed=failed)
    text = checked(page_of(tmp_path))
    assert "is empty400 no video stream200" in text
    assert "100 more: see test/metrics.json" in text
    assert "v499.mp4" in text
    assert "v500.mp4" not in text


def test_losses_that_are_not_finite(tmp_path):
    (tmp_path / "metrics.csv").write_text(METRICS + "1,0,0.1,nan,,,\n2,0,0.1,inf,,,\n3,0,0.1,2.5,,,\n")
    text = checked(page_of(tmp_path))
    assert "The training loss was not finite in 2 logged steps, first at step 1." in text


def test_names_that_are_no_text_or_turn_the_line_around(tmp_path):
    make_test(tmp_path)
    path = tmp_path / "test/predictions.csv"
    rows = path.read_bytes().splitlines()
    rows[1] = b'"a\xe9\x01\xe2\x80\xaegpj.mp4",jack,bend,0.999,bend|jack,8'
    path.write_bytes(b"\n".join(rows) + b"\n")
    text = checked(page_of(tmp_path))
    assert r"a\xe9\x01\u202egpj.mp4" in text


def test_no_name_becomes_markup(tmp_path):
    run = tmp_path / "<script>'\""
    make_training(run)
    make_test(run, classes=[HOSTILE, f"{HOSTILE}&amp;", "c"], failed=[(HOSTILE, HOSTILE)])
    net = {"class_path": HOSTILE, "init_args": {"norm": HOSTILE}}
    (run / "config.yaml").write_text(json.dumps({"model": {"net": net}}))
    page = page_of(run)
    text = checked(page)
    assert "<script" not in page
    shown = "</td><script>alert(1)</script>'\"\\x80"
    assert f"{shown} norm" in text, "the subtitle"
    assert f"network{shown}" in text, "the settings"
    assert f"{shown}{shown}" in text, "a failed video and its reason"
    assert f"{shown}&amp;" in text, "a class"
    page = page_of_classes(run, [f"{HOSTILE}{number}" for number in range(60)])
    assert "<script" not in page, "no matrix, but folded tables"


def page_of_classes(run, classes):
    make_test(run, classes=classes, num_videos=200)
    page = page_of(run)
    checked(page)
    return page


def test_resumes_are_shown(tmp_path):
    make_training(tmp_path)
    (tmp_path / "config.resume-001.yaml").write_text("seed_everything: 8\n")
    text = checked(page_of(tmp_path))
    assert "This training was resumed" in text
    assert "config.resume-001.yaml, complete" in text


def test_settings_that_a_resume_or_the_test_changed_are_shown(tmp_path):
    make_training(tmp_path)
    make_test(tmp_path)
    for number, size in ((1, 2), (2, 4)):
        (tmp_path / f"config.resume-00{number}.yaml").write_text(f"data: {{batch_size: {size}, train: <videos>}}\n")
    (tmp_path / "test/config.yaml").write_text("data: {batch_size: 8, clip: {num_frames: 32, stride: 2}}\n")
    text = checked(page_of(tmp_path))
    assert "frames of a clip16; in the test 32stride2batch size of a process8; after the last resume 4training" in text
    assert "training videos<videos>seed" in text and "batch size 8 in a process" not in text


def test_torch_is_not_imported(tmp_path):
    make_training(tmp_path)
    make_test(tmp_path)
    code = (
        "import sys; from video_gn.report import write_report; write_report(sys.argv[1]);"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & {'torch', 'torchvision', 'lightning', 'av'}))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names():
    assert report.__all__ == ["write_comparison", "write_report"]
