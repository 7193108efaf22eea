"""The surrogate problem: what to predict from what.

Section 3.4 of the paper: the choice of the surrogate learning problem "has an outsized importance on performance in A/B
testing but is very difficult to measure with offline experiments". Four choices, each measured offline (the
completed watches of the next day) and in the simulated world (each model fills the pages for some days):

- **What is withheld.** Told the last query, or the order of watches, a classifier predicts what the site would show
  next anyway; as home page that "performs very poorly". The variants are told, in inputs of their own, the
  newest five tokens of the bag (as many as a query of three words has), and the last watch alone; the baseline has
  unordered bags.
- **Which watches are labels.** All of them, "even those embedded on other sites", or only those that no search and
  no link from elsewhere led to, with which "it would be very difficult for new content to surface".
- **A fixed number of examples per user** (here the median user's number, so that it binds for half of them), or all of
  them. Where there are few examples, having fewer is a loss of its own; so there is a third: as many as under the
  limit, from whoever.
- **How a bag becomes a vector.** "Simply averaging the embeddings performed best among several strategies (sum,
  component-wise max, etc.)".

Two dials: that of the site turns what withholding and labels are about (`search`, `external`, `series`, `order`
of the world); that of taste turns `taste`, which is what is lost if a few users rule the loss or a bag is read badly.
The full world is the same for both, the default one.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from watchnext.features.batches import FeatureSpec
from watchnext.features.retrieval_examples import UNRECOMMENDED_ORIGINS
from watchnext.studies._lab import Ground, Lab, at_most
from watchnext.studies._measures import Measures
from watchnext.studies._report import FULL, Claim, Result

WITHHELD, AVERAGED = "withheld, all watches", "all examples, mean"
"""Names of the same baseline, by what is compared with it."""

QUERY, ORDER, RECOMMENDED = "last query given", "last watch given", "recommended watches only"
CAPPED, SAMPLED = "fixed number of examples per user", "as many examples, from whoever"
SUM, MAX = "sum", "max"
SITE, TASTE = (QUERY, ORDER, RECOMMENDED), (CAPPED, SAMPLED, SUM, MAX)

LAST_TOKENS = 5
"""As many tokens as a query of three words has."""

WATCHED = "online_watch_time_s"

CLAIMS = (
    Claim("told the last query, a model is worse on the home page", QUERY, WITHHELD, WATCHED, "less"),
    Claim("told the last watch, a model is worse on the home page", ORDER, WITHHELD, WATCHED, "less"),
    Claim("learning from recommended watches alone is worse", RECOMMENDED, WITHHELD, WATCHED, "less"),
    Claim("a fixed number of examples per user gives more watch time", CAPPED, AVERAGED, WATCHED),
    Claim("... than as many examples from whoever", CAPPED, SAMPLED, WATCHED),
    Claim("averaging a bag beats its sum", SUM, AVERAGED, "map", "less"),
    Claim("averaging a bag beats its component-wise maximum", MAX, AVERAGED, "map", "less"),
)


def run(lab: Lab) -> Result:
    """Train the variants where their mechanism is turned, and all of them on real logs and in the full world."""
    measures = Measures(
        [*((one, WITHHELD) for one in SITE), *((one, AVERAGED) for one in TASTE), (CAPPED, SAMPLED)]
    )
    notes: list[str] = []
    for ground in lab.grounds(
        lambda strength: dict.fromkeys(("search", "external", "series", "order"), strength)
    ):
        _compare(lab, ground, SITE, measures, notes)
        if ground.dial in (None, FULL):
            _compare(lab, ground, TASTE, measures, notes)
    for ground in lab.worlds(lambda strength: {"taste": strength}, strengths=(0.0, 0.5)):
        _compare(lab, ground, TASTE, measures, notes)
    return Result(
        measures.rows(),
        notes=list(dict.fromkeys(notes)),
        dial=f"`search`, `external`, `series` and `order` for what is compared with `{WITHHELD}`, and `taste` for what"
        f" is compared with `{AVERAGED}`",
    )


def _compare(
    lab: Lab, ground: Ground, variants: tuple[str, ...], measures: Measures, notes: list[str]
) -> None:
    base = WITHHELD if variants == SITE else AVERAGED
    measures.add(ground.source, ground.dial, base, lab.measure(ground, lab.train(ground, base)))
    for variant in variants:
        how = changes(ground, variant)
        if how is None:
            notes.append(f"{ground.source}: `{variant}` is left out, the logs say nothing of it.")
            continue
        if variant == CAPPED:
            rows = how["rows"]
            notes.append(
                f"{ground.place}, seed {ground.seed}: a limit of {np.bincount(ground.users[rows]).max()} examples per"
                f" user leaves {len(rows)} of {len(ground.users)}."
            )
        measures.add(
            ground.source, ground.dial, variant, lab.measure(ground, lab.train(ground, variant, **how))
        )


def changes(ground: Ground, variant: str) -> dict[str, Any] | None:
    """Arguments of `Lab.train` that make a variant of the baseline.

    Returns:
        None where real logs lack what the variant is about. A world whose dial is at 0 has no searches and no watch
        but recommended ones: there the variant is the baseline, and has to measure the same.
    """
    if variant == QUERY:
        if not ground.inputs(["search_tokens"]):
            return None if ground.moment is None else {}
        return _told("last_query", "search_tokens", "search_token", LAST_TOKENS)
    if variant == ORDER:
        return _told("last_watch", "history", "video", 1)
    if variant == RECOMMENDED:
        if "origin" not in ground.examples.column_names:
            return None
        origin = ground.examples["origin"].combine_chunks().to_pandas()
        return {"rows": np.flatnonzero(~origin.isin(UNRECOMMENDED_ORIGINS))}
    if variant in (CAPPED, SAMPLED):
        users = ground.users
        limit = max(1, int(np.median(np.bincount(users)[np.unique(users)])))
        rows = at_most(users, limit, ground.seed)
        if variant == SAMPLED:
            rows = np.sort(np.random.default_rng(ground.seed).choice(len(users), len(rows), replace=False))
        return {"rows": rows}
    return {"pooling": variant}


def _told(name: str, bag: str, space: str, length: int) -> dict[str, Any]:
    def derive(arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        return {**arrays, name: newest(arrays[bag], length)}

    return {"derived": (FeatureSpec(name, "multivalent", space, length),), "derive": derive}


def newest(bags: np.ndarray, length: int) -> np.ndarray:
    """The newest `length` entries of each bag, wherever its padding stands.

    Args:
        bags: int32 [num_examples, any], oldest first, 0 = padding.
        length: how many.

    Returns:
        int32 [num_examples, length], the newest last, 0 before them where there are fewer.
    """
    padding_first = np.argsort(bags > 0, axis=1, kind="stable")
    return np.take_along_axis(bags, padding_first, axis=1)[:, -length:]
