"""Figure 5: predict a held-out watch, or the next one?

Section 3.4 of the paper: many systems hold out a random watch of a user and predict it from the others (5a). That
leaks what came later and ignores that people watch some things in order. Choosing a watch and letting in only what
came before it (5b) "performed better in A/B testing".

All models see the same labels, the same number of examples, the age of each example and the same settings; the context
alone differs. For 5b it is the last 50 completed watches before the label. For 5a it is the user's other completed
watches of the training days, later ones included, the last 50 of them. In logs of a few days these are twice as many as
5b's, and as many as a model is served with afterwards; where users have long histories, as in the paper, both
contexts are full. So there is a third: as many watches as in 5b, drawn from those of 5a. Searches are left out,
since they would have to be held out, too. All are served alike, with what the user did so far. Offline, each
predicts the completed watches of the next day; in the simulated world each then fills the pages from the end of the
training days on.

What the claim rests on is asymmetric: episodes that are watched in order and topics that follow topics. The dial turns
both, up to where the preset `order_driven` has them (`series` 3, `order` 12; the default world has 1 and 1).
"""

import numpy as np

from watchnext.studies._lab import Ground, Lab
from watchnext.studies._measures import Measures
from watchnext.studies._online import BAG
from watchnext.studies._report import Claim, Result

FUTURE, HELD_OUT, SIZED = (
    "future watch (5b)",
    "held-out watch (5a)",
    "held-out watch, context as large as 5b's",
)

CLAIMS = (
    Claim(
        "predicting the future watch gives more watch time in the A/B test",
        FUTURE,
        HELD_OUT,
        "online_watch_time_s",
    ),
    Claim("the same with contexts of one size", FUTURE, SIZED, "online_watch_time_s"),
    Claim("it ranks what is watched the next day higher", FUTURE, HELD_OUT, "map"),
    Claim("the same with contexts of one size (MAP)", FUTURE, SIZED, "map"),
)

INPUTS = ("history", "region", "example_age_s")


def run(lab: Lab) -> Result:
    """Train all three on every ground."""
    measures = Measures([(FUTURE, HELD_OUT), (FUTURE, SIZED)])
    sizes: dict[str, str] = {}
    for ground in lab.grounds(lambda strength: {"series": 3.0 * strength, "order": 12.0 * strength}):
        before, others = ground.arrays["history"], held_out_context(ground)
        contexts = {FUTURE: before, HELD_OUT: others, SIZED: as_large_as(before, others, ground.seed)}
        for variant, history in contexts.items():
            trained = lab.train(ground, variant, arrays={**ground.arrays, "history": history}, inputs=INPUTS)
            measures.add(ground.source, ground.dial, variant, lab.measure(ground, trained))
        sizes[ground.place] = " and ".join(f"{(one > 0).sum(axis=1).mean():.1f}" for one in (before, others))
    return Result(
        measures.rows(),
        notes=[
            "Inputs of all: " + ", ".join(INPUTS) + ", where the logs have them.",
            "Watches in the context of 5b and of 5a, mean over examples: "
            + "; ".join(f"{place}: {size}" for place, size in sizes.items())
            + ".",
        ],
        dial="the asymmetry of watching, `series` up to 3 and `order` up to 12",
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


def as_large_as(few: np.ndarray, many: np.ndarray, seed: int) -> np.ndarray:
    """Bags with as many entries as `few` has, drawn at random from those of `many`.

    Args:
        few: int32 [num_examples, length], 0 = padding.
        many: int32 of the same shape.
        seed: of the draw.

    Returns:
        int32 of the same shape; all of `many` where it has no more.
    """
    rank = np.argsort(np.random.default_rng(seed).random(many.shape) + 2.0 * (many == 0), axis=1)
    drawn = np.take_along_axis(many, rank, axis=1)
    return np.where(np.arange(many.shape[1]) < (few > 0).sum(axis=1, keepdims=True), drawn, 0)
