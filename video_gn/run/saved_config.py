"""Saves the resolved config of a run, and logs how a resume's differs."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning import Callback, LightningModule, Trainer

from video_gn.damage import read_settings, set_damaged_aside
from video_gn.files import write_text
from video_gn.run.directory import CONFIG, RESUME_CONFIGS, TEST, TEST_CONFIG, TEST_METRICS

log = logging.getLogger(__name__)

# Settings that a test's results follow from; how fast the videos are read changes none.
_OF_RESULTS = r"model\.|data\.(?!loader\.|batch_size|val_batch_size)"


class SaveConfig(Callback):
    """Writes the resolved config: `config.yaml`, `test/config.yaml`, or a resume's own beside the first."""

    def __init__(self, run_dir: Path, text: str, *, stage: str, resumes: bool) -> None:
        self.run_dir = run_dir
        self.text = text
        self.stage = stage
        self.resumes = resumes
        self._is_due = False
        self._damage = ""  # of the first config

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file, once everything has been built; log how a resume's differs from the first."""
        if not trainer.is_global_zero:
            return
        first = self.run_dir / CONFIG
        if self.stage == "test":
            self._warn_of_replaced_test()  # its config is written with its results
        elif self.stage != "fit":
            write_text(self.run_dir / self.stage / CONFIG, self.text)
        elif self.resumes and os.path.lexists(first):
            self._is_due = True
            try:
                differences = config_differences(read_settings(first), yaml.safe_load(self.text))
            except (OSError, ValueError) as error:
                self._damage = str(error)
                return
            for line in differences:
                log.warning("config differs from %s: %s", first, line)
        else:
            write_text(first, self.text)

    def _warn_of_replaced_test(self) -> None:
        """Say what an earlier test did otherwise, while its results can still be kept."""
        try:
            stored, now = read_settings(self.run_dir / TEST_CONFIG), yaml.safe_load(self.text)
        except (OSError, ValueError):
            return
        lines = [f"checkpoint: {stored.get('ckpt_path')} -> {now.get('ckpt_path')}"]
        lines = lines if stored.get("ckpt_path") != now.get("ckpt_path") else []
        lines += [line for line in config_differences(stored, now) if re.match(_OF_RESULTS, line)]
        if lines and (self.run_dir / TEST_METRICS).is_file():
            log.warning(
                "%s holds the results of another test (%s): they are replaced when this one ends. To keep them, "
                "stop it and rename the directory.", self.run_dir / TEST, "; ".join(lines[:3]),
            )  # fmt: skip

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a test's file."""
        if trainer.is_global_zero:
            write_text(self.run_dir / self.stage / CONFIG, self.text)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a resume's file once its checkpoint is restored: a later command without a config takes the newest."""
        if self._damage:
            lost = "Which settings the training began with is not known; those of this resume are stored beside it."
            set_damaged_aside(self.run_dir / CONFIG, self._damage, lost)
        for path in sorted(self.run_dir.glob(RESUME_CONFIGS), reverse=True) if self._is_due else ():
            try:
                read_settings(path)
                break
            except (OSError, ValueError) as error:
                set_damaged_aside(path, str(error), "Those of this resume are stored beside it.")
        if self._is_due:
            write_text(_next_resume_name(self.run_dir), self.text)


def _next_resume_name(run_dir: Path) -> Path:
    number = 1
    while os.path.lexists(path := run_dir / RESUME_CONFIGS.replace("*", f"{number:03d}")):
        number += 1
    return path


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines "key: old -> new" for every leaf that differs.

    Left out are `ckpt_path`, which a resume must change, and `checkpoint.directory`, which follows from `run_dir`.
    """
    lines = []
    for key in sorted({*old, *new}, key=str):
        name = f"{prefix}{key}"
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += config_differences(a, b, f"{name}.")
        elif a != b and name not in ("ckpt_path", "checkpoint.directory"):
            lines.append(f"{name}: {a!r} -> {b!r}")
    return lines
