"""Reads the parts of a study's file and checks each; errors name the file and the key."""

from __future__ import annotations

import inspect
import itertools
import os
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from video_gn.damage import read_yaml_text
from video_gn.errors import ConfigError
from video_gn.study.settings import ACCUMULATED, BATCH_SIZE, CLIP, NET, OWN, TRAIN, WEIGHTS, flatten

KEYS = (
    "base", "norms", "clips", "batch_sizes", "cells", "seeds", "settings", "reference", "optimizer_batch_size",
    "synthetic", "pretrain",
)  # fmt: skip
# A line that chooses a norm also sets its groups: those of the base might contradict it.
_GROUPS = (f"{NET}num_groups", f"{NET}channels_per_group")
_NO_WEIGHTS = "model.weights takes networks of video_gn.models alone."
# A clip's label that gives its frames and stride, as in the paper's table.
FRAMES_X_STRIDE = re.compile(r"[0-9]+x[0-9]+")
# Options of `video-gn data synth`, and their defaults.
_SYNTHETIC = {"train_per_class": 40, "val_per_class": 10, "seed": 0}


class _UniqueKeys(yaml.SafeLoader):
    """Refuses equal keys: PyYAML would silently drop the first, and with it a line of the study."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for number, key in enumerate(keys) if key in keys[:number]), None)
        if twice is not None:
            raise yaml.MarkedYAMLError(problem=f"key {twice!r} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def load(path: Path) -> dict[str, Any]:
    """A yaml file's settings, each key once."""
    try:
        content = yaml.load(read_yaml_text(path), Loader=_UniqueKeys)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise ConfigError(f"{path} cannot be read: {reason}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path} is not yaml: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold settings, KEY: VALUE, got {type(content).__name__}")
    return content


