"""Whether serving makes the features that the pipeline made: logged requests, asked again from users' states.

The pipeline computes features by tables, a server by `evaluate_request` from what it holds in memory. A model that
is trained on the one and asked with the other is judged by figures that nobody will see again where the two differ.
"""

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from watchnext.errors import InputError
from watchnext.features.history import Id, to_microseconds
from watchnext.features.ranking_features import (
    Feature,
    RequestContext,
    VideoStatistics,
    evaluate_request,
)
from watchnext.features.retrieval_examples import inputs_named
from watchnext.models.candidate_sources import Popularity, utc_day
from watchnext.models.nominations import Scorer, nominations
from watchnext.recommend.recommender import VideoTable, as_sources_see, popularity_of
from watchnext.recommend.state import UserStates

TOLERANCE = 1e-6
"""Of numbers with a fraction, relative to the stored value and never below this; ids, strings and counts are exact."""

PRODUCT_TOLERANCE = 1e-5
"""The same of scores of candidate generation, which are sums of float32 products: a batch adds them up in another order."""


@dataclass(frozen=True)
class Mismatch:
    """One value that serving would make otherwise."""

    feature: str
    request_id: Id
    video_id: Id
    stored: Any
    served: Any


@dataclass(frozen=True)
class Parity:
    """What a comparison found.

    Attributes:
        requests: how many were asked again.
        values: how many values were compared.
        mismatches: those that differ, in the order of features.
    """

    requests: int
    values: int
    mismatches: tuple[Mismatch, ...]

    def offenders(self) -> list[tuple[str, int, Mismatch]]:
        """Of each feature that differs its name, how often it does, and the first time; the most frequent first."""
        found: dict[str, list[Mismatch]] = {}
        for one in self.mismatches:
            found.setdefault(one.feature, []).append(one)
        return sorted(
            ((name, len(those), those[0]) for name, those in found.items()), key=lambda row: -row[1]
        )


def compare_features(
    tables: Path,
    features_dir: Path,
    split: str,
    day: datetime.date,
    features: Sequence[Feature],
    most_requests: int,
    scorer: Scorer | None = None,
) -> Parity:
    """Ask the requests of a day again, and compare with its stored examples.

    With candidate generation given, what it says of each impression is compared as well: as the stage nominate asks it, for
    all requests of the day at once from the table of requests, and as a server does, for one request from the user's state.
    Both ask the same models, since that is what a bundle holds; what the ranker was trained on comes from models of earlier
    days, which `evaluation.candidates.score_drift` compares with them.

    Args:
        tables: the validated tables.
        features_dir: what the stage featurize made of them.
        split: of the examples.
        day: that the split consists of.
        features: which to compare; those of training alone are not, since nobody asks for them.
        most_requests: so many requests at most, evenly spaced over the day.
        scorer: candidate generation; None: it is not compared.

    Raises:
        InputError: there are no examples, or the tables lack their impressions.
    """
    asked = [feature for feature in features if not feature.training_only]
    stored = _examples(features_dir / "ranking_examples" / split, asked, most_requests)
    logged = _logged(tables / "impressions", stored)
    pages: dict[Id, list[int]] = {}
    for place, request_id in enumerate(stored["request_id"].to_pylist()):
        pages.setdefault(request_id, []).append(place)

    keys = {name: stored[name].to_pylist() for name in ("video_id", "user_id", "shown_at")}
    states = UserStates.read(tables, set(keys["user_id"]))
    videos = VideoTable(_read(features_dir / "videos"))
    of_day = [("day", "=", day)]
    statistics = VideoStatistics.from_table(_read(features_dir / "video_statistics", of_day))
    expected = {feature.name: stored[feature.name].to_pylist() for feature in asked}
    popularity: Popularity | None = None
    if scorer is not None:
        nominated = scorer.score(stored, features_dir, split)
        expected |= {name: column.to_pylist() for name, column in nominated.items()}
        inputs = inputs_named([spec.name for spec in scorer.encoder.retrieval_features])

    found: dict[str, list[Mismatch]] = {name: [] for name in expected}
    for request_id, places in pages.items():
        video_ids = [keys["video_id"][place] for place in places]
        first = logged[request_id, video_ids[0]]
        user_id = keys["user_id"][places[0]]
        facts = states.facts_of(user_id)
        seeds = {one: logged[request_id, one].get("seed_video_id") for one in video_ids}
        request = RequestContext(
            user_id=user_id,
            at=keys["shown_at"][places[0]],
            surface=first.get("surface"),
            device=first.get("device"),
            logged_in=first.get("logged_in"),
            region=facts.region,
            age_years=facts.age_years,
            gender=facts.gender,
            user_columns=facts.columns,
            seeds={one: seed for one, seed in seeds.items() if seed is not None},
        )
        served = evaluate_request(
            asked, states.history(user_id), request, [videos.facts(one) for one in video_ids], statistics
        )
        if scorer is not None:
            begins_at = utc_day(to_microseconds(request.at))
            if popularity is None or popularity.begins_at != begins_at:
                popularity = popularity_of(scorer.corpus, statistics, begins_at)
            seen = as_sources_see(
                states.history(user_id), request, inputs, scorer.encoder, scorer.query_tower, popularity
            )
            rows = scorer.corpus.rows(pa.array(video_ids, scorer.corpus.video_ids.type))
            of = np.zeros(len(rows), np.int64)
            made = nominations(scorer.sources, scorer.quotas, seen, of, rows, scorer.corpus.known)
            served |= made.columns()
        for name, stored_values in expected.items():
            values = served[name].to_pylist()
            tolerance = PRODUCT_TOLERANCE if scorer is not None and name in nominated else TOLERANCE
            for row, place in enumerate(places):
                value = values[row if len(values) > 1 else 0]
                if not _same(stored_values[place], value, tolerance):
                    found[name].append(
                        Mismatch(name, request_id, video_ids[row], stored_values[place], value)
                    )
    mismatches = tuple(one for those in found.values() for one in those)
    return Parity(len(pages), stored.num_rows * len(expected), mismatches)


