"""Trainings and tests on lists as people have them, through the command line."""

import csv
import shutil

from list_files import write
from runs import TINY, run


def test_a_test_takes_the_classes_of_its_run_however_the_list_writes_them(tiny_videos, tmp_path):
    videos = sorted(tiny_videos.glob("*/*.mp4"))[:8]
    labels = ["ride bike", "ride_bike", "run", "run"] * 2
    write(tmp_path / "list.csv", "".join(f"{path},{label}\n" for path, label in zip(videos, labels, strict=True)))
    words = [*TINY, "--data.train=list.csv", "--run_dir=mine"]
    status, printed = run(["fit", *words, "--trainer.max_epochs=1"], tmp_path)
    assert status == 0, printed
    assert "'ride bike', 'ride_bike' are one class" in printed
    status, printed = run(["test", *words], tmp_path)
    assert status == 0, printed
    with (tmp_path / "mine/test/predictions.csv").open(newline="", encoding="utf-8") as file:
        assert {row["label"] for row in csv.DictReader(file)} == {"ride bike", "run"}
    assert "labels are numbers" not in printed
    write(tmp_path / "numbers.csv", "".join(f"{path},{number % 2}\n" for number, path in enumerate(videos)))
    status, printed = run(["test", *words[:-1], "--data.test=numbers.csv", "--run_dir=mine"], tmp_path)
    assert status == 0, printed
    assert "numbers.csv: labels are numbers" in printed and "0 is 'ride bike', 1 is 'run'. If" in printed


def test_labels_that_cannot_be_told_end_a_training_before_it_begins(tiny_videos, tmp_path):
    first, second = sorted(tiny_videos.glob("*/*.mp4"))[:2]
    write(tmp_path / "list.txt", f"{first} 1\n{second} 3\n")
    write(tmp_path / "classes.txt", "a\nb\nc\n")
    words = ["fit", *TINY, "--data.train=list.txt", "--data.source.classes=classes.txt", "--run_dir=mine"]
    status, printed = run(words, tmp_path)
    assert status == 2 and "list.txt:2: label must be a number in [0, 3), got '3'" in printed
    write(tmp_path / "classes.txt", "1 a\n2 b\n4 c\n")
    status, printed = run(words, tmp_path)
    assert status == 2 and "classes.txt: numbers of classes must be 0 to 2, each once, got 1, 2, 4" in printed
    write(tmp_path / "list.txt", f'"{first}" "1,3"\n"{second}" "0"\n')
    status, printed = run(words[:-2] + words[-1:], tmp_path)
    assert status == 2 and "list.txt:1: a video must have one label, got several in '1,3'" in printed
    shutil.copyfile(first, tmp_path / "x.mp4")
    write(tmp_path / "list.txt", "x.mp4 0\n")
    status, printed = run([*words[:-2], "--data.source.format=ucf101", words[-1]], tmp_path)
    assert status == 2 and "list.txt:1: a line must be like 'ApplyEyeMakeup/" in printed and "source.format" in printed
    assert not (tmp_path / "mine/checkpoints").exists()
