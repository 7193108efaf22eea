"""Figure 5: predict a held-out watch, or the next one?

Section 3.4 of the paper: many systems hold out a random watch of a user and predict it from the others (5a). That
leaks what came later and ignores that people watch some things in order. Choosing a watch and letting in only what
came before it (5b) "performed better in A/B testing".

Both models see the same labels, the same number of examples and the same settings; the context alone differs. For 5a
it is the user's other completed watches of the training days, later ones included, the last 50 of them; for 5b the
last 50 that had ended before the label. Searches and the example's age are left out of both: they would have to be held out,
too. Both are served alike, with what the user did so far. Offline, each predicts the completed watches of the
next day; in the simulated world each then fills the pages from the end of the training days on.

What the claim rests on is asymmetric: episodes that are watched in order (the world's dial `series`), topics that
follow topics (`order`).
"""

import numpy as np

from watchnext.studies._lab import Ground, Lab
from watchnext.studies._measures import Measures
from watchnext.studies._online import BAG
from watchnext.studies._report import Claim, Result

HELD_OUT, FUTURE = "held-out watch (5a)", "future watch (5b)"

CLAIMS = (
    Claim(
        "predicting the future watch gives more watch time in the A/B test",
        FUTURE,
        HELD_OUT,
        "online_watch_time_s",
    ),
    Claim("it ranks what is watched the next day higher", FUTURE, HELD_OUT, "map"),
)

INPUTS = ("history", "region")


def run(lab: Lab) -> Result:
    """Train both on every ground."""
    measures = Measures({FUTURE: HELD_OUT})
    for ground in lab.grounds(lambda strength: {"series": strength, "order": strength}):
        for variant, arrays in (
            (FUTURE, ground.arrays),
            (HELD_OUT, {**ground.arrays, "history": held_out_context(ground)}),
        ):
            trained = lab.train(ground, variant, arrays=arrays, inputs=INPUTS)
            measures.add(ground.source, ground.dial, variant, lab.measure(ground, trained))
    return Result(
        measures.rows(),
        notes=["Inputs of both: " + ", ".join(INPUTS) + "."],
        dial="the asymmetry of watching, `series` and `order`",
    )


def held_out_context(ground: Ground) -> np.ndarray:
    """The context of 5a for every training example: the user's other completed watches, whenever they were.

    A user's watches are those of the training days, and before them what the first example of the user already had as
    its history.

    Returns:
        int32 [num_examples, BAG] vocabulary indices, 0 = padding.
    """
    users, labels, history = ground.users, ground.arrays["label"], ground.arrays["history"]
    at = ground.examples["watched_at"].combine_chunks().cast("int64").to_numpy(zero_copy_only=False)
    context = np.zeros((len(users), BAG), dtype=np.int32)
    order = np.lexsort((at, users))
    begins = np.flatnonzero(np.r_[True, users[order][1:] != users[order][:-1]])
    for begin, end in zip(begins, np.r_[begins[1:], len(order)], strict=True):
        rows = order[begin:end]
        earlier = history[rows[0]][history[rows[0]] > 0]
        watches = np.concatenate([earlier, labels[rows]])
        for place, row in enumerate(rows, start=len(earlier)):
            others = np.delete(watches, place)[-BAG:]
            context[row, : len(others)] = others
    return context