def _same(stored: Any, served: Any, tolerance: float) -> bool:
    stored, served = (None if value != value else value for value in (stored, served))
    if not isinstance(stored, float) or not isinstance(served, float):
        return bool(stored == served)
    if stored == served:
        return True
    is_count = stored.is_integer() and served.is_integer()
    return not is_count and math.isclose(stored, served, rel_tol=tolerance, abs_tol=tolerance)


def _examples(directory: Path, features: Sequence[Feature], most_requests: int) -> pa.Table:
    """The examples of evenly spaced requests, in stored order."""
    names = ["request_id", "video_id", "user_id", "shown_at", *(feature.name for feature in features)]
    request_ids = list(dict.fromkeys(_read(directory, columns=["request_id"])["request_id"].to_pylist()))
    places = np.unique(np.linspace(0, len(request_ids) - 1, min(most_requests, len(request_ids)), dtype=int))
    chosen = pa.array([request_ids[place] for place in places])
    return _dataset(directory).to_table(
        columns=list(dict.fromkeys(names)), filter=ds.field("request_id").isin(chosen)
    )


def _logged(directory: Path, examples: pa.Table) -> Mapping[tuple[Id, Id], dict[str, Any]]:
    """What the logs say of these impressions besides who saw what, by request and video."""
    data = _dataset(directory)
    names = ("request_id", "video_id", "surface", "device", "logged_in", "seed_video_id")
    rows = data.to_table(
        columns=[name for name in names if name in data.schema.names],
        filter=ds.field("request_id").isin(examples["request_id"].unique()),
    ).to_pylist()
    logged = {(row["request_id"], row["video_id"]): row for row in rows}
    keys = zip(examples["request_id"].to_pylist(), examples["video_id"].to_pylist(), strict=True)
    lost = [key for key in keys if key not in logged]
    if lost:
        raise InputError(
            f"{len(lost)} examples are of impressions that the logs do not have",
            where=str(directory),
            offenders=lost,
            remedy="the examples are of other logs: run `dvc repro`",
        )
    return logged


def _read(directory: Path, filters: Any = None, columns: Sequence[str] | None = None) -> pa.Table:
    parts = sorted(directory.glob("part-*.parquet"))
    if not parts:
        raise InputError("no table here", where=str(directory), remedy="run `dvc repro`, which makes it")
    kept = None if columns is None else list(columns)
    return pa.concat_tables([pq.read_table(part, filters=filters, columns=kept) for part in parts])


def _dataset(directory: Path) -> Any:
    return ds.dataset([str(part) for part in sorted(directory.glob("part-*.parquet"))], format="parquet")
