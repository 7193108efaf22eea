"""Stage `nominate`: the candidate sources beside the query tower, fitted on the training days."""

import json
from pathlib import Path

from pydantic import Field

from watchnext.config import Section


class Params(Section):
    """Section `nominate` of params.yaml."""

    neighbours: int = Field(default=100, ge=1)
    watches_per_user: int = Field(default=200, ge=2)
    shrinkage: float = Field(default=5.0, ge=0)


def nominate(
    params: Params, tables: Path, features: Path, out_sources: Path, out_report: Path
) -> dict[str, float | int | str]:
    """Fit the table of co-watched videos.

    Raises:
        InputError: there are no features or no watches.
    """
    import datetime

    import pyarrow as pa
    import pyarrow.parquet as pq

    from watchnext.features.batches import Encoder
    from watchnext.features.history import to_microseconds
    from watchnext.models import candidate_sources as sources

    out_sources.mkdir(parents=True)
    out_report.mkdir(parents=True, exist_ok=True)
    encoder = Encoder.load(features)
    videos = pa.concat_tables(
        [pq.read_table(part) for part in sorted((features / "videos").glob("*.parquet"))]
    )
    corpus = sources.Corpus(encoder.vocabularies["video"], videos)
    until = encoder.manifest["trained_until_at"]
    users, rows = sources.read_completed(
        tables, corpus, to_microseconds(datetime.datetime.fromisoformat(until))
    )
    co_watched = sources.fit_co_watched(corpus, users, rows, **params.model_dump())
    co_watched.save(out_sources / "tables" / "co_watched")
    manifest = {"format": 1, "trained_until_at": until, "params": params.model_dump()}
    (out_sources / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    metrics: dict[str, float | int | str] = {
        "watches": len(users),
        "videos_with_neighbours": int((co_watched.neighbours[:, 0] >= 0).sum()),
        "neighbours_per_video": float((co_watched.neighbours >= 0).sum(axis=1).mean()),
    }
    (out_report / "sources.json").write_text(json.dumps(metrics, indent=1) + "\n")
    return metrics
