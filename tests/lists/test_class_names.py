"""Class names from the package and from files."""

import pytest
from list_files import fails, write
from torchvision.models._meta import _KINETICS400_CATEGORIES

from video_gn.errors import ManifestError
from video_gn.lists.class_names import kinetics400, read_classes
from video_gn.lists.read import read_manifest


def test_kinetics_names_are_torchvisions():
    assert list(kinetics400()) == _KINETICS400_CATEGORIES


@pytest.mark.parametrize(
    ("name", "text", "want"),
    [
        ("classes.txt", "run\njump high\n\n", ("run", "jump high")),
        ("crlf.txt", "\ufeffrun\r\njump high\r\n", ("run", "jump high")),
        ("no_ending", "run\njump high", ("run", "jump high")),
        ("bracket.txt", "[run]\njump high\n", ("[run]", "jump high")),
        ("list.json", '["run", "jump high"]', ("run", "jump high")),
        ("list", '\n [ "run", "jump high"]', ("run", "jump high")),
        ("mapping.json", '{"\\"jump high\\"": 1, "run": 0}', ("run", "jump high")),
        ("mapping", '{"jump high": 1, "run": 0}', ("run", "jump high")),
        ("numbers_as_text.json", '{"jump high": "1", "run": "0"}', ("run", "jump high")),
    ],
)
def test_classes_files(tmp_path, name, text, want):
    path = write(tmp_path / name, text)
    assert read_classes(path) == want
    listed = write(tmp_path / "list.csv", "x.mp4,jump high\n")
    assert read_manifest(listed, classes=path).classes == want
    assert read_manifest(listed, classes=str(path)).records[0].label == 1


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("gap.txt", "run\n\njump\n", r"gap.txt:2: a class must be a name, got ''"),
        ("twice.txt", "jump high\nrun\njump_high\n", r"twice.txt:3: class 'jump_high' must stand once, but line 1"),
        ("empty.txt", "\n", r"empty.txt: classes must have at least one name"),
        ("empty.json", "{}", r"empty.json: classes must have at least one name"),
        ("latin.txt", b"caf\xe9\n", r"latin.txt:1: the text must be UTF-8"),
        ("missing.txt", None, r"missing.txt: the file cannot be read: No such file"),
        ("broken.json", "[\n,]", r"broken.json:2: the json cannot be read"),
        ("broken", "[1, ", r"broken:1: the json cannot be read"),
        ("numbers.json", '{"run": 0, "jump": 2}', r"numbers of classes must be 0 to 1, each once, got 0, 2"),
        ("same.json", '{"run": 0, "jump": 0}', r"numbers of classes must be 0 to 1, each once, got 0, 0"),
        ("same_as_text.json", '{"run": 0, "jump": "0"}', r"numbers of classes must be 0 to 1, each once, got 0, '0'"),
        ("floats.json", '{"run": 0.0}', r"numbers of classes must be 0 to 0, each once, got 0.0"),
        ("truth.json", '{"run": false}', r"numbers of classes must be 0 to 0, each once, got False"),
        ("no_numbers.json", '{"run": "first"}', r"numbers of classes must be 0 to 0, each once, got 'first'"),
        ("text.json", '"run"', r"must be a list of names or a mapping of names to numbers, got 'run'"),
        ("other.json", '["run", 3]', r"other.json:2: a class must be a name, got 3"),
        ("other", "[1, 2]", r"other:1: a class must be a name, got 1"),
    ],
)
def test_bad_classes_files(tmp_path, name, text, match):
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ManifestError, match=match):
        read_classes(path)


def test_classes_from_python_are_checked(tmp_path):
    path = write(tmp_path / "list.csv", "x.mp4,run\n")
    fails(path, "classes:2: class 'run' must stand once", classes=["run", "run"])
    fails(path, "classes: classes must have at least one name", classes=[])
    fails(path, "classes.txt: the file cannot be read: No such file", classes=tmp_path / "classes.txt")
