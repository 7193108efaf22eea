"""Table 1: wider and deeper hidden layers mispredict less watch time.

Section 4.3 of the paper shows what share of watch time seven configurations of the ranker's hidden layers mispredict on the
next day: 41.6 % without a hidden layer, 36.9, 36.7 and 35.8 % with one of 256, 512 and 1024 units, 35.2 % with 512 then
256, 34.7 % with 1024 then 512 and 34.6 % with 1024, 512, 256. Without the squares and the roots of continuous features the
widest one loses 0.2 points; with clicked and unclicked impressions weighted alike, 4.1 points. It is a trade against
"the server CPU time needed for inference".

The nine rankers are trained on the same impressions, each with its epoch chosen on the tuning day, and judged on the gate
day by `weighted_pairwise_loss`: the mispredicted over the total watch time of pairs of one request. Weighted alike, a click
counts as one unit of watch time however long it was watched. They are the paper's: every id is embedded, and the numbers
per id, the penalty and the curve that the stage `train_ranking` has beside (docs/training.md) are off.

The dial turns `clickbait` and `taste` together: at 0 no video promises more than it holds and everybody likes the same.
What weights and depth are for is then less, but not gone, since videos still differ in length.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from watchnext.evaluation.intervals import PerUser, per_user
from watchnext.studies._lab import Ground, Lab
from watchnext.studies._measures import Measures
from watchnext.studies._report import Claim, Result

CONFIGURATIONS: Mapping[str, tuple[int, ...]] = {
    "none": (),
    "256": (256,),
    "512": (512,),
    "1024": (1024,),
    "512, 256": (512, 256),
    "1024, 512": (1024, 512),
    "1024, 512, 256": (1024, 512, 256),
}
WIDEST = "1024, 512, 256"
PLAIN = f"{WIDEST}, no powers"
ALIKE = f"{WIDEST}, weighted alike"
CANDIDATES = 200

TRAINING: Mapping[str, Any] = {
    "dims_per_doubling": 1.0,
    "odds": "unclicked",
    "unit_s": 10.0,
    "cap_s": 1_800.0,
    "logit_bound": 15.0,
    "batch_size": 1_024,
    "learning_rate": 0.02,
    "epochs": 3,
    "patience": 1,
}
"""Settings of every ranker. The odds are the paper's."""

_ORDER = tuple(CONFIGURATIONS)
AGAINST = [
    *((later, "none") for later in _ORDER[1:]),
    ("1024", "256"),
    ("1024, 512", "1024"),
    (WIDEST, "1024, 512"),
    (PLAIN, WIDEST),
    (ALIKE, WIDEST),
]


def _claim(text: str, variant: str, against: str, expects: str) -> Claim:
    return Claim(text, variant, against, "weighted_pairwise_loss", expects=expects, vanishes=False)  # type: ignore[arg-type]


CLAIMS = (
    _claim("a hidden layer of 256 mispredicts less than none", "256", "none", "less"),
    _claim("1024 units mispredict less than 256", "1024", "256", "less"),
    _claim("a second layer mispredicts less than one", "1024, 512", "1024", "less"),
    _claim("a third layer mispredicts no more than two", WIDEST, "1024, 512", "less"),
    _claim("without powers the widest mispredicts more", PLAIN, WIDEST, "more"),
    _claim("weighted alike the widest mispredicts more", ALIKE, WIDEST, "more"),
)


