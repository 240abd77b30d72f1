"""Class names from the package and from files."""

import logging

import pytest
from list_files import fails, rows, touch, write
from torchvision.models._meta import _KINETICS400_CATEGORIES

from video_gn.errors import ManifestError
from video_gn.lists.class_names import kinetics400, read_classes, write_classes
from video_gn.lists.manifest import check_same_classes
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
        ("id2label.json", '{"1": "jump high", "0": "run"}', ("run", "jump high")),
        ("from_1.json", '{"jump high": 2, "run": 1}', ("run", "jump high")),
        ("classInd.txt", "1 run\n2 jump high\n", ("run", "jump high")),
        ("old_mac.txt", "1 run\r2 jump high\r", ("run", "jump high")),
        ("other_order.txt", "1 jump high\n0 run\n", ("run", "jump high")),
        ("tab.tsv", "0\trun\n1\tjump high\n", ("run", "jump high")),
        ("kinetics_400_labels.csv", 'id,name\n0,run\n1,"jump high"\n', ("run", "jump high")),
        ("name_first.txt", "run 0\njump high 1\n", ("run", "jump high")),
        ("name_first.csv", "label,label_id\nrun,1\njump high,2\n", ("run", "jump high")),
        ("colon.txt", "0: run\n1: jump high\n", ("run", "jump high")),
        ("header.csv", "name\nrun\njump high\n", ("run", "jump high")),
        ("index.csv", ",name\n0,run\n1,jump high\n", ("run", "jump high")),
        ("dots.txt", "1. run\n2. jump high\n", ("run", "jump high")),
        ("brackets.txt", "0) run\n1) jump high\n", ("run", "jump high")),
        ("dashes.txt", "0 - run\n1 - jump high\n", ("run", "jump high")),
        ("bars.txt", "000|run\n001|jump high\n", ("run", "jump high")),
        ("equal.txt", "run = 0\njump high = 1\n", ("run", "jump high")),
        ("mapping.yaml", "run: 0\njump high: 1\n", ("run", "jump high")),
        ("list.yaml", "- run\n- jump high\n", ("run", "jump high")),
        ("key.yaml", "names:\n- run\n- 'jump high'\n", ("run", "jump high")),
        ("key_and_numbers.yaml", "names:\n  0: run\n  1: jump high\n", ("run", "jump high")),
        ("quoted.csv", '"1","jump high"\n"0","run"\n', ("run", "jump high")),
        ("quoted_header.csv", '"id","name"\n"1","jump high"\n"0","run"\n', ("run", "jump high")),
        ("quoted_name_first.csv", '"jump high","1"\n"run","0"\n', ("run", "jump high")),
        ("quoted_names.csv", '"run"\n"jump high"\n', ("run", "jump high")),
        ("key.json", '{"classes": ["run", "jump high"]}', ("run", "jump high")),
        ("config.json", '{"size": 3, "id2label": {"1": "jump high", "0": "run"}}', ("run", "jump high")),
        ("objects.json", '[{"id": 1, "name": "jump high"}, {"id": 0, "name": "run"}]', ("run", "jump high")),
        ("digits.json", '[{"name": "7", "id": 1}, {"name": "jump high", "id": 0}]', ("jump high", "7")),
        ("names.json", '[{"name": "run"}, {"name": "jump high"}]', ("run", "jump high")),
        (
            "coco.json",
            '{"categories": [{"id": 1, "name": "run"}, {"id": 2, "name": "jump high"}]}',
            ("run", "jump high"),
        ),
        ("comment.txt", "# my classes\nrun\njump high\n", ("run", "jump high")),
        ("turns.txt", "1.5 turns\n2.5 flips\njump high\n", ("1.5 turns", "2.5 flips", "jump high")),
        ("numbers_in_names.txt", "jump 1\njump high\njump 2\n", ("jump 1", "jump high", "jump 2")),
        ("only_numbers.txt", "10\njump high\n2\n", ("10", "jump high", "2")),
    ],
)
def test_classes_files(tmp_path, name, text, want):
    path = write(tmp_path / name, text)
    assert read_classes(path) == want
    listed = write(tmp_path / "list.csv", "x.mp4,jump high\n")
    assert read_manifest(listed, classes=path).classes == want
    assert read_manifest(listed, classes=str(path)).records[0].label == want.index("jump high")
    written = tmp_path / "written.txt"
    write_classes(written, want)
    assert read_classes(written) == want


