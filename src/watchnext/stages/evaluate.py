"""Stage `evaluate`: models, index and baselines on the gate day, which no choice before it has looked at."""

import dataclasses
import json
from pathlib import Path

from pydantic import Field

from watchnext.config import RecommendParams, Section
from watchnext.console import print_table, say


class Params(Section):
    """Section `evaluate` of params.yaml."""

    largest_k: int = Field(default=200, ge=2)
    blend_events: int = Field(default=5_000, ge=1)
    drift_impressions: int = Field(default=20_000, ge=2)
    parity_requests: int = Field(default=500, ge=1)


def evaluate(
    params: Params,
    recommend: RecommendParams,
    tables: Path,
    features: Path,
    retrieval: Path,
    index: Path,
    sources: Path,
    ranking: Path,
    out_report: Path,
) -> dict[str, float | int | str]:
    """Measure everything on the gate day.

    Raises:
        InputError: features and models are not of one run, or a model gives values that are not numbers.
    """
    import datetime

    import numpy as np

    from watchnext.evaluation import metrics, offline
    from watchnext.evaluation.candidates import evaluate_blend, nominated_by, score_drift, stored_scorer
    from watchnext.evaluation.plots import plot_recall_by_k, plot_reliability
    from watchnext.features.batches import ADDED_INPUTS, Encoder
    from watchnext.features.ranking_features import features_named
    from watchnext.index.scann import ScannSearcher
    from watchnext.models import nominations
    from watchnext.models.candidate_sources import Corpus, MostPopular, read_videos
    from watchnext.models.final_score import FinalScore
    from watchnext.models.new_videos import is_late, trained_until_us
    from watchnext.models.ranking import load_ranker
    from watchnext.models.retrieval import load_query_tower
    from watchnext.recommend.parity import compare_features

    out_report.mkdir(parents=True, exist_ok=True)
    encoder = Encoder.load(features).with_inputs(sources / ADDED_INPUTS)
    gate = encoder.manifest["days"]["gate"]
    if not gate:
        say("evaluate: the logs have too few days for a gate day; nothing is judged")
        return {"gate_day": "none"}
    day = datetime.date.fromisoformat(gate)

    events = features / "retrieval_examples" / "gate"
    tower = load_query_tower(retrieval / "query_tower")
    candidates = np.load(index / "candidate_embeddings.npy", allow_pickle=False)
    corpus = Corpus(encoder.vocabularies["video"], read_videos(features / "videos"))
    searcher = ScannSearcher.load(index / "scann")
    exclude = recommend.exclude
    model = offline.evaluate_retrieval(tower, candidates, encoder, events, corpus=corpus, exclude=exclude)
    indexed = offline.evaluate_retrieval(
        tower, searcher, encoder, events, corpus=corpus, exclude=exclude, depth=params.largest_k
    )
    of_vocabulary = offline.evaluate_retrieval(
        tower, candidates[: corpus.known], encoder, events, corpus=corpus, exclude=exclude
    )
    late_videos = is_late(corpus, trained_until_us(encoder.manifest))
    late = (model.labels >= 0) & late_videos[model.labels]
    unwatched = ~late & (model.labels >= corpus.known)
    popular = offline.evaluate_most_popular(
        MostPopular.from_statistics(features / "video_statistics", day), events, exclude=exclude
    )

    quotas = recommend.sources.model_dump()
    scorer = stored_scorer(encoder, corpus, quotas, retrieval, index, sources / "tables")
    blended = evaluate_blend(
        scorer,
        nominations.statistics_of(features / "video_statistics", day),
        events,
        exclude=exclude,
        max_events=params.blend_events,
    )

    impressions = features / "ranking_examples" / "gate"
    result, predicted = offline.evaluate_ranking(
        load_ranker(ranking / "ranker"),
        encoder,
        impressions,
        nominated_by(scorer, features, "gate"),
        FinalScore.of(recommend.model_dump(), encoder.quantiles),
    )
    expected_s = predicted["expected_watch_time_s"]
    blocks = json.loads((sources / "manifest.json").read_text(encoding="utf-8"))["blocks"]
    drift = (
        score_drift(scorer, features, sources / "scores" / "training", blocks[-1], params.drift_impressions)
        if blocks
        else {}
    )
    past = offline.evaluate_past_watch_time(
        features / "video_statistics", day, impressions, encoder.manifest["time_zone"]
    )
    parity = compare_features(
        tables,
        features,
        "gate",
        day,
        features_named(encoder.manifest["inputs"]["ranking"]),
        params.parity_requests,
        scorer,
    )
    if parity.mismatches:
        say(
            f"evaluate: serving makes {len(parity.mismatches)} of {parity.values} features otherwise than the pipeline"
        )
        print_table(
            f"{parity.requests} requests of the gate day",
            ("feature", "mismatches", "request_id", "video_id", "stored", "served"),
            [
                (name, number, first.request_id, first.video_id, first.stored, first.served)
                for name, number, first in parity.offenders()
            ],
        )
    manifest = json.loads((ranking / "manifest.json").read_text())
    trained = manifest["params"]
    odds = trained["odds"]
    bins = metrics.calibration(expected_s, result.clicked, result.watch_time_s)

    values: dict[str, float | int | str] = {
        "gate_day": gate,
        "events": len(model.ranks),
        "events_in_vocabulary": float(np.mean((model.labels >= 0) & (model.labels < corpus.known))),
        "events_ranked": float(np.mean(model.ranks != metrics.UNRANKED)),
        **model.metrics(),
        **{
            f"vocabulary_alone_{name}": value
            for name, value in of_vocabulary.metrics().items()
            if name in ("recall_at_100", "map")
        },
        **{
            f"{group}_{name}": value
            for group, which in (("late", late), ("unwatched", unwatched))
            for name, value in {
                "events": float(which.mean()),
                **(model.of(which).metrics() if which.any() else {}),
            }.items()
            if name in ("events", "recall_at_10", "recall_at_100", "precision_at_100", "map")
        },
        **{f"popular_7_days_{name}": value for name, value in popular.metrics().items()},
        **{
            f"with_index_{name}": value
            for name, value in indexed.metrics().items()
            if name.startswith("recall")
        },
        **blended,
        **drift,
        "index_recall_at_100": offline.index_recall(tower, searcher, candidates, encoder, events, 100),
        "feature_mismatches": len(parity.mismatches),
        "feature_requests": parity.requests,
        "impressions": len(result.scores),
        "pair_group": result.group_kind,
        **result.metrics(),
        **{f"past_watch_time_{name}": value for name, value in past.metrics().items()},
        "weighted_log_loss": metrics.weighted_log_loss(
            predicted["logit"],
            result.clicked,
            result.watch_time_s,
            unit_s=trained["unit_s"],
            cap_s=trained["cap_s"],
            odds=odds,
        ),
        # A calibrated ranker serves the expected watch time whatever the odds it learned.
        **metrics.calibration_ratios(
            expected_s,
            result.clicked,
            result.watch_time_s,
            odds="impressions" if manifest.get("calibration") is not None else odds,
        ),
        "watch_time_mae_s": float(np.abs(expected_s - result.watch_time_s).mean(dtype=np.float64)),
        "xauc": metrics.xauc(expected_s[result.clicked], result.watch_time_s[result.clicked]),
        **result.metrics_by_slice(),
    }
    plot_recall_by_k(
        {"model": model.ranks, "model through the index": indexed.ranks, "popular_7_days": popular.ranks},
        min(params.largest_k, len(candidates)),
        out_report / "recall_by_k.png",
    )
    plot_reliability(bins, out_report / "reliability.png")
    report = {
        "metrics": values,
        "reliability": {name: array.tolist() for name, array in bins.items()},
        "feature_mismatches": {
            name: {"mismatches": number, "first": dataclasses.asdict(first)}
            for name, number, first in parity.offenders()
        },
    }
    (out_report / "evaluation.json").write_text(json.dumps(report, indent=1, default=str) + "\n")
    print_table(
        f"gate day {gate}",
        ("metric", "model", "baseline"),
        [
            (name, f"{values[name]:.4f}", f"{values[baseline + name]:.4f}")
            for baseline, names in (
                ("popular_7_days_", ("recall_at_10", "recall_at_100", "map")),
                ("past_watch_time_", ("weighted_pairwise_loss", "auc")),
            )
            for name in names
        ],
    )
    return values
