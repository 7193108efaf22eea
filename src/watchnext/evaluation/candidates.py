"""Judging the candidates of all sources together, and what they tell the ranker."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from watchnext.config import Exclude
from watchnext.evaluation import metrics
from watchnext.evaluation.offline import (
    EXCLUDED,
    REQUEST,
    Nominate,
    asked_at_us,
    excluded_lists,
    group_impressions,
    tables_of,
)
from watchnext.features.batches import OPENING, Encoder
from watchnext.index.scann import ScannSearcher
from watchnext.models.candidate_sources import SOURCES, Corpus, Tower, blend, load_sources, requests_by_day
from watchnext.models.nominations import FEATURES, Scorer, joined, local_days, read_impressions


def nominated_by(scorer: Scorer, features: Path, split: str) -> Nominate:
    """Adds what candidate generation says of a day's impressions; where requests are no pages, OPENING columns as well.

    Args:
        scorer: candidate generation of one training.
        features: outputs of the stage featurize.
        split: which the impressions are of.
    """
    zone = json.loads((features / "manifest.json").read_text(encoding="utf-8"))["time_zone"]

    def nominate(day: pa.Table) -> pa.Table:
        columns = dict(scorer.score(day, features, split))
        groups, kind = group_impressions(day, zone)
        if kind != REQUEST:
            _, first, group = np.unique(groups, return_index=True, return_inverse=True)
            opening = day["shown_at"].take(pa.array(first[group.reshape(-1)]))
            held = day.set_column(day.column_names.index("shown_at"), "shown_at", opening)
            columns |= {
                OPENING + name: column for name, column in scorer.score(held, features, split).items()
            }
        for name, column in columns.items():
            day = day.append_column(name, column)
        return day

    return nominate


def stored_scorer(
    encoder: Encoder, corpus: Corpus, quotas: Mapping[str, int], retrieval: Path, index: Path, tables: Path
) -> Scorer:
    """Candidate generation as the stages left it: the query tower through the index, and the sources beside it.

    Args:
        encoder: of the features that they were trained on.
        corpus: the videos.
        quotas: how many each source names.
        retrieval: holds `query_tower/`; in a bundle, the bundle.
        index: holds `scann/`, `rows.arrow` and candidate_embeddings.npy.
        tables: of the sources beside the tower.
    """
    from watchnext.models.towers import load_forward

    # What a server asks: rounded otherwise, another video would stand on the border of those that are named.
    query_tower = load_forward(str(retrieval / "query_tower"))
    embeddings = np.load(index / "candidate_embeddings.npy", allow_pickle=False)
    with pa.memory_map(str(index / "rows.arrow")) as opened:
        rows = corpus.rows(pa.ipc.open_file(opened).read_all()["video_id"])
    tower = Tower(corpus, ScannSearcher.load(index / "scann").search, embeddings, rows)
    sources = load_sources(corpus, tower, tables)
    return Scorer(sources, quotas, corpus, encoder, lambda arrays: query_tower(arrays)["embedding"])


def score_drift(
    scorer: Scorer, features: Path, scores: Path, block: Sequence[str], most: int
) -> dict[str, float]:
    """How far the scores that a ranker was trained on lie from those that it is served with.

    The impressions of the last block of training days were scored by models fitted on days before the block; here they
    are scored again by what is served, which has seen these days and their outcomes.

    Args:
        scorer: what is served.
        features: outputs of the stage featurize.
        scores: of the training split, as the stage nominate stored them.
        block: first and last day of the block.
        most: impressions to compare on, spread evenly over the block.

    Returns:
        For each score drift_NAME_mean, the difference of means in standard deviations of the block's scores;
        drift_NAME_sd, the ratio of standard deviations; drift_NAME_rank_correlation (Spearman's); and
        drift_candidate_sources_agreement, the share of pairs of impression and source that both say the same of.
    """
    zone = json.loads((features / "manifest.json").read_text(encoding="utf-8"))["time_zone"]
    (stored,) = joined(scores, iter([read_impressions(features, "training")]))
    days = local_days(stored["shown_at"], zone)
    inside = np.flatnonzero((days >= np.datetime64(block[0])) & (days <= np.datetime64(block[1])))
    chosen = inside[np.unique(np.linspace(0, len(inside) - 1, min(most, len(inside))).astype(np.int64))]
    before = stored.take(pa.array(chosen))
    now = scorer.score(before, features, "training")
    drift: dict[str, float] = {}
    for feature in FEATURES:
        if feature.source is None:
            both = [
                np.array([[name in one for name in SOURCES] for one in column.to_pylist()])
                for column in (before[feature.name], now[feature.name])
            ]
            drift[f"drift_{feature.name}_agreement"] = float((both[0] == both[1]).mean())
            continue
        old, new = (
            column.to_numpy(zero_copy_only=False) for column in (before[feature.name], now[feature.name])
        )
        known = np.isfinite(old) & np.isfinite(new)
        old, new = old[known], new[known]
        name = f"drift_{feature.name}"
        spread = float(old.std()) if len(old) else 0.0
        drift[f"{name}_mean"] = float((new.mean() - old.mean()) / spread) if spread else math.nan
        drift[f"{name}_sd"] = float(new.std() / spread) if spread else math.nan
        drift[f"{name}_rank_correlation"] = metrics.rank_correlation(old, new)
    return {name: value for name, value in drift.items() if math.isfinite(value)}


def evaluate_blend(
    scorer: Scorer,
    statistics: pa.Table,
    examples: Path,
    *,
    exclude: Exclude = "none",
    ks: tuple[int, ...] = (100, 200),
    max_events: int | None = None,
) -> dict[str, float]:
    """How often what users went on to watch is among the candidates of all sources together, and of each alone.

    Unlike ranks, the candidates of a blend have no order: it is for the ranker to make one.

    Args:
        scorer: the sources and their quotas, for each K in proportion.
        statistics: rows of `video_statistics` of the day of the examples.
        examples: directory of the examples.
        exclude: see `evaluate_retrieval`.
        ks: numbers of candidates.
        max_events: judge only so many, spread evenly over the day.

    Returns:
        blend_recall_at_K, and SOURCE_alone_recall_at_K of each source with a quota.
    """
    sources, quotas, corpus, encoder = scorer.sources, scorer.quotas, scorer.corpus, scorer.encoder
    names = [name for name, quota in quotas.items() if quota > 0 and name in sources]
    inputs = [spec.name for spec in encoder.retrieval_features]
    columns = ["user_id", "video_id", "watched_at", "asked_at", *inputs, *EXCLUDED[exclude]]
    hits: dict[str, list[np.ndarray]] = {}
    for table in tables_of(examples, columns, max_events):
        labels = corpus.rows(table["video_id"])
        at = asked_at_us(table)
        arrays = encoder.encode_retrieval(table)
        left_out = [
            np.split(
                corpus.rows(pc.list_flatten(column)), np.cumsum(pc.list_value_length(column).to_numpy())[:-1]
            )
            for column in excluded_lists(table, exclude, examples)
        ]
        days = requests_by_day(
            corpus, statistics, at, arrays, encoder.retrieval_features, scorer.query_tower(arrays)
        )
        for some, requests in days:
            excluded = [{int(row) for rows in left_out for row in rows[event]} - {-1} for event in some]
            named = {name: sources[name].retrieve(requests, max(ks), excluded)[0] for name in names}
            own = labels[some]
            for k in ks:
                for name, rows in named.items():
                    found = (rows[:, :k] == own[:, None]).any(axis=1) & (own >= 0)
                    hits.setdefault(f"{name}_alone_recall_at_{k}", []).append(found)
                blended = [
                    int(label) in blend({name: rows[event] for name, rows in named.items()}, quotas, k)
                    for event, label in enumerate(own)
                ]
                hits.setdefault(f"blend_recall_at_{k}", []).append(np.array(blended, bool))
    return {name: float(np.concatenate(found).mean()) for name, found in hits.items()}
