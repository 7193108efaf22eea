"""What the repository promises about itself."""

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import typer.main

from watchnext.cli import app

ROOT = Path(__file__).parents[2]


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True)
    return [ROOT / name for name in listing.stdout.split("\0") if name]


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_lock_files_hold_names_versions_and_hashes_alone(name: str) -> None:
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        assert re.fullmatch(
            r"[a-z0-9._-]+(\[[a-z0-9,_-]+\])?==[^\s;]+( ; [^\\]+)?( \\)?|    --hash=sha256:[0-9a-f]{64}( \\)?",
            line,
        ), line


def test_what_is_installed_to_test_is_what_is_installed_to_run() -> None:
    def pins(name: str) -> set[str]:
        return set(re.findall(r"^\S+==\S+", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE))

    assert pins("requirements.lock") <= pins("requirements-dev.lock")


def test_every_command_is_documented_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    root = typer.main.get_command(app)
    commands = dict(root.commands)  # type: ignore[attr-defined]
    groups = {name: commands.pop(name).commands for name in ("registry", "cluster")}
    names = [*commands, *(f"{group} {name}" for group, of_group in groups.items() for name in of_group)]
    assert names
    for name in names:
        assert f"watchnext {name}" in readme, f"`watchnext {name}` is not in README.md"


def test_every_make_target_is_there_and_explained_by_make_help() -> None:
    """By make itself: a Makefile that it cannot read looks whole to whoever searches it for words."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.+)$", text, flags=re.MULTILINE)
    assert phony is not None
    subprocess.run(["make", "--dry-run", *phony.group(1).split()], cwd=ROOT, check=True, capture_output=True)
    explained = "\n".join(line for line in text.splitlines() if line.startswith("# make"))
    for target in set(phony.group(1).split()) - {"help"}:
        assert re.search(rf"\b{target}\b", explained), target


def test_no_two_test_files_share_a_name() -> None:
    """pytest imports them by name: the second one would not run, in a process that has the first."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert {name for name, times in names.items() if times > 1} == set()


def test_decisions_are_numbered_without_gaps() -> None:
    numbers = sorted(int(path.name[:4]) for path in (ROOT / "docs/decisions").glob("[0-9]*.md"))
    assert numbers == list(range(1, len(numbers) + 1))
    assert numbers


def test_no_tracked_file_is_heavy_or_a_pickle() -> None:
    for path in tracked_files():
        assert path.stat().st_size < 2 * 1024**2, path
        assert path.suffix not in {".pkl", ".pickle", ".joblib"}, path


def test_nothing_that_is_shipped_loads_a_pickle() -> None:
    """Loading one runs whatever code it holds. NumPy refuses pickled arrays unless it is told otherwise."""
    loads = r"^\s*(import|from)\s+(pickle|cloudpickle|dill|joblib|marshal|shelve)\b|allow_pickle\s*=\s*True|read_pickle"
    folders = ("src", "benchmarks")  # in the second the peers' own environment may lie
    scripts = [path for path in tracked_files() if path.suffix == ".py"]
    for path in (one for one in scripts if one.relative_to(ROOT).parts[0] in folders):
        found = re.findall(loads, path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert not found, f"{path.relative_to(ROOT)}: {found}"


def test_links_between_documents_lead_somewhere() -> None:
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:", target):
                assert (path.parent / target).exists(), f"{path.relative_to(ROOT)} links to {target}"
