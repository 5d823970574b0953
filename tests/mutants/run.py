"""Change one thing at a time in what decides or carries out deletion, and run the tests that bear on it.

    uv run python -m tests.mutants.run [--every N] [--only plateway/retention.py] [--minutes M]

Each mutant is tried in a copy of the tree, in a process forked from one that has imported other people's packages
already. Prints a line for each that survives, and the figures; what survives is explained in ``survivors.md``.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import itertools
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

DECIDING = ("tests/test_retention.py",)
DELETING = ("tests/pipeline/test_purge.py", "tests/pipeline/test_expire.py", "tests/pipeline/test_verbs.py")
BEARING = {  # the quickest to fail first
    "plateway/retention.py": (*DECIDING, *DELETING),
    "plateway/pipeline/purge.py": (DELETING[0], DELETING[2]),
    "plateway/pipeline/expire.py": (DELETING[1], DELETING[0]),
    "plateway/pipeline/removal.py": DELETING,
    "plateway/pipeline/proof.py": DELETING,
    "plateway/pipeline/identity.py": (*DELETING, "tests/pipeline/test_archive.py"),
    "plateway/place.py": (*DELETING, "tests/pipeline/test_archive.py"),
}
SLOW = "not rot and not real_bucket and not rule_of_the_bucket and not dying"  # they start servers, or take long
OUTPUT = "output.txt"  # of the last run
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
    told = mutate(node, variant)
    return Mutant(getattr(node, "lineno", 0), str(told), ast.unparse(ast.fix_missing_locations(tree)))


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
        child = os.fork()
        if child == 0:
            try:
                os._exit(run_tests(tree, tests))
            except BaseException:  # noqa: BLE001 - whatever it is, this process must not go on as the first one
                traceback.print_exc()
            finally:
                os._exit(99)
        return wait(child, seconds) == 0
    finally:
        (tree / path).write_text(original)


def run_tests(tree: Path, tests: Sequence[str]) -> int:
    os.setsid()
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    sys.dont_write_bytecode = True  # two mutants of one second and size would be taken for the same
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]  # those of the tree that this runs in
    output = (tree / OUTPUT).open("w", buffering=1)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        import pytest

        return int(
            pytest.main(
                [
                    "-x",
                    "-q",
                    "-n0",
                    "-p",
                    "no:cacheprovider",
                    "-W",
                    "ignore::pytest.PytestAssertRewriteWarning",
                    "-k",
                    SLOW,
                    *tests,
                ]
            )
        )


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
    parser = argparse.ArgumentParser()
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--only", choices=BEARING)
    parser.add_argument("--minutes", type=float, default=1e9)
    told = parser.parse_args()
    until = time.monotonic() + told.minutes * 60
    for name in (
        "sqlmodel",
        "alembic.command",
        "botocore.session",
        "httpx",
        "numpy",
        "tifffile",
        "hypothesis",
        "typer",
    ):
        __import__(name)
    with tempfile.TemporaryDirectory(prefix="mutants-") as home:
        tree = Path(home, "tree")
        here = Path(__file__).parents[2]
        shutil.copytree(here, tree, ignore=shutil.ignore_patterns(".*", "__pycache__", "docs", "benchmarks"))
        for path in [told.only] if told.only else list(BEARING):
            tried = alive = 0
            source = (tree / path).read_text()
            started = time.monotonic()
            if not survives(tree, path, Mutant(0, "nothing", source), BEARING[path], seconds=3600):
                raise SystemExit(f"{path}: its tests fail without any change\n{(tree / OUTPUT).read_text()[-3000:]}")
            seconds = 10 + PATIENCE * (time.monotonic() - started)
            for change in changes(source)[:: told.every]:
                if time.monotonic() > until:
                    break
                tried += 1
                mutant = make(source, *change)
                if survives(tree, path, mutant, BEARING[path], seconds=seconds):
                    alive += 1
                    print(f"{path}:{mutant.line}: {mutant.what}", flush=True)
            print(f"{path}: {tried - alive} of {tried} killed", flush=True)


if __name__ == "__main__":
    main()
