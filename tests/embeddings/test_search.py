"""Most similar rows and near-copies against a naive loop in float64."""

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra `parquet`)")
from pyarrow import parquet  # noqa: E402

from video_gn.embeddings import search  # noqa: E402
from video_gn.embeddings.reading import EmbeddingsFile  # noqa: E402
from video_gn.embeddings.search import Match, Query, most_similar, near_copies, rows_of  # noqa: E402
from video_gn.errors import ConfigError, ManifestError  # noqa: E402
from video_gn.lists.parquet import write_parquet  # noqa: E402


def write(path, x_NC, *, paths=None, row_group_size=3, kind=None, **columns):
    kind = kind or pa.list_(pa.float32(), x_NC.shape[1])
    paths = [f"{number}.mp4" for number in range(len(x_NC))] if paths is None else paths
    if not len(paths):
        paths = pa.array([], pa.large_string())
    table = {"path": paths, **columns, "embedding": pa.array([row.tolist() for row in x_NC], kind)}
    parquet.write_table(pa.table(table), path, row_group_size=row_group_size)
    return path


def cosine(a, b):
    """In float64, number by number."""
    dot = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    lengths = [sum(float(x) ** 2 for x in row) ** 0.5 for row in (a, b)]
    return round(dot / lengths[0] / lengths[1], 6)


