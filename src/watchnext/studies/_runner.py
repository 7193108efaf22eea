"""Finds the studies, runs one, and puts its outcome where people look: a page, a picture, MLflow.

A study is a module of this package whose name begins with a letter. It holds

* a docstring: its first line is the title of the page, the rest says what the paper claims and how that is tested;
* `CLAIMS`: the sentences that are held against the figures;
* `run(lab) -> Result`: makes the figures, with what `_lab.Lab` offers.
"""

import difflib
import importlib
import inspect
import math
import pkgutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from watchnext import studies
from watchnext.console import print_table, say
from watchnext.errors import InputError
from watchnext.studies._lab import Lab, MakeFeatures, Settings
from watchnext.studies._report import Claim, Judgement, Result, judge, write_page
from watchnext.tracking import Tracker

PAGES = Path("docs/studies")


@dataclass(frozen=True)
class Study:
    """One study of the paper.

    Attributes:
        name: what it is called by; its module.
        title: of its page.
        about: what the paper claims and how it is tested, Markdown.
        claims: held against the figures.
        run: makes them.
    """

    name: str
    title: str
    about: str
    claims: tuple[Claim, ...]
    run: Callable[[Lab], Result]


def study_names() -> tuple[str, ...]:
    """The names of all studies, in alphabetical order."""
    found = (module.name for module in pkgutil.iter_modules(studies.__path__))
    return tuple(sorted(name for name in found if not name.startswith("_")))


def load_study(name: str) -> Study:
    """The study called `name`.

    Raises:
        InputError: there is none.
    """
    names = study_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        raise InputError(
            f"there is no study `{name}`",
            remedy=f"did you mean `{close[0]}`?" if close else "studies: " + ", ".join(names),
        )
    module = importlib.import_module(f"{studies.__name__}.{name}")
    title, _, about = inspect.cleandoc(module.__doc__ or name).partition("\n")
    return Study(name, title.rstrip("."), about.strip(), tuple(module.CLAIMS), module.run)


def run_study(
    name: str, settings: Settings, make_features: MakeFeatures, *, root: Path, pages: Path = PAGES
) -> Sequence[Judgement]:
    """Run study `name`, write its page below `root`, and log it.

    Args:
        name: of the study.
        settings: sizes, seeds and where real logs are.
        make_features: turns logs into features, see `_lab.MakeFeatures`.
        root: the project's folder, which holds the runs.
        pages: where the page goes, below `root`.

    Raises:
        InputError: there is no such study, or the logs are not usable.
    """
    study = load_study(name)
    tracker = Tracker.open(root)
    began = time.monotonic()
    say(f"study {name}: {study.title}")
    with tempfile.TemporaryDirectory(prefix="watchnext-study-") as scratch:
        lab = Lab(settings, Path(scratch), make_features)
        result = study.run(lab)
        shown = settings.shown()
        files = write_page(
            root / pages,
            name,
            study.title,
            study.about,
            study.claims,
            result,
            shown,
            f"watchnext study {name}" + (" --data path/to/KuaiRand-Pure/data" if settings.data else ""),
        )
    judgements = [judge(claim, result.rows) for claim in study.claims]
    run_id = tracker.log_study(
        name, params=shown, metrics=_metrics(result), tags=_tags(judgements), files=files
    )
    print_table(
        study.title,
        ("claim", "verdict", "because"),
        [(one.claim.text, one.verdict, one.because) for one in judgements],
    )
    say(f"study {name}: {files[0]} after {time.monotonic() - began:.0f} s; MLflow run {run_id}")
    return judgements


def _metrics(result: Result) -> dict[str, float]:
    return {
        f"{row.key}{end}": value
        for row in result.rows
        for end, value in (("", row.estimate), ("/low", row.low), ("/high", row.high))
        if math.isfinite(value)
    }


def _tags(judgements: Sequence[Judgement]) -> Mapping[str, Any]:
    return {f"claim_{number}": f"{one.verdict}: {one.claim.text}" for number, one in enumerate(judgements, 1)}
