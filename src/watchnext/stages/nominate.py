"""Stage `nominate`: the candidate sources beside the query tower, and what all sources say of logged impressions.

The tables of the sources go into the bundle. The scores are inputs of the ranker: those of a training day come from models
that were fitted on days before it (`models/score_blocks.py`), those of the tuning day from what will be served.
"""

import json
from pathlib import Path

from pydantic import Field

from watchnext.config import RecommendParams, Section, TrainingParams
from watchnext.console import say


class Inputs(Section):
    """Section `nominate.inputs`: what the ranker learns of candidate generation."""

    candidate_sources: bool = True
    retrieval_score: bool = True
    co_watched_score: bool = True
    popular_score: bool = True
    channel_score: bool = True


class Params(Section):
    """Section `nominate` of params.yaml."""

    neighbours: int = Field(default=100, ge=1)
    watches_per_user: int = Field(default=200, ge=2)
    shrinkage: float = Field(default=5.0, ge=0)
    inputs: Inputs = Inputs()
    score_blocks: int = Field(default=2, ge=0)
    block_epochs: int = Field(default=2, ge=1)


def nominate(
    params: Params,
    recommend: RecommendParams,
    training: TrainingParams,
    seed: int,
    tables: Path,
    features: Path,
    retrieval: Path,
    index: Path,
    out_sources: Path,
    out_report: Path,
) -> dict[str, float | int | str]:
    """Fit the sources, and score the impressions of the training days and of the tuning day.

    Raises:
        InputError: the parts are not of one run, or there are no watches.
    """
    import datetime

    import numpy as np
    import pyarrow as pa

    from watchnext.data.split import day_begins_at
    from watchnext.evaluation.candidates import nominated_by, stored_scorer
    from watchnext.features.batches import ADDED_INPUTS, Encoder
    from watchnext.features.history import to_microseconds
    from watchnext.index.search import ExactSearcher
    from watchnext.models import candidate_sources as sources
    from watchnext.models import nominations, score_blocks
    from watchnext.models import training as fitting

    out_sources.mkdir(parents=True)
    out_report.mkdir(parents=True, exist_ok=True)
    encoder = Encoder.load(features)
    until = encoder.manifest["trained_until_at"]
    first, last = (datetime.date.fromisoformat(day) for day in encoder.manifest["days"]["training"])
    corpus = sources.read_corpus(encoder, features)
    watches = sources.CompletedWatches.read(tables, corpus)
    known = watches.before(to_microseconds(datetime.datetime.fromisoformat(until)))
    co_watch = params.model_dump(include={"neighbours", "watches_per_user", "shrinkage"})
    co_watched = sources.fit_co_watched(corpus, known.users, known.rows, **co_watch)
    co_watched.save(out_sources / "tables" / "co_watched")
    metrics: dict[str, float | int | str] = {
        "watches": len(known.users),
        "videos_with_neighbours": int((co_watched.neighbours[:, 0] >= 0).sum()),
        "neighbours_per_video": float((co_watched.neighbours >= 0).sum(axis=1).mean()),
    }

    inputs = [name for name, on in params.inputs.model_dump().items() if on]
    blocks = nominations.training_blocks(first, last, params.score_blocks) if inputs else []
    if not blocks:
        say(
            "nominate: the ranker learns nothing of candidate generation: switched off, or too few days of training"
        )
    else:
        quotas = recommend.sources.model_dump()
        trained = json.loads((retrieval / "manifest.json").read_text(encoding="utf-8"))
        shards = fitting.retrieval_shards(
            features / "retrieval_examples",
            score_blocks.dated(encoder, watches),
            trained["params"]["labels"],
            at_once=training.examples_in_memory,
            folder=out_sources.with_name(out_sources.name + ".shards.staging"),
            seed=seed,
        )
        examples = score_blocks.DatedExamples(shards)
        impressions = nominations.read_impressions(features, "training")
        day_of = nominations.local_days(impressions["shown_at"], encoder.manifest["time_zone"])
        parts = []
        for number, (begin, end) in enumerate(blocks, start=1):
            say(
                f"nominate: {begin} to {end} is scored by models of the days before, {number} of {len(blocks)}"
            )
            fitting.start(seed, deterministic=training.deterministic)
            scorer = score_blocks.fit_before(
                to_microseconds(day_begins_at(begin, encoder.manifest["time_zone"])),
                examples=examples,
                watches=watches,
                corpus=corpus,
                encoder=encoder,
                trained={**trained, "params": {**trained["params"], "epochs": params.block_epochs}},
                co_watch=co_watch,
                quotas=quotas,
                search_of=lambda embeddings: ExactSearcher(embeddings).search,
                seed=seed,
                where=f"nominate, block {number}",
            )
            rows = np.flatnonzero((day_of >= np.datetime64(begin)) & (day_of <= np.datetime64(end)))
            if scorer is not None:
                parts.append((rows, scorer.score(impressions.take(pa.array(rows)), features, "training")))
        shards.remove()
        columns = nominations.scattered(impressions.num_rows, parts)
        for name, column in columns.items():
            impressions = impressions.append_column(name, column)
        nominations.store(out_sources / "scores" / "training", impressions)
        metrics |= nominations.describe(columns)
        nominations.write_inputs(
            out_sources / ADDED_INPUTS, inputs, nominations.boundaries(columns, encoder.quantiles)
        )
        if encoder.manifest["days"]["tuning"]:
            shown = nominations.read_impressions(features, "tuning")
            served = stored_scorer(encoder, corpus, quotas, retrieval, index, out_sources / "tables")
            nominate_day = nominated_by(served, features, "tuning")
            nominations.store(out_sources / "scores" / "tuning", nominate_day(shown))
    manifest = {
        "format": 1,
        "trained_until_at": until,
        "params": params.model_dump(),
        "blocks": [[day.isoformat() for day in block] for block in blocks],
    }
    (out_sources / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    (out_report / "sources.json").write_text(json.dumps(metrics, indent=1) + "\n")
    return metrics
