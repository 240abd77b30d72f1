import csv
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from video_gn import report
from video_gn.errors import RunError
from video_gn.report import reading as _read
from video_gn.report import write_report

CLASSES = ["bend", "jack", "<b>&\"'</b>", "走路", "a|b", "class 10", "class 2"]
NUM_CLIPS, NUM_CROPS = 4, 2
METRICS = "step,epoch,lr,train/loss,val/loss,val/top1,val/top5\n"


def make_test(directory, *, num_videos=30, labelled=True, classes=CLASSES, failed=(), seed=0):
    """test/ of a run, written the way the test command writes it; returns labels and scores (V, K, Y)."""
    rng = np.random.default_rng(seed)
    folder = directory / "test"
    folder.mkdir(parents=True, exist_ok=True)
    labels = rng.integers(len(classes), size=num_videos) if labelled else np.full(num_videos, -1)
    scores = rng.random((num_videos, NUM_CLIPS * NUM_CROPS, len(classes)))
    scores[np.arange(num_videos), :, labels] += 0.4
    scores = (scores / scores.sum(2, keepdims=True)).astype(np.float32)
    np.savez(folder / "scores.npz", video_ids=np.arange(num_videos), labels=labels, scores=scores)
    mean = scores.astype(np.float64).mean(1)
    order = np.argsort(-mean, axis=1, kind="stable")[:, :5]
    with (folder / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["video", "label", "pred", "score", "top5", "num_views"])
        for i in range(num_videos):
            label = classes[labels[i]] if labelled else ""
            best = [classes[j] for j in order[i]]
            writer.writerow([f"data/<v> {i}.mp4", label, best[0], f"{mean[i].max():.6f}", "|".join(best), 8])
    metrics = {
        "top1": float((order[:, 0] == labels).mean()) if labelled else None,
        "top5": float((order == labels[:, None]).any(1).mean()) if labelled else None,
        "mean_class_accuracy": 0.5 if labelled else None,
        "num_videos": num_videos + len(failed),
        "num_failed": len(failed),
        "coverage": num_videos / (num_videos + len(failed)),
        "num_clips": NUM_CLIPS,
        "num_crops": NUM_CROPS,
        "failed": [{"path": path, "reason": reason} for path, reason in failed],
        "checkpoint": f"{directory}/checkpoints/best.ckpt",
    }
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    (folder / "config.yaml").write_text("seed_everything: 0\n")
    return labels, scores


def make_training(directory, num_steps=50):
    directory.mkdir(parents=True, exist_ok=True)
    lines = []
    for step in range(1, num_steps + 1):
        val = f"{2 / step},{step / 100},{step / 60}" if step % 10 == 0 else ",,"
        lines.append(f"{step},{(step - 1) // 10},{0.1 if step < 30 else 0.001},{3 / step},{val}\n")
    (directory / "metrics.csv").write_text(METRICS + "".join(lines))
    (directory / "config.yaml").write_text(
        "seed_everything: 7\ndata: {clip: {num_frames: 16, stride: 2}, batch_size: 8, train: '<videos>'}\n"
        "model:\n  net: {class_path: video_gn.models.i3d, init_args: {depth: 50, norm: group, num_groups: 32}}\n"
    )


def page_of(directory):
    return write_report(directory).read_text(encoding="utf-8")


