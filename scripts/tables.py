#!/usr/bin/env python3
"""Writes the tables of measurements into the pages: python scripts/tables.py

A table stands between `<!-- TABLE FILE ... -->` and `<!-- end -->`. TABLE is a function of this file, and each FILE the
name of a json in video_gn/bench/results, as `video-gn bench ... --output` writes it.
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "video_gn/bench/results"
PAGES = sorted(ROOT.glob("video_gn/**/README.md"))
PLACE = re.compile(r"(<!-- (\w+)((?: [\w.-]+)+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(text):
    """A page's text with its tables made anew."""

    def replace(found):
        results = [json.loads((RESULTS / f"{name}.json").read_text()) for name in found[3].split()]
        return f"{found[1]}{globals()[found[2]](*results)}\n{found[4]}"

    return PLACE.sub(replace, text)


def table(*heads_and_rows, measured):
    """A table under a line that says where and when it was measured."""
    machine = measured["machine"]
    is_cpu = machine["device"] == "cpu"
    where = f"{machine['processor']} ({', '.join(machine['instructions'])}), "
    where += f"{machine['num_threads']} of {machine['num_cores']} cores, load {machine['load_average']:.1f}"
    head, *rows = ([*row] for row in heads_and_rows)
    lines = [
        f"{where if is_cpu else machine['device']}, torch {machine['torch']}, {machine['date']}, commit "
        f"{machine['commit']}; medians of {measured['rounds']} rounds:\n",
        *("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)),
    ]
    return "\n".join(lines)


def seconds(figures):
    """A median, with three digits."""
    value = figures["median_ms"]
    return f"{value / 1000:#.3g} s" if value >= 100 else f"{value:#.3g} ms"


def ratio(value):
    """A ratio; nothing, if it was not measured."""
    return "" if value is None else f"{value:.2f}"


def named(found):
    """A contender of `bench train`, in the words of its options."""
    extras = [word for word in ("compiled", "checkpointed") if found[word]]
    return ", ".join([f"`{found['net']}`", found["precision"], *extras])


def steps(result):
    """Training steps of one memory format."""
    rows = []
    for found in result["contenders"].values():
        to_batch = None if found["net"] == "batch" else found["to_batch"]["time"]
        to_plain = found["to_plain"]["time"] if found["checkpointed"] else None
        rows.append((named(found), seconds(found), ratio(to_batch), ratio(to_plain)))
    return table(("step", "time", "against `batch`", "against not checkpointed"), *rows, measured=result)


def labelling(result):
    """From video files to labels: a video's time and CPU time, and the time against ours."""
    rows = [
        (name, seconds(f), seconds({"median_ms": f["cpu_ms"]}), ratio(result["ratios"].get(name)))
        for name, f in result["contenders"].items()
    ]
    return table(("contender", "time", "CPU time", "time against `video_gn`"), *rows, measured=result)


def timelines(result):
    """A timeline, and what it is made of."""
    *parts, whole = [(name, seconds(f)) for name, f in result["contenders"].items()]
    head = ("contender", "time", "against the sum of the others")
    return table(head, *((*part, "") for part in parts), (*whole, ratio(result["ratio"])), measured=result)


def loop(*results):
    """A training's step, a bare loop's, and the wait for videos; the machine is the first result's."""
    head = ("step", "bare loop", "`fit`, from memory", "speed against bare", "`fit`, from files", "of it waiting")
    rows = []
    for result in results:
        videos, views, frames, _, _, side = result["clips"]
        files, found = result["from_files"], result["contenders"]
        size = f"{videos * views} clips of {frames} x {side} x {side}, width {result['net']['width']}"
        read = seconds({"median_ms": files["step_ms"]}), f"{files['wait_ms'] / files['step_ms']:.0%}"
        rows.append((size, seconds(found["bare"]), seconds(found["fit"]), ratio(result["speed"]), *read))
    return table(head, *rows, measured=results[0])


def starting(result):
    """CPU time of whole processes."""
    names = {name: name if " " in name and "import" not in name else f"`{name}`" for name in result["contenders"]}
    rows = [(names[name], seconds(found)) for name, found in result["contenders"].items()]
    return table(("process", "CPU time"), *rows, measured=result)


def loading(result):
    """Weight files: seconds and memory of loading."""
    rows = [
        (f"{name}, {f['file_mb']:.0f} MB", *map(seconds, (f["ours"], f["plain"])), *map(ratio, (f["ratio"], *memory)))
        for name, f in result["files"].items()
        for memory in [(f["memory"]["ours"], f["memory"]["plain"])]
    ]
    head = ("file", "time", "plain loader", "ratio", "most memory, in sizes of the file", "plain loader")
    return table(head, *rows, measured=result)


if __name__ == "__main__":
    for path in PAGES:
        if (made := fill(path.read_text())) != path.read_text():
            path.write_text(made)
            print(path.relative_to(ROOT))
