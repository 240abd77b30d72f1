"""Tar shards: WebDataset's layout, frames read in place, and what damage is called."""

import json
import os
import shutil
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest
from media import write_numbered_video

from video_gn import processes
from video_gn.decoding import tar_members as _tar
from video_gn.decoding.tar_members import exists, is_member, join_path, locate, member_url, read_member, split_path
from video_gn.errors import DecodeError, RunError, UnwritableError
from video_gn.lists.manifest import Manifest
from video_gn.lists.read import read_manifest
from video_gn.lists.records import VideoRecord
from video_gn.prepare import prepare
from video_gn.prepare.names import sample_keys
from video_gn.prepare.tar_shards import ShardVideo, write_shard, write_shards


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    return [write_numbered_video(root / f"v.{i}.mp4", 10 + i) for i in range(5)]


@pytest.fixture(autouse=True)
def _no_memory():
    _tar._indices.clear()


def listed(*paths):
    classes = ("a", "b")
    return Manifest([VideoRecord(str(p), i % 2, source=f"l.csv:{i + 1}") for i, p in enumerate(paths)], classes, "l")


def samples_of(paths):
    return [ShardVideo(f"k{i}", path, i, {"label": "x"}) for i, path in enumerate(paths)]


def decode(url, protocols=_tar.PROTOCOLS):
    with av.open(url, options={"protocol_whitelist": protocols}) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.fixture
def shard(tmp_path, sources):
    path = tmp_path / "t-000000.tar"
    write_shard(path, samples_of(sources))
    return path


# ---- layout ------------------------------------------------------------------------------------


def test_a_shard_is_what_webdataset_reads(shard, sources):
    with tarfile.open(shard) as tar:
        members = tar.getmembers()
        assert [m.name for m in members[:3]] == ["k0.mp4", "k0.json", "k0.cls"]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
        for i, source in enumerate(sources):
            assert tar.extractfile(f"k{i}.mp4").read() == source.read_bytes()
            assert json.load(tar.extractfile(f"k{i}.json")) == {"label": "x"}
            assert tar.extractfile(f"k{i}.cls").read() == str(i).encode()


def test_the_same_samples_give_the_same_bytes(tmp_path, shard, sources):
    other = tmp_path / "other.tar"
    os.utime(sources[0])
    write_shard(other, samples_of(sources))
    assert other.read_bytes() == shard.read_bytes()


def test_keys_have_no_dots_and_differ():
    keys = sample_keys(["a.b.mp4", "a_b.mp4", "A_B.avi", "c.mp4"])
    assert keys[3] == "c" and len({key.lower() for key in keys}) == 4
    assert not any("." in key for key in keys)


# ---- finding and reading -----------------------------------------------------------------------


def test_paths_of_members():
    assert split_path("a/t-0.tar::b/k.mp4") == ("a/t-0.tar", "b/k.mp4")
    assert join_path("a/t-0.tar", "k.mp4") == "a/t-0.tar::k.mp4"
    assert (
        is_member("t.tar::k.mp4") and not is_member("t.tar") and not is_member("t.tar::") and not is_member("t::k.mp4")
    )
    for wrong in ("t.mp4", "t.tar::"):
        with pytest.raises(ValueError, match=r"SHARD\.tar::MEMBER"):
            split_path(wrong)


def test_a_member_is_found_by_the_index_beside_the_shard(shard, sources, monkeypatch):
    path = f"{shard}::k3.mp4"
    found = locate(path)
    data = shard.read_bytes()
    assert data[found.offset : found.offset + found.size] == sources[3].read_bytes()
    assert Path(f"{shard}.idx").is_file()
    assert exists(path) and not exists(f"{shard}::k9.mp4") and not exists(f"{shard}.tar::k.mp4")
    monkeypatch.setattr(_tar, "build_index", None)  # nothing is read from the shard any more
    assert locate(f"{shard}::k0.mp4").size == sources[0].stat().st_size
    _tar._indices.clear()
    assert locate(path) == found
    monkeypatch.setattr(_tar, "read_index", None)  # once in a process
    assert locate(path) == found


