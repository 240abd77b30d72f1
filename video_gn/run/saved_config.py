"""Saves the resolved config of a run, and logs how a resume's differs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning import Callback, LightningModule, Trainer

from video_gn.files import write_text
from video_gn.run.directory import CONFIG, RESUME_CONFIGS

log = logging.getLogger(__name__)


class SaveConfig(Callback):
    """Writes the resolved config: `config.yaml`, `test/config.yaml`, or a resume's own beside the first."""

    def __init__(self, run_dir: Path, text: str, *, stage: str, resumes: bool) -> None:
        self.run_dir = run_dir
        self.text = text
        self.stage = stage
        self.resumes = resumes
        self._is_due = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file, once everything has been built; log how a resume's differs from the first."""
        if not trainer.is_global_zero:
            return
        first = self.run_dir / CONFIG
        if self.stage != "fit":
            write_text(self.run_dir / self.stage / CONFIG, self.text)
        elif self.resumes and first.is_file():
            self._is_due = True
            for line in config_differences(yaml.safe_load(first.read_text()), yaml.safe_load(self.text)):
                log.warning("config differs from %s: %s", first, line)
        else:
            write_text(first, self.text)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a resume's file once its checkpoint is restored: a later command without a config takes the newest."""
        if self._is_due:
            write_text(_next_resume_name(self.run_dir), self.text)


def _next_resume_name(run_dir: Path) -> Path:
    number = 1
    while (path := run_dir / RESUME_CONFIGS.replace("*", f"{number:03d}")).exists():
        number += 1
    return path


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines "key: old -> new" for every leaf that differs, but for `ckpt_path`, which a resume must change."""
    lines = []
    for key in sorted({*old, *new}, key=str):
        name = f"{prefix}{key}"
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += config_differences(a, b, f"{name}.")
        elif a != b and name != "ckpt_path":
            lines.append(f"{name}: {a!r} -> {b!r}")
    return lines
