"""A scan in parts: merged it is the whole scan's file; what does not fit together is named, and nothing is written."""

import json

import pytest

from video_gn import processes
from video_gn.__main__ import main
from video_gn.errors import ConfigError, RunError, SettingError
from video_gn.files import hold
from video_gn.parts import Part
from video_gn.prepare.scan import scan


@pytest.fixture(autouse=True)
def _forked(monkeypatch):
    monkeypatch.setattr(processes, "START_METHOD", "fork")


def segments(many):
    """The list of `many`, the first file in two segments: rows and files are not one to one."""
    text = (many / "list.csv").read_text().splitlines()
    rows = [f"{line},," for line in text[1:]]
    rows[0] = rows[0].replace(",,", ",0,0.2")
    (many / "parts.csv").write_text(
        "\n".join(["path,label,start_seconds,end_seconds", *rows, "many/000.mp4,a,0.2,0.4"]) + "\n"
    )
    return many / "parts.csv"


def part_of(target, index, count):
    return target.with_name(f"{target.name}.part-{index:05d}-of-{count:05d}.jsonl")


@pytest.mark.parametrize(("suffix", "count"), [(".csv", 3), (".parquet", 2)])
def test_parts_and_a_merge_are_the_whole_scan(many, suffix, count):
    listed, whole, target = segments(many), many / f"whole{suffix}", many / f"out{suffix}"
    summary = scan(listed, whole, num_workers=1)
    parts = [scan(listed, target, num_workers=1, part=Part(index, count)) for index in range(count)]
    assert sum(part.listed for part in parts) == 43 and sum(part.readable for part in parts) == summary.readable == 37
    assert [part.num_probed for part in parts] == [len(range(index, 42, count)) for index in range(count)]
    assert all(part.text() for part in parts)
    assert not target.exists()
    merged = scan(listed, target, merge=True)
    assert target.read_bytes() == whole.read_bytes()
    assert merged.num_probed == 0 and (merged.listed, merged.by_class) == (summary.listed, summary.by_class)


def test_a_stopped_part_resumes_and_a_finished_one_takes_no_time(many):
    target = many / "out.csv"

    def stop(steps):
        for number, step in enumerate(steps, start=1):
            yield step
            if number == 9:
                raise KeyboardInterrupt

    assert scan(many / "list.csv", many / "small.csv", part=Part(42, 43)).text(), "a part without a file"
    scan(many / "list.csv", many / "whole.csv", num_workers=1)
    scan(many / "list.csv", target, num_workers=1, part=Part(0, 2))
    with pytest.raises(KeyboardInterrupt):
        scan(many / "list.csv", target, num_workers=1, part=Part(1, 2), progress=stop)
    with part_of(target, 1, 2).open("ab") as file:
        file.write(b'["cut off')
    with pytest.raises(ConfigError, match=r"00001-of-00002.jsonl: part 1/2 must be finished.* Run it with --part 1/2"):
        scan(many / "list.csv", target, merge=True)
    assert not target.exists()
    assert scan(many / "list.csv", target, num_workers=1, part=Part(1, 2)).num_probed == 21 - 9
    assert scan(many / "list.csv", target, num_workers=1, part=Part(1, 2)).num_probed == 1, "the missing one"
    assert scan(many / "list.csv", target, num_workers=1, part=Part(1, 2), overwrite=True).num_probed == 21
    scan(many / "list.csv", target, merge=True)
    assert target.read_bytes() == (many / "whole.csv").read_bytes()


def test_what_does_not_fit_together_is_named(many, monkeypatch):
    listed, target = many / "list.csv", many / "out.csv"

    def refused(message, **settings):
        with pytest.raises(ConfigError, match=message):
            scan(listed, target, num_workers=1, **settings)
        assert not target.exists()

    refused(r"--merge .*out\.csv: its parts \(out\.csv\.part-00000-of-00008\.jsonl, \.\.\.\) must be there", merge=True)
    scan(listed, target, num_workers=1, part=Part(0, 3))
    scan(listed, target, num_workers=1, part=Part(2, 3))
    refused(r"must have 3 parts, missing 1/3. Run the scan with --part 1/3", merge=True)
    refused(r"--part must be I/3 as in out\.csv\.part-00000-of-00003\.jsonl, which exists, got 1/2", part=Part(1, 2))
    part_of(target, 1, 2).write_bytes(part_of(target, 2, 3).read_bytes())
    refused("its parts must be of one division, got parts of 2 and of 3", merge=True)
    part_of(target, 1, 2).rename(part_of(target, 1, 3))
    refused(r"00001-of-00003.jsonl: must be part 1/3 of a scan of packets, got \['2/3', 'packets'\]", merge=True)
    scan(listed, target, num_workers=1, part=Part(1, 3))
    refused(
        r"00000-of-00003.jsonl: must be part 0/3 of a scan of headers, got \['0/3', 'packets'\]",
        merge=True,
        headers_only=True,
    )
    with pytest.raises(SettingError, match="part and merge must not both be set"):
        scan(listed, target, part=Part(0, 3), merge=True)
    # The list has changed since: of a part only what is new, or was missing, is looked at.
    listed.write_text(listed.read_text() + "many/more.mp4,a\n")
    refused("00000-of-00003.jsonl: must be of the list that is merged, of 43 files, got one of 42", merge=True)
    assert [scan(listed, target, num_workers=1, part=Part(index, 3)).num_probed for index in range(3)] == [1, 1, 1]
    # A line is lost from the middle of a part.
    path = part_of(target, 1, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4] + lines[5:]))
    refused(r"must have a line for each of its files, got none for .*many/010\.mp4", merge=True)
    scan(listed, target, num_workers=1, part=Part(1, 3))
    monkeypatch.setattr("video_gn.files.LEFT_OVER_SECONDS", 0.1)
    with (
        hold(path.with_name(f".{path.name}.lock")),
        pytest.raises(RunError, match=r"00001-of-00003.jsonl is being written by another run \(process \d+"),
    ):
        scan(listed, target, part=Part(1, 3))
    scan(listed, target, merge=True)
    assert json.loads(path.read_bytes().splitlines()[0])["part"] == "1/3"


def test_parts_of_the_command_line(many, monkeypatch, capsys):
    monkeypatch.chdir(many)
    words = ["data", "scan", "list.csv", "--output=out.csv", "--num_workers=1"]
    for task in (4, 6):
        for name, value in {"ID": task, "MIN": 4, "MAX": 6, "STEP": 2, "COUNT": 2}.items():
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
        assert main([*words, "--part=slurm"]) == 3
    assert main([*words, "--merge"]) == 3
    assert main(["data", "scan", "list.csv", "--output=whole.csv"]) == 3
    assert (many / "out.csv").read_bytes() == (many / "whole.csv").read_bytes()
    assert main([*words, "--part=2/2"]) == 2
    assert "--part must be I/N with I from 0 to N - 1" in capsys.readouterr().err