class Checker(HTMLParser):
    """Tags must nest and close, ids be unique, links stay inside the page, and nothing be loaded or run."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, attrs)
        assert tag not in ("script", "link", "img", "iframe", "object", "embed", "base"), tag
        assert not any(name.startswith("on") or name in ("src", "srcset", "action") for name in names), attrs
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name == "href"]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in ("path", "rect", "circle"), tag

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


def checked(page):
    """Text of a page that has passed the checks."""
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert not checker.open
    assert len(checker.ids) == len(set(checker.ids))
    assert checker.links
    assert {link[1:] for link in checker.links} == set(checker.ids)
    assert "http" not in page.replace("http-equiv", "")
    assert "url(" not in page
    rest = page
    while "<svg" in rest:
        start = rest.index("<svg")
        end, depth = start, 0
        while True:  # charts hold inner svgs
            opened, closed = rest.find("<svg", end + 1), rest.find("</svg>", end + 1)
            if 0 <= opened < closed:
                depth, end = depth + 1, opened
            elif depth:
                depth, end = depth - 1, closed
            else:
                break
        image = rest[start : closed + 6]
        assert "nan" not in image.split(">")[0]
        ElementTree.fromstring(image)
        rest = rest[closed + 6 :]
    return " ".join("".join(checker.text).split())


# ---- the page ----------------------------------------------------------------------------------


def test_the_page_of_a_whole_run(tmp_path):
    run = tmp_path / "gn <8>"
    make_training(run)
    labels, scores = make_test(run, failed=[("x/<i>broken</i>.mp4", "no video stream"), ("y.mp4", "is empty")])
    mean = scores.astype(np.float64).mean(1)
    top1 = float((mean.argmax(1) == labels).mean())

    page = page_of(run)
    text = checked(page)

    assert (run / "report.html") == write_report(run)
    assert f"top-1{100 * top1:.1f}%" in text
    assert "coverage93.75%30 of 32 videos read" in text
    assert "views of a video4 × 24 clips, 2 crops of each" in text
    assert "ResNet-50 I3D · group norm, 32 groups · clips of 16 frames, stride 2 · batch 8 a process" in text
    assert "50 optimizer steps, 5 epochs begun; training loss 0.06 at the last logged step" in text
    assert "best validation top-1 50.0% at step 50 (epoch 5), last 50.0%" in text
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
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == old
    assert [p.name for p in tmp_path.iterdir() if "tmp" in p.name] == []


def test_no_directory_and_an_empty_one(tmp_path):
    with pytest.raises(RunError, match=r"run_dir must be a directory, got '.*nowhere'\. Give the --run_dir"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "other.txt").write_text("x")
    with pytest.raises(RunError, match=r"run_dir must hold at least one of config.yaml, .*none of them. Train or test"):
        write_report(tmp_path)


@pytest.mark.parametrize("name", list(_read.FILES))
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
    assert f"{name}{_read.FILES[name]}missing" in text


@pytest.mark.parametrize("name", list(_read.FILES))
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
        ("config.yaml", b"a: [1,", "config.yaml cannot be read: ParserError"),
        ("config.yaml", b"- 1\n", "config.yaml cannot be read: ValueError: it must hold a mapping, not list"),
        ("test/metrics.json", b"[1]", "it must hold an object, not list"),
        ("test/metrics.json", b"\xff\xfe", "test/metrics.json cannot be read: UnicodeDecodeError"),
        ("metrics.csv", b"a,b\n1,2\n", "metrics.csv cannot be read: KeyError: 'step'"),
        ("metrics.csv", METRICS.encode() + b"1,0,x,,,,\n", "metrics.csv cannot be read: ValueError"),
        ("metrics.csv", METRICS.encode() + b"1,0,1,1,1,1,1,1\n", "metrics.csv cannot be read: TypeError"),
        ("test/predictions.csv", b"", "line 1: its columns must hold video, label, pred, score, top5, num_views"),
        ("test/scores.npz", b"PK", "test/scores.npz cannot be read: ValueError: it must be a whole npz archive"),
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
    assert "test/metrics.json says top-1 1.00%" in checked(page_of(tmp_path))


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


def test_resumes_are_shown(tmp_path):
    make_training(tmp_path)
    (tmp_path / "config.resume-001.yaml").write_text("seed_everything: 8\n")
    text = checked(page_of(tmp_path))
    assert "This training was resumed" in text
    assert "config.resume-001.yaml, complete" in text


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
    assert report.__all__ == ["write_report"]
