"""The house keeps its order: imports run train -> refine -> pipeline, and the core stays pure."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {"pipeline": 0, "refine": 1, "train": 2}


def modules():
    return [path for package in FLOORS for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path):
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    floor = FLOORS[path.relative_to(ROOT).parts[0]]
    for name in imported(path):
        above = FLOORS.get(name.split(".")[0], -1)
        assert above <= floor, f"{path.name} imports {name} from the floor above"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_core_touches_no_files(path):
    """A module whose docstring begins with "Core:" takes arrays and gives arrays."""
    tree = ast.parse(path.read_text())
    if not (ast.get_docstring(tree) or "").startswith("Core:"):
        return
    shell = {"pathlib", "os", "zarr", "time", "random", "shutil", "subprocess"}
    assert not {name.split(".")[0] for name in imported(path)} & shell


def test_refinement_needs_no_torch():
    code = "import sys, refine.cli, refine.stage; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_no_module_has_a_name_that_says_nothing():
    banned = {"utils.py", "helpers.py", "common.py", "misc.py"}
    assert not [path for path in modules() if path.name in banned]