def run(lab: Lab) -> Result:
    """Train the nine rankers on every ground."""
    measures = Measures(AGAINST)
    cpu_ms: dict[str, float] = {}
    for ground in lab.grounds(lambda strength: {"clickbait": strength, "taste": strength}):
        examples = training_examples(ground)
        alike = {**examples, "watch_time_s": examples["clicked"] * np.float32(TRAINING["unit_s"])}
        variants = [(name, units, True, examples) for name, units in CONFIGURATIONS.items()]
        variants += [(PLAIN, CONFIGURATIONS[WIDEST], False, examples)]
        variants += [(ALIKE, CONFIGURATIONS[WIDEST], True, alike)]
        for name, units, powers, arrays in variants:
            model = train(ground, name, arrays, hidden_units=units, powers=powers)
            measures.add(ground.source, ground.dial, name, {"weighted_pairwise_loss": judge(ground, model)})
            if name not in cpu_ms:
                cpu_ms[name] = request_cpu_ms(model, examples, lab.scratch / f"ranker-{len(cpu_ms)}")
    notes = [
        "All figures are of the gate day; epochs chosen on the tuning day.",
        f"CPU time of one request of {CANDIDATES} candidates through the saved ranker, all threads together, median of 100"
        " requests: " + "; ".join(f"{name}: {value:.2f} ms" for name, value in cpu_ms.items()) + ".",
    ]
    return Result(
        measures.rows(), notes=notes, dial="`clickbait` and `taste`", extra={"request_cpu_ms": cpu_ms}
    )


def training_examples(ground: Ground) -> dict[str, np.ndarray]:
    """The ranker's encoded training examples."""
    from watchnext.models.training import encode_all

    return encode_all(ground.features / "ranking_examples" / "training", ground.encoder.encode_ranking)


def train(
    ground: Ground,
    name: str,
    examples: Mapping[str, np.ndarray],
    *,
    hidden_units: Sequence[int],
    powers: bool,
) -> Any:
    """A ranker, its epoch chosen on the tuning day.

    Args:
        ground: what it is trained on.
        name: of the variant, for progress.
        examples: see `training_examples`.
        hidden_units: widths of the layers, bottom first.
        powers: see `ranking.RankingTower`.
    """
    import tensorflow as tf

    from watchnext.models import ranking, training

    tf.keras.backend.clear_session()
    training.start(ground.seed, deterministic=True)
    model, _ = ranking.train(
        examples,
        ground.encoder.ranking_features,
        vocabulary_sizes=ground.encoder.sizes,
        boundaries=ground.encoder.quantiles,
        hidden_units=hidden_units,
        powers=powers,
        seed=ground.seed,
        evaluate=lambda model: {"tuning_weighted_pairwise_loss": judge(ground, model, "tuning").mean},
        objective="tuning_weighted_pairwise_loss",
        where=f"{name} ({ground.place}, seed {ground.seed})",
        **TRAINING,
    )
    return model


def judge(ground: Ground, model: Any, split: str = "gate") -> PerUser:
    """Mispredicted and total watch time of the pairs of each user, in seconds: their quotient is the loss.

    Args:
        ground: whose day.
        model: the ranker.
        split: tuning, gate or shadow.
    """
    from watchnext.evaluation import metrics, offline
    from watchnext.models import ranking

    result, _ = offline.evaluate_ranking(
        lambda arrays: ranking.predict(model.tower, arrays),
        ground.encoder,
        ground.features / "ranking_examples" / split,
    )
    mispredicted_s, total_s = metrics.pairwise_losses(
        result.pair_scores, result.clicked, result.watch_time_s, result.groups
    )
    return per_user(mispredicted_s, result.user_ids, total_s)


def request_cpu_ms(model: Any, examples: Mapping[str, np.ndarray], directory: Path) -> float:
    """CPU time, in milliseconds, of ranking CANDIDATES impressions of one request, median of 100 requests."""
    from watchnext.models import ranking

    ranking.save(model, directory)
    ranker = ranking.load_ranker(directory / "ranker")
    query = {spec.name for spec in model.tower.served if spec.side == "query"}
    taken_ms = []
    for request in range(110):
        rows = np.arange(request, request + CANDIDATES) % len(examples["clicked"])
        asked = {
            spec.name: examples[spec.name][rows[:1] if spec.name in query else rows]
            for spec in model.tower.served
        }
        began = time.process_time()
        ranker(asked)
        taken_ms.append(1000.0 * (time.process_time() - began))
    # The first requests find nothing in the caches.
    return float(np.median(taken_ms[10:]))
