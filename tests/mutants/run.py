"""Change one thing at a time in what decides or carries out deletion, and run the tests that bear on it.

    uv run python -m tests.mutants.run [--every N] [--only plateway/retention.py] [--minutes M]

Each mutant is tried in a copy of the tree, in a process forked from one that has imported other people's packages
already. Prints a line for each that survives, and the figures; what survives is explained in ``survivors.md``.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import itertools
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

DECIDING = ("tests/test_retention.py",)
DELETING = ("tests/test_purge.py", "tests/test_expiry.py", "tests/test_pipeline.py")
BEARING = {  # the quickest to fail first
    "plateway/retention.py": (*DECIDING, *DELETING),
    "plateway/pipeline/purge.py": (DELETING[0], DELETING[2]),
    "plateway/pipeline/expire.py": (DELETING[1], DELETING[0]),
    "plateway/pipeline/removal.py": DELETING,
    "plateway/pipeline/proof.py": DELETING,
    "plateway/pipeline/identity.py": (*DELETING, "tests/test_archives.py"),
    "plateway/place.py": (*DELETING, "tests/test_archives.py"),
}
SLOW = "not rot and not real_bucket and not rule_of_the_bucket and not dying"  # they start servers, or take long
TIMEOUT = 180  # seconds; a mutant that takes longer is killed, and counts so
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


class Mutant(NamedTuple):
    """One change of a file."""

    line: int
    what: str
    source: str


def mutants(source: str) -> Iterator[Mutant]:
    """Make every mutant of a module."""
    found = [(at, variant) for at, node in enumerate(ast.walk(ast.parse(source))) for variant in variants(node)]
    for at, variant in found:
        tree = ast.parse(source)
        node = next(itertools.islice(ast.walk(tree), at, None))
        told = mutate(node, variant)
        if told is not None:
            yield Mutant(getattr(node, "lineno", 0), told, ast.unparse(ast.fix_missing_locations(tree)))


def variants(node: ast.AST) -> range:
    """Return which changes of a node may be tried: most have none."""
    kinds = (ast.Compare, ast.BoolOp, ast.BinOp, ast.IfExp, ast.While, ast.UnaryOp, ast.Constant)
    return range(3) if isinstance(node, (*kinds, ast.FunctionDef, ast.If, ast.With, ast.For, ast.Try)) else range(0)


def mutate(node: ast.AST, variant: int) -> str | None:
    """Change a node in place; return what was done, None if there is no such change."""
    match node, variant:
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


def survives(tree: Path, path: str, mutant: Mutant, tests: Sequence[str]) -> bool:
    """Run the tests on a mutant, in a process of its own."""
    original = (tree / path).read_text()
    (tree / path).write_text(mutant.source)
    try:
        child = os.fork()
        if child == 0:
            os._exit(run_tests(tree, tests))
        return wait(child) == 0
    finally:
        (tree / path).write_text(original)


def run_tests(tree: Path, tests: Sequence[str]) -> int:
    os.setsid()
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):  # noqa: PTH123
        import pytest

        return int(pytest.main(["-x", "-q", "-n0", "-p", "no:cacheprovider", "-k", SLOW, *tests]))


def wait(child: int) -> int:
    deadline = time.monotonic() + TIMEOUT
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
        shutil.copytree(here, tree, ignore=shutil.ignore_patterns(".*", "docs", "benchmarks"))
        for path in [told.only] if told.only else list(BEARING):
            tried = alive = 0
            for mutant in list(mutants((tree / path).read_text()))[:: told.every]:
                if time.monotonic() > until:
                    break
                tried += 1
                if survives(tree, path, mutant, BEARING[path]):
                    alive += 1
                    print(f"{path}:{mutant.line}: {mutant.what}", flush=True)
            print(f"{path}: {tried - alive} of {tried} killed", flush=True)


if __name__ == "__main__":
    main()
