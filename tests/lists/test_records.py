"""Records as columns."""

import pickle

import numpy as np
import pytest

from video_gn.lists.manifest import Manifest
from video_gn.lists.records import Records, VideoRecord


def test_records_are_a_sequence():
    plain = tuple(
        VideoRecord(
            f"/v/{i}é.mp4",
            i % 2 if i else None,
            None if i < 3 else i / 7,
            source=f"l.csv:{i + 1}",
            groups=(("p", str(i % 3)),),
            missing=i == 4,
        )
        for i in range(6)
    )
    records = Records.from_records(plain)
    assert len(records) == 6 and list(records) == list(plain) and records == plain
    assert records[-1] == plain[-1] and records[np.int64(2)] == plain[2]
    assert list(records[1:5:2]) == list(plain[1:5:2]) and isinstance(records[1:3], Records)
    assert records != plain[:5] and records != plain[::-1] and records != 3
    assert plain[3] in records and repr(records) == "<6 records>"
    for index in (6, -7):
        with pytest.raises(IndexError, match=rf"index must be in \[-6, 6\), got {index}"):
            records[index]
    assert pickle.loads(pickle.dumps(records)) == plain
    assert Records.from_records(()) == () and len(Records.from_records(())) == 0
    with pytest.raises(ValueError, match=r"groups must be the columns \['p'\] in every record, got \(\)"):
        Records.from_records([plain[0], VideoRecord("x.mp4", 0)])


def test_sources_come_back_as_they_were():
    for source in ("", "folder", "list.csv:12", "C:list.csv:1", "odd:0", "odd:012", "odd:²", ":3"):
        assert Records.from_records([VideoRecord("x.mp4", 0, source=source)])[0].source == source


def test_memory_of_many_records():
    """What is kept of a record is its path and some 30 bytes."""
    path = "/data/kinetics/train/some class/abcdefghijk_000012_000022.mp4"
    manifest = Manifest([VideoRecord(path, 0, source=f"l.csv:{i + 1}") for i in range(1000)], ("a",), "l.csv")
    assert manifest.records.nbytes <= 1000 * (len(path) + 32)