class StudyFile:
    """A study's file, part by part."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = load(path)
        for key in self.content:
            if key not in KEYS:
                raise ConfigError(f"{path}: no key {key!r} in a study; there are {', '.join(KEYS)}")
        self.pretrains = "pretrain" in self.content
        # What the study gives to each cell itself; the command line may still name other training videos.
        self.own = (
            *OWN,
            *([ACCUMULATED] if "optimizer_batch_size" in self.content else []),
            *([WEIGHTS] if self.pretrains else [TRAIN] if "synthetic" in self.content else []),
        )

    def error(self, key: str, rule: str, value: Any, advice: str = "") -> ConfigError:
        """An error of a key's value."""
        return ConfigError(f"{self.path}: {key} must be {rule}, got {value!r}. {advice}".rstrip())

    def base_path(self, key: str, value: Any) -> Path:
        """The config that a key names."""
        if not isinstance(value, str):
            raise self.error(key, "the path of a config of fit, relative to this file", value)
        return Path(os.path.normpath(self.path.parent / value))

    def _mapping(self, key: str, value: Any, what: str) -> Mapping[Any, Any]:
        if not isinstance(value, Mapping) or not value:
            raise self.error(key, what, value)
        return value

    def settings(self, key: str, value: Any, prefix: str = "", *, own: Sequence[str] | None = None) -> dict[str, Any]:
        """Settings of a line: a plain name is one under `prefix`, a dotted one is a full name; none of `own`."""
        if not isinstance(value, Mapping):
            raise self.error(key, "settings, KEY: VALUE", value)
        flat = flatten({name if "." in str(name) else f"{prefix}{name}": v for name, v in value.items()})
        for name in flat:
            if name in (self.own if own is None else own):
                raise ConfigError(f"{self.path}: {key}.{name} is set by the study itself. Take it out.")
        return flat

    def norms(self, class_path: str) -> dict[str, dict[str, Any]]:
        """Settings of each line of the table, for the network of this import path."""
        from video_gn.models import NORMS, find_network

        given = self._mapping("norms", self.content.get("norms"), "lines LABEL: {norm: ...}, at least one")
        known = inspect.signature(find_network(class_path)).parameters
        if "norm" not in known:
            raise ConfigError(
                f"{self.path}: the base's model.net must be a network whose norm can be chosen, got {class_path} "
                "without an argument `norm`. Give it one: video_gn.models.make_norm builds a layer of each kind."
            )
        if self.pretrains and not class_path.startswith("video_gn."):
            raise self.error("pretrain", f"left out for {class_path}", self.content["pretrain"], _NO_WEIGHTS)
        lines: dict[str, dict[str, Any]] = {}
        for label, value in given.items():
            key = f"norms.{label}"
            if isinstance(value, Mapping):
                value = {name: v for name, v in value.items() if name != "pretrain"}
            line = self.settings(key, value, NET)
            norm = line.get(f"{NET}norm")
            if norm not in NORMS:
                raise self.error(f"{key}.norm", f"one of {', '.join(sorted(NORMS))}", norm)
            for name in line:
                short = name.removeprefix(NET)
                if short != name and short.split(".")[0] not in known and "kwargs" not in known:
                    raise ConfigError(f"{self.path}: {key}: the net has no setting {short!r}")
            groups = [name for name in _GROUPS if name.removeprefix(NET) in known]
            lines[str(label)] = {**dict.fromkeys(groups), **line}
        return lines

    def starts(self) -> dict[str, str]:
        """Line -> the line whose pre-training it starts from, its own unless the file names another."""
        norms = self.content["norms"]
        named = {str(label): line["pretrain"] for label, line in norms.items() if "pretrain" in line}
        if named and not self.pretrains:
            raise ConfigError(f"{self.path}: norms.{next(iter(named))}.pretrain needs the study's key pretrain.")
        own = [str(label) for label in norms if str(label) not in named]
        for label, other in named.items():
            if other not in own:
                rule = f"one of the lines with a pre-training of their own, {', '.join(own) or 'got none'}"
                raise self.error(f"norms.{label}.pretrain", rule, other)
        return {str(label): named.get(str(label), str(label)) for label in norms}

    def clips(self) -> dict[str, dict[str, Any]]:
        """Settings of each clip that the study lists; of the label "" if it lists none."""
        from video_gn.data.dataset import ClipConfig

        known = [field.name for field in fields(ClipConfig)]
        given = self.content.get("clips")
        if given is None:
            cells = self.content.get("cells")  # they may name the clip of the other settings
            named = [str(c.get("clip")) for c in cells if isinstance(c, Mapping)] if isinstance(cells, list) else []
            return {label: {} for label in named if FRAMES_X_STRIDE.fullmatch(label)} or {"": {}}
        clips = {}
        what = "lines LABEL: {num_frames: ..., stride: ...}, at least one"
        for label, value in self._mapping("clips", given, what).items():
            line = self.settings(f"clips.{label}", value, CLIP)
            for name, number in line.items():
                short = name.removeprefix(CLIP)
                if short != name and short not in known:
                    raise ConfigError(
                        f"{self.path}: clips.{label}: a clip has no setting {short!r}; there are {', '.join(known)}"
                    )
                if short in ("num_frames", "stride") and not is_count(number):
                    raise self.error(f"clips.{label}.{short}", "a whole number of at least 1", number)
            clips[str(label)] = line
        return clips

    def columns(self, clips: Mapping[str, Any]) -> list[tuple[str, int]]:
        """(clip label, batch size) of each column of the table."""
        cells, sizes = self.content.get("cells"), self.content.get("batch_sizes")
        if cells is None:
            if not isinstance(sizes, list) or not sizes or not all(is_count(size) for size in sizes):
                raise self.error("batch_sizes", "a list of whole numbers, at least one", sizes)
            columns = list(itertools.product(clips, sizes))
        else:
            if sizes is not None:
                raise self.error("batch_sizes", "left out if cells are listed", sizes)
            if not isinstance(cells, list) or not cells:
                raise self.error("cells", "a list of {clip: LABEL, batch_size: N}, at least one", cells)
            columns = []
            for number, cell in enumerate(cells):
                key = f"cells[{number}]"
                if not isinstance(cell, Mapping) or not set(cell) <= {"clip", "batch_size"}:
                    raise self.error(key, "{clip: LABEL, batch_size: N}", cell)
                clip = cell.get("clip", next(iter(clips)) if len(clips) == 1 else None)
                if clip not in clips:
                    raise self.error(f"{key}.clip", f"one of {', '.join(filter(None, clips)) or 'the clips'}", clip)
                if not is_count(cell.get("batch_size")):
                    raise self.error(f"{key}.batch_size", "a whole number of at least 1", cell.get("batch_size"))
                columns.append((str(clip), int(cell["batch_size"])))
        for number, column in enumerate(columns):
            if column in columns[:number]:
                where = "batch_sizes" if cells is None else "cells"
                raise self.error(where, "different from each other", column)
        return columns

    def seeds(self) -> dict[int, dict[str, Any]]:
        """Settings of each seed."""
        given = self.content.get("seeds", {0: {}})
        if isinstance(given, list) and len(set(map(str, given))) == len(given):
            given = dict.fromkeys(given)
        seeds = {}
        for seed, value in self._mapping("seeds", given, "SEED: {settings}, or a list of seeds, at least one").items():
            if not is_count(seed, least=0):
                raise self.error("seeds", "whole numbers of at least 0", seed)
            seeds[int(seed)] = self.settings(f"seeds.{seed}", value or {})
        return seeds

    def optimizer_batch(self, columns: Sequence[tuple[str, int]]) -> int | None:
        """Clips of one process in an optimizer step, if that is the same in every column; else None."""
        if "optimizer_batch_size" not in self.content:
            return None
        value = self.content["optimizer_batch_size"]
        for _, size in columns:
            if not is_count(value) or value % size:
                raise self.error("optimizer_batch_size", f"a multiple of each batch size, so also of {size}", value)
        return int(value)

    def synthetic(self) -> dict[str, int] | None:
        """Options of the videos that the study makes itself; None if it makes none."""
        if "synthetic" not in self.content:
            return None
        given = self.content["synthetic"] or {}
        if not isinstance(given, Mapping) or not set(given) <= set(_SYNTHETIC):
            raise self.error("synthetic", f"options of `video-gn data synth`, {', '.join(_SYNTHETIC)}", given)
        for name, value in given.items():
            least = 0 if name == "seed" else 1
            if not is_count(value, least=least):
                raise self.error(f"synthetic.{name}", f"a whole number of at least {least}", value)
        return _SYNTHETIC | dict(given)

    def pretrain(self, varied: set[str]) -> tuple[Path, dict[str, Any]]:
        """The config of the pre-trainings, and what they set beside their norm, whose settings are `varied`."""
        given = self.content["pretrain"] or {}
        if not isinstance(given, Mapping) or not set(given) <= {"base", "settings"}:
            raise self.error("pretrain", "{base: CONFIG, settings: {KEY: VALUE}}, each if needed", given)
        key = "pretrain.settings"
        # Its batch size is its own.
        settings = self.settings(key, given.get("settings") or {}, own=[o for o in OWN if o != BATCH_SIZE])
        self.refuse(f"{self.path}: {key}", settings, {name for name in varied if name.startswith(NET)}, own=())
        return self.base_path("pretrain.base", given.get("base", self.content["base"])), settings

    @staticmethod
    def refuse(source: str, given: Mapping[str, Any], varied: set[str], *, own: Sequence[str]) -> None:
        """Refuse settings that are among those `varied` or `own`, or that hold one of them."""
        for key in given:
            name = key.removesuffix("+")
            if any(taken == name or taken.startswith(f"{name}.") for taken in {*varied, *own}):
                raise ConfigError(f"{source}: {key} is varied or set by the study itself. Take it out.")


def is_count(value: Any, *, least: int = 1) -> bool:
    """Whether a value of a file is a whole number, at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
