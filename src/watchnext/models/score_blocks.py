"""Models that score the impressions of a block of training days and were fitted on the days before it.

A ranker that is trained on scores of a model that has seen the outcome learns to trust them too much: the video that was
watched is a label of that model, and one of the user's co-watched pairs. So each block has a retrieval model of its own,
of the same recipe, and a co-watch table of its own.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from watchnext.features.batches import Encoder
from watchnext.models import retrieval
from watchnext.models.candidate_sources import (
    TOWER,
    Channels,
    CompletedWatches,
    Corpus,
    Fresh,
    Popular,
    Search,
    Tower,
    fit_co_watched,
)
from watchnext.models.nominations import Scorer
from watchnext.models.shards import Arrays, Shards

_ALWAYS = np.iinfo(np.int64).min


KNOWN_AT = "known_at"
"""Array of an example's shard: int64 microseconds, the end of the watch that is its label."""


def dated(encoder: Encoder, watches: CompletedWatches) -> Callable[[pa.Table], Arrays]:
    """What `Encoder.encode_retrieval` makes of training examples, with KNOWN_AT.

    A label that is none of `watches` counts as known when it began, or was shown.
    """
    ends = pd.Series(watches.ended, pd.MultiIndex.from_arrays([watches.users, watches.rows, watches.began]))
    ends = ends[~ends.index.duplicated(keep="last")]
    ended = ends.to_numpy()

    def encode(table: pa.Table) -> Arrays:
        arrays = encoder.encode_retrieval(table)
        users = pc.index_in(table["user_id"], value_set=watches.user_ids.cast(table["user_id"].type))
        began = table["watched_at"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
        began = pc.fill_null(began, _ALWAYS).to_numpy()
        labels = arrays["label"].astype(np.int64) - 1
        keys = [pc.fill_null(users, -1).to_numpy(), labels, began]
        place = ends.index.get_indexer(pd.MultiIndex.from_arrays(keys))
        return arrays | {KNOWN_AT: np.where(place >= 0, ended[place], began)}

    return encode


@dataclass(frozen=True)
class DatedExamples:
    """Training examples of candidate generation, and when each became known.

    Attributes:
        shards: as `dated` encodes them.
    """

    shards: Shards

    def before(self, instant: int) -> Shards:
        """Those known before an instant, in microseconds, as if that were the end of the logs."""

        def is_known(part: Arrays) -> npt.NDArray[np.bool_]:
            return part[KNOWN_AT] < instant

        names = [name for name in self.shards.names if name != KNOWN_AT]
        age = retrieval.EXAMPLE_AGE
        # Ages count back from the newest label; that is another one now.
        ages = (part[age][is_known(part)] for part in self.shards.parts()) if age in names else ()
        newest = min((of_part.min() for of_part in ages if len(of_part)), default=0)

        def as_then(part: Arrays) -> Arrays:
            arrays = {name: part[name] for name in names}
            return arrays | {age: arrays[age] - newest} if age in names else arrays

        return self.shards.where(is_known).through(as_then, names)


def fit_before(
    instant: int,
    *,
    examples: DatedExamples,
    watches: CompletedWatches,
    corpus: Corpus,
    encoder: Encoder,
    trained: Mapping[str, Any],
    co_watch: Mapping[str, Any],
    quotas: Mapping[str, int],
    search_of: Callable[[npt.NDArray[np.float32]], Search],
    seed: int,
    where: str,
) -> Scorer | None:
    """Candidate generation as it could have been fitted at an instant.

    Videos that nobody had completed by then have no score of the tower, as videos outside the vocabulary have none of the
    model that is served.

    Args:
        instant: microseconds.
        examples: of training.
        watches: all completed watches of the logs.
        corpus: the videos.
        encoder: of these features.
        trained: manifest of the retrieval model: its `inputs` and its `params`, the recipe.
        co_watch: keyword arguments of `fit_co_watched`.
        quotas: how many each source names.
        search_of: candidate embeddings -> search over them.
        seed: of the run.
        where: named in errors and progress.

    Returns:
        None where nothing was known by then.
    """
    known_examples = examples.before(instant)
    if not known_examples.num_rows:
        return None
    taken = inspect.signature(retrieval.train).parameters
    recipe = {name: value for name, value in trained["params"].items() if name in taken}
    model, _ = retrieval.train(
        known_examples,
        [spec for spec in encoder.retrieval_features if spec.name in trained["inputs"]],
        vocabulary_sizes=encoder.sizes,
        seed=seed,
        evaluate=lambda _: {},
        where=where,
        **recipe,
    )
    embeddings = model.candidate_embeddings.numpy()
    known = watches.before(instant)
    seen = np.zeros(len(embeddings), bool)
    seen[known.rows[(known.rows >= 0) & (known.rows < len(seen))]] = True
    tower = Tower(corpus, search_of(embeddings), embeddings, seen=seen)
    beside = (
        fit_co_watched(corpus, known.users, known.rows, **co_watch),
        Popular(corpus),
        Channels(corpus),
        Fresh(corpus),
    )
    return Scorer(
        {TOWER: tower, **{one.name: one for one in beside}},
        quotas,
        corpus,
        encoder,
        lambda encoded: retrieval.embed_queries(model.query_tower, encoded),
    )
