"""Parts merged have the bytes of one run; what cannot be merged is named."""

import gc
import json
import tracemalloc

import pytest
from stubs import SETTINGS, Predict, expected, lines_of, run, write_list

from video_gn.clips import Failure
from video_gn.errors import ConfigError
from video_gn.evaluation.results import write_results
from video_gn.labelling.inputs import read_list
from video_gn.labelling.lines import about_path, read_about
from video_gn.labelling.merging import merge
from video_gn.parts import Part, find_parts

NAMES = ["a.mp4", "bad b.mp4", 'ü "q", \u2028.mp4', "bad d.mp4", "e.mp4"]


def make(tmp_path, count, names=NAMES):
    """(the list, the output that all parts were given)"""
    listed, output = write_list(tmp_path / "list.txt", names), tmp_path / "labels.jsonl"
    for index in range(count):
        run(listed, output, part=Part(index, count))
    return listed, output


def oracle(path, listed):
    """What one run writes: all of it by json.dumps, or line by line."""
    videos, failed = expected(read_list(str(listed)))
    if path.suffix == ".json":
        path.write_text(json.dumps({"videos": videos, "failed": failed}, indent=2, ensure_ascii=False) + "\n")
    elif path.suffix == ".csv":
        write_results(path, videos, failed)
    else:
        path.write_bytes(lines_of(read_list(str(listed))))
    return path.read_bytes()


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("names", [NAMES, ["a.mp4"], ["bad.mp4"], [f"{i}.mp4" for i in range(20)]], ids=len)
def test_parts_and_a_merge_are_one_run(tmp_path, count, names):
    listed, output = make(tmp_path, count, names)
    assert len(find_parts(output)) == count
    failed = sum("bad" in name for name in names)
    for suffix in (".json", ".csv", ".jsonl"):
        target = tmp_path / f"merged{suffix}"
        tally = merge(output, target)
        assert target.read_bytes() == oracle(tmp_path / f"one{suffix}", listed), suffix
        assert (tally.labelled, tally.failed) == (len(names) - failed, failed)
        assert tally.exit_status == (3 if failed else 0)


def test_what_was_called_a_shard_is_gone_on_with_and_merged(tmp_path):
    """Files of a job that was stopped before parts had their name."""
    listed, output = make(tmp_path, 2)
    whole = tmp_path / "whole.jsonl"
    run(listed, whole)
    for _, path in find_parts(output):
        old = path.with_name(path.name.replace("part", "shard"))
        path.rename(old)
        about = json.loads(about_path(path).read_text())
        about["shard"] = about.pop("part")
        about_path(path).unlink()
        about_path(old).write_text(json.dumps(about))
    for index in range(2):
        path = Part(index, 2).path(output)
        assert path.name == f"labels.shard-0000{index}-of-00002.jsonl"
        lines = path.read_bytes()
        path.write_bytes(lines[:-5])
        run(listed, output, part=Part(index, 2))
        assert path.read_bytes() == lines
    merge(output, tmp_path / "merged.jsonl")
    assert (tmp_path / "merged.jsonl").read_bytes() == whole.read_bytes()
    (tmp_path / "labels.part-00000-of-00002.jsonl").write_bytes(lines)
    with pytest.raises(ConfigError, match=r"each part must be one file, got a \.part- and a \.shard- file"):
        merge(output, tmp_path / "merged.jsonl")


def test_a_file_without_parts_is_converted(tmp_path):
    listed, output = write_list(tmp_path / "list.txt", NAMES), tmp_path / "labels.jsonl"
    run(listed, output)
    merge(output, tmp_path / "labels.csv")
    assert (tmp_path / "labels.csv").read_bytes() == oracle(tmp_path / "one.csv", listed)
    with pytest.raises(ConfigError, match="--output must be another file than --merge reads"):
        merge(output, output)


