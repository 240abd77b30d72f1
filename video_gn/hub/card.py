"""Writes the model card of a run: what its network is, what its test measured, and how to use it.

Of the user's disk it holds the names of lists alone, without their directories.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from video_gn.errors import ConfigError
from video_gn.report.analysis import wilson_interval
from video_gn.report.page import SETTINGS
from video_gn.report.reading import IN_TEST, Run, read_run, value_of
from video_gn.report.text import percent
from video_gn.run.checkpoint_files import read_checkpoint
from video_gn.run.directory import checkpoint_of
from video_gn.shown import count, shown
from video_gn.weights.about import is_own, network_of
from video_gn.weights.build import look_into
from video_gn.weights.formats import group_rule, rule_in_words
from video_gn.weights.named import MODEL_FILE, file_digest

# Stands for the repository's name until it is known.
REPOSITORY = "OWNER/NAME"
_MOST_CLASSES = 30
_METRICS = (
    ("top1", "top-1 accuracy", "accuracy"),
    ("top5", "top-5 accuracy", "accuracy"),
    ("mean_class_accuracy", "mean class accuracy", "accuracy"),
)
_CROPS = {"center": "the center crop", "three": "three crops", "full": "the whole frame"}


def build_card(run_dir: Path, *, license: str | None = None, checkpoint: Path | None = None) -> tuple[str, str]:
    """The card of a run's best checkpoint, as markdown with Hugging Face's front matter.

    Args:
        run_dir: Run directory.
        license: Identifier of the license, such as "apache-2.0".
        checkpoint: The run's best checkpoint, if it has been looked for.

    Returns:
        (the card, "" or why it holds no figures of a test).

    Raises:
        RunError: if the directory is none of a run.
        CheckpointError: if it has no checkpoint that can be read.
        ConfigError: for a license that is no identifier.
    """
    if license is not None and not re.fullmatch(r"[\w.+-]+", license):
        raise ConfigError(f"--license must be an identifier such as apache-2.0, got {license!r}.")
    run = read_run(run_dir)
    checkpoint = checkpoint or checkpoint_of(run_dir)
    about, num_parameters, num_classes = look_into(checkpoint)
    net = about["net"]
    untested = _why_untested(run, checkpoint)
    title = ", ".join(filter(None, [_name(net), _norm(net), count(num_classes, "class", "classes")]))
    written = read_checkpoint(checkpoint)
    parts = [
        _front_matter(title, net, run, license, tested=not untested),
        f"# {_md(title)}",
        f"A network that labels videos, trained with video-gn {_md(written['video_gn'].get('version', ''))}.",
        "## Results",
        *([f"Not tested: {untested}"] if untested else _results(run, about)),
        "## Use",
        *_use(net, run),
        "## Network",
        _table("property", _network(net, about, num_parameters=num_parameters)),
        "## Classes",
        _classes(about.get("classes") or ()),
        "## Training",
        _table("setting", _training(run, written)),
        "## Limits",
        *_limits(license, num_classes, tested=not untested),
    ]
    return "\n\n".join(parts) + "\n", untested


def _name(net: Mapping[str, Any]) -> str:
    if is_own(net):
        return str(net["class"]).rpartition(".")[2]
    return f"I3D ResNet-{net['depth']}" if "depth" in net else str(net["network"])


def _norm(net: Mapping[str, Any]) -> str:
    if "norm" not in net:
        return ""
    rule = group_rule(net)
    kind = str(net["norm"]).replace("_", " ")
    # Layers of a hub's network take the most that divide their channels.
    most = "at most " if rule is not None and rule[0] == "groups" and "network" in net else ""
    return f"{kind} norm" + (f" ({most}{rule_in_words(rule)})" if kind == "group" else "")


def _md(value: object) -> str:
    """A name as it stands in markdown, in one line: neither markup nor HTML."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", shown(value)[:1000])


