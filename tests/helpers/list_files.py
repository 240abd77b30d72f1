"""Lists and folders of empty files, and manifests without files, for tests of lists."""

from pathlib import Path

import pytest

from video_gn.errors import ManifestError
from video_gn.lists.manifest import Manifest
from video_gn.lists.read import read_manifest
from video_gn.lists.records import VideoRecord


def touch(root, *names):
    for name in names:
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def write(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def rows(manifest):
    """(path, label's name) of each record."""
    return [(r.path, None if r.label is None else manifest.classes[r.label]) for r in manifest.records]


def count_by_class(manifest):
    return {name: int((manifest.labels == number).sum()) for number, name in enumerate(manifest.classes)}


def fails(path, *parts, **kwargs):
    """read_manifest raises ManifestError whose message has all parts."""
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, **kwargs)
    for part in parts:
        assert part in str(caught.value)
    return str(caught.value)


def made(labels, classes=("a", "b", "c"), groups=None, segments=False):
    return Manifest(
        tuple(
            VideoRecord(
                f"/v/{i // 2 if segments else i}.mp4",
                label,
                *((float(i % 2), float(i % 2 + 1)) if segments else (None, None)),
                source=f"list.csv:{i + 1}",
                groups=() if groups is None else (("person", groups[i]),),
            )
            for i, label in enumerate(labels)
        ),
        classes,
        "list.csv",
    )
