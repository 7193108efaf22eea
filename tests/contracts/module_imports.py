"""Which modules of the package a module imports, itself and transitively, read from the source without running it.

Imports inside functions count like those at the top: the stages import TensorFlow and their own heavy modules late.
"""

import ast
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"

EXEMPT = frozenset(
    {
        "watchnext.tracking",
        "watchnext.registry",
        "watchnext.config",
        # What a person reads while a stage works decides no table and no weight (docs/decisions/0003).
        "watchnext.console",
        "watchnext.errors",
    }
)


def path_of(module: str) -> Path | None:
    """The file of `module`, or None when it is no module of this package."""
    base = SOURCE.joinpath(*module.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@cache
def direct_imports(module: str) -> frozenset[str]:
    """Modules of the package that `module` names in an import statement anywhere in its file."""
    path = path_of(module)
    if path is None:
        return frozenset()
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(name for name in found if name.startswith("watchnext.") and path_of(name) is not None)


def transitive_imports(module: str) -> frozenset[str]:
    """Every module of the package that running `module` can load, exempt ones and what only they need left out."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        current = waiting.pop()
        if current in seen or current in EXEMPT:
            continue
        seen.add(current)
        waiting.extend(direct_imports(current))
    return frozenset(seen)


def needed_files(stage: str) -> set[str]:
    """The source files that decide what `stage` computes, relative to the project's folder; empty `__init__` left out."""
    files = set()
    for module in transitive_imports(f"watchnext.stages.{stage}"):
        path = path_of(module)
        if path is not None and path.read_text(encoding="utf-8").strip():
            files.add(path.relative_to(SOURCE.parent).as_posix())
    return files
