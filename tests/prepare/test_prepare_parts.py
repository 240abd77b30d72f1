"""Videos prepared in parts: merged, the directory is that of one run; what does not fit together is named."""

import csv
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from media import write_numbered_video

from video_gn import processes
from video_gn.__main__ import main
from video_gn.errors import ConfigError, RunError, SettingError
from video_gn.lists.manifest import Manifest
from video_gn.lists.records import VideoRecord
from video_gn.parts import Part
from video_gn.prepare import prepare as prepare_module
from video_gn.prepare.encode import encode
from video_gn.prepare.made_files import claimed
from video_gn.prepare.prepare import prepare
from video_gn.prepare.tar_shards import write_shards


@pytest.fixture(autouse=True)
def _forked(monkeypatch):
    monkeypatch.setattr(processes, "START_METHOD", "fork")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Seven videos, of which one is broken."""
    root = tmp_path_factory.mktemp("sources")
    for number in range(7):
        write_numbered_video(root / f"{number}.mp4", 6 + number)
    (root / "3.mp4").write_bytes(b"no video")
    return sorted(root.iterdir())


def listed(paths):
    records = [
        VideoRecord(str(p), i % 2, source=f"list.csv:{i + 1}", groups=(("who", str(i)),)) for i, p in enumerate(paths)
    ]
    return Manifest(records, ("a", "b"), "list.csv")


def splits(paths):
    return {"train": listed(paths[:5]), "val": listed(paths[5:])}


def files_below(directory):
    """Bytes of what was made, by name; not the journals and locks, nor what a crash left."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