def test_a_merge_may_have_the_name_of_its_parts_and_be_gone_on_with(tmp_path):
    listed, output = make(tmp_path, 3)
    for _ in range(2):
        merge(output, output)
        assert output.read_bytes() == lines_of(read_list(str(listed)))
    merge(output, tmp_path / "labels.json")
    assert (tmp_path / "labels.json").read_bytes() == oracle(tmp_path / "one.json", listed)
    for _, path in find_parts(output):
        path.unlink()
    merge(output, tmp_path / "labels.json")
    assert (tmp_path / "labels.json").read_bytes() == oracle(tmp_path / "one.json", listed)
    predict = Predict()
    assert run(listed, output, predict=predict).before == len(NAMES)
    assert predict.seen == []
    run(listed, output, part=Part(0, 2))
    with pytest.raises(ConfigError, match=r"must be a file or its parts, got both \(labels\.part-00000-of-00002"):
        merge(output, tmp_path / "labels.json")


def test_a_runs_file_is_not_replaced(tmp_path):
    listed, output = make(tmp_path, 2)
    run(listed, tmp_path / "mine.jsonl")
    with pytest.raises(ConfigError, match="--output must be new or the result of a merge"):
        merge(output, tmp_path / "mine.jsonl")
    merge(output, tmp_path / "mine.jsonl", overwrite=True)
    assert read_about(tmp_path / "mine.jsonl").merged


