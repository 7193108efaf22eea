"""New users: demographics are priors where there is no history.

Section 3.3 of the paper: "Demographic features are important for providing priors so that the recommendations behave
reasonably for new users. The user's geographic region and device are embedded and concatenated. Simple binary and
continuous features such as the user's gender, logged-in state and age are input directly into the network."

One model with region, gender and age (in logs that have them also further columns of the user), one without any, and in
between with either; all with watches, searches and example age, trained alike. They are judged on the completed
watches of the gate and the shadow day by users who had completed no watch and searched nothing before. These are few; so
all events of both days are also judged with history and searches withheld, as if everybody were new (`_as_if_new`),
which is a thought experiment: who has a history is not like those who have none.

The dial turns `taste`, how much people differ in what they like: in this world gender and age say something of tastes and
nothing else, and so at 0 nothing. Region stays useful at 0: people hardly click on what is not in their language,
and no dial turns that.
"""

import numpy as np
import pyarrow as pa

from watchnext.evaluation.intervals import PerUser, per_user
from watchnext.studies._lab import Ground, Lab, Trained
from watchnext.studies._measures import Measures
from watchnext.studies._report import Claim, Result

WITHOUT, REGION, PERSON, WITH = (
    "without demographics",
    "with region",
    "with gender and age",
    "with all demographics",
)
ALWAYS = ("history", "search_tokens", "example_age_s")
PAST = ("history", "shown_unwatched", "search_tokens")
DAYS = ("gate", "shadow")

CLAIMS = (
    Claim("demographics help new users", WITH, WITHOUT, "map_new_users", vanishes=False),
    Claim("demographics find more of what new users watch", WITH, WITHOUT, "recall_at_100_new_users", vanishes=False),
    Claim("demographics help whoever shows no history", WITH, WITHOUT, "map_as_if_new", vanishes=False),
    Claim("so does region alone", REGION, WITHOUT, "map_as_if_new", vanishes=False),
    Claim("so do gender and age alone", PERSON, WITHOUT, "map_as_if_new"),
)  # fmt: skip


def run(lab: Lab) -> Result:
    """Train with and without demographics on every ground."""
    measures = Measures([(REGION, WITHOUT), (PERSON, WITHOUT), (WITH, WITHOUT)])
    notes: dict[str, str] = {}
    for ground in lab.grounds(lambda strength: {"taste": strength}):
        for variant, names in demographics(ground).items():
            trained = lab.train(ground, variant, inputs=(*ALWAYS, *names))
            measures.add(ground.source, ground.dial, variant, measure(ground, trained))
            notes[f"{ground.place}, {variant}"] = ", ".join(names) or "none"
    return Result(
        measures.rows(),
        notes=[f"Demographics, {where}: {names}." for where, names in notes.items()],
        dial="`taste`, what people differ in, and what gender and age tell of it",
    )


def demographics(ground: Ground) -> dict[str, tuple[str, ...]]:
    """Variant -> its inputs beyond `ALWAYS`; a variant that would be equal to one before it is left out."""
    names = [spec.name for spec in ground.encoder.retrieval_features]
    further = tuple(name for name in names if name.startswith("user_"))
    has = {name for name in ("region", "gender", "age") if name in names}
    wanted = {
        WITHOUT: (),
        REGION: tuple({"region"} & has),
        PERSON: tuple(name for name in ("gender", "age") if name in has),
        WITH: (*(name for name in ("region", "gender", "age") if name in has), *further),
    }
    kept: dict[str, tuple[str, ...]] = {}
    for variant, own in wanted.items():
        if own not in kept.values():
            kept[variant] = own
    return kept


def measure(ground: Ground, trained: Trained) -> dict[str, PerUser]:
    """MAP and recall on the events of new users, and of all users with their past withheld."""
    from watchnext.evaluation.metrics import label_ranks

    ranks, is_new, users = [], [], []
    for split in DAYS:
        table = ground.held_out(split)
        arrays = ground.encoder.encode_retrieval(table)
        past = [arrays[name] for name in ("history", "search_tokens") if name in arrays]
        is_new.append(~np.concatenate(past, axis=1).any(axis=1))
        queries = trained.embed(without_past(arrays))
        ranks.append(label_ranks(queries @ trained.candidate_embeddings.T, arrays["label"]))
        users.append(table["user_id"].combine_chunks())
    return summarise(np.concatenate(ranks), np.concatenate(is_new), pa.chunked_array(users))


def summarise(ranks: np.ndarray, is_new: np.ndarray, users: pa.ChunkedArray) -> dict[str, PerUser]:
    """Metrics of the events of new users, and of all of them.

    Args:
        ranks: int64 [num_events].
        is_new: bool [num_events].
        users: [num_events] user ids.
    """
    from watchnext.evaluation.metrics import average_precisions

    reciprocal = average_precisions(ranks)
    found = (ranks <= 100).astype(np.float64)
    user_ids, rows = users.combine_chunks(), np.flatnonzero(is_new)
    new_ids = user_ids.take(pa.array(rows))
    return {
        "map_new_users": per_user(reciprocal[rows], new_ids),
        "recall_at_100_new_users": per_user(found[rows], new_ids),
        "map_as_if_new": per_user(reciprocal, user_ids),
        "recall_at_100_as_if_new": per_user(found, user_ids),
    }


def without_past(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Encoded examples as they would be if their users had done nothing yet."""
    return {name: np.zeros_like(array) if name in PAST else array for name, array in arrays.items()}