def _table(name: str, rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join([f"| {name} | value |", "|---|---|", *(f"| {label} | {value} |" for label, value in rows)])


# ---- the test --------------------------------------------------------------------------------------


def _why_untested(run: Run, checkpoint: Path) -> str:
    """Why the test's figures are not this checkpoint's; "" if they are."""
    if not run.test:
        return "the run holds no results of a test."
    if run.test.get("checkpoint_digest") != f"SHA-256 {file_digest(checkpoint)}":
        return "the run's test is of other weights than these."
    if run.number("top1") is None:
        return "no video of the run's test has a label."
    return ""


def _tested_list(run: Run) -> tuple[str, str]:
    """(name of the list that was tested, "" or what to know of it)."""
    config = run.later.get(IN_TEST) or run.config
    test, val, train = (value_of(config, f"data.{part}") for part in ("test", "val", "train"))
    name = next((Path(str(path)).name for path in (test, val, train) if path), "unknown")
    note = ""
    if test in (None, val):
        note = (
            "No list was set for tests alone. Unless the list has a part of its own for them, these are the validation "
            "videos, by which the checkpoint was chosen: expect less on others."
        )
    return name, note


def _front_matter(title: str, net: Mapping[str, Any], run: Run, license: str | None, *, tested: bool) -> str:
    about: dict[str, Any] = {"license": license} if license else {}
    tags = ["video-classification", "action-recognition", *([] if is_own(net) else [network_of(net)])]
    about |= {"library_name": "video-gn", "pipeline_tag": "video-classification", "tags": tags}
    if tested:
        name, _ = _tested_list(run)
        metrics = [
            {"type": kind, "value": round(value, 4), "name": label}
            for key, label, kind in _METRICS
            if (value := run.number(key)) is not None
        ]
        result = {
            "task": {"type": "video-classification"},
            "dataset": {"name": shown(name), "type": re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "videos"},
            "metrics": metrics,
        }
        about["model-index"] = [{"name": title, "results": [result]}]
    return f"---\n{yaml.safe_dump(about, sort_keys=False, allow_unicode=True)}---"


def _results(run: Run, about: Mapping[str, Any]) -> list[str]:
    listed, failed = int(run.number("num_videos") or 0), int(run.number("num_failed") or 0)
    clips, crops = int(run.number("num_clips") or 0), int(run.number("num_crops") or 0)
    labelled = run.predictions.num_labelled if run.predictions is not None else listed - failed
    name, note = _tested_list(run)
    lines = ["| metric | value | 95% interval |", "|---|---|---|"]
    for key, label, _ in _METRICS:
        value = run.number(key)
        if value is None:  # as top-5 of fewer than 5 classes
            continue
        interval = ""
        if key != "mean_class_accuracy" and labelled:
            low, high = wilson_interval(value * labelled, labelled)
            interval = f"{100 * low:.1f} to {100 * high:.1f}%"
        lines.append(f"| {label} | {percent(value)} | {interval} |")
    lines.append(f"| coverage: videos that could be read | {percent(run.number('coverage'), 2 if failed else 0)} | |")
    views = f"{count(clips, 'clip')} × {count(crops, 'crop')}"
    text = (
        f"Measured on {count(listed, 'video')} of `{_code(name)}`, {views} of each, whose scores are averaged. "
        "Accuracies are over the videos that could be read."
    )
    clip = value_of(run.later.get(IN_TEST) or {}, "data.clip")
    if isinstance(clip, Mapping) and any(clip.get(key) != value for key, value in about["clip"].items() if key in clip):
        frames, stride = (_md(clip.get(key)) for key in ("num_frames", "stride"))
        text += f" Clips of the test had {frames} frames of stride {stride}, other than below."
    return ["\n".join(lines), text, *filter(None, [note])]


def _code(name: str) -> str:
    return shown(name).replace("`", "'")


def _value(value: object) -> str:
    """An argument of a network; of texts only plain words, since others may be paths of the user's disk."""
    is_plain = value is None or isinstance(value, bool | int | float) or re.fullmatch(r"[\w.-]*", str(value))
    return repr(value) if is_plain else "..."


# ---- the rest --------------------------------------------------------------------------------------


def _use(net: Mapping[str, Any], run: Run) -> list[str]:
    if is_own(net):
        home, _, name = _code(str(run.setting("model.net.class_path") or net["class"])).rpartition(".")
        arguments = ", ".join(f"{key}={_value(v)}" for key, v in (run.setting("model.net.init_args") or {}).items())
        code = f"import video_gn\nfrom {home} import {name}\n\nnet = {name}({_code(arguments)})"
        return [
            "With the package `video-gn` and its extra `hub`, and the code of the network, which is not in this "
            "repository:",
            f'```python\n{code}\npredictor = video_gn.load("hf:{REPOSITORY}", net=net)\n'
            'print(predictor.predict("video.mp4")["top"])\n```',
            f"Only `{MODEL_FILE}` is fetched, and nothing in it is executed; its tensors bear the names of the "
            "network's `state_dict()`.",
        ]
    return [
        "With the package `video-gn` and its extra `hub`:",
        "```python\nimport video_gn\n\n"
        f'predictor = video_gn.load("hf:{REPOSITORY}")\nprint(predictor.predict("video.mp4")["top"])\n```',
        f"```bash\nvideo-gn infer video.mp4 --checkpoint hf:{REPOSITORY}\n```",
        f"Only `{MODEL_FILE}` is fetched, and nothing in it is executed.",
    ]


def _network(net: Mapping[str, Any], about: Mapping[str, Any], *, num_parameters: int) -> list[tuple[str, str]]:
    clip, views = about["clip"], about["views"]
    rate = "" if clip.get("target_fps") is None else f" at {clip['target_fps']:g} frames/s"
    size = f"short side {views['short_side_px']} px"
    if views["crops"] != "full":
        size += f", crop {views['crop_px']} px"
    return [
        ("architecture", _md(_name(net)) + (f", layout {_md(net['layout'])}" if "layout" in net else "")),
        *([("norm", _norm(net))] if "norm" in net else []),
        *([("Non-local blocks", _md(blocks))] if (blocks := net.get("nonlocal_blocks")) else []),
        *([("width", f"{net['width']} channels in the stem")] if "width" in net else []),
        (
            "parameters and buffers" if is_own(net) else "parameters",
            f"{num_parameters / 1e6:.2f} M ({num_parameters:,})",
        ),
        ("clip", f"{clip['num_frames']} frames, stride {clip['stride']}{rate}"),
        ("frame", f"RGB, {size}"),
        ("views of a video", f"{count(views['num_clips'], 'clip')}, of each {_CROPS[views['crops']]}"),
        ("mean, std of pixels in [0, 1]", "; ".join(", ".join(f"{v:g}" for v in about[k]) for k in ("mean", "std"))),
    ]


def _classes(names: Iterable[str]) -> str:
    names = list(names)
    if not names:
        return "Without names: labels are numbers."
    more = f" and {len(names) - _MOST_CLASSES:,} more, in `config.json`" if len(names) > _MOST_CLASSES else ""
    return f"{len(names):,}: {', '.join(map(_md, names[:_MOST_CLASSES]))}{more}."


def _training(run: Run, written: Mapping[str, Any]) -> list[tuple[str, str]]:
    def name(key: str) -> str:
        value = str(run.setting(key) or "")
        return value if ":" in value else Path(value).name  # as timm:NAME

    rows = []
    for label, key in SETTINGS:
        if key.startswith(("model.net.", "data.clip.", "data.views.", "data.test")):
            continue
        value = name(key) if key in ("data.train", "data.val") else run.shown_setting(key)
        if value:
            rows.append((label, _md(value)))
    weights, averaging = run.setting("model.weights"), run.setting("averaging.kind")
    rows.append(("started from", _md(name("model.weights")) if weights else "random weights"))
    if averaging not in (None, "none"):
        rows.append(("averaged weights", _md(averaging)))
    rows.append(("step of this checkpoint", f"{written['global_step']:,}"))
    environment = written["video_gn"].get("environment") or {}
    versions = [
        f"{name} {_md(environment[name])}" for name in ("python", "torch", "lightning", "av") if name in environment
    ]
    return [*rows, ("versions", ", ".join(versions))] if versions else rows


def _limits(license: str | None, num_classes: int, *, tested: bool) -> list[str]:
    others = " of other people, places, cameras or frame rates than those of the test" if tested else ""
    lines = [
        f"- A video of anything else gets one of the {count(num_classes, 'label')}, too.",
        f"- How well it labels videos{others} was not measured, nor whether a score is the probability of being right.",
        "- Videos are labelled by their pictures: sound is not read.",
    ]
    if not license:
        lines.append("- No license is stated: ask the owner before you use it.")
    return ["\n".join(lines)]