@pytest.mark.parametrize("damage", ["empty", "bytes", "foreign", "other size", "old"])
def test_an_index_that_is_stale_is_made_anew(tmp_path, shard, sources, damage):
    path = f"{shard}::k1.mp4"
    expected = locate(path)
    beside = Path(f"{shard}.idx")
    good = beside.read_bytes()
    if damage == "empty":
        beside.write_bytes(b"")
    elif damage == "bytes":
        beside.write_bytes(good[:60] + b"\1\2\3" + good[63:])
    elif damage == "foreign":
        beside.write_bytes(b"x" * 500)
    elif damage == "other size":
        write_shard(shard, samples_of(sources[::-1][:4]))
        expected = None
        os.utime(beside, ns=(2**62, 2**62))
    else:
        write_shard(shard, samples_of([sources[1], sources[0], *sources[2:]]))
        os.utime(beside, ns=(1, 1))
        expected = None
    _tar._indices.clear()
    found = locate(path)
    assert expected is None or found == expected
    order = {"other size": 3, "old": 0}.get(damage, 1)
    assert shard.read_bytes()[found.offset : found.offset + found.size] == sources[order].read_bytes()
    assert _tar._parse(beside.read_bytes()).num_bytes == shard.stat().st_size


def test_a_directory_that_cannot_be_written_needs_no_index(shard, monkeypatch):
    def refuse(*args):
        raise UnwritableError("t-000000.tar.idx could not be written: Permission denied")

    monkeypatch.setattr(_tar, "write_index", refuse)
    assert locate(f"{shard}::k1.mp4").size
    assert not Path(f"{shard}.idx").exists()


@pytest.mark.parametrize("folder", ["plain", "with, comma", "a:b", "subfile,,start,0,end,9,,:", "é 动作", "%20#?"])
def test_frames_are_those_of_the_loose_file(tmp_path, sources, folder):
    directory = tmp_path / folder
    directory.mkdir()
    shard = directory / "t,1:x-000000.tar"
    write_shard(shard, samples_of(sources))
    for i in (0, 4):
        path = f"{shard}::k{i}.mp4"
        loose, inside = decode(f"file:{sources[i]}", "file"), decode(member_url(path))
        assert len(loose) == len(inside) and all(map(np.array_equal, loose, inside))
        assert read_member(path) == sources[i].read_bytes()


def test_seeking_within_a_member(shard, sources):
    with av.open(member_url(f"{shard}::k4.mp4"), options={"protocol_whitelist": _tar.PROTOCOLS}) as container:
        assert container.size == sources[4].stat().st_size
        last = list(container.decode(video=0))[-1].to_ndarray(format="rgb24")
        container.seek(0)
        assert np.array_equal(list(container.decode(video=0))[-1].to_ndarray(format="rgb24"), last)


def test_names_of_any_length_and_script(tmp_path, sources):
    keys = ["é动作", "x" * 180, "folder.with.dots/k"]
    path = tmp_path / "t.tar"
    write_shard(path, [ShardVideo(key, sources[0], None, {}) for key in keys])
    for key in keys:
        assert read_member(f"{path}::{key}.mp4") == sources[0].read_bytes()


# ---- damage ------------------------------------------------------------------------------------


def reason_of(path):
    with pytest.raises(DecodeError) as caught:
        member_url(path)
    assert caught.value.path == path
    return caught.value.reason


def test_what_is_wrong_names_shard_and_member(tmp_path, shard):
    assert reason_of(f"{shard}::none.mp4") == "the shard has no member 'none.mp4'"
    assert reason_of(f"{tmp_path}/none.tar::k0.mp4") == "the shard is missing"
    (tmp_path / "folder.tar").mkdir()
    assert "directory" in reason_of(f"{tmp_path}/folder.tar::k0.mp4")
    (tmp_path / "empty.tar").touch()
    assert "no member 'k0.mp4' (the shard is damaged or no tar" in reason_of(f"{tmp_path}/empty.tar::k0.mp4")
    (tmp_path / "page.tar").write_text("<html>" * 500)
    assert "damaged or no tar" in reason_of(f"{tmp_path}/page.tar::k0.mp4")
    write_shard(tmp_path / "zero.tar", [ShardVideo("k", tmp_path / "empty.tar", None, {})])
    assert reason_of(f"{tmp_path}/zero.tar::k.tar") == "the file is empty (0 bytes)"


