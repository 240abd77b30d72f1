"""The tables of measurements on the pages are those that the kept results make."""

import json
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
TABLES = runpy.run_path(str(ROOT / "scripts/tables.py"))
PAGES = [page for page in TABLES["PAGES"] if "<!-- end -->" in page.read_text()]
RESULTS = sorted((ROOT / "video_gn/bench/results").glob("*.json"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_a_page_holds_what_its_results_say(page):
    text = page.read_text()
    assert TABLES["fill"](text) == text, "run: python scripts/tables.py"
    # A number that is changed by hand is seen.
    start = text.index("<!-- end -->")
    place = max(i for i in range(start) if text[i].isdigit())
    other = text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :]
    assert TABLES["fill"](other) == text


def test_every_result_is_of_a_commit_and_on_a_page():
    named = {
        name for page in PAGES for found in TABLES["PLACE"].finditer(page.read_text()) for name in found[3].split()
    }
    assert named == {path.stem for path in RESULTS} and named
    for path in RESULTS:
        result = json.loads(path.read_text())
        machine = result["machine"]
        assert re.fullmatch(r"[0-9a-f]{7,}", machine["commit"]), path
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", machine["date"])
        assert machine["torch"] and machine["processor"] and "instructions" in machine
        assert result["settings"] and result["command"] in ("data", "fit", "infer", "start", "test", "train", "weights")


def test_a_table(tmp_path, monkeypatch):
    machine = {
        "processor": "CPU",
        "num_threads": 2,
        "num_cores": 4,
        "device": "cpu",
        "instructions": ["avx2"],
        "torch": "2.15.0",
    }
    machine |= {"load_average": 0.51, "date": "2026-11-30", "commit": "abc1234"}
    plain = {"net": "batch", "precision": "float32", "compiled": False, "checkpointed": False, "median_ms": 1634.0}
    group = plain | {"net": "group", "median_ms": 50.04, "to_batch": {"time": 1.04}}
    again = group | {"checkpointed": True, "to_plain": {"time": 1.28}}
    result = {"machine": machine, "rounds": 5, "contenders": {"a": plain, "b": group, "c": again}}
    (tmp_path / "train-x.json").write_text(json.dumps(result))
    monkeypatch.setitem(TABLES["fill"].__globals__, "RESULTS", tmp_path)
    assert TABLES["fill"]("Before\n<!-- steps train-x -->\nold\n<!-- end -->\nafter") == (
        "Before\n<!-- steps train-x -->\n"
        "CPU (avx2), 2 of 4 cores, load 0.5, torch 2.15.0, 2026-11-30, commit abc1234; medians of 5 rounds:\n\n"
        "| step | time | against `batch` | against not checkpointed |\n"
        "| --- | --- | --- | --- |\n"
        "| `batch`, float32 | 1.63 s |  |  |\n"
        "| `group`, float32 | 50.0 ms | 1.04 |  |\n"
        "| `group`, float32, checkpointed | 50.0 ms | 1.04 | 1.28 |\n"
        "<!-- end -->\nafter"
    )
