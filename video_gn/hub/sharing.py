"""Saves a run as a model of the Hugging Face Hub, and pushes it there in one commit."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

import video_gn
from video_gn.errors import ConfigError
from video_gn.files import write_json, write_text
from video_gn.hub.card import REPOSITORY, build_card
from video_gn.run.directory import checkpoint_of
from video_gn.weights.build import look_into
from video_gn.weights.convert import convert
from video_gn.weights.named import MODEL_FILE, check_repository, naming_hub_errors

log = logging.getLogger(__name__)

# For the hub's viewers: the weights hold the same in their metadata, and are read alone.
CONFIG = "config.json"
CARD = "README.md"


def save(run_dir: str | os.PathLike[str], target: str | os.PathLike[str], *, license: str | None = None) -> None:
    """Write a run's best checkpoint as `model.safetensors`, with `config.json` and the model card `README.md`.

    `video_gn.load(target)` and `--checkpoint TARGET` give the scores of the run; somebody's own network needs
    `video_gn.load(target, net=...)`.

    Args:
        run_dir: Run directory.
        target: Directory to write, new or empty.
        license: Identifier of the license for the card, such as "apache-2.0".

    Raises:
        ConfigError: if the target holds anything.
        RunError, CheckpointError: see `build_card`.
    """
    target = Path(target)
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise ConfigError(f"DIR must be new or empty, got {str(target)!r}. Choose another, or remove it.")
    checkpoint = checkpoint_of(run_dir)
    card, untested = build_card(Path(run_dir), license=license, checkpoint=checkpoint)
    if untested:
        log.warning("The card holds no figures: %s video-gn test --run_dir %s measures them.", untested, run_dir)
    write_text(target / CARD, card)
    write_json(target / CONFIG, {"library_name": "video-gn", **look_into(checkpoint)[0]})
    convert(checkpoint, target / MODEL_FILE)  # last: with it, the directory is a model
    # safetensors' own files are for their owner alone.
    (target / MODEL_FILE).chmod((target / CONFIG).stat().st_mode)


def push(source: str | os.PathLike[str], repo: str, *, public: bool = False, license: str | None = None) -> str:
    """Push a run, or a directory that `save` has written, to the Hugging Face Hub, in one commit.

    Args:
        source: Run directory, or saved directory, whose card may have been edited.
        repo: OWNER/NAME; made if it is not there.
        public: Whether a new repository is public; one that is there stays as it is.
        license: As for `save`; for a run alone.

    Returns:
        The commit's address.

    Raises:
        ConfigError: for another name of a repository, or a license beside a saved directory.
        RunError, CheckpointError: see `save`; also if the hub cannot be reached, or refuses.
    """
    check_repository(repo)
    saved = Path(source)
    with tempfile.TemporaryDirectory() as scratch:
        if not (saved / MODEL_FILE).is_file():
            saved = Path(scratch) / "model"
            save(source, saved, license=license)
        elif license:
            raise ConfigError(f"--license must stand with a run. Write it into {saved / CARD} instead.")
        look_into(saved / MODEL_FILE)  # whole, and a model of ours
        card = (saved / CARD).read_text(encoding="utf-8").replace(REPOSITORY, repo)
        contents: dict[str, Path | bytes] = {
            MODEL_FILE: saved / MODEL_FILE,
            CONFIG: (saved / CONFIG).read_bytes(),
            CARD: card.encode(),
        }
        with naming_hub_errors(f"hf:{repo}"):
            from huggingface_hub import CommitOperationAdd, HfApi

            api = HfApi(library_name="video-gn", library_version=video_gn.__version__)
            api.create_repo(repo, private=not public, exist_ok=True)
            commit = api.create_commit(
                repo,
                [CommitOperationAdd(name, content) for name, content in contents.items()],
                commit_message=f"Model trained with video-gn {video_gn.__version__}",
            )
    return commit.commit_url