def test_a_file_with_a_members_name_is_refused(shard):
    path = f"{shard}::k0.mp4"
    Path(path).touch()
    assert "a file of this very name" in reason_of(path)


@pytest.mark.parametrize("at", ["member", "between", "header"])
@pytest.mark.parametrize("indexed", [True, False])
def test_a_shard_that_is_cut_off_gives_what_is_left(shard, sources, at, indexed):
    whole = locate(f"{shard}::k2.mp4")
    if not indexed:
        Path(f"{shard}.idx").unlink()
    _tar._indices.clear()
    end = {"member": whole.offset + 100, "between": whole.offset - 512, "header": whole.offset - 300}[at]
    os.truncate(shard, end)
    assert read_member(f"{shard}::k1.mp4") == sources[1].read_bytes()
    assert "the shard is cut off" in reason_of(f"{shard}::k2.mp4") or at != "member"
    assert "cut off or damaged at byte" in reason_of(f"{shard}::k4.mp4") or "unexpected end" in reason_of(
        f"{shard}::k4.mp4"
    )


def test_a_header_that_is_not_the_members_is_noticed(shard):
    found = locate(f"{shard}::k1.mp4")
    status = shard.stat()
    with shard.open("r+b") as file:
        file.seek(found.offset - 512)
        file.write(b"other")
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "the bytes before" in reason_of(f"{shard}::k1.mp4")
    assert locate(f"{shard}::k2.mp4")


def test_a_shard_that_is_replaced_is_read_anew(shard, sources):
    assert read_member(f"{shard}::k0.mp4") == sources[0].read_bytes()
    other = shard.with_name("other.tar")
    write_shard(other, samples_of(sources[::-1]))
    other.replace(shard)
    assert read_member(f"{shard}::k0.mp4") == sources[4].read_bytes()


# ---- packing lists -----------------------------------------------------------------------------


def test_files_are_packed_as_they_are(tmp_path, sources):
    out = tmp_path / "out"
    records = [
        VideoRecord(str(p), i % 2, source=f"l.csv:{i + 1}", groups=(("who", "é"),)) for i, p in enumerate(sources)
    ]
    records.append(VideoRecord(str(sources[0]), 1, 0.1, 0.3, source="l.csv:9", groups=(("who", "x"),)))
    records.append(VideoRecord(str(tmp_path / "none.mp4"), 1, source="l.csv:10", groups=(("who", "y"),)))
    summary = write_shards(Manifest(records, ("a", "b"), "l"), out, name="train", videos_per_shard=2)
    assert (summary.num_videos, summary.num_shards, summary.num_new, len(summary.failed)) == (5, 3, 3, 1)
    assert "5 videos in 3 shards" in summary.text() and "1 failed" in summary.text()
    assert sorted(p.name for p in out.glob("*.tar")) == [f"train-00000{i}.tar" for i in range(3)]
    made = read_manifest(out / "train.csv", check_files=False)
    assert [Path(r.path).name for r in made.records] == [
        *(f"train-00000{i // 2}.tar::v_{i}.mp4" for i in range(5)),
        "train-000000.tar::v_0.mp4",
    ]
    assert made.records[-1].start_seconds == 0.1 and made.records[-1].groups == (("who", "x"),)
    for record, source in zip(made.records, sources, strict=False):
        assert read_member(record.path) == source.read_bytes()
    with tarfile.open(out / "train-000000.tar") as tar:
        assert json.load(tar.extractfile("v_0.json")) == {"class": 0, "label": "a", "source": "v.0.mp4", "who": "é"}