@pytest.mark.parametrize(
    "names",
    [
        ["5 apples", "10 pears"],
        ["1 b", "0 a"],
        ["a 1", "b 0"],
        ["name", "run"],
        ["- a", "- b"],
        ["# a", "b"],
        ["0 a", "0 a_b"],
        ["[1]", "b"],
        ["#a", "b"],
        ["names:", "- a"],
        ['"a"', '"b"'],
        ["name,a", "b,c"],
        ['"0" a', '"1" b'],
    ],
)
def test_written_classes_are_read_as_they_were(tmp_path, names):
    write_classes(tmp_path / "classes.txt", names)
    assert read_classes(tmp_path / "classes.txt") == tuple(names)


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
        ("gap.csv", "1 run\n3 jump\n", r"gap.csv: numbers of classes must be 0 to 1, each once, got 1, 3. They"),
        ("blank.csv", "# mine\nname\nrun\n\njump\n", r"blank.csv:4: a class must be a name, got ''"),
        ("from_2.txt", "2 run\n3 jump\n", r"must be 0 to 1, each once, got 2, 3"),
        ("same.txt", "0 run\n0 jump\n", r"must be 0 to 1, each once, got 0, 0"),
        ("one_off.txt", "0 run\njump\n2 sit\n", r"one_off.txt:2: a class must be 'number name' as in most lines"),
        ("blank.txt", "0 run\n\n1 jump\n", r"blank.txt:2: a class must be 'number name' as in most lines, got ''"),
        ("twice_numbered.txt", "0 run\n1 jump\n2 run\n", r"twice_numbered.txt:3: class 'run' must stand once"),
        ("header.csv", "id,name\na,b\n", r"header.csv:1: below the header 'id,name' each line must be"),
        ("described.csv", "name,description\nrun,fast\njump,high\n", r"described.csv:1: .* got the header 'name,desc"),
        ("hash.txt", "#classes\nrun\njump\n", r"hash.txt:1: a comment must begin with '# ', got '#classes'"),
        ("keys.json", '{"videos": [1]}', r"keys.json: classes must .* got an object with the keys 'videos'"),
        ("no_name.json", '[{"id": 0}]', r"no_name.json: objects of classes must each have a 'name'"),
        ("one_id.json", '[{"id": 0, "name": "a"}, {"name": "b"}]', r"one_id.json: objects of classes must each have"),
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


def test_a_file_that_counts_from_1_has_labels_from_1(tmp_path):
    listed = write(tmp_path / "list.txt", "x.mp4 1\ny.mp4 2\n")
    for text, want in (
        ("1 a\n2 b\n3 c\n", ["a", "b"]),
        ("0 a\n1 b\n2 c\n", ["b", "c"]),
        ('{"a": 1, "b": 2, "c": 3}', ["a", "b"]),
    ):
        manifest = read_manifest(listed, classes=write(tmp_path / "classes", text))
        assert manifest.classes == ("a", "b", "c") and [name for _, name in rows(manifest)] == want
    write(listed, "x.mp4 0\ny.mp4 3\n")
    fails(listed, f"{listed}:1: label must be a number in [1, 4), got '0'", classes=tmp_path / "classes")


def test_names_without_numbers_and_labels_from_1_are_asked_about(tmp_path, caplog):
    classes = write(tmp_path / "classes.txt", "a\nb\nc\n")
    listed = write(tmp_path / "list.txt", "x.mp4 1\ny.mp4 2\n")
    assert read_manifest(listed, classes=classes).labels.tolist() == [1, 2]
    assert "no video has the label 0; labels are taken to count from 0, and 1 is 'b'" in caplog.text
    write(listed, "x.mp4 1\ny.mp4 3\n")
    fails(listed, f"{listed}:2: label must be a number in [0, 3), got '3'", "number the lines", classes=classes)


def test_folders_of_the_classes_show_where_labels_begin(tmp_path, caplog):
    classes = write(tmp_path / "classes.txt", "ride bike\nrun\nsit\n")
    listed = write(tmp_path / "list.txt", "ride_bike/x.mp4 1\nrun/y.mp4 2\nelse/z.mp4 3\n")
    assert read_manifest(listed, classes=classes).labels.tolist() == [0, 1, 2]
    write(listed, "ride_bike/x.mp4 1\nrun/y.mp4 1\n")  # one of them agrees: folders are not the classes
    assert read_manifest(listed, classes=classes).labels.tolist() == [1, 1]
    write(listed, "ride_bike/x.mp4 2\nrun/y.mp4 0\n")
    message = f"{listed}:1: label '2' is 'sit' by the classes, but the video lies in the folder 'ride_bike'"
    fails(listed, message, "in the order of the labels?", classes=classes)
    write(listed, "ride_bike/x.mp4 1\nrun/y.mp4 2\n")
    numbered = write(tmp_path / "numbered.txt", "0 ride bike\n1 run\n2 sit\n")
    fails(listed, f"{listed}:1: label '1' is 'run' by the classes, but", classes=numbered)