def vectors(num, seed=0, width=5):
    """Around few directions, so that there are near and far pairs, equal ones too."""
    rng = np.random.default_rng(seed)
    x_NC = rng.normal(size=(4, width))[rng.integers(0, 4, num)] + 0.05 * rng.normal(size=(num, width))
    x_NC[num // 2] = x_NC[1]
    return (x_NC * rng.uniform(0.1, 1000, (num, 1))).astype(np.float32)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So few rows at a time that all borders are met."""
    for name, value in (("BLOCK_ROWS", 4), ("HELD_ROWS", 8)):
        monkeypatch.setattr(search, name, value)
    monkeypatch.setattr(EmbeddingsFile.blocks, "__defaults__", (4,))


@pytest.mark.parametrize("num", [2, 4, 23])
def test_most_similar_rows(tmp_path, num):
    x_NC, own = vectors(num), vectors(2, seed=1)
    with EmbeddingsFile(write(tmp_path / "e.parquet", x_NC)) as file:
        row = rows_of(file, ["0.mp4", "absent"])
        assert list(row) == ["0.mp4"]
        unit_QC = own / np.linalg.norm(own.astype(np.float64), axis=1, keepdims=True)
        found = most_similar([Query("0.mp4", row["0.mp4"]), Query("new", unit_QC)], file, top_k=5)
    wanted = []
    for place, (several, left_out) in enumerate((([x_NC[0]], [0]), (own, []))):
        all_rows = [(n, max(cosine(q, x) for q in several)) for n, x in enumerate(x_NC) if n not in left_out]
        wanted += [Match(place, n, c) for n, c in sorted(all_rows, key=lambda item: (-item[1], item[0]))[:5]]
    assert found == wanted


@pytest.mark.parametrize("above", [0.3, 0.999, 1.0])
def test_near_copies_between_two_files_and_within_one(tmp_path, above):
    x_NC, y_MC = vectors(19), vectors(10, seed=2)
    y_MC[3] = 7 * x_NC[5]
    with (
        EmbeddingsFile(write(tmp_path / "x.parquet", x_NC)) as one,
        EmbeddingsFile(write(tmp_path / "y.parquet", y_MC, row_group_size=100)) as other,
    ):
        between, within = near_copies(one, other, above=above), near_copies(one, None, above=above)
    order = {"key": lambda m: (-m.similarity, m.one, m.other)}
    pairs = [Match(n, m, cosine(x, y)) for n, x in enumerate(x_NC) for m, y in enumerate(y_MC)]
    assert between == sorted((match for match in pairs if match.similarity >= above), **order)
    pairs = [Match(n, m, cosine(x_NC[n], x_NC[m])) for n in range(19) for m in range(n + 1, 19)]
    assert within == sorted((match for match in pairs if match.similarity >= above), **order)
    assert Match(5, 3, 1.0) in between and Match(1, 9, 1.0) in within


def test_clips_of_one_video_are_no_pair(tmp_path):
    x_NC = np.ones((4, 3), np.float32)
    path = write(tmp_path / "e.parquet", x_NC, paths=["a", "a", "b", "b"], start_seconds=[0.0, 1.0] * 2,
                 end_seconds=[1.0, 2.0] * 2)  # fmt: skip
    with EmbeddingsFile(path) as file:
        assert {(m.one, m.other) for m in near_copies(file, None, above=0.9)} == {(0, 2), (0, 3), (1, 2), (1, 3)}
        assert file.texts([3]) == {3: {"path": "b", "start_seconds": 1.0, "end_seconds": 2.0}}
        assert [m.other for m in most_similar([Query("a", np.eye(3)[:1])], file, top_k=9)] == [2, 3]


def test_too_many_pairs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "MOST_PAIRS", 5)
    with EmbeddingsFile(write(tmp_path / "e.parquet", np.ones((4, 3), np.float32))) as file:
        with pytest.raises(ConfigError, match=r"--above must leave at most 5 pairs, got more with 0\.5\. Raise it"):
            near_copies(file, None, above=0.5)


def test_parts_are_one_file(tmp_path):
    x_NC = vectors(7)
    for number, rows in enumerate((x_NC[:3], x_NC[3:])):
        write(tmp_path / f"e.part-0000{number}-of-00002.parquet", rows)
    with EmbeddingsFile(tmp_path / "e.parquet") as file:
        assert (file.num_rows, file.width) == (7, 5)
        assert np.array_equal(np.concatenate([block.x_NC for block in file.blocks()]), x_NC)
        assert [block.first for block in file.blocks()] == [0, 3]
    write(tmp_path / "e.part-00001-of-00002.parquet", x_NC[3:, :4])
    with pytest.raises(ManifestError, match="00001-of-00002.parquet: all parts must be made with the same checkpoint"):
        EmbeddingsFile(tmp_path / "e.parquet")
    (tmp_path / "e.part-00001-of-00002.parquet").unlink()
    with pytest.raises(ManifestError, match=r"e\.parquet: all its parts must be there, missing 1/2"):
        EmbeddingsFile(tmp_path / "e.parquet")


NAN, ZERO = np.full((1, 3), np.nan, np.float32), np.zeros((1, 3), np.float32)
LISTS = pa.list_(pa.float64())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "must be a parquet file of embeddings, got no file"),
        (lambda path: path.write_text("path,embedding\n"), "must be a parquet file of embeddings, got another file"),
        (lambda path: path.write_bytes(b""), "must be a parquet file of embeddings, got another file"),
        (
            lambda path: parquet.write_table(pa.table({"path": ["a"]}), path),
            "must have one column 'embedding', got pat",
        ),
        (lambda path: write(path, ZERO + 1, paths=[3]), "must have one column 'path', of text, got int64"),
        (lambda path: write(path, ZERO + 1, start_seconds=["1"]), "'start_seconds', of numbers, got string"),
        (lambda path: write(path, NAN), "the embedding of '0.mp4' must be finite and not zero, got a value that is no"),
        (lambda path: write(path, ZERO), "the embedding of '0.mp4' must be finite and not zero, got zeros"),
        (lambda path: write(path, ZERO[:0]), "must have at least one row, got none"),
        (
            lambda path: parquet.write_table(pa.table({"path": ["a"], "embedding": ["b"]}), path),
            "must be lists of some",
        ),
        (lambda path: write(path, [np.ones(3), np.ones(2)], kind=LISTS), "must be lists of 3 numbers each"),
        (lambda path: write(path, [np.ones(3), np.ones(6), np.ones(0)], kind=LISTS), "must be lists of 3 numbers each"),
        (
            lambda path: parquet.write_table(
                pa.table({"path": ["a"], "embedding": pa.array([[1.0]])}, metadata={"video_gn": "["}), path
            ),
            "its metadata 'video_gn' are damaged",
        ),
    ],
)
def test_files_that_are_none(tmp_path, make, message):
    make(tmp_path / "e.parquet")
    with pytest.raises(ManifestError, match=message):
        with EmbeddingsFile(tmp_path / "e.parquet") as file:
            list(file.blocks())


def test_a_file_that_was_cut_or_changed(tmp_path):
    path, x_NC = tmp_path / "e.parquet", vectors(400, width=64)
    write_parquet(path, {"path": str, "embedding": 64}, [([str(n) for n in range(400)], x_NC)])
    with EmbeddingsFile(path) as file:
        assert np.array_equal(np.concatenate([block.x_NC for block in file.blocks()]), x_NC)
    data = bytearray(path.read_bytes())
    start = len(data) // 3
    data[start : start + 2000] = bytes(2000)
    path.write_bytes(data)
    with pytest.raises(ManifestError, match="its rows cannot be read. Is the copy whole"):
        with EmbeddingsFile(path) as file:
            list(file.blocks())


def test_lists_of_any_float_are_read(tmp_path):
    x_NC = vectors(6)
    with EmbeddingsFile(write(tmp_path / "e.parquet", x_NC, kind=LISTS)) as file:
        assert np.array_equal(np.concatenate([block.x_NC for block in file.blocks()]), x_NC)
        assert file.checkpoint is None
