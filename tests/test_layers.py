"""Imports go one way: the folder listing is the architecture."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = [
    {"errors", "wire"},
    {"settings", "records", "folder", "events", "bundle", "store", "archive"},
    {"catalog", "retention", "reconcile", "tokens"},
    {"pipeline"},
    {"cli", "gateway", "client", "simulator"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
MODULES = sorted(path for path in (ROOT / "plateway").glob("*.py") if not path.stem.startswith("__"))


def imported(path: Path) -> set[str]:
    """Name every module that a file imports, at whatever depth, as dotted names."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_modules_import_their_own_layer_or_lower_ones(path: Path) -> None:
    """A module never imports from a layer above its own."""
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("plateway.")} & set(RANK)
    assert {name for name in ours if RANK[name] > RANK[path.stem]} == set()


def test_every_module_has_a_layer() -> None:
    """A new module says where it belongs."""
    assert {path.stem for path in MODULES} <= set(RANK)


def test_modules_of_one_layer_do_not_import_in_circles() -> None:
    """Within a layer, too, there is an order."""
    waiting = {
        path.stem: {name.split(".")[1] for name in imported(path) if name.startswith("plateway.")} & set(RANK)
        for path in MODULES
    }
    while ready := [name for name, needs in waiting.items() if not needs & set(waiting)]:
        for name in ready:
            del waiting[name]
    assert waiting == {}


@pytest.mark.parametrize("path", sorted((ROOT / "plateway").rglob("*.py")), ids=lambda path: path.stem)
def test_the_library_does_not_know_prefect(path: Path) -> None:
    """Prefect lives at the edge: flows, blocks and deployments."""
    assert not [name for name in imported(path) if name.split(".")[0] == "prefect"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_the_environment_is_read_in_one_place(path: Path) -> None:
    """Only the settings read environment variables."""
    assert path.stem == "settings" or "os.environ" not in path.read_text()
