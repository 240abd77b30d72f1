"""Imports point down: a module imports from lower floors, or from its own folder without cycles."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "video_gn"

# The longest matching prefix counts. A module that is not named here fails the test.
FLOORS = {
    "video_gn": 0,
    "video_gn.errors": 0,
    "video_gn.clips": 0,
    "video_gn.checks": 0,
    "video_gn.locks": 0,
    "video_gn.signals": 1,
    "video_gn.slurm": 1,
    "video_gn.launch": 1,
    "video_gn.memory": 0,
    "video_gn.disk": 1,
    "video_gn.trainer_settings": 1,
    "video_gn.sampling": 1,
    "video_gn.metrics": 1,
    "video_gn.ops": 1,
    "video_gn.optim": 1,
    "video_gn.schedules": 1,
    "video_gn.results": 1,
    "video_gn.checkpoint": 1,
    "video_gn.scoring": 1,
    "video_gn.decoding._base": 1,
    "video_gn.data.manifest": 1,
    "video_gn.data._": 1,
    "video_gn.data._scan_probe": 4,
    "video_gn.data._encode": 4,
    "video_gn.data._prepare_task": 4,
    "video_gn.data.transforms": 1,
    "video_gn.data.samplers": 1,
    "video_gn.data.position": 1,
    "video_gn.data.watch": 2,
    "video_gn.weights": 2,
    "video_gn.weights.build": 4,
    "video_gn.weights.convert": 5,
    "video_gn.decoding._": 2,
    "video_gn.models.norms": 2,
    "video_gn.decoding": 3,
    "video_gn.models": 3,
    "video_gn.models.resnet3d": 3,
    "video_gn.models._": 3,
    "video_gn.models.zoo": 4,
    "video_gn.data": 4,
    "video_gn.data.dataset": 4,
    "video_gn.data.synthetic": 4,
    "video_gn.data.datamodule": 5,
    "video_gn.data.show": 6,
    "video_gn.tasks": 5,
    "video_gn.callbacks": 5,
    "video_gn.inference": 6,
    "video_gn.labelling": 6,
    "video_gn.labelling.command": 7,
    "video_gn.report": 6,
    "video_gn.report.study_figures": 5,
    "video_gn.bench": 6,
    "video_gn.study": 6,
    "video_gn.cli": 8,
    "video_gn.run_arguments": 6,
    "video_gn.lightning_cli": 7,
    "video_gn.__main__": 9,
}
LIGHTNING_ONLY_IN = (
    "video_gn.data.datamodule",
    "video_gn.study",
    "video_gn.tasks",
    "video_gn.callbacks",
    "video_gn.run_arguments",
    "video_gn.lightning_cli",
)


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor(name: str) -> int:
    if name in FLOORS:
        return FLOORS[name]
    fitting = [p for p in FLOORS if name.startswith(p + ".") or (p.endswith("._") and name.startswith(p))]
    fitting.remove("video_gn") if "video_gn" in fitting else None
    assert fitting, f"{name} has no floor: name it in this test"
    return FLOORS[max(fitting, key=len)]


def imports_of(path: Path, *, type_checking: bool = False) -> list[tuple[str, int]]:
    """(module, line) of every import, also inside functions, but for `if TYPE_CHECKING:` blocks."""
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
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            base = node.module or ""
            for alias in node.names:
                deeper = PACKAGE.parent / Path(*f"{base}.{alias.name}".split("."))
                is_module = deeper.with_suffix(".py").is_file() or (deeper / "__init__.py").is_file()
                found.append((f"{base}.{alias.name}" if is_module else base, node.lineno))
    return found


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_down(path):
    me = module_name(path)
    if me == "video_gn":
        return  # `video_gn.load` reaches up, inside the function
    folder = me if path.name == "__init__.py" else me.rpartition(".")[0]
    for target, line in imports_of(path):
        if target != "video_gn" and target.startswith("video_gn."):
            same_folder = folder != "video_gn" and (target == folder or target.startswith(folder + "."))
            assert floor(target) < floor(me) or same_folder, (
                f"{path}:{line}: {me} imports {target}, which is not below it"
            )
        if target.split(".")[0] in ("lightning", "pytorch_lightning"):
            assert me.startswith(LIGHTNING_ONLY_IN), f"{path}:{line}: {me} imports Lightning"


def test_no_cycles():
    graph = {module_name(p): {t for t, _ in imports_of(p) if t.startswith("video_gn.")} for p in MODULES}
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


def test_folders_are_at_most_one_deep():
    assert all(len(p.relative_to(PACKAGE).parts) <= 2 for p in MODULES)


HELP = "import contextlib\nfrom video_gn.__main__ import main\nwith contextlib.suppress(SystemExit): main({words})"


@pytest.mark.parametrize(
    "code",
    [
        "import video_gn",
        "import video_gn.sampling",
        "import video_gn.data.manifest",
        *(HELP.format(words=words) for words in (["--help"], ["--version"], ["nothing"], ["infer", "--help"])),
        *(HELP.format(words=words) for words in (["data", "synth", "--help"], ["bench", "data", "--help"])),
        HELP.format(words=["study", "--help"]),
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
    for command in ("fit", "validate", "test", "predict", "infer", "data", "study", "report", "bench"):
        assert command in words
