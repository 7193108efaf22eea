"""Figure 6: features and depth raise MAP, and depth makes use of the features.

Section 3.5 of the paper: "Features beyond video embeddings improve holdout Mean Average Precision (MAP) and layers of
depth add expressiveness so that the model can effectively use these additional features by modeling their interaction."
Depth 0 is a linear layer, which "performed very similarly to the predecessor system", a matrix factorisation.

Four sets of inputs (watches; and searches; and example age; and all that the logs have), each with towers of depth 0 to
4: no hidden layer, then halving widths up to the paper's tower of depth 4. Widths are scaled down with the embedding,
which has 32 numbers where the paper's has 256: 256, 128, 64, 32 in place of 2048, 1024, 512, 256.

The dial turns `search` and `freshness` together: at 0 nobody searches, so that there is no such input, and interest in
a video does not change after its upload. At 0 and half only depths 0 and 2 are trained.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from watchnext.evaluation.intervals import PerUser
from watchnext.studies._lab import Lab, at_most, next_day
from watchnext.studies._measures import Measures
from watchnext.studies._report import FULL, SIMULATED, Claim, Result, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WATCHES, SEARCHES, AGE, ALL = "watches", "and searches", "and example age", "all inputs"
INPUTS: dict[str, tuple[str, ...] | None] = {
    WATCHES: ("history",),
    SEARCHES: ("history", "search_tokens"),
    AGE: ("history", "search_tokens", "example_age_s"),
    ALL: None,
}
DEPTHS = (0, 1, 2, 3, 4)
FEW_DEPTHS = (0, 2)
GAIN = "gain from all inputs"
MOST_PER_USER = 3
"""Examples per user on logs: a score of trainings there is otherwise the work of an hour."""


def variant_of(inputs: str, depth: int) -> str:
    """The name of a set of inputs at a depth."""
    return f"{inputs}, depth {depth}"


AGAINST = [
    *((variant_of(later, depth), variant_of(earlier, depth)) for depth in DEPTHS for later, earlier in (
        (SEARCHES, WATCHES), (AGE, SEARCHES), (ALL, WATCHES)
    )),
    *((variant_of(ALL, depth), variant_of(ALL, 0)) for depth in DEPTHS[1:]),
    *((f"{GAIN}, depth {depth}", f"{GAIN}, depth 0") for depth in DEPTHS[1:]),
]  # fmt: skip

CLAIMS = (
    Claim("all inputs raise MAP", variant_of(ALL, 2), variant_of(WATCHES, 2), "map", vanishes=False),
    Claim("searches raise MAP", variant_of(SEARCHES, 2), variant_of(WATCHES, 2), "map"),
    Claim("example age raises MAP further", variant_of(AGE, 2), variant_of(SEARCHES, 2), "map"),
    *(
        Claim(
            f"depth {depth} raises MAP over a linear layer", variant_of(ALL, depth), variant_of(ALL, 0), "map",
            vanishes=False,
        )
        for depth in DEPTHS[1:]
    ),
    Claim(
        "the inputs gain more with depth 2 than with a linear layer", f"{GAIN}, depth 2", f"{GAIN}, depth 0", "map",
        vanishes=False,
    ),
)  # fmt: skip


def run(lab: Lab) -> Result:
    """Train every set of inputs at every depth."""
    measures = Measures(AGAINST)
    absent: dict[str, str] = {}
    for ground in lab.grounds(lambda strength: {"search": strength, "freshness": strength}):
        names = [spec.name for spec in ground.encoder.retrieval_features]
        missing = [name for name in ("search_tokens", "example_age_s") if name not in names]
        if missing:
            absent[ground.place] = ", ".join(missing)
        rows = at_most(ground.users, MOST_PER_USER, ground.seed) if ground.moment is None else None
        for depth in DEPTHS if ground.dial in (None, FULL) else FEW_DEPTHS:
            measured: dict[tuple[str, ...], dict[str, PerUser]] = {}
            of: dict[str, PerUser] = {}
            for name, wanted in INPUTS.items():
                inputs = tuple(spec for spec in names if wanted is None or spec in wanted)
                if inputs not in measured:
                    # Where the logs lack what a set adds, it is the set before it: one training serves both.
                    trained = lab.train(
                        ground, variant_of(name, depth), rows=rows, inputs=inputs, depth=depth
                    )
                    measured[inputs] = next_day(ground, trained.embed, trained.candidate_embeddings)
                measures.add(ground.source, ground.dial, variant_of(name, depth), measured[inputs])
                of[name] = measured[inputs]["map"]
            measures.add(
                ground.source, ground.dial, f"{GAIN}, depth {depth}", {"map": of[ALL].minus(of[WATCHES])}
            )
    notes = [
        f"{place}: the logs have no {missing}, so that the set that adds it is the one before it."
        for place, missing in absent.items()
    ]
    notes.append(
        "All figures are of the gate day, without what a user had watched; epochs chosen on the tuning day."
    )
    return Result(measures.rows(), notes=notes, draw=draw, dial="`search` and `freshness`")


def draw(rows: Sequence[Row]) -> "Figure":
    """The paper's figure: MAP over depth, a line per set of inputs, a panel per place where all depths are known."""
    import numpy as np
    from matplotlib.figure import Figure

    level = {
        (row.source, row.dial, row.variant): row for row in rows if row.metric == "map" and not row.against
    }
    places = [
        place
        for place in dict.fromkeys((row.source, row.dial) for row in rows)
        if (*place, variant_of(WATCHES, DEPTHS[-1])) in level
    ]
    figure = Figure(figsize=(1.0 + 4.6 * len(places), 4.2), layout="constrained")
    for axes, (source, dial) in zip(figure.subplots(1, len(places), squeeze=False)[0], places, strict=True):
        for number, name in enumerate(INPUTS):
            found = [level[source, dial, variant_of(name, depth)] for depth in DEPTHS]
            value = np.array([row.estimate for row in found])
            ends = [[row.estimate - row.low for row in found], [row.high - row.estimate for row in found]]
            at = np.array(DEPTHS) + 0.06 * (number - 1.5)
            axes.errorbar(at, value, yerr=np.maximum(ends, 0.0), marker="o", capsize=2, label=name)
        where = source if source != SIMULATED else f"simulated, dial {dial:g}"
        axes.set(title=where, xlabel="depth of the tower", ylabel="MAP, gate day")
        axes.set_xticks(DEPTHS)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure
