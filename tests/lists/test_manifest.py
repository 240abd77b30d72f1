"""Manifests: subsets, splits, comparisons, and their csv."""

import hashlib
import re
from collections import Counter
from pathlib import Path, PurePath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from list_files import count_by_class, made, touch, write

from video_gn.errors import ManifestError
from video_gn.lists.manifest import Manifest, check_same_classes, common_videos, write_manifest
from video_gn.lists.read import find_videos, read_manifest
from video_gn.lists.records import VideoRecord


def test_subset_of_classes():
    manifest = made([2, 0, 1, 2, 0])
    part = manifest.subset(classes=["c", "a"])
    assert part.classes == ("a", "c")
    assert [(r.path, r.label) for r in part.records] == [
        ("/v/0.mp4", 1),
        ("/v/1.mp4", 0),
        ("/v/3.mp4", 1),
        ("/v/4.mp4", 0),
    ]
    assert made([0, 1], ("jump high", "run")).subset(classes=["jump_high"]).classes == ("jump high",)
    with pytest.raises(ManifestError, match=r"list.csv: classes must be of its 3 classes \('a', 'b', 'c'\), got 'd'"):
        manifest.subset(classes=["a", "d"])
    with pytest.raises(ManifestError, match=r"list.csv: a subset must have at least one video, got none of 'c'"):
        made([0, 1]).subset(classes=["c"])
    assert [r.label for r in made([0, None]).subset(classes=["a"]).records] == [0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 5))
def test_subset_by_fraction(labels, first, second, seed):
    small, large = sorted([first, second])
    manifest = made(labels)
    kept = manifest.subset(fraction=large, seed=seed)
    for label, number in Counter(labels).items():
        assert sum(r.label == label for r in kept.records) == max(1, int(number * large + 0.5))
    order = [r.path for r in manifest.records]
    places = [order.index(r.path) for r in kept.records]
    assert places == sorted(places)
    assert {r.path for r in manifest.subset(fraction=small, seed=seed).records} <= {r.path for r in kept.records}
    assert kept.records == manifest.subset(fraction=large, seed=seed).records


def test_fraction_of_a_class_does_not_depend_on_other_classes():
    whole = made([0] * 10 + [1] * 10)
    assert (
        whole.subset(fraction=0.3).subset(classes=["b"]).records
        == whole.subset(classes=["b"]).subset(fraction=0.3).records
    )
    assert whole.subset(fraction=0.3, seed=1).records != whole.subset(fraction=0.3, seed=2).records
    for fraction in (0, -1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\], got"):
            whole.subset(fraction=fraction)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=2, max_size=40), st.floats(0.05, 0.95), st.integers(0, 5))
def test_stratified_split(labels, fraction, seed):
    counts = Counter(labels)
    if max(counts.values()) < 2:
        return
    manifest = made(labels)
    train, val = manifest.split(val_fraction=fraction, seed=seed)
    assert sorted([*train.records, *val.records], key=lambda r: int(r.source[9:])) == list(manifest.records)
    for label, number in counts.items():
        want = min(max(1, int(number * fraction + 0.5)), number - 1)
        assert sum(r.label == label for r in val.records) == want
    assert train.classes == val.classes == manifest.classes
    again = manifest.split(val_fraction=fraction, seed=seed)
    assert again[0].records == train.records and again[1].records == val.records


def test_split_draws_by_seed_and_cannot_be_empty(caplog):
    manifest = made([0] * 20 + [1] * 20)
    assert manifest.split(seed=0)[1].records != manifest.split(seed=1)[1].records
    with pytest.raises(ManifestError, match=r"list.csv: a split of 2 videos must leave some for validation, got none"):
        made([0, 1]).split()
    made([0, 0, 1]).split()
    assert "the split leaves no video for validation of 'b'" in caplog.text
    for fraction in (0, 1, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"val_fraction must be in \(0, 1\), got"):
            manifest.split(val_fraction=fraction)
    unlabelled = made([None] * 10).split(val_fraction=0.3)
    assert [len(side) for side in unlabelled] == [7, 3]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6)), min_size=2, max_size=40), st.floats(0.05, 0.95))
def test_grouped_split(pairs, fraction):
    if len({g for _, g in pairs}) < 2:
        return
    manifest = made([label for label, _ in pairs], groups=[f"p{g}" for _, g in pairs])
    train, val = manifest.split(val_fraction=fraction, group_by="person")
    sides = [{r.groups[0][1] for r in side.records} for side in (train, val)]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert len(train) + len(val) == len(manifest)


