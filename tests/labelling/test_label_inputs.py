"""Lists as streams, and which of their videos are a part's."""

import io
import os
import sys
import threading
import types
from pathlib import Path

import pytest
from stubs import write_list

from video_gn.errors import ConfigError, ManifestError
from video_gn.labelling.inputs import Inputs, read_list
from video_gn.parts import Part


def paths_of(name):
    return [record.path for record in read_list(str(name))]


@pytest.mark.parametrize(
    "name", ["a b.mp4", " lead.mp4", "trail.mp4 ", '"q".mp4', "it's, ü;\u2028.mp4", "# x.mp4", "-.mp4"]
)
def test_a_line_is_a_path_as_it_stands(tmp_path, name):
    listed = tmp_path / "list.txt"
    listed.write_bytes(f"\ufeffv.mp4\r\n\r\n   \n{name}\n/a/b.mp4".encode())
    assert paths_of(listed) == [str(tmp_path / "v.mp4"), str(tmp_path / name), "/a/b.mp4"]


def test_relative_paths_start_from_the_list_and_from_here_for_pipes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep").mkdir()
    write_list(tmp_path / "deep/list.txt", ["v.mp4"])
    write_list(tmp_path / "list.txt", ["v.mp4"])
    assert paths_of("deep/list.txt") == ["deep/v.mp4"]
    assert paths_of("list.txt") == ["v.mp4"]
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"v.mp4\nw.mp4\n")))
    inputs = Inputs([], "-")
    assert inputs.total is None
    assert [r.path for r in inputs] == ["v.mp4", "w.mp4"]
    os.mkfifo("pipe")
    writer = threading.Thread(target=Path("pipe").write_text, args=("v.mp4\n",))
    writer.start()
    assert [r.path for r in Inputs([], "pipe")] == ["v.mp4"]
    writer.join()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"--list must have at least one path, got none"),
        (b"\n  \r\n", r"--list must have at least one path, got none"),
        (b"a.mp4\n\nb\xe9.mp4\n", r"list\.txt:3: the text must be UTF-8, got the byte 0xe9"),
        (b"a.mp4\nb\0.mp4\n", r"list\.txt:2: a line must be a path, got a zero byte"),
        (b"a.mp4\n" + b"x" * 70_000, r"list\.txt:2: a line must be a path, got 65536 bytes without a line end"),
        (b"path,label\na.mp4,x\n", r"list\.txt:1: .* must be a path alone, got the header 'path,label'"),
        (b"\nlabel,youtube_id,time_start,time_end,split\n", r"list\.txt:2: .* got the header"),
        (b"a.mp4 3\nb.mp4 4\n", r"list\.txt:1: .* got a path and a label, 'a\.mp4 3'. Give such a list as PATH"),
    ],
)
def test_what_is_no_list_is_told_before_anything_is_done(tmp_path, content, message):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ManifestError, match=message):
        Inputs([], str(tmp_path / "list.txt"))


def test_other_inputs_that_cannot_be(tmp_path):
    with pytest.raises(ConfigError, match="PATH must name at least one video, or --list a file .*, got neither"):
        Inputs([])
    with pytest.raises(ManifestError, match=r"gone\.txt: --list must be a file, got No such file or directory"):
        Inputs([], str(tmp_path / "gone.txt"))
    with pytest.raises(ManifestError, match="--list must be a file, got Is a directory"):
        Inputs([], str(tmp_path))


def test_paths_that_are_not_there_come_first_then_paths_then_the_list(tmp_path):
    (tmp_path / "v.mp4").touch()
    listed = write_list(tmp_path / "list.txt", ["gone.mp4", "gone.mp4"])
    inputs = Inputs([str(tmp_path / "v.mp4"), "no.mp4", str(tmp_path / "v.mp4")], str(listed))
    assert inputs.total == 4
    found = list(inputs)
    assert [r.path for r in found] == ["no.mp4", str(tmp_path / "v.mp4"), *[str(tmp_path / "gone.mp4")] * 2]
    assert found[0].error == "the video must be there, got no such file or directory. Is the path right?"
    assert not any(r.error for r in found[1:])


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_parts_divide_a_list(tmp_path, count):
    names = [f"{i}.mp4" for i in range(5)]
    listed = write_list(tmp_path / "list.txt", names)
    parts = [Inputs([], str(listed), part=Part(i, count)) for i in range(count)]
    found = [[r.path for r in inputs] for inputs in parts]
    assert found == [[str(tmp_path / n) for n in names[i::count]] for i in range(count)]
    assert [inputs.total for inputs in parts] == [len(names[i::count]) for i in range(count)]
    assert {inputs.num_seen for inputs in parts} == {5}
    assert len({inputs.sha256 for inputs in parts}) == 1
    other = Inputs([], str(write_list(listed, names[::-1])))
    list(other)
    assert other.sha256 != parts[0].sha256
