"""A video, several, and a list of many with broken and missing ones."""

import shutil

import pytest
from media import write_numbered_video


@pytest.fixture(scope="module")
def one_video(tmp_path_factory):
    return write_numbered_video(tmp_path_factory.mktemp("one") / "v.mp4", 20, size=(48, 40), gop=8)


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    return [write_numbered_video(root / f"{i:02d}.mp4", 20 + i) for i in range(8)]


@pytest.fixture
def many(tmp_path, one_video):
    """A directory of 40 videos, 4 of them broken, and a list of them and of 2 that are not there."""
    root = tmp_path / "many"
    root.mkdir()
    for i in range(40):
        if i % 10 == 3:
            (root / f"{i:03d}.mp4").write_bytes(b"" if i == 3 else b"no video at all")
        else:
            shutil.copyfile(one_video, root / f"{i:03d}.mp4")
    lines = [f"many/{i:03d}.mp4,{'ab'[i % 2]}" for i in range(42)]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    return tmp_path
