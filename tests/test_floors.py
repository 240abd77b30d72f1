"""Imports point down: a folder imports from lower floors alone, and takes no private name of another one."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "video_gn"

# From the top; a folder may import from the rows below its own, never from its own row's other folders.
FLOORS = (
    ("__main__",),
    ("commands",),
    ("planning",),
    ("app", "bench", "labelling", "study", "hub"),
    ("report",),
    ("live", "explaining"),
    ("timelines",),
    ("rendering",),
    ("training",),
    ("embeddings",),
    ("evaluation",),
    ("export",),
    ("prepare",),
    ("data",),
    ("run",),
    ("weights",),
    ("lists",),
    ("models", "decoding"),
    ("journal", "processes", "damage"),
    ("files",),
    ("sampling", "parts"),
    ("errors", "clips", "checks", "shown"),
)
MOST_FILES = 17
LIGHTNING_ONLY_IN = ("bench", "data", "training", "evaluation", "run", "study", "commands")


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def folder_of(name: str) -> str:
    """The folder of a module, or the module itself where it lies at the top."""
    return name.split(".")[1]


def floor(folder: str) -> int:
    rows = [number for number, row in enumerate(reversed(FLOORS)) if folder in row]
    assert rows, f"{folder} has no floor: name it in this test"
    return rows[0]


def imports_of(path: Path) -> list[tuple[str, str, int]]:
    """(module, name in it or "", line) of every import, also inside functions, but for `if TYPE_CHECKING:` blocks."""
    tree = ast.parse(path.read_text())
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            skipped.update(id(n) for n in ast.walk(node))
    found = []
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, "", node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            base = node.module or ""
            for alias in node.names:
                deeper = PACKAGE.parent / Path(*f"{base}.{alias.name}".split("."))
                is_module = deeper.with_suffix(".py").is_file() or (deeper / "__init__.py").is_file()
                found.append(
                    (f"{base}.{alias.name}", "", node.lineno) if is_module else (base, alias.name, node.lineno)
                )
    return found


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_down(path):
    me = module_name(path)
    if me == "video_gn":
        return  # `video_gn.load` reaches up, inside the function
    mine = folder_of(me)
    for target, name, line in imports_of(path):
        where = f"{path}:{line}: {me} imports {target} {name}".rstrip()
        if target.startswith("video_gn."):
            theirs = folder_of(target)
            if theirs == mine:
                continue
            assert floor(theirs) < floor(mine), f"{where}, which is not below it"
            private = [part for part in [*target.split("."), name] if part.startswith("_")]
            assert not private, f"{where}: {private[0]} belongs to {theirs}/ alone"
        if target.split(".")[0] in ("lightning", "pytorch_lightning"):
            assert mine in LIGHTNING_ONLY_IN, f"{where}: only {', '.join(LIGHTNING_ONLY_IN)} import Lightning"


def test_no_cycles():
    graph = {module_name(p): {t for t, _, _ in imports_of(p) if t.startswith("video_gn.")} for p in MODULES}
    graph["video_gn"] = set()
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done or name not in graph:
            return
        path.append(name)
        for target in graph[name] - {name}:
            visit(target)
        path.pop()
        done.add(name)

    for name in graph:
        visit(name)


def test_folders_are_at_most_one_deep_and_no_halls():
    assert all(len(p.relative_to(PACKAGE).parts) <= 2 for p in MODULES)
    sizes = Counter(p.parent.name for p in MODULES)
    assert not {folder: size for folder, size in sizes.items() if size > MOST_FILES}


HELP = "import contextlib\nfrom video_gn.__main__ import main\nwith contextlib.suppress(SystemExit): main({words})"


@pytest.mark.parametrize(
    "code",
    [
        "import video_gn",
        "import video_gn.sampling",
        "import video_gn.lists.read",
        *(HELP.format(words=words) for words in (["--help"], ["--version"], ["nothing"], ["infer", "--help"])),
        *(HELP.format(words=[command, "--help"]) for command in ("explain", "similar")),
        *(HELP.format(words=words) for words in (["data", "synth", "--help"], ["bench", "data", "--help"])),
        *(HELP.format(words=words) for words in (["study", "--help"], ["fit", "--help"], ["test", "-c", "x", "-h"])),
    ],
)
def test_no_torch_until_it_is_used(code):
    check = "\nimport sys\nheavy = {'torch', 'lightning', 'av', 'decord'} & set(sys.modules)\nassert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_lists_every_command(capsys):
    from video_gn.__main__ import main

    assert main(["--help"]) == 0
    words = capsys.readouterr().out.split()
    for command in ("fit", "validate", "test", "predict", "infer", "data", "study", "report", "bench", "explain"):
        assert command in words
    assert "similar" in words
