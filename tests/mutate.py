"""Break the library on purpose, one line at a time, and report what the tests do not notice.

    python tests/mutate.py                    # the mutants of tests/mutants.py
    python tests/mutate.py clipping seed      # those with one of these words in their name
    python tests/mutate.py --random 50        # as many small changes at random places of modeling, engine and data

Each mutant is written into a copy of the checkout, where its tests run until the first failure. One that no test
kills is a survivor: a test is missing. One whose text is no longer in its file is stale: tests/mutants.py is to follow.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "mask2former"
RANDOM_ROOMS = ("modeling", "engine", "data")
COPIED = ("mask2former", "tests", "tools", "datasets", "configs", "docs", "README.md", "CONTRIBUTING.md", "LICENSE")
SETTINGS = ("pyproject.toml", "setup.py", "Makefile", "CITATION.cff", "MODEL_ZOO.md", ".pre-commit-config.yaml")
TIMEOUT = 1800
PAIRS = (
    *((ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn)),
    *((ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.And, ast.Or)),
)
SWAPS: dict[type[ast.AST], type[ast.AST]] = {one: other for pair in PAIRS for one, other in (pair, pair[::-1])}


class Mutant(NamedTuple):
    """A change of one file, below `mask2former/`, and the tests, below `tests/`, that are to notice it."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = ()


def mirrored(file: str) -> tuple[str, ...]:
    """The test files that mirror a file of the package, those of its folder where it has none of its own."""
    path = Path(file)
    own = path.with_name(f"test_{path.name}")
    found = own if (ROOT / "tests" / own).is_file() else path.parent
    return (found.as_posix(),)


def random_mutants(count: int, seed: int) -> list[Mutant]:
    """Draw changes of an operator, a boolean or a small number, anywhere in the code of `RANDOM_ROOMS`."""
    rooms = [ROOT / PACKAGE / room for room in RANDOM_ROOMS]
    places = [mutant for room in rooms for path in sorted(room.rglob("*.py")) for mutant in _mutants_of(path)]
    return random.Random(seed).sample(places, min(count, len(places)))


def _mutants_of(path: Path) -> Iterator[Mutant]:
    source = path.read_text(encoding="utf-8")
    file = path.relative_to(ROOT / PACKAGE).as_posix()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare | ast.BinOp | ast.BoolOp | ast.UnaryOp):
            old, new = ast.get_source_segment(source, node), _changed(node)
            if old and new and source.count(old) == 1:
                yield Mutant(f"{file}:{node.lineno}", file, old, new, mirrored(file))


def _changed(node: ast.AST) -> str | None:
    """The expression with one thing changed, in parentheses; None where nothing is to change."""
    tree = ast.parse(ast.unparse(node), mode="eval").body
    if isinstance(tree, ast.Compare) and type(tree.ops[0]) in SWAPS:
        tree.ops[0] = SWAPS[type(tree.ops[0])]()  # type: ignore[assignment]
    elif isinstance(tree, ast.BinOp | ast.BoolOp) and type(tree.op) in SWAPS:
        tree.op = SWAPS[type(tree.op)]()  # type: ignore[assignment]
    elif isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.Not):
        tree = tree.operand
    else:
        return None
    return f"({ast.unparse(tree)})"


def copy_checkout(target: Path) -> None:
    """Copy what tests need."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in (*COPIED, *SETTINGS):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=ignored)
        elif source.is_file():
            shutil.copy(source, target / name)


def judge(mutant: Mutant, checkout: Path) -> str:
    """Run a mutant's tests on a copy of the checkout: "killed", "SURVIVED" or "STALE"."""
    path = checkout / PACKAGE / mutant.file
    source = path.read_text(encoding="utf-8")
    if source.count(mutant.old) != 1:
        return "STALE"
    path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
    tests = [f"tests/{name}" for name in mutant.tests or mirrored(mutant.file)]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        status = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, timeout=TIMEOUT).returncode
    except subprocess.TimeoutExpired:
        return "killed"
    finally:
        path.write_text(source, encoding="utf-8")
    if status not in (0, 1, 2):  # 2: what cannot be imported is noticed too
        raise RuntimeError(f"{mutant.name}: pytest ended with status {status}; does {' '.join(tests)} exist?")
    return "killed" if status else "SURVIVED"


def main() -> int:
    """Judge mutants one after another; returns 1 if any is left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only mutants with one of these in their name")
    parser.add_argument("--random", type=int, metavar="N", help="N random changes in place of the listed ones")
    parser.add_argument("--seed", type=int, default=0, help="of the random changes (%(default)s)")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from tests.mutants import MUTANTS

    mutants = MUTANTS if args.random is None else random_mutants(args.random, args.seed)
    chosen = [m for m in mutants if not args.words or any(word in m.name for word in args.words)]
    left = 0
    with tempfile.TemporaryDirectory() as folder:
        copy_checkout(Path(folder))
        for mutant in chosen:
            verdict = judge(mutant, Path(folder))
            left += verdict != "killed"
            sys.stdout.write(f"{verdict:9} {mutant.name}: {mutant.old.strip()!r} -> {mutant.new.strip()!r}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{len(chosen) - left} of {len(chosen)} killed\n")
    return int(left > 0)


if __name__ == "__main__":
    sys.exit(main())