@pytest.mark.parametrize("shards", [None, 2])
def test_parts_and_a_merge_are_one_run(tmp_path, sources, shards):
    """Parts at once, of a list with splits, more parts than shards; each is done again in no time."""
    settings = {"shards": shards, "num_workers": 1, "short_side_px": 32}
    whole = prepare(splits(sources), tmp_path / "whole", **settings)
    out, count = tmp_path / "out", 3 if shards is None else 5
    context = multiprocessing.get_context("fork")
    running = [
        context.Process(target=prepare, args=(splits(sources), out), kwargs={**settings, "part": Part(index, count)})
        for index in range(count)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
    assert [process.exitcode for process in running] == [0] * count
    assert not (out / "manifest.csv").exists() and not (out / "failed.csv").exists()
    again = [prepare(splits(sources), out, **settings, part=Part(index, count)) for index in range(count)]
    assert sum(part.num_listed for part in again) == 7 and sum(part.num_kept for part in again) == 6
    assert not any(part.num_new for part in again) and sum(len(part.failed) for part in again) == 1
    assert "part 0/" in again[0].text() and "--merge writes the list of all" in again[0].text()
    for _ in range(2):
        merged = prepare(splits(sources), out, **settings, merge=True)
        assert files_below(out) == files_below(tmp_path / "whole")
        assert (merged.num_listed, merged.num_new, merged.num_kept) == (7, 0, 6)
        assert (merged.num_bytes, merged.num_source_bytes, merged.failed) == (
            whole.num_bytes,
            whole.num_source_bytes,
            whole.failed,
        )


def test_copies_are_packed_in_parts_too(tmp_path, sources):
    manifest = listed([*sources, tmp_path / "gone.mp4"])
    write_shards(manifest, tmp_path / "whole", videos_per_shard=2)
    parts = [write_shards(manifest, tmp_path / "out", videos_per_shard=2, part=Part(index, 3)) for index in range(3)]
    assert [(part.num_shards, part.num_videos) for part in parts] == [(2, 3), (1, 2), (1, 2)]
    (tmp_path / "out/videos-000001.tar").write_bytes(b"cut")
    with pytest.raises(ConfigError, match=r"--merge: .*out: part 1/3 must be finished"):
        write_shards(manifest, tmp_path / "out", videos_per_shard=2, merge=True)
    assert write_shards(manifest, tmp_path / "out", videos_per_shard=2, part=Part(1, 3)).num_new == 1
    write_shards(manifest, tmp_path / "out", videos_per_shard=2, merge=True)
    assert files_below(tmp_path / "out") == files_below(tmp_path / "whole")
    with pytest.raises(ConfigError, match="part 0/3 must be of the list and settings that are merged, got others"):
        write_shards(manifest, tmp_path / "out", videos_per_shard=3, merge=True)


def test_a_stopped_part_and_a_crash(tmp_path, sources, monkeypatch):
    """A part resumes where it was stopped; a crash of a decoder is named as without parts."""

    def crash(source, *args, **kwargs):
        if source == str(sources[4]):
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(source, *args, **kwargs)

    def stop(num_done, num_all):
        if num_done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(prepare_module, "encode", crash)
    settings = {"num_workers": 1, "short_side_px": 32}
    prepare(listed(sources), tmp_path / "whole", **settings)
    out = tmp_path / "out"
    prepare(listed(sources), out, **settings, part=Part(1, 2))
    with pytest.raises(KeyboardInterrupt):
        prepare(listed(sources), out, **settings, part=Part(0, 2), progress=stop)
    with pytest.raises(ConfigError, match=r"part 0/2 must be finished.* Run the same command with --part 0/2"):
        prepare(listed(sources), out, **settings, merge=True)
    done = prepare(listed(sources), out, **settings, part=Part(0, 2))
    assert (done.num_kept, done.num_new, len(done.failed)) == (2, 1, 1)
    prepare(listed(sources), out, **settings, merge=True)
    assert files_below(out) == files_below(tmp_path / "whole")
    with (out / "failed.csv").open() as file:
        assert [Path(row["path"]).name for row in csv.DictReader(file)] == ["3.mp4", "4.mp4"]


def test_what_does_not_fit_together_is_named(tmp_path, sources, monkeypatch):
    monkeypatch.setattr("video_gn.files.LEFT_OVER_SECONDS", 0.1)
    out, settings = tmp_path / "out", {"num_workers": 1, "short_side_px": 32}

    def refused(message, paths=sources, error=ConfigError, **more):
        with pytest.raises(error, match=message):
            prepare(listed(paths), out, **{**settings, **more})
        assert not (out / "manifest.csv").exists()

    refused("its parts must be there, got none. Run the same command with --part 0/8", merge=True)
    prepare(listed(sources), out, **settings, part=Part(0, 3))
    refused("must have 3 parts, missing 1/3, 2/3. Run the same command with --part 1/3", merge=True)
    refused(r"--part must be I/3 as in \.prepare\.part-00000-of-00003\.journal, which exists, got 0/2", part=Part(0, 2))
    prepare(listed(sources), out, **settings, part=Part(1, 3))
    prepare(listed(sources[:-1]), out, **settings, part=Part(2, 3))
    refused("part 2/3 must be of the list and settings that are merged, got others", merge=True)
    prepare(listed(sources), out, **{**settings, "crf": 30}, part=Part(2, 3))
    refused("part 2/3 must be of the list and settings that are merged, got others", merge=True)
    refused("part 0/3 must be of the list and settings that are merged, got others", merge=True, crf=30)
    prepare(listed(sources), out, **settings, part=Part(2, 3))
    with pytest.raises(SettingError, match="part and merge must not both be set"):
        prepare(listed(sources), out, part=Part(2, 3), merge=True)
    with claimed(out, Part(0, 3)):
        for more in ({"part": Part(0, 3)}, {"merge": True}, {}):
            refused(r"another run \(process \d+ on .+\) is writing to out_dir", error=RunError, **more)
        assert prepare(listed(sources), out, **settings, part=Part(1, 3)).num_new == 0
    with claimed(out):
        refused(r"another run \(process \d+ on .+\) is writing to out_dir", error=RunError, part=Part(0, 3))
    # What was made is gone, or its source has changed since.
    (out / "b/1.mp4").unlink()
    refused("part 1/3 must be finished, got one that is not, or whose videos have changed", merge=True)
    assert prepare(listed(sources), out, **settings, part=Part(1, 3)).num_new == 1
    changed = tmp_path / "2.mp4"
    changed.write_bytes(sources[2].read_bytes())
    paths = [*sources[:2], changed, *sources[3:]]
    for index in range(3):
        prepare(listed(paths), out, **settings, part=Part(index, 3))
    os.utime(changed, (1, 1))
    refused("part 2/3 must be finished, got one that is not, or whose videos have changed", paths=paths, merge=True)


def test_a_run_without_parts_takes_over_what_they_made(tmp_path, sources):
    settings = {"num_workers": 1, "short_side_px": 32}
    out = tmp_path / "out"
    assert prepare(listed(sources), out, **settings, part=Part(0, 2)).num_new == 4
    with (out / ".prepare.part-00000-of-00002.journal").open("ab") as file:
        file.write(b'{"name": "cut off')
    summary = prepare(listed(sources), out, **settings)
    assert (summary.num_new, summary.num_kept) == (2, 4)
    assert [path.name for path in out.glob(".prepare*.journal")] == [".prepare.journal"]
    again = prepare(listed(sources), out, **settings)
    assert (again.num_new, again.num_kept) == (0, 6)
    # And parts take over what a run without them has made, of any division.
    assert [prepare(listed(sources), out, **settings, part=Part(index, 3)).num_new for index in range(3)] == [0, 0, 0]


def test_parts_of_the_command_line(tmp_path, sources, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"{path},a\n" for path in sources))
    words = ["data", "prepare", "list.csv", "out", "--num_workers=1", "--short_side_px=32", "--shards=2"]
    for task in (4, 6):
        for name, value in {"ID": task, "MIN": 4, "MAX": 6, "STEP": 2, "COUNT": 2}.items():
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
        assert main([*words, "--part=slurm"]) == (0 if task == 4 else 3)
    assert main([*words, "--merge"]) == 3
    assert "out: 6 of 7 videos in 4 shards, 0 of them new" in capsys.readouterr().out
    assert main([*words, "--part=2/2"]) == 2
    assert main([*words, "--part=0/2", "--merge"]) == 2
    assert main(["data", "prepare", "list.csv", "whole", *words[4:]]) == 3
    assert files_below(tmp_path / "out") == files_below(tmp_path / "whole")
