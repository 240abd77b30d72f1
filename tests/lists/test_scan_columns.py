"""Manifests that a scan wrote, and parquet."""

from pathlib import Path

import pytest

from video_gn.errors import ManifestError
from video_gn.lists.manifest import Manifest, write_manifest
from video_gn.lists.read import VideoList, find_videos, read_manifest
from video_gn.lists.records import Records, VideoRecord
from video_gn.lists.scan_columns import SCAN_COLUMNS

SCANNED = ",".join(["path", "label", "person", *SCAN_COLUMNS])
SCANNED += """
a.mp4,run,ann,90,29.97,3.003,340,256,h264,0,12,1000,
b.mp4,sit,bob,,,,,,,,,0,the file is empty (0 bytes)
c.mp4,run,bob,,,,,,,,,,the file is missing
d.mp4,sit,ann,,,,,,,,,,the file is missing
e.mp4,sit,ann,7,,,,,vp8,0,,10,
"""


@pytest.fixture
def scanned(tmp_path):
    (tmp_path / "list.csv").write_text(SCANNED)
    for name in "abde":
        (tmp_path / f"{name}.mp4").touch()
    return tmp_path


def to_parquet(source, target, types=None):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    header, *rows = [line.split(",") for line in source.strip().splitlines()]
    columns = {}
    for name, values in zip(header, zip(*rows, strict=True), strict=True):
        kind = (types or {}).get(name, str)
        columns[name] = [None if value == "" else kind(value) for value in values]
    parquet.write_table(pa.table(columns), target)
    return target


def test_what_a_scan_found_is_read(scanned, caplog):
    manifest = read_manifest(scanned / "list.csv")
    assert [(r.error, r.num_frames, r.fps, r.missing) for r in manifest.records] == [
        ("", 90, 29.97, False),
        ("the file is empty (0 bytes)", None, None, False),
        ("the file is missing", None, None, True),
        ("", None, None, False),  # it is there now
        ("", 7, None, False),
    ]
    assert all(r.groups in ((("person", "ann"),), (("person", "bob"),)) for r in manifest.records)
    assert (manifest.missing, manifest.broken) == (1, 1)
    assert "1 of 5 listed videos are known to be broken" in caplog.text and "b.mp4: the file is empty" in caplog.text
    assert "1 video that was missing at the scan is there now" in caplog.text
    assert manifest.columns.broken.tolist() == [False, True, False, False, False]


def test_missing_and_broken_are_dropped_each_by_its_own(scanned):
    manifest = read_manifest(scanned / "list.csv")
    assert [r.path[-5] for r in manifest.drop_broken().records] == list("acde")
    assert [r.path[-5] for r in manifest.drop_missing().records] == list("abde")
    sound = manifest.drop_missing().drop_broken()
    assert [r.path[-5] for r in sound.records] == list("ade")
    assert sound.broken == sound.missing == 0 and sound.drop_broken() is sound
    assert [r.num_frames for r in sound.subset(classes=["sit"]).records] == [None, 7]
    plain = Manifest([VideoRecord("x.mp4", 0)], ("a",), "made")
    assert plain.broken == 0 and plain.drop_broken() is plain


def test_without_a_look_at_files_the_scan_is_believed(scanned):
    manifest = read_manifest(scanned / "list.csv", check_files=False)
    assert (manifest.missing, manifest.broken) == (0, 3)


def test_records_of_a_scan_are_columns():
    records = [
        VideoRecord("a.mp4", 0, error="", num_frames=9, fps=25.0),
        VideoRecord("b.mp4", 0, error="bad"),
        VideoRecord("c.mp4", 0, error="bad", missing=True),
    ]
    columns = Records.from_records(records)
    assert list(columns) == records and list(columns[1:]) == records[1:]
    assert columns.num_frames.tolist() == [9, 0, 0] and columns.errors.values == ("", "bad")
    assert columns.broken.tolist() == [False, True, False]
    plain = Records.from_records([VideoRecord("a.mp4", 0)])
    assert plain.errors is None and plain.num_frames is None and plain.fps is None and not plain.broken.any()
    assert columns.nbytes == len("a.mp4") * 3 + 4 * 8 + 3 * (4 + 4 + 4 + 1 + 4 + 4 + 8)


def test_written_and_read_back(scanned):
    manifest = read_manifest(scanned / "list.csv")
    write_manifest(manifest, scanned / "out.csv")
    back = read_manifest(scanned / "out.csv")

    def without_source(m):
        return [(r.path, r.label, r.groups, r.missing, r.error, r.num_frames, r.fps) for r in m.records]

    assert without_source(back) == without_source(manifest)
    found = find_videos([scanned / "list.csv"])
    assert [r.error for r in found.records] == [r.error for r in manifest.records]


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("ann,90,", "ann,x,", r"list.csv:2: num_frames must be an integer above 0 or empty, got 'x'"),
        ("ann,90,", "ann,9.5,", r"list.csv:2: num_frames must be an integer above 0 or empty, got '9.5'"),
        ("ann,90,", "ann,0,", r"list.csv:2: num_frames must be an integer above 0 or empty, got '0'"),
        ("ann,90,", "ann,99999999999,", r"list.csv:2: num_frames must be .*, got '99999999999'"),
        ("29.97", "nan", r"list.csv:2: fps must be a number above 0 or empty, got 'nan'"),
        ("29.97", "inf", r"list.csv:2: fps must be a number above 0 or empty, got 'inf'"),
        ("29.97", "-1", r"list.csv:2: fps must be a number above 0 or empty, got '-1'. Correct the line, or scan"),
        ("29.97", "fast", r"list.csv:2: fps must be a number above 0 or empty, got 'fast'"),
    ],
)
def test_bad_numbers_name_their_line(scanned, old, new, match):
    assert old in SCANNED
    (scanned / "list.csv").write_text(SCANNED.replace(old, new))
    with pytest.raises(ManifestError, match=match):
        read_manifest(scanned / "list.csv")


