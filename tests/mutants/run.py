"""Change one thing at a time in what decides or carries out deletion, and run the tests that bear on it.

    uv run python -m tests.mutants.run [--every N] [--first K] [--only plateway/retention.py] [--minutes M]

The tests run once without a change, and tell which lines each of them runs; a mutant meets those that run its lines,
the quickest first. It is tried in a copy of the tree, in a process forked from one that has imported other people's
packages already. Prints a line for each that survives, and the figures; what survives is explained in ``survivors.md``.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest

DECIDING = (
    "plateway/retention.py",
    "plateway/pipeline/purge.py",
    "plateway/pipeline/expire.py",
    "plateway/pipeline/removal.py",
    "plateway/pipeline/proof.py",
    "plateway/pipeline/identity.py",
    "plateway/place.py",
)
TESTS = (
    "tests/test_retention.py",
    "tests/pipeline/test_purge.py",
    "tests/pipeline/test_expire.py",
    "tests/pipeline/test_verbs.py",
    "tests/pipeline/test_archive.py",
)
SLOW = "not rot and not real_bucket and not rule_of_the_bucket and not dying"  # they start servers, or take long
OUTPUT = "output.txt"  # of the last run
COVERING = "covering.json"  # which lines each test runs
OPTIONS = ("-x", "-q", "-n0", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")
IMPORTED = ("sqlmodel", "alembic.command", "botocore.session", "httpx", "numpy", "tifffile", "hypothesis", "typer")
PATIENCE = 3  # times as long as the tests take without a change; a mutant that takes longer counts as killed
OTHER: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.BitOr: ast.BitAnd,
}
CHANGED: tuple[type[ast.AST], ...] = (
    ast.Compare,
    ast.BoolOp,
    ast.BinOp,
    ast.UnaryOp,
    ast.Constant,
    ast.IfExp,
    ast.While,
)
CHANGED += (ast.FunctionDef, ast.If, ast.With, ast.For, ast.Try)


class Mutant(NamedTuple):
    """One change of a file."""

    line: int
    end: int  # last line
    what: str
    source: str


def changes(source: str) -> list[tuple[int, int]]:
    """List every change that can be made to a module: the number of a node, and the variant."""
    nodes = enumerate(ast.walk(ast.parse(source)))
    found = ((at, variant, node) for at, node in nodes if isinstance(node, CHANGED) for variant in range(3))
    return [(at, variant) for at, variant, node in found if mutate(copy.deepcopy(node), variant) is not None]


def make(source: str, at: int, variant: int) -> Mutant:
    """Make one mutant of a module."""
    tree = ast.parse(source)
    node = next(itertools.islice(ast.walk(tree), at, None))
    first, last = getattr(node, "lineno", 0), getattr(node, "end_lineno", 0)
    told = mutate(node, variant)
    if isinstance(node, ast.FunctionDef | ast.If | ast.With | ast.For | ast.Try) and variant == 2:
        first = last = next(one.lineno for one in reversed(node.body) if isinstance(one, ast.Pass))
    elif isinstance(node, ast.If | ast.While):
        last = node.test.end_lineno or first
    return Mutant(first, last, str(told), ast.unparse(ast.fix_missing_locations(tree)))


def mutate(node: ast.AST, variant: int) -> str | None:
    """Change a node in place; return what was done, None if there is no such change."""
    match node, variant:
        case ast.BinOp(op=ast.BitOr()), _:  # mostly of types
            return None
        case ast.Compare(ops=[op, *_]), 0 if type(op) in OTHER:
            node.ops[0] = OTHER[type(op)]()  # type: ignore[call-overload]
            return f"{type(op).__name__} is {type(node.ops[0]).__name__}"
        case ast.BoolOp() | ast.BinOp(), 0 if type(node.op) in OTHER:
            before, node.op = type(node.op).__name__, OTHER[type(node.op)]()  # type: ignore[assignment]
            return f"{before} is {type(node.op).__name__}"
        case ast.If(test=ast.Name(id="TYPE_CHECKING")), _:
            return None
        case ast.If() | ast.IfExp() | ast.While(), (0 | 1):
            node.test = ast.Constant(value=bool(variant))
            return f"condition is {bool(variant)}"
        case ast.UnaryOp(op=ast.Not()), 0:
            node.op = ast.UAdd()
            node.operand = ast.Call(func=ast.Name(id="bool", ctx=ast.Load()), args=[node.operand], keywords=[])
            return "not is left out"
        case ast.Constant(value=bool() | int() as value), 0:
            node.value = (not value) if isinstance(value, bool) else value + 1
            return f"{value} is {node.value}"
        case ((ast.FunctionDef() | ast.If() | ast.With() | ast.For() | ast.Try()), 2):
            return drop(node)
        case _:
            return None


def drop(node: ast.FunctionDef | ast.If | ast.With | ast.For | ast.Try) -> str | None:
    """Leave out the last call or raise that stands for itself in a body."""
    for at, statement in reversed(list(enumerate(node.body))):
        call = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call | ast.YieldFrom)
        if call or isinstance(statement, ast.Raise):
            node.body[at] = ast.copy_location(ast.Pass(), statement)
            return f"without {ast.unparse(statement)[:60]}"
    return None


def survives(tree: Path, path: str, mutant: Mutant, tests: Sequence[str], *, seconds: float) -> bool:
    """Run the tests on a mutant, in a process of its own."""
    original = (tree / path).read_text()
    (tree / path).write_text(mutant.source)
    try:
        return run_apart(tree, tests, seconds=seconds) == 0
    finally:
        (tree / path).write_text(original)


def run_apart(tree: Path, tests: Sequence[str], *, seconds: float, plugins: Sequence[object] = ()) -> int:
    """Run tests in a process of their own; return pytest's exit code, -1 if they took too long."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(run_tests(tree, tests, plugins))
        except BaseException:  # noqa: BLE001 - whatever it is, this process must not go on as the first one
            traceback.print_exc()
        finally:
            os._exit(99)
    return wait(child, seconds)


