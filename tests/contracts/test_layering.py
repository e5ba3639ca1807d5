"""Imports point one way, as docs/architecture.md says, and files stay small."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAX_LINES = 400

# A room imports only rooms above its own line, or itself. Rooms of one line do not know each other: a method works
# with every backend, a loss with no configuration. Two modules are rooms of their own because everyone needs them.
ROOMS = (
    {"structures", "errors"},
    {"losses", "files", "config.node", "tasks", "heads", "optim", "randomness", "projection", "subspace", "thresholds"},
    {"tensors"},
    {"data", "align"},
    {"evaluation"},
    {"replay", "interim", "importance"},
    {"methods", "backends"},
    {"config"},
    {"engine"},
    {"report"},
    {"cli"},
    {"tools"},
)
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}
# The defaults gather every method's own; methods import only the node, so that no cycle arises.
NOTHING_BUT_STRUCTURES = {"losses", "structures"}


def room_of(module: str) -> str:
    """The room of a dotted module name below ``incdet``: ``config.node`` or, as a rule, the first part."""
    parts = module.split(".")
    pair = ".".join(parts[:2])
    return pair if pair in RANK else parts[0]


def imported(path: Path, package: Path) -> Iterator[tuple[int, str]]:
    """(line, module below ``incdet``) of every import in a file, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            # `from incdet import files` names a module, `from incdet.tasks import Task` does not.
            base = str(node.module)
            folder = package.parent.joinpath(*base.split("."))
            names = [
                f"{base}.{a.name}" if folder.is_dir() and _is_module(folder / a.name) else base for a in node.names
            ]
        elif isinstance(node, ast.ImportFrom):
            names = ["incdet.relative imports are not used here"]
        else:
            continue
        yield from ((node.lineno, name.removeprefix("incdet.")) for name in names if name.startswith("incdet."))


def _is_module(path: Path) -> bool:
    return path.is_dir() or path.with_suffix(".py").is_file()


def offences(root: Path) -> list[str]:
    """Every import that points the wrong way in a checkout at ``root``."""
    package = root / "incdet"
    found = []
    for path in sorted([*package.rglob("*.py"), *(root / "tools").glob("*.py")]):
        module = ".".join(path.relative_to(package).with_suffix("").parts) if package in path.parents else "tools"
        if module == "__init__":
            continue
        here = room_of(module)
        for line, name in imported(path, package):
            there = room_of(name)
            where = f"{path.relative_to(root)}:{line}"
            if here not in RANK or there not in RANK:
                found.append(f"{where}: {here} or {there} has no place in ROOMS")
            elif here in NOTHING_BUT_STRUCTURES and there not in {"structures", here}:
                found.append(f"{where}: {here} may import structures only, not {there}")
            elif here != there and RANK[there] >= RANK[here]:
                found.append(f"{where}: {here} may not import {there}")
    return found


def test_imports_point_one_way():
    assert offences(ROOT) == []


def test_the_check_sees_what_it_forbids(tmp_path):
    sources = {
        "incdet/methods/eager.py": "from incdet.backends.torchvision import TorchvisionDetector\n",
        "incdet/methods/lazy.py": "def f():\n    import incdet.engine.loop\n",
        "incdet/losses/configured.py": "from incdet.config.node import CfgNode\n",
        "incdet/data/indirect.py": "from incdet import report\n",
        "incdet/data/fine.py": "from incdet.errors import DataError\nimport numpy\nfrom incdet import files\n",
        "incdet/data/relative.py": "from . import fine\n",
        "incdet/new_room.py": "from incdet.errors import DataError\n",
        "incdet/files.py": "",
        "incdet/report/__init__.py": "",
        "tools/fine.py": "from incdet.cli import main\n",
    }
    for name, source in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    guilty = [offence.split(":")[0] for offence in offences(tmp_path)]
    assert guilty == [
        "incdet/data/indirect.py",
        "incdet/data/relative.py",
        "incdet/losses/configured.py",
        "incdet/methods/eager.py",
        "incdet/methods/lazy.py",
        "incdet/new_room.py",
    ]


def test_importing_incdet_is_light():
    code = "import sys, incdet; print(sorted({'torch', 'detectron2', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


def test_only_the_rooms_that_need_them_import_heavy_libraries():
    homes = {"detectron2": "backends/detectron2", "matplotlib": "report"}
    package = ROOT / "incdet"
    strangers = []
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None)]
            for library, home in homes.items():
                if library in {str(name).split(".")[0] for name in names} and package / home not in path.parents:
                    strangers.append(f"{path.relative_to(ROOT)} imports {library}")
    assert strangers == []


def test_no_file_is_longer_than_a_reader_can_hold():
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in (ROOT / "incdet").rglob("*.py")}
    assert lengths
    assert {str(path): length for path, length in lengths.items() if length > MAX_LINES} == {}