def test_writings_of_a_class_are_one_class_everywhere(tmp_path, caplog):
    listed = write(tmp_path / "list.csv", "x.mp4,ride_bike\ny.mp4,ride bike\nz.mp4,run\n")
    touch(tmp_path / "videos", "ride_bike/x.mp4", "ride bike/y.mp4", "run/z.mp4")
    for path in (listed, tmp_path / "videos"):
        caplog.clear()
        manifest = read_manifest(path)
        assert manifest.classes == ("ride bike", "run") and sorted(manifest.labels) == [0, 0, 1]
        assert "'ride bike', 'ride_bike' are one class, called 'ride bike'" in caplog.text
        again = read_manifest(path, classes=list(manifest.classes))  # as a test does with the run's own classes
        assert again == manifest and len(manifest.subset(classes=["ride_bike"])) == 2
    accents = write(tmp_path / "accents.csv", "x.mp4,caf\u00e9\ny.mp4,cafe\u0301\n")  # composed, and as a Mac writes it
    assert read_manifest(accents).labels.tolist() == [0, 0]
    other = read_manifest(write(tmp_path / "other.csv", "a.mp4,ride_bike\nb.mp4,run\n"))
    check_same_classes(manifest, other)
    with pytest.raises(ManifestError, match="got class 1 as 'run' and as 'sit'"):
        check_same_classes(manifest, read_manifest(write(tmp_path / "c.csv", "a.mp4,ride_bike\nb.mp4,sit\n")))


@pytest.mark.parametrize(
    ("slip", "name", "asked"),
    [
        ("joging", "jogging", True), ("joggging", "jogging", True), ("joggign", "jogging", True),
        ("hogging", "jogging", True), ("ride_bikes", "ride bike", True), ("Ride bke", "ride_bike", True),
        ("joing", "jogging", False), ("jump 1", "jump 2", False), ("wave", "wave2", False), ("hit", "sit", False),
    ],
)  # fmt: skip
def test_a_class_of_one_video_that_may_be_a_slip_is_asked_about(tmp_path, caplog, slip, name, asked):
    touch(tmp_path / "videos", f"{slip}/x.mp4", f"{name}/y.mp4", f"{name}/z.mp4", "walking/a.mp4", "walking/b.mp4")
    text = f"path,label,split\nx.mp4,{slip},val\ny.mp4,{name},train\nz.mp4,{name},train\n"
    listed = write(tmp_path / "list.csv", text)
    for path in (tmp_path / "videos", listed):
        caplog.clear()
        manifest = read_manifest(path, split="all")
        question = f"{path}: is class {slip!r} (videos: 1) a slip in writing {name!r} (videos: 2)? If so, correct it"
        assert caplog.text.count("a slip in") == caplog.text.count(question) == asked
        caplog.clear()
        read_manifest(path, split="all", classes=list(manifest.classes))
        assert "a slip" not in caplog.text
    caplog.clear()
    touch(tmp_path / "videos", f"{slip}/more.mp4")  # two videos are no slip
    read_manifest(tmp_path / "videos")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_classes_that_differ_in_case_alone_are_asked_about(tmp_path, caplog):
    touch(tmp_path, *(f"{name}/{n}.mp4" for name in ("Run", "run", "sit") for n in range(9)))
    read_manifest(tmp_path)
    assert caplog.text.count("is class 'run' (videos: 9) a slip in writing 'Run' (videos: 9)?") == 1
    assert caplog.text.count("a slip in") == 1


def test_a_slip_in_another_parts_folder_is_asked_about(tmp_path):
    touch(tmp_path, "train/jogging/a.mp4", "train/walking/b.mp4", "val/joging/c.mp4")
    fails(
        tmp_path,
        "got 'joging'. Is 'joging' a slip in writing 'jogging'? Add",
        split="val",
        classes=["jogging", "walking"],
    )
