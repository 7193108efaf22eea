"""The holdout ledger: however many challengers a day judges, they share one error rate."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, norm
from test_registry import Project

from watchnext.config import project_folder
from watchnext.decisions.ledger import KEPT_BACK, spent_on
from watchnext.registry import DATABASE, Registry

CHALLENGERS, ROUNDS, ERROR_RATE = 50, 200_000, 0.05


@pytest.mark.parametrize("alike", [0.0, 0.5, 0.95])
def test_fifty_equal_challengers_of_one_day(alike: float) -> None:
    """Each is as good as the champion, and differs from it by noise of which a share is common to all (the champion's own).

    Meant to fail with one level for all: of 50 independent ones 1 - 0.95^50 = 92 % of the days crown somebody.
    """
    rng = np.random.default_rng(11)
    noise = np.sqrt(1 - alike) * rng.standard_normal((ROUNDS, CHALLENGERS), np.float32)
    noise += np.sqrt(alike) * rng.normal(size=(ROUNDS, 1))
    spent = np.array([spent_on(place, ERROR_RATE) for place in range(1, CHALLENGERS + 1)])
    crowned = int((noise > norm.isf(spent)).any(axis=1).sum())
    assert binomtest(crowned, ROUNDS).proportion_ci(0.95, method="exact").high <= ERROR_RATE
    assert crowned / ROUNDS > 0.3 * ERROR_RATE, "the first alone is judged at two fifths of it"
    one_level = (noise > norm.isf(ERROR_RATE)).any(axis=1).mean()
    assert one_level > 0.9 if alike == 0.0 else one_level > 0.1


def test_what_is_not_kept_back_is_spent_and_no_more() -> None:
    spent = [spent_on(place, ERROR_RATE) for place in range(1, 10_001)]
    assert sum(spent) == pytest.approx((1 - KEPT_BACK) * ERROR_RATE * (1 - 1 / 10_001))
    with pytest.raises(ValueError, match="places begin at 1"):
        spent_on(0, ERROR_RATE)


def test_every_challenger_of_a_day_has_one_place(project_root: Path) -> None:
    """Meant to fail when one registered model was looked at: under another name the day would begin anew."""
    project, registry = Project(project_root), Registry.open(project_root)
    project.register(registry, 1)
    registry._client().create_registered_model("mine")
    asked = [
        ("watchnext", "files", "2026-03-20", "a"),
        ("watchnext", "files", "2026-03-20", "b"),
        ("watchnext", "files", "2026-03-20", "a"),
        ("mine", "files", "2026-03-20", "c"),
        ("mine", "files", "2026-03-21", "c"),
        ("mine", "kuairand", "2026-03-20", "c"),
        ("watchnext", "files", "2026-03-20", "b"),
    ]
    assert [registry.take_place(*one) for one in asked] == [1, 2, 1, 3, 1, 1, 2]


@pytest.mark.parametrize("copy", [".dvc/tmp/exps/standalone/tmpabc", ".dvc/tmp/exps/tmpabc"])
def test_an_experiment_elsewhere_is_counted_here(project_root: Path, copy: str) -> None:
    """`dvc exp run --temp` and `--queue` run in a copy. Meant to fail when that had a registry, and a count, of its own."""
    (project_root / copy).mkdir(parents=True)
    assert project_folder(project_root / copy) == project_root
    assert project_folder(project_root) == project_root
    experiment = Registry.open(project_root / copy)
    assert experiment.registry_uri == f"sqlite:///{project_root / DATABASE}"
    Project(project_root).register(Registry.open(project_root), 1)
    assert experiment.take_place("watchnext", "files", "2026-03-20", "a") == 1
    assert Registry.open(project_root).take_place("watchnext", "files", "2026-03-20", "b") == 2