def test_grouped_split_comes_near_the_fraction():
    """Weizmann's shape: 9 persons with 10 actions each; 2 of 9 persons are the nearest to 0.2."""
    manifest = made([i % 10 for i in range(90)], tuple("abcdefghij"), groups=[f"p{i // 10}" for i in range(90)])
    train, val = manifest.split(val_fraction=0.2, group_by="person")
    assert (len(train), len(val)) == (70, 20)
    assert set(count_by_class(val).values()) == {2}


def test_grouped_split_prefers_groups_that_keep_all_classes():
    # Groups of equal size: 0 to 3 hold both classes, 4 and 5 class b alone.
    labels = [0, 1] * 4 + [1, 1] * 2
    manifest = made(labels, ("a", "b"), groups=[str(i // 2) for i in range(12)])
    for seed in range(20):
        val = manifest.split(val_fraction=1 / 6, group_by="person", seed=seed)[1]
        assert count_by_class(val) == {"a": 1, "b": 1}


def test_named_groups():
    manifest = made([0, 1, 0, 1], ("a", "b"), groups=["ann", "ann", "bob", "cem"])
    train, val = manifest.split(group_by="person", val_groups=["cem", "bob"])
    assert [r.path for r in val.records] == ["/v/2.mp4", "/v/3.mp4"]
    assert [r.path for r in train.records] == ["/v/0.mp4", "/v/1.mp4"]
    with pytest.raises(
        ManifestError, match=r"val_groups must be groups of 'person' \('ann', 'bob', 'cem'\), got \['dan'\]"
    ):
        manifest.split(group_by="person", val_groups=["dan"])
    with pytest.raises(ManifestError, match=r"must leave some for training, got none"):
        manifest.split(group_by="person", val_groups=["ann", "bob", "cem"])
    with pytest.raises(ManifestError, match=r"must leave some for validation, got none"):
        manifest.split(group_by="person", val_groups=[])
    with pytest.raises(ValueError, match=r"group_by must be given with val_groups, got None with \['ann'\]"):
        manifest.split(val_groups=["ann"])
    with pytest.raises(
        ManifestError, match=r"group_by must be one of the columns \['person'\] or a regular expression"
    ):
        manifest.split(group_by="scene")
    with pytest.raises(ManifestError, match=r"groups must be at least 2 to split by 'person', got \['ann'\]"):
        made([0, 0], groups=["ann", "ann"]).split(group_by="person")
    with pytest.raises(
        ManifestError, match=r"list.csv:2: person must not be empty to split by it, got '' for /v/1.mp4"
    ):
        made([0, 0], groups=["ann", ""]).split(group_by="person")


def test_groups_from_file_names(tmp_path):
    names = [
        f"{c}/v_{c}_g{g:02d}_c{i:02d}.avi" for c in ("Archery", "Biking") for g in range(1, 6) for i in range(1, 4)
    ]
    touch(tmp_path, *names)
    manifest = read_manifest(tmp_path)
    _, val = manifest.split(group_by=r"_g(\d+)_", val_groups=["01", "04"])
    assert {re.search(r"_g(\d+)_", r.path)[1] for r in val.records} == {"01", "04"} and len(val) == 12
    _, val = manifest.split(group_by=r"_g(\d+)_", val_fraction=0.2)
    assert len(val) == 6 and len({re.search(r"_g(\d+)_", r.path)[1] for r in val.records}) == 1
    with pytest.raises(ManifestError, match=r"group_by must match every file name, got '_x\(\.\)' and 'v_Archery_g01"):
        manifest.split(group_by="_x(.)")
    with pytest.raises(ManifestError, match=r"must match every file name, got '\(\?:g\)'"):
        manifest.split(group_by="(?:g)")
    with pytest.raises(ValueError, match=r"group_by must be a column or a regular expression, got '\('"):
        manifest.split(group_by="(")


def test_folders_between_class_and_video_are_groups(tmp_path):
    touch(tmp_path, *(f"{c}/{p}/{i}.mp4" for c in ("run", "sit") for p in ("ann", "bob", "cem") for i in range(2)))
    train, val = read_manifest(tmp_path).split(group_by="folder", val_groups=["bob"])
    assert {Path(r.path).parent.name for r in val.records} == {"bob"} and (len(train), len(val)) == (8, 4)


def test_segments_of_a_video_stay_together():
    manifest = made([i // 2 % 2 for i in range(40)], segments=True)
    train, val = manifest.split(val_fraction=0.25)
    assert not {r.path for r in train.records} & {r.path for r in val.records}
    assert (len(train), len(val)) == (30, 10)
    assert common_videos(train, val) == []


def test_check_same_classes():
    abc = made([0], ("a", "b", "c"))
    check_same_classes(abc, made([0, 1], ("a", "b", "c")))
    check_same_classes(abc, made([None], ()))
    with pytest.raises(ManifestError, match=r"must be the same in the same order, got class 1 as 'b' and as 'c'"):
        check_same_classes(abc, made([0], ("a", "c", "b")))
    with pytest.raises(ManifestError, match=r"\(3\) and list.csv \(2\) must be .* got class 2 as 'c' and as not there"):
        check_same_classes(abc, made([0], ("a", "b")))


def test_common_videos():
    first = Manifest((VideoRecord("/v/a.mp4", 0), VideoRecord("/v/./b.mp4", 0)), ("x",), "one")
    second = Manifest((VideoRecord("/v/b.mp4", 0), VideoRecord("/v/c.mp4", 0)), ("x",), "two")
    assert common_videos(first, second) == ["/v/b.mp4"]


def test_labels_must_be_below_the_classes():
    with pytest.raises(ValueError, match=r"labels must be below 2, the number of classes, got 2 in list.csv"):
        made([0, 2], ("a", "b"))


def test_write_and_read_back(tmp_path):
    path = write(
        tmp_path / "list.csv",
        "path,label,start_seconds,end_seconds,person\n"
        '"a, b.mp4",run,0,2.5,ann\nx.mp4,"sit ""down""",,0.1,bob\n/far/y.mp4,run,,,é\n',
    )
    manifest = read_manifest(path, classes=['sit "down"', "walk", "run"])
    out, classes = tmp_path / "made" / "out.csv", tmp_path / "made" / "classes.txt"
    write_manifest(manifest, out, classes_path=classes)
    back = read_manifest(out, classes=classes)
    assert back.classes == manifest.classes

    def without_source(m):
        return [(r.path, r.label, r.start_seconds, r.end_seconds, r.groups, r.missing) for r in m.records]

    assert without_source(back) == without_source(manifest)
    assert out.read_text(encoding="utf-8").splitlines()[-1] == "/far/y.mp4,run,,,é"
    write_manifest(manifest.drop_missing().subset() if manifest.missing == 0 else manifest, tmp_path / "near.csv")
    assert (tmp_path / "near.csv").read_text(encoding="utf-8").splitlines()[2] == 'x.mp4,"sit ""down""",,0.1,bob'
    assert not list(tmp_path.rglob("*.tmp"))


def test_write_without_labels(tmp_path):
    touch(tmp_path, "d/a.mp4", "d/b.mp4")
    write_manifest(find_videos([tmp_path / "d"]), tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "path\nd/a.mp4\nd/b.mp4\n"
    assert [r.label for r in read_manifest(tmp_path / "out.csv").records] == [None, None]


def test_digest_is_of_the_records(tmp_path):
    """As made of the records one by one, which an unfinished test's digest was."""
    odd = ("a/b.mp4", "a/b/", "a/.", "..", "é/é.mp4", "\udcff.mp4", "s.tar::x/y.mp4", "plain")
    records = [
        VideoRecord(name, None if i == 1 else i % 2, None if i < 4 else i / 7, 9.5 if i == 5 else None, "l.csv:3",
                    error="broken" if i == 2 else "")
        for i, name in enumerate(odd)
    ]  # fmt: skip
    for manifest in (Manifest(records, ("a", "b"), "l.csv"), made([2, 0, 1, 2]), made([])):
        for of_copies in (False, True):
            digest = hashlib.sha256()
            for r in manifest.records:
                row = (r.label, r.start_seconds, r.end_seconds)
                row = (PurePath(r.path).name, *row) if of_copies else (r.path, *row, r.error)
                digest.update(repr(row).encode("utf-8", "surrogatepass") + b"\n")
            assert manifest.digest(of_copies=of_copies) == f"SHA-256 {digest.hexdigest()}"
        assert list(manifest.columns.paths()) == [r.path for r in manifest.records]
