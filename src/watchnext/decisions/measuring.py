"""A bundle measured on the examples of a held-out day, so that two of them can be compared user by user."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from watchnext.bundle import Bundle
from watchnext.config import Exclude
from watchnext.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from watchnext.evaluation.intervals import Change, PerUser


_BASELINE_EVENTS = 5_000


class NotComparableError(Exception):
    """A champion cannot be measured on the present data; says why in one sentence."""


@dataclass(frozen=True)
class Events:
    """What a metric is the mean of, event by event.

    Attributes:
        values: float64 [num_events].
        weights: float64 [num_events]; the metric is sum(values) / sum(weights).
        user_ids: [num_events].
        video_ids: [num_events].
    """

    values: "np.ndarray"
    weights: "np.ndarray"
    user_ids: "pa.Array"
    video_ids: "pa.Array"


@dataclass(frozen=True)
class Measured:
    """A bundle on the examples of a day.

    Attributes:
        metrics: recall_at_K, map, weighted_pairwise_loss, auc, calibration and index_recall_at_100; of watches that no
            recommendation led to other_origins_recall_at_100, where the logs say which those are.
        per_user: what recall_at_100, map, weighted_pairwise_loss and calibration are the means of, by user.
        slices: the first and the third of them in each part of the day, by its name and then the metric's.
        events: the same by event, for intervals over users and videos.
    """

    metrics: Mapping[str, float]
    per_user: Mapping[str, "PerUser"]
    slices: Mapping[str, Mapping[str, "PerUser"]] = field(default_factory=dict)
    events: Mapping[str, Events] = field(default_factory=dict)

    def second_look(self, other: "Measured", confidence: float) -> dict[str, float]:
        """Ends of the intervals of `changes` where other videos would have been drawn as well as other users.

        Returns:
            change_NAME_users_by_videos_low and _high.
        """
        from watchnext.evaluation.intervals import two_way_change

        found: dict[str, float] = {}
        for name, own in self.events.items():
            ends = two_way_change(
                own.values,
                other.events[name].values,
                own.user_ids,
                own.video_ids,
                level=2 * confidence - 1,
            )
            found |= dict(
                zip(
                    (f"change_{name}_users_by_videos_low", f"change_{name}_users_by_videos_high"),
                    ends,
                    strict=True,
                )
            )
        return found

    def changes(self, other: "Measured", confidence: float) -> dict[str, "Change"]:
        """How much it differs from another bundle on the same examples: each end alone holds at `confidence`.

        Raises:
            NotComparableError: they were not judged on the same examples.
        """
        from watchnext.evaluation.paired import paired_change

        try:
            return {
                name: paired_change(own, other.per_user[name], level=2 * confidence - 1)
                for name, own in self.per_user.items()
            }
        except ValueError as error:
            raise NotComparableError(str(error)) from error


def measure(bundle: Bundle, features: Path, split: str, *, exclude: Exclude = "none") -> Measured:
    """Measure a bundle on the examples of a day.

    Args:
        bundle: whose models, index and vocabularies to use.
        features: outputs of featurize.
        split: `gate` or `shadow`.
        exclude: as for `evaluate`.
    """
    import numpy as np
    import pyarrow as pa

    from watchnext.evaluation import offline
    from watchnext.evaluation.candidates import nominated_by, stored_scorer
    from watchnext.evaluation.intervals import PerUser, per_user
    from watchnext.evaluation.metrics import average_precisions, calibration_ratios, pairwise_losses
    from watchnext.features.batches import Encoder
    from watchnext.index.scann import ScannSearcher
    from watchnext.models.candidate_sources import Corpus, read_videos
    from watchnext.models.final_score import FinalScore
    from watchnext.models.towers import load_signature

    encoder = Encoder.load(bundle.features)
    signature = load_signature(str(bundle.query_tower))
    candidates = np.load(bundle.index / "candidate_embeddings.npy", allow_pickle=False)
    events = features / "retrieval_examples" / split

    def query_tower(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return signature(arrays)["embedding"]

    # Of a bundle whose index ends with the vocabulary, labels beyond it are unranked, as it would serve them.
    corpus = Corpus(encoder.vocabularies["video"], read_videos(bundle.features / "videos"))
    retrieval = offline.evaluate_retrieval(
        query_tower, candidates, encoder, events, corpus=corpus, exclude=exclude
    )
    scorer = stored_scorer(
        encoder, corpus, bundle.recommend["sources"], bundle.path, bundle.index, bundle.sources
    )
    ranking, predicted = offline.evaluate_ranking(
        load_signature(str(bundle.ranker)),
        encoder,
        features / "ranking_examples" / split,
        nominated_by(scorer, features, split),
        FinalScore.of(bundle.recommend, encoder.quantiles),
    )
    searcher = ScannSearcher.load(bundle.index / "scann")
    values = {
        **retrieval.metrics((10, 100)),
        **ranking.metrics(),
        "calibration": calibration_ratios(
            predicted["expected_watch_time_s"], ranking.clicked, ranking.watch_time_s
        )["calibration"],
        "index_recall_at_100": offline.index_recall(query_tower, searcher, candidates, encoder, events, 100),
    }
    mispredicted, total = pairwise_losses(
        ranking.pair_scores, ranking.clicked, ranking.watch_time_s, ranking.groups
    )
    found = (retrieval.ranks <= 100).astype(np.float64)
    precision = average_precisions(retrieval.ranks)
    expected_s = predicted["expected_watch_time_s"].astype(np.float64)
    watched_s = np.where(ranking.clicked, ranking.watch_time_s, 0.0).astype(np.float64)

    def hits(of: np.ndarray) -> PerUser:
        return per_user(found[of], retrieval.user_ids.filter(pa.array(of)))

    def loss(of: np.ndarray) -> PerUser:
        of = of & (total > 0)
        return per_user(mispredicted[of], ranking.user_ids.filter(pa.array(of)), total[of])

    slices: dict[str, dict[str, PerUser]] = {}
    for name, of in offline.event_slices(events, features / "videos").items():
        slices.setdefault(name, {})["recall_at_100"] = hits(of)
    for name, of in ranking.slices.items():
        slices.setdefault(name, {})["weighted_pairwise_loss"] = loss(of)
    if "other_origins" in slices:
        values["other_origins_recall_at_100"] = slices["other_origins"]["recall_at_100"].mean
    everything = {
        "recall_at_100": hits(np.ones(len(found), bool)),
        "map": per_user(precision, retrieval.user_ids),
        "weighted_pairwise_loss": loss(np.ones(len(total), bool)),
        "calibration": per_user(expected_s, ranking.user_ids, watched_s),
    }
    pairs = total > 0
    labels, shown = (
        pa.concat_tables(offline.tables_of(features / kind / split, ["video_id"]))[
            "video_id"
        ].combine_chunks()
        for kind in ("retrieval_examples", "ranking_examples")
    )
    both = {
        "recall_at_100": Events(found, np.ones(len(found)), retrieval.user_ids, labels),
        "map": Events(precision, np.ones(len(found)), retrieval.user_ids, labels),
        "weighted_pairwise_loss": Events(
            mispredicted[pairs],
            total[pairs],
            ranking.user_ids.filter(pa.array(pairs)),
            shown.filter(pa.array(pairs)),
        ),
        "calibration": Events(expected_s, watched_s, ranking.user_ids, shown),
    }
    return Measured(values, everything, slices, both)


@contextlib.contextmanager
def about_the_champion() -> Iterator[None]:
    """Whatever fails in here is the champion's fault, and says that it cannot be compared with.

    Raises:
        NotComparableError: in place of what was raised.
    """
    try:
        yield
    except MemoryError:
        raise
    except InputError as error:
        offenders = ", ".join(str(offender) for offender in error.offenders)
        raise NotComparableError(error.what + (f" ({offenders})" if offenders else "")) from error
    except (
        Exception
    ) as error:  # TensorFlow and ScaNN raise what they like on files of other versions of theirs
        first = next(iter(str(error).splitlines()), "")
        raise NotComparableError(f"{type(error).__name__}: {first}") from error


def change_metrics(changes: Mapping[str, "Change"]) -> dict[str, float]:
    """`change_` of each metric with the ends of its interval, as metrics of a stage."""
    return {
        f"change_{name}{end}": value
        for name, change in changes.items()
        for end, value in (("", change.value), ("_low", change.low), ("_high", change.high))
    }


def popular_recall(features: Path, day: date, exclude: Exclude) -> dict[str, float]:
    from watchnext.evaluation import offline
    from watchnext.models.candidate_sources import MostPopular

    popular = MostPopular.from_statistics(features / "video_statistics", day)
    result = offline.evaluate_most_popular(popular, features / "retrieval_examples" / "gate", exclude=exclude)
    return {"popular_7_days_recall_at_100": result.metrics((100,))["recall_at_100"]}


def co_watched_recall(bundle: Bundle, features: Path, day: date, exclude: Exclude) -> dict[str, float]:
    """Of the bundle's own table of what is watched together, which its own training days made; none without it."""
    import dataclasses

    from watchnext.evaluation.candidates import evaluate_blend, stored_scorer
    from watchnext.features.batches import Encoder
    from watchnext.models.candidate_sources import Corpus, read_videos
    from watchnext.models.nominations import statistics_of

    encoder = Encoder.load(bundle.features)
    corpus = Corpus(encoder.vocabularies["video"], read_videos(bundle.features / "videos"))
    scorer = stored_scorer(
        encoder, corpus, bundle.recommend["sources"], bundle.path, bundle.index, bundle.sources
    )
    found = evaluate_blend(
        dataclasses.replace(scorer, quotas={"co_watched": 1}),
        statistics_of(features / "video_statistics", day),
        features / "retrieval_examples" / "gate",
        exclude=exclude,
        ks=(100,),
        max_events=_BASELINE_EVENTS,
    )
    name = "co_watched_alone_recall_at_100"
    return {"co_watched_recall_at_100": found[name]} if name in found else {}
