"""Imports go one way: the folder listing is the architecture."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = [
    {"errors"},
    {"ahead", "wire", "names", "instruments", "endpoint", "isolation"},
    {"events", "checksums"},
    {"keys", "outcome", "settings", "records", "folder"},
    {"ledger", "prefect_api", "log_records", "origins", "settings_file"},
    {"retention", "findings", "bench", "bundle", "queries"},
    {"store"},
    {"archive", "place"},
    {"catalog"},
    {"pipeline"},
    {"cli", "gateway", "client", "simulator", "bridges", "outbox", "selftest", "doctor", "testing", "local"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
PACKAGE = ROOT / "plateway"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.stem[:2] != "__" and "migrations" not in path.parts)


def name(path: Path) -> str:
    """Name a module within the package, as imports do."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imported(path: Path) -> set[str]:
    """Name every module that a file imports, at whatever depth, as dotted names."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_by_name(path: Path) -> list[str]:
    """Name what a file imports through ``import_module``, as source text."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [ast.unparse(call.args[0]) for call in calls if ast.unparse(call.func).endswith("import_module")]


def layered(path: Path) -> set[str]:
    """Name the modules and packages of ours that a module imports, without what is below them."""
    return {one.split(".")[1] for one in imported(path) if one.startswith("plateway.")} & set(RANK)


DOMAIN = (
    "errors",
    "instruments",
    "endpoint",
    "events",
    "keys",
    "checksums",
    "outcome",
    "ledger",
    "retention",
    "findings",
)
HEAVY = {"sqlalchemy", "sqlmodel", "botocore", "obstore", "s3fs", "fsspec", "prefect", "alembic"}


@pytest.mark.parametrize("module", DOMAIN)
def test_the_domain_needs_no_database_and_no_bucket(module: str) -> None:
    """Parsing what an instrument announced, or judging a ledger, imports no client of anything."""
    command = f"import sys, plateway.{module}; print(*{{one.partition('.')[0] for one in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", command], check=True, capture_output=True, text=True).stdout
    assert HEAVY & set(loaded.split()) == set()


def test_a_store_knows_nothing_of_tar() -> None:
    """What bytes mean is for others; only what lays out a bundle as files, and what names its event, may know."""
    knowing = {"per_file", "object_metadata"}
    for path in (PACKAGE / "store").glob("*.py"):
        if path.stem not in knowing:
            assert not {one for one in imported(path) if one.split(".")[1:2] in (["bundle"], ["records"])}, path.name


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_modules_import_their_own_layer_or_lower_ones(path: Path) -> None:
    """A module never imports from a layer above its own; a package is in one layer."""
    own = RANK[name(path).split(".")[0]]
    assert {one for one in layered(path) if RANK[one] > own} == set()


def test_every_module_has_a_layer() -> None:
    """A new module says where it belongs."""
    assert {name(path).split(".")[0] for path in MODULES} <= set(RANK)


def test_modules_do_not_import_in_circles() -> None:
    """Within a layer and within a package, too, there is an order."""
    names = {name(path) for path in MODULES}
    waiting = {
        name(path): {one.removeprefix("plateway.") for one in imported(path)} & names - {name(path)} for path in MODULES
    }
    while ready := [one for one, needs in waiting.items() if not needs & set(waiting)]:
        for one in ready:
            del waiting[one]
    assert waiting == {}


@pytest.mark.parametrize("path", sorted((ROOT / "plateway").rglob("*.py")), ids=lambda path: path.stem)
def test_the_library_does_not_know_prefect(path: Path) -> None:
    """Prefect, flows, blocks and deployments are imported by processes of their own, and by one function."""
    outside = {"prefect", "flows", "blocks", "deployments"}
    assert {one.split(".")[0] for one in imported(path)} & outside == set()
    others = [one for one in imported_by_name(path) if not one.removeprefix("f").startswith("'plateway.")]
    assert not others or name(path) == "local.project"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_the_environment_is_read_in_one_place(path: Path) -> None:
    """Only the settings read environment variables; what starts processes passes them on."""
    assert path.stem == "settings" or path.parent.name == "local" or "os.environ" not in path.read_text()
