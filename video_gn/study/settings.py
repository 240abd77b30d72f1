"""Settings as words of a command line and as values: the one form in which cells are told apart."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from video_gn.errors import ConfigError

# What a run may be given anew without being another run: how fast it reads, how often it saves and tells.
FREE = ("data.loader.", "checkpoint.every_n_steps", "checkpoint.keep_steps", "trainer.enable_progress_bar")
# What a study gives to each cell itself.
OWN = ("run_dir", "ckpt_path", "config", "seed_everything", "data.batch_size")


def flatten(settings: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {"model.optimizer.lr": 0.02}; lists and empty mappings stay values.

    Args:
        settings: nested, or dotted already, or both.
        prefix: of the keys.
    """
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
    """A setting as a word of a command line.

    Args:
        key: dotted.
        value: a string is written as it is, all else as json.
    """
    return f"--{key}={value if isinstance(value, str) else json.dumps(value)}"


def parse_words(words: Sequence[str], *, source: str) -> dict[str, Any]:
    """The settings that words of a command line hold.

    Args:
        words: `--KEY VALUE` or `--KEY=VALUE`.
        source: what an error calls them.

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
        if name.endswith("+"):
            settings[name] = [*settings.get(name, []), _value(text)]
        else:
            settings[name] = _value(text)
    return flatten(settings)


def _value(text: str) -> Any:
    """What a word says, so that `[96,120]` and `[96, 120]`, `1e-3` and `0.001` are the same."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return text
    return json.loads(json.dumps(value, default=str))


def differences(old: Mapping[str, Any], new: Mapping[str, Any], *, ignore: Sequence[str] = ()) -> list[str]:
    """Lines "key: old -> new" of the settings that differ and matter to a run's outcome.

    Args:
        old: flat settings.
        new: flat settings.
        ignore: further keys that do not count.
    """
    lines = []
    for key in sorted({*old, *new}):
        if key.startswith(FREE) or key in ignore or old.get(key) == new.get(key):
            continue
        lines.append(f"{key}: {_told(old, key)} -> {_told(new, key)}")
    return lines


def _told(settings: Mapping[str, Any], key: str) -> str:
    return json.dumps(settings[key]) if key in settings else "not set"