def test_missing_parts_are_named(tmp_path):
    listed, output = make(tmp_path, 4)
    for index in (1, 3):
        Part(index, 4).path(output).unlink()
    with pytest.raises(ConfigError, match=r"must have 4 parts, missing 1/4, 3/4. Run infer with --part 1/4; --partial"):
        merge(output, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()
    merge(output, tmp_path / "out.jsonl", partial=True)
    records = list(read_list(str(listed)))
    assert (tmp_path / "out.jsonl").read_bytes() == lines_of([records[i] for i in (0, 2, 4)])
    assert read_about(tmp_path / "out.jsonl").complete is None
    with pytest.raises(ConfigError, match=r"none\.jsonl: it or its parts \(none\.part-00000-of-00008.*got neither"):
        merge(tmp_path / "none.jsonl", tmp_path / "out.json")
    with pytest.raises(ConfigError, match="got neither"):
        merge(tmp_path / "no/none.jsonl", tmp_path / "out.json")


class Ends(Exception):
    pass


def test_unfinished_parts_are_named(tmp_path):
    listed, output = make(tmp_path, 3, [f"{i}.mp4" for i in range(10)])

    def predict(records):
        yield from [next(results := Predict()(records)), next(results)]
        raise Ends

    with pytest.raises(Ends):
        run(listed, output, part=Part(1, 3), predict=predict, overwrite=True)
    with Part(1, 3).path(output).open("ab") as file:
        file.write(b'{"path": "torn')
    with pytest.raises(
        ConfigError, match=r"must be finished, got not finished: labels\.part-00001-of-00003\.jsonl\. Run"
    ):
        merge(output, tmp_path / "out.json")
    tally = merge(output, tmp_path / "out.jsonl", partial=True)
    records = list(read_list(str(listed)))
    assert (tmp_path / "out.jsonl").read_bytes() == lines_of(records[:7] + records[8:])
    assert tally.labelled == 9
    run(listed, output, part=Part(1, 3))
    merge(output, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == lines_of(records)


def test_parts_of_other_settings_lists_or_divisions(tmp_path):
    listed, output = make(tmp_path, 3)
    target = tmp_path / "out.json"
    run(listed, output, part=Part(1, 3), settings={**SETTINGS, "num_clips": 7}, overwrite=True)
    with pytest.raises(
        ConfigError, match=r"00001-of-00003\.jsonl: --num_clips must be 2 as .*got 7 of labels\.part-00000"
    ):
        merge(output, target)
    write_list(listed, NAMES[::-1])
    run(listed, output, part=Part(1, 3), overwrite=True)
    with pytest.raises(ConfigError, match=r"00001-of-00003\.jsonl: must be of the same list as labels\.part-00000"):
        merge(output, target)
    write_list(listed, NAMES)
    run(listed, output, part=Part(1, 3), overwrite=True)
    merge(output, target)
    Part(1, 3).path(output).rename(Part(2, 3).path(output))
    about_path(Part(1, 3).path(output)).rename(about_path(Part(2, 3).path(output)))
    with pytest.raises(ConfigError, match=r"00002-of-00003\.jsonl: must be 2/3, got 1/3. Give the file the name"):
        merge(output, target, partial=True)
    run(listed, output, part=Part(0, 2))
    with pytest.raises(ConfigError, match="must be of one division, got parts of 2 and of 3"):
        merge(output, target)
    part = Part(0, 2).path(output)
    with pytest.raises(ConfigError, match=r"must be the whole list, got 0/2"):
        merge(part, target)
    about_path(part).unlink()
    with pytest.raises(ConfigError, match=r"must have .*jsonl\.meta\.json beside it, got none. Copy it there too"):
        merge(part, target)


@pytest.mark.parametrize("change", ["fewer", "more"])
@pytest.mark.parametrize("index", [0, 2])
def test_a_part_that_has_lost_or_gained_lines(tmp_path, change, index):
    _, output = make(tmp_path, 3, [f"{i}.mp4" for i in range(8)])
    path = Part(index, 3).path(output)
    lines = path.read_bytes().splitlines(True)
    path.write_bytes(b"".join(lines[:-1] if change == "fewer" else [*lines, lines[0]]))
    for suffix in (".json", ".csv", ".jsonl"):
        with pytest.raises(
            ConfigError,
            match=rf"must have {len(lines)} lines, as when it was finished, got {change}. Is the copy whole",
        ):
            merge(output, tmp_path / f"out{suffix}")
        assert not list(tmp_path.glob("*out*")), "nothing half written is left"


def test_an_about_file_that_does_not_add_up(tmp_path):
    _, output = make(tmp_path, 2)
    place = about_path(Part(0, 2).path(output))
    place.write_text(place.read_text().replace('"videos": 3', '"videos": 2'))
    with pytest.raises(ConfigError, match="a part 0/2 of 5 videos must have 3 of them, got 2"):
        merge(output, tmp_path / "out.json")


@pytest.mark.parametrize("size", [1, 100, 1 << 16])
def test_pieces_of_any_size(tmp_path, monkeypatch, size):
    monkeypatch.setattr("video_gn.labelling.merging._PIECE_BYTES", size)
    listed, output = make(tmp_path, 2)
    merge(output, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == lines_of(read_list(str(listed)))


def peak(tmp_path, num_videos, suffix):
    here = tmp_path / str(num_videos)
    if not here.exists():
        here.mkdir()
        write_list(here / "list.txt", (f"/{i:09d}.mp4" for i in range(num_videos)))

        def predict(records):
            for record in records:
                if record.path.endswith("7.mp4"):
                    yield Failure(0, record.path, "x" * 50)
                else:
                    yield {"path": record.path, "top": [], "clips": []}

        for index in range(3):
            run(here / "list.txt", here / "labels.jsonl", part=Part(index, 3), predict=predict)
    # Json's encoder leaves cycles, which wait for the collector until they are a quarter of all objects: of this
    # process's, there are many before the first line.
    gc.collect()
    gc.freeze()
    gc.collect()
    tracemalloc.start()
    try:
        assert merge(here / "labels.jsonl", here / f"out{suffix}").exit_status == 3
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        gc.unfreeze()


def test_memory_does_not_grow_with_the_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("video_gn.labelling.running.log.warning", lambda *words: None)
    monkeypatch.setattr("video_gn.labelling.merging._PIECE_BYTES", 1000)
    for suffix in (".json", ".csv", ".jsonl"):
        peak(tmp_path, 100, suffix)
        small, large = peak(tmp_path, 500, suffix), peak(tmp_path, 5_000, suffix)
        assert large < small + 50_000, (suffix, small, large)  # the entries alone would be a megabyte more
