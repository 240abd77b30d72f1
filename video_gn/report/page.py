"""The page: one HTML file that loads nothing from elsewhere and runs no script."""

from __future__ import annotations

import shlex

import video_gn
from video_gn.report._html import Markup, count, details, esc, join, paragraph, path, table
from video_gn.report._style import CSS
from video_gn.report._test_section import headline, sections_of_test
from video_gn.report._training_section import section_of_training
from video_gn.report.reading import Run

# Nothing may be loaded or run: not even where a name of a file or class should slip through as markup.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def build_page(run: Run) -> str:
    """The page of a run.

    Args:
        run: what `read_run` gives.
    """
    sections = [
        ("Training", section_of_training(run)),
        *sections_of_test(run),
        ("Settings", _settings(run)),
        ("Reproduce", _reproduce(run)),
        ("Files", _files(run)),
    ]
    sections = [(title, content) for title, content in sections if content]
    links = "".join(f'<a href="#{_anchor(title)}">{esc(title)}</a>' for title, _ in sections)
    body = [f'<section id="{_anchor(title)}"><h2>{esc(title)}</h2>\n{content}</section>' for title, content in sections]
    title = run.directory.resolve().name or str(run.directory)
    return join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{esc(_POLICY)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{esc(title)} · video_gn report</title>\n<style>{CSS}</style>\n</head>\n<body>",
            f"<header><h1>{esc(title)}</h1>",
            f'<p class="sub">{_subtitle(run)}</p></header>',
            _problems(run),
            headline(run),
            f"<nav>{links}</nav>",
            *body,
            f"<footer>Written by video_gn {esc(video_gn.__version__)} from the files of this run directory. "
            "Intervals are 95% Wilson intervals over videos.</footer>\n</body>\n</html>\n",
        ]
    )


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _subtitle(run: Run) -> Markup:
    """One line of what was trained, as far as the config tells."""
    net = "model.net.init_args"
    depth, norm, layout = (run.setting(f"{net}.{key}") for key in ("depth", "norm", "layout"))
    parts = [f"ResNet-{depth} I3D" if depth is not None else "", f"{norm} norm" if norm is not None else ""]
    groups = run.setting(f"{net}.num_groups")
    if norm == "group" and groups is not None:
        parts[-1] += f", {groups} groups"
    parts.append(f"layout {layout}" if layout is not None else "")
    frames, stride = run.setting("data.clip.num_frames"), run.setting("data.clip.stride")
    parts.append(f"clips of {frames} frames, stride {stride}" if frames is not None and stride is not None else "")
    batch = run.setting("data.batch_size")
    parts.append(f"batch {batch} a process" if batch is not None else "")
    return Markup(" · ".join(esc(part) for part in parts if part) or path(str(run.directory)))


def _problems(run: Run) -> Markup:
    broken = [note for note in run.notes.values() if note.problem not in ("", "missing")]
    texts = [f"{note.name} {note.problem}. What it would show is left out." for note in broken]
    return join(paragraph(text, "warning") for text in texts)


_SETTINGS = (
    ("network", "model.net.class_path"),
    ("depth", "model.net.init_args.depth"),
    ("layout", "model.net.init_args.layout"),
    ("norm", "model.net.init_args.norm"),
    ("groups", "model.net.init_args.num_groups"),
    ("width", "model.net.init_args.width"),
    ("classes", "model.net.init_args.num_classes"),
    ("frames of a clip", "data.clip.num_frames"),
    ("stride", "data.clip.stride"),
    ("training crop, px", "data.augment.crop_px"),
    ("training short side, px", "data.augment.short_side_px"),
    ("batch of a process", "data.batch_size"),
    ("processes", "trainer.devices"),
    ("nodes", "trainer.num_nodes"),
    ("accumulated batches", "trainer.accumulate_grad_batches"),
    ("precision", "trainer.precision"),
    ("epochs", "trainer.max_epochs"),
    ("optimizer", "model.optimizer.name"),
    ("learning rate", "model.optimizer.lr"),
    ("for a global batch of", "model.optimizer.reference_batch_size"),
    ("weight decay", "model.optimizer.weight_decay"),
    ("weight decay of norms", "model.optimizer.norm_weight_decay"),
    ("schedule", "model.schedule.name"),
    ("training videos", "data.train"),
    ("validation videos", "data.val"),
    ("test videos", "data.test"),
    ("test clips", "data.views.num_clips"),
    ("spacing of test clips", "data.views.spacing"),
    ("test crops", "data.views.crops"),
    ("test short side, px", "data.views.short_side_px"),
    ("seed", "seed_everything"),
)


def _settings(run: Run) -> Markup:
    found = [(label, run.setting(key)) for label, key in _SETTINGS]
    items = "".join(f"<dt>{esc(label)}</dt><dd>{esc(value)}</dd>" for label, value in found if value is not None)
    listing = Markup(f"<dl>{items}</dl>") if items else ""
    texts = [details(f"{file}, complete", Markup(f"<pre>{esc(text)}</pre>")) for file, text in run.configs.items()]
    return join([listing, *texts]) or paragraph("No config.yaml lies in this directory.", "note")


def _reproduce(run: Run) -> Markup:
    here = str(run.directory)
    config = _quoted(here, "config.yaml")
    commands = []
    if "config.yaml" in run.configs:
        again = _quoted(here.rstrip("/") + "-again")
        commands.append(f"# train again, into another directory\nvideo-gn fit -c {config} --run_dir {again}")
    tested = "test/config.yaml" in run.configs
    if tested or "config.yaml" in run.configs:
        what, config = ("again", _quoted(here, "test/config.yaml")) if tested else ("the best checkpoint", config)
        commands.append(f"# test {what}\nvideo-gn test -c {config} --run_dir {_quoted(here)}")
    commands.append(f"# this page\nvideo-gn report {_quoted(here)}")
    checkpoint = run.test.get("checkpoint")
    best = run.directory / "checkpoints" / "best.ckpt"
    checkpoint = checkpoint if isinstance(checkpoint, str) else str(best) if best.is_file() else None
    if checkpoint:
        options = f"--checkpoint {_quoted(checkpoint)} --output labels.json"
        commands.append(f"# label other videos\nvideo-gn infer VIDEO... {options}")
    parts = [Markup(f"<pre>{esc(chr(10).join(commands))}</pre>")]
    resumes = [file for file in run.configs if file.startswith("config.resume-")]
    if resumes:
        hint = f"This training was resumed; what the resumes were started with: {', '.join(resumes)} under Settings."
        parts.append(paragraph(hint, "note"))
    if isinstance(run.test.get("checkpoint"), str):
        parts.append(Markup(f'<p class="note">Tested checkpoint: {path(str(run.test["checkpoint"]))}</p>'))
    return join(parts)


def _quoted(*parts: str) -> str:
    return shlex.quote("/".join((parts[0].rstrip("/") or "/", *parts[1:])))


def _files(run: Run) -> Markup:
    missing = [note for note in run.notes.values() if note.problem == "missing"]
    rows = []
    for note in run.notes.values():
        size = _size(note.num_bytes) if note.changed else ""
        rows.append((path(note.name), note.purpose, note.problem or "read", size, note.changed))
    listing = table(["file", "holds", "state", "size", "last change"], rows, numeric=[3], label="Files of the run")
    hint = f"{count(len(missing), 'file is', 'files are')} missing; what would be shown from there is left out."
    return join([listing, paragraph(hint, "note") if missing else ""])


def _size(num_bytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} B"