def test_shards_of_a_size_and_a_second_call(tmp_path, sources):
    sizes = [path.stat().st_size for path in sources]
    limit = sizes[0] + sizes[1]
    seen = []
    summary = write_shards(
        listed(*sources), tmp_path / "out", bytes_per_shard=limit, progress=lambda *args: seen.append(args)
    )
    assert summary.num_shards >= 3 and seen[-1] == (summary.num_shards, summary.num_shards)
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path / "out").glob("*.tar")}
    again = write_shards(listed(*sources), tmp_path / "out", bytes_per_shard=limit)
    assert again.num_new == 0
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path / "out").glob("*.tar")} == before
    (tmp_path / "out" / "videos-000001.tar").write_bytes(b"cut")
    assert write_shards(listed(*sources), tmp_path / "out", bytes_per_shard=limit).num_new == 1
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.tar")} == {n: d for n, (d, _) in before.items()}
    assert write_shards(listed(*sources), tmp_path / "out", bytes_per_shard=limit, overwrite=True).num_new >= 3


def test_names_that_several_files_have_are_told_apart(tmp_path, sources):
    (tmp_path / "x").mkdir()
    other = shutil.copy(sources[1], tmp_path / "x" / sources[0].name)
    write_shards(listed(sources[0], other), tmp_path / "out")
    paths = [r.path for r in read_manifest(tmp_path / "out" / "videos.csv", check_files=False).records]
    assert len(set(paths)) == 2
    assert [read_member(p) for p in paths] == [sources[0].read_bytes(), sources[1].read_bytes()]


def test_wrong_settings_and_lists_are_refused(tmp_path, sources):
    for change, message in (
        ({"name": "a/b"}, "name must have letters"),
        ({"videos_per_shard": 0}, "videos_per_shard must be at least 1"),
        ({"bytes_per_shard": 0}, "bytes_per_shard must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            write_shards(listed(sources[0]), tmp_path / "out", **change)
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(RunError, match="at least one video must be readable, got none of 2"):
        write_shards(listed(tmp_path / "none.mp4", tmp_path / "empty.mp4"), tmp_path / "out")


def test_prepared_videos_go_into_shards(tmp_path, sources, monkeypatch):
    monkeypatch.setattr(processes, "START_METHOD", "fork")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    manifest = listed(sources[0], broken, *sources[1:])
    prepare.prepare(manifest, tmp_path / "loose", num_workers=1)
    summary = prepare.prepare({"val": manifest}, tmp_path / "out", num_workers=2, shards=2)
    assert (summary.num_new, summary.num_shards, len(summary.failed)) == (5, 3, 1)
    made = read_manifest(summary.manifest_path, split="val", check_files=False)
    loose = read_manifest(tmp_path / "loose" / "manifest.csv")
    assert [Path(r.path).name.partition("::")[0] for r in made.records] == [
        f"val-00000{i}.tar" for i in (0, 1, 1, 2, 2)
    ]
    assert [r.label for r in made.records] == [r.label for r in loose.records]
    assert [read_member(m.path) for m in made.records] == [Path(r.path).read_bytes() for r in loose.records]
    assert not list((tmp_path / "out").rglob("*.mp4")) and not (tmp_path / "out" / "val").exists()
    again = prepare.prepare({"val": manifest}, tmp_path / "out", num_workers=2, shards=2)
    assert (again.num_new, again.num_kept, len(again.failed)) == (0, 5, 1)


@pytest.mark.needs_real_videos
def test_real_videos_read_alike_from_a_shard(tmp_path, real_videos):
    """Also those that break readers: what FFmpeg says of them does not depend on where they lie."""
    paths = [path for path in sorted((real_videos / "odd").iterdir()) if path.stat().st_size]
    shard = tmp_path / "t.tar"
    write_shard(shard, samples_of(paths))

    def outcome(url, protocols):
        try:
            with av.open(url, options={"protocol_whitelist": protocols}, metadata_errors="ignore") as container:
                return container.format.name, [(p.pts, p.size, p.is_keyframe) for p in container.demux(video=0)]
        except (av.error.FFmpegError, IndexError) as error:
            return type(error)

    for i, path in enumerate(paths):
        inside = outcome(member_url(f"{shard}::k{i}{path.suffix}"), _tar.PROTOCOLS)
        assert inside == outcome(f"file:{path}", "file"), path