def test_a_list_with_one_of_the_columns_is_no_scan(tmp_path):
    (tmp_path / "list.csv").write_text("path,label,error,codec\na.mp4,x,none,h264\n")
    record = read_manifest(tmp_path / "list.csv").records[0]
    assert record.groups == (("error", "none"), ("codec", "h264")) and record.error == ""


# ---- parquet ---------------------------------------------------------------------------------


def test_parquet_is_read_as_csv_is(scanned):
    types = {"num_frames": int, "fps": float, "width": int, "size_bytes": int}
    to_parquet(SCANNED, scanned / "list.parquet", types)
    csv, parquet = read_manifest(scanned / "list.csv"), read_manifest(scanned / "list.parquet")
    assert [r.source for r in parquet.records] == [f"{scanned}/list.parquet:{row}" for row in range(1, 6)]
    assert parquet.classes == csv.classes
    for mine, theirs in zip(parquet.records, csv.records, strict=True):
        assert (mine.path, mine.label, mine.groups, mine.error) == (
            theirs.path,
            theirs.label,
            theirs.groups,
            theirs.error,
        )
        assert (mine.num_frames, mine.fps, mine.missing) == (theirs.num_frames, theirs.fps, theirs.missing)


def test_parquet_of_other_makers(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table(
        {
            "Video": pa.array(["a, 1.mp4", "é.mp4"]).dictionary_encode(),
            "label": pa.array([1, 0], pa.int8()),
            "start_seconds": pa.array([0.5, float("nan")], pa.float32()),
            "split": ["train", "val"],
            "good": [True, None],
        }
    )
    parquet.write_table(table, tmp_path / "x.parquet")
    manifest = read_manifest(tmp_path / "x.parquet", split="all")
    assert [r.path for r in manifest.records] == [f"{tmp_path}/a, 1.mp4", f"{tmp_path}/é.mp4"]
    assert manifest.labels.tolist() == [1, 0] and [r.start_seconds for r in manifest.records] == [0.5, None]
    assert [r.groups for r in manifest.records] == [(("good", "true"),), (("good", ""),)]
    assert (
        VideoList(tmp_path / "x.parquet").has_part("val")
        and len(read_manifest(tmp_path / "x.parquet", split="val")) == 1
    )
    assert len(find_videos([tmp_path / "x.parquet"])) == 2


def test_bad_parquet(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "x.parquet"

    def fails(match):
        with pytest.raises(ManifestError, match=match):
            read_manifest(path)

    path.write_bytes(b"PAR1 and nothing else")
    fails(r"x.parquet: the file cannot be read as parquet: ")
    parquet.write_table(pa.table({"path": [["a"]]}), path)
    fails(r"x.parquet: column 'path' must be of text or numbers, got list")
    parquet.write_table(pa.table({"path": ["a.mp4"], "Path": ["b.mp4"]}), path)
    fails(r"x.parquet: names of columns must be there and differ")
    parquet.write_table(pa.table({"path": pa.array([], pa.string())}), path)
    fails(r"x.parquet: a list must have at least one row, got none")
    parquet.write_table(pa.table({"path": ["a.mp4", "b.docx"]}), path)
    fails(r"x.parquet:2: path must end in one of")
    parquet.write_table(pa.table({"path": ["a.mp4", "a.mp4"]}), path)
    fails(r"x.parquet:2: a video must be listed once")
    parquet.write_table(pa.table({"name": ["a.mp4"]}), path)
    fails(r"x.parquet:1: a header must have a column of")


def test_a_list_of_many_lines(tmp_path):
    fields = {"a b": "a b", ' "q"': "q", '"x, y"': "x, y", "é": "é", "": "", "  s  ": "s", '"say ""hi"""': 'say "hi"'}
    lines = [f"{i}.mp4 , l{i % 3},{list(fields)[i % len(fields)]}" for i in range(600)]
    # A lone carriage return in a line is more than Python's csv module takes at a time.
    text = "\n".join(["path,label,more", *lines, "z.mp4,l0,a\rb"])
    (tmp_path / "list.csv").write_bytes(text.encode())
    values = [*(list(fields.values())[i % len(fields)] for i in range(600)), "a\rb"]
    records = read_manifest(tmp_path / "list.csv").records
    assert [r.groups for r in records] == [(("more", value),) for value in values]
    assert [Path(r.path).name for r in records] == [*(f"{i}.mp4" for i in range(600)), "z.mp4"]
    assert [r.label for r in records] == [*(i % 3 for i in range(600)), 0]
