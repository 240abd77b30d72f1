"""Settings as words of a command line and as flat values, by which cells are compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from jsonargparse import get_loader

from video_gn.errors import ConfigError

# Settings that may change between attempts at the same run: how fast it reads, how often it saves and logs.
FREE = ("data.loader.", "checkpoint.every_n_steps", "checkpoint.keep_steps", "trainer.enable_progress_bar")
# Settings about the machine, which a command line may give to pre-trainings too.
MACHINE = (*FREE, *(f"trainer.{name}" for name in ("accelerator", "devices", "num_nodes", "precision", "strategy")))
NET, CLIP = "model.net.init_args.", "data.clip."
BATCH_SIZE, ACCUMULATED = "data.batch_size", "trainer.accumulate_grad_batches"
TRAIN, WEIGHTS = "data.train", "model.weights"
# Settings that a study gives to each cell itself.
OWN = ("run_dir", "ckpt_path", "config", "seed_everything", BATCH_SIZE)
# Stands for the study's directory at the beginning of a path, so that the directory may be moved.
OUT = "{out}/"


def flatten(settings: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested or dotted settings as {"model.optimizer.lr": 0.02}; lists and empty mappings stay values."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = full_name(f"{prefix}{key}")
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def full_name(key: str) -> str:
    """A setting's one name: `model.net.norm` is short for `model.net.init_args.norm`."""
    rest = key.removeprefix("model.net.")
    if rest == key or rest.split(".")[0] in ("class_path", "init_args"):
        return key
    return f"model.net.init_args.{rest}"


def as_word(key: str, value: Any) -> str:
    """A setting as a word of a command line: a string as it is, any other value as json."""
    return f"--{key}={value if isinstance(value, str) else json.dumps(value)}"


def parse_words(words: Sequence[str], *, source: str) -> dict[str, Any]:
    """The settings in words of a command line, `--KEY VALUE` or `--KEY=VALUE`, which errors call `source`.

    Returns:
        Values by dotted key; of a key given twice the last, of `--KEY+=VALUE` all in a list.

    Raises:
        ConfigError: for a word that is no setting, or a setting without a value.
    """
    settings: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, equals, text = word.partition("=")
        if not key.startswith("--") or key == "--":
            raise ConfigError(f"{source} must be --KEY VALUE, got {word!r}. `video-gn fit --help` lists them.")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"{source}: {key} must have a value, got none. Write {key}=VALUE.")
            text = rest.pop(0)
        name = full_name(key.removeprefix("--").replace(".+", "+"))
        settings[name] = [*settings.get(name, []), _value(text)] if name.endswith("+") else _value(text)
    return flatten(settings)


def _value(text: str) -> Any:
    """The value that fit reads from a word: `[96,120]` and `[96, 120]`, `1e-3` and `0.001` are the same."""
    try:
        return get_loader("yaml")(text)
    except yaml.YAMLError:
        return text


def differences(old: Mapping[str, Any], new: Mapping[str, Any], *, ignore: Sequence[str] = ()) -> list[str]:
    """Lines "key: old -> new" of the flat settings that differ and matter to a run's outcome, but for `ignore`."""

    def shown(settings: Mapping[str, Any], key: str) -> str:
        return json.dumps(settings[key]) if key in settings else "not set"

    return [
        f"{key}: {shown(old, key)} -> {shown(new, key)}"
        for key in sorted({*old, *new})
        if not key.startswith(FREE) and key not in ignore and old.get(key) != new.get(key)
    ]