def run_tests(tree: Path, tests: Sequence[str], plugins: Sequence[object]) -> int:
    os.setsid()
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    sys.dont_write_bytecode = True  # two mutants of one second and size would be taken for the same
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]  # those of the tree that this runs in
    output = (tree / OUTPUT).open("w", buffering=1)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        return int(pytest.main([*OPTIONS, "-k", SLOW, *tests], plugins=plugins))


class Recorder:
    """A plugin of pytest: which lines of some files each test runs, and how long it takes."""

    def __init__(self, tree: Path, paths: Sequence[str]) -> None:
        self._tree = tree
        self._paths = {str(tree / path): path for path in paths}
        self._lines: dict[str, set[int]] = {}
        self._found: dict[str, dict[str, Any]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._lines, started = {path: set() for path in self._paths.values()}, time.monotonic()
        threading.settrace(self._enter)
        sys.settrace(self._enter)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            lines = {path: sorted(found) for path, found in self._lines.items()}
            self._found[item.nodeid] = {"seconds": time.monotonic() - started, "lines": lines}

    def pytest_sessionfinish(self) -> None:
        (self._tree / COVERING).write_text(json.dumps(self._found))

    def _enter(self, frame: FrameType, event: str, argument: object) -> Any:
        path = self._paths.get(frame.f_code.co_filename)
        if path is None:
            return None
        lines = self._lines[path]
        lines.add(frame.f_lineno)

        def step(frame: FrameType, event: str, argument: object) -> Any:
            lines.add(frame.f_lineno)
            return step

        return step


def bearing(covering: Mapping[str, Any], path: str, mutant: Mutant) -> list[str]:
    """List the tests that run what was changed, the quickest first; all of them where it runs at import."""
    changed = set(range(mutant.line, mutant.end + 1))
    tests = [name for name, one in covering.items() if changed & set(one["lines"][path])]
    return sorted(tests or covering, key=lambda name: float(covering[name]["seconds"]))


def wait(child: int, seconds: float) -> int:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1


def main() -> None:
    """Try the mutants, and print what survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first one tried, below --every")
    parser.add_argument("--only", choices=DECIDING)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--covering", type=Path, help="a file that keeps which lines each test runs for the next time")
    told = parser.parse_args()
    until = time.monotonic() + told.minutes * 60
    for name in IMPORTED:
        __import__(name)
    with tempfile.TemporaryDirectory(prefix="mutants-") as home:
        tree = Path(home, "tree")
        here = Path(__file__).parents[2]
        shutil.copytree(here, tree, ignore=shutil.ignore_patterns(".*", "__pycache__", "docs", "benchmarks"))
        paths = [told.only] if told.only else DECIDING
        if told.covering and told.covering.exists():
            shutil.copy(told.covering, tree / COVERING)
        elif run_apart(tree, TESTS, seconds=3600, plugins=[Recorder(tree, DECIDING)]) != 0:
            raise SystemExit(f"the tests fail without any change\n{(tree / OUTPUT).read_text()[-3000:]}")
        covering = json.loads((tree / COVERING).read_text())
        if told.covering:
            shutil.copy(tree / COVERING, told.covering)
        if run_apart(tree, ["--collect-only", *covering], seconds=600) != 0:
            raise SystemExit(f"the tests are not found by their names\n{(tree / OUTPUT).read_text()[-3000:]}")
        for path in paths:
            tried = alive = 0
            source = (tree / path).read_text()
            for change in changes(source)[told.first :: told.every]:
                if time.monotonic() > until:
                    break
                tried += 1
                mutant = make(source, *change)
                tests = bearing(covering, path, mutant)
                seconds = 30 + PATIENCE * sum(covering[name]["seconds"] for name in tests)
                if survives(tree, path, mutant, tests, seconds=seconds):
                    alive += 1
                    print(f"{path}:{mutant.line}: {mutant.what} ({len(tests)} tests)", flush=True)
            print(f"{path}: {tried - alive} of {tried} killed", flush=True)


if __name__ == "__main__":
    main()
