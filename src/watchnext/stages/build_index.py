"""Stage `build_index`: the candidate embeddings become the fastest ScaNN index that finds enough of brute force."""

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from watchnext.config import Section
from watchnext.console import say


class Params(Section):
    """Section `build_index` of params.yaml."""

    search: Literal["auto", "exact", "tree"] = "auto"
    brute_force_below: int = Field(default=5_000, ge=0)
    num_neighbors: int = Field(default=200, ge=1)
    recall_floor: float = Field(default=0.98, gt=0, le=1)
    num_leaves: int | None = Field(default=None, ge=1)
    leaf_shares: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        default=[0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7], min_length=1
    )
    reorder_factors: list[Annotated[float, Field(ge=1)]] = Field(default=[1.0, 2.0, 4.0, 8.0], min_length=1)
    soar_lambda: float | None = Field(default=1.5, gt=0)
    recall_queries: int = Field(default=1_000, ge=1)
    new_videos: bool = True
    new_video_shrinkage: float = Field(default=3.0, gt=0)
    level_events: int = Field(default=5_000, ge=1)


def build_index(
    params: Params, seed: int, model: Path, features: Path, out_index: Path, out_report: Path
) -> dict[str, float | int | str]:
    """Build and tune the index, store it, load it again and measure it.

    Raises:
        InputError: model and features are not of one run, or embeddings are not numbers.
    """
    import dataclasses
    import time

    import numpy as np
    import pyarrow as pa

    from watchnext.errors import InputError
    from watchnext.evaluation.index_tuning import tune_index
    from watchnext.evaluation.metrics import index_recall_at_k
    from watchnext.evaluation.offline import asked_at_us
    from watchnext.evaluation.plots import plot_index_frontier
    from watchnext.features.batches import Encoder, read_examples
    from watchnext.index.scann import ScannSearcher
    from watchnext.index.search import ExactSearcher
    from watchnext.models.candidate_sources import Corpus, read_videos
    from watchnext.models.new_videos import Levels, embed_new_videos, is_late, trained_until_us
    from watchnext.models.retrieval import load_query_tower

    out_index.mkdir(parents=True)
    out_report.mkdir(parents=True, exist_ok=True)
    encoder = Encoder.load(features)
    embeddings = np.load(model / "candidate_embeddings.npy", allow_pickle=False)
    corpus = Corpus(encoder.vocabularies["video"], read_videos(features / "videos"))
    if corpus.known != len(embeddings):
        raise InputError(
            f"{len(embeddings)} candidate embeddings for a vocabulary of {corpus.known} videos",
            where=f"{model} and {features}",
            remedy="they are not of the same run: run `dvc repro`",
        )
    has_tuning_day = bool(encoder.manifest["days"]["tuning"])
    if not has_tuning_day:
        say("build_index: there is no tuning day; the index is tuned and measured with training examples")
    split = "tuning" if has_tuning_day else "training"
    examples = pa.concat_tables(list(read_examples(features / "retrieval_examples" / split)))
    wanted = max(params.recall_queries, params.level_events)
    examples = examples.take(np.random.default_rng(seed).permutation(examples.num_rows)[:wanted])
    queries = load_query_tower(model / "query_tower")(encoder.encode_retrieval(examples))

    late = is_late(corpus, trained_until_us(encoder.manifest))
    levels, explained = Levels(), 0.0
    if params.new_videos and len(corpus) > corpus.known:
        embeddings, levels, explained = embed_new_videos(
            embeddings,
            corpus,
            encoder,
            read_videos(features / "videos"),
            shrinkage=params.new_video_shrinkage,
            # Training examples name no video outside the vocabulary, and would push them all out of sight.
            events=(queries, asked_at_us(examples), corpus.rows(examples["video_id"]))
            if has_tuning_day
            else None,
        )
    np.save(out_index / "candidate_embeddings.npy", embeddings)
    video_ids = corpus.video_ids[: len(embeddings)]
    queries = queries[: params.recall_queries]

    began = time.monotonic()
    tuned = {"search", "brute_force_below", "num_neighbors", "recall_floor", "num_leaves", "leaf_shares"}
    tuned |= {"reorder_factors", "soar_lambda"}
    tuning = tune_index(embeddings, queries, **params.model_dump(include=tuned))
    build_s = time.monotonic() - began
    if not tuning.reached:
        say(
            f"build_index: no tried setting of a tree finds {params.recall_floor:.1%} of the first "
            f"{params.num_neighbors}, so search is exact; try larger leaf_shares or reorder_factors"
        )
    tuning.searcher.save(out_index / "scann")
    # What is measured is what was stored.
    searcher = ScannSearcher.load(out_index / "scann")
    exact_rows, _ = ExactSearcher(embeddings).search(queries, 200)
    rows, _ = searcher.search(queries, 200)
    metrics: dict[str, float | int | str] = {
        f"index_recall_at_{k}": index_recall_at_k(rows, exact_rows, min(k, len(embeddings)))
        for k in (10, 100, 200)
    }
    latencies_ms = []
    for query in queries[:300]:
        began = time.perf_counter()
        searcher.search(query[np.newaxis], params.num_neighbors)
        latencies_ms.append(1000 * (time.perf_counter() - began))

    with pa.OSFile(str(out_index / "rows.arrow"), "wb") as sink:
        table = pa.table({"row": pa.array(np.arange(len(video_ids)), pa.int32()), "video_id": video_ids})
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    manifest = {
        "format": 1,
        "kind": searcher.kind,
        "rows": len(embeddings),
        "vocabulary_rows": corpus.known,
        "embedding_dim": embeddings.shape[1],
        "params": params.model_dump(),
        **metrics,
    }
    (out_index / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    metrics.update(
        {
            "index_kind": searcher.kind,
            "index_rows": len(embeddings),
            "new_videos": len(embeddings) - corpus.known,
            "late_videos": int(late[: len(embeddings)].sum()),
            "late_level": levels.late,
            "late_share_of_watches": levels.late_share,
            "unwatched_level": levels.unwatched,
            "unwatched_share_of_watches": levels.unwatched_share,
            "facts_explained_variance": explained,
            "index_leaves_to_search": searcher.leaves_to_search or 0,
            "index_reorder": searcher.reorder or 0,
            "index_recall_floor_reached": int(tuning.reached),
            "index_build_s": build_s,
            "index_latency_p50_ms": float(np.median(latencies_ms)),
            "index_latency_p99_ms": float(np.percentile(latencies_ms, 99)),
        }
    )
    if tuning.measured:
        exact = next(each for each in tuning.measured if each.is_exact)
        metrics["index_exact_latency_ms"] = exact.latency_ms
        metrics["index_tuned_latency_ms"] = tuning.measured[tuning.chosen].latency_ms
        plot_index_frontier(
            [(each.recall, each.latency_ms, each.is_exact) for each in tuning.measured],
            tuning.chosen,
            params.recall_floor,
            out_report / "frontier.png",
        )
    frontier = [dataclasses.asdict(each) for each in tuning.measured]
    report = {"metrics": metrics, "frontier": frontier, "chosen": tuning.chosen if frontier else None}
    (out_report / "index.json").write_text(json.dumps(report, indent=1) + "\n")
    return metrics
