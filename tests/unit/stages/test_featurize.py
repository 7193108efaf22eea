"""The stage as a whole: what it leaves, that it repeats to the byte, that both engines agree, and what it refuses."""

import csv
import datetime as dt
import hashlib
import json
import math
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "features"))

from random_logs import BEGIN, Rows, make_rows, write_rows

from watchnext.engine import EngineParams
from watchnext.errors import InputError
from watchnext.evaluation.offline import evaluate_ranking
from watchnext.features.batches import OPENING, Encoder, read_examples
from watchnext.features.quantiles import normalize
from watchnext.features.ranking_features import FEATURES, opening_features
from watchnext.stages.featurize import Params, VocabularySizes, featurize

SPLITS = ("training", "tuning", "gate", "shadow")


def run(
    rows: Rows,
    directory: Path,
    params: Params | None = None,
    engine: EngineParams | None = None,
    without: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Write logs, featurize them into `directory`/features and return the metrics."""
    shutil.rmtree(directory, ignore_errors=True)
    logs = write_rows(rows, directory / "logs", without=without)
    features, report = directory / "features", directory / "report"
    return featurize(params or Params(), engine or EngineParams(), 7, logs, features, report)


def digests(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def tables(directory: Path) -> dict[str, pa.Table]:
    """Every stored table, rows in stored order."""
    folders = sorted({path.parent for path in directory.rglob("part-*.parquet")})
    return {str(folder.relative_to(directory)): pa.concat_tables(read_examples(folder)) for folder in folders}


def assert_equal_rows(found: pa.Table, expected: pa.Table, where: str) -> None:
    """Ids, lists and counts exactly, floats to 1e-6, instants and the order of rows too."""
    assert found.column_names == expected.column_names, where
    assert found.num_rows == expected.num_rows, where
    for name in expected.column_names:
        pairs = zip(found[name].to_pylist(), expected[name].to_pylist(), strict=True)
        for row, (one, other) in enumerate(pairs):
            if isinstance(one, float) and isinstance(other, float) and not math.isnan(other):
                assert one == pytest.approx(other, rel=1e-6, abs=1e-9), (where, name, row)
            else:
                assert one == other, (where, name, row)


@pytest.fixture(scope="module")
def rows() -> Rows:
    return make_rows(4, users=12, videos=20, days=7, events_per_day=60)


@pytest.fixture(scope="module")
def featurized(rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    directory = tmp_path_factory.mktemp("featurized")
    metrics = run(rows, directory)
    return directory, metrics


def test_it_leaves_what_later_stages_read(rows: Rows, featurized: tuple[Path, dict[str, Any]]) -> None:
    directory, metrics = featurized
    features = directory / "features"
    assert sorted(path.name for path in features.iterdir()) == [
        "days.json",
        "manifest.json",
        "quantiles.json",
        "ranking_examples",
        "ranking_requests",
        "retrieval_examples",
        "video_statistics",
        "videos",
        "vocabularies",
    ]
    manifest = json.loads((features / "manifest.json").read_text())
    assert manifest["days"] == {
        "training": ["2026-03-01", "2026-03-04"],
        "tuning": "2026-03-05",
        "gate": "2026-03-06",
        "shadow": "2026-03-07",
    }
    assert manifest["trained_until_at"] == "2026-03-05T00:00:00+00:00"
    assert manifest["inputs"]["retrieval"] == [
        *("history", "shown_unwatched", "search_tokens", "region", "device", "gender", "logged_in", "age"),
        *("example_age_s", "user_plan"),
    ]
    assert manifest["inputs"]["ranking"] == [*(feature.name for feature in FEATURES), "user_column_plan"]
    assert manifest["absent_inputs"] == []
    shown = 0
    for split in SPLITS:
        table = pa.concat_tables(list(read_examples(features / "ranking_examples" / split)))
        days = {at.date().isoformat() for at in table["shown_at"].to_pylist()}
        allowed = manifest["days"][split]
        assert days <= ({allowed} if split != "training" else {f"2026-03-0{day}" for day in range(1, 5)})
        shown += table.num_rows
        assert metrics[f"ranking_examples_{split}"] == table.num_rows > 0
    assert shown == len(rows["impressions"])
    with (directory / "report" / "inputs.csv").open() as file:
        assert [row["input"] for row in csv.DictReader(file)] == manifest["inputs"]["ranking"]


def as_feed(impressions: list[dict[str, Any]], day: int) -> list[dict[str, Any]]:
    """The impressions, those of a day of March each in a request of its own."""
    return [
        {**row, "request_id": 1_000_000 + number} if row["shown_at"].day == day else row
        for number, row in enumerate(impressions)
    ]


def test_a_judged_day_without_pages_has_the_openings_too(rows: Rows, tmp_path: Path) -> None:
    run({**rows, "impressions": as_feed(rows["impressions"], 6)}, tmp_path)
    for split in SPLITS:
        for table in read_examples(tmp_path / "features" / "ranking_examples" / split):
            added = [name for name in table.column_names if name.startswith(OPENING)]
            assert len(added) == (len(opening_features(FEATURES)) if split == "gate" else 0)
    # Whatever is known of the user alone says nothing of which of the day's videos is clicked.
    encoder = Encoder.load(tmp_path / "features")
    of_user = [spec.name for spec in encoder.ranking_features if spec.side == "query"]
    assert {"user_click_rate", "recent_watches", "last_search_query", "user_column_plan"} <= set(of_user)
    live = {}
    for name in (*of_user, "seed_video_id"):

        def score(arrays: Mapping[str, np.ndarray], name: str = name) -> dict[str, np.ndarray]:
            values = np.nan_to_num(arrays[name].astype(np.float64))
            total = values.reshape(len(values), -1).sum(axis=1)
            return {"logit": total, "expected_watch_time_s": total}

        result, _ = evaluate_ranking(score, encoder, tmp_path / "features" / "ranking_examples" / "gate")
        metrics = result.metrics()
        assert metrics["weighted_pairwise_loss"] == 0.5, name
        live[name] = metrics["weighted_pairwise_loss_live_context"]
    assert live["user_click_rate"] != 0.5 != live["user_impressions"], "held, or it would tell"


def test_its_examples_can_be_encoded(featurized: tuple[Path, dict[str, Any]]) -> None:
    features = featurized[0] / "features"
    encoder = Encoder.load(features)
    table = next(read_examples(features / "retrieval_examples" / "training"))
    arrays = encoder.encode_retrieval(table)
    assert arrays["history"].shape == (table.num_rows, 50)
    assert arrays["search_tokens"].shape == (table.num_rows, 50)
    assert arrays["label"].min() >= 1, "labels of training are in the vocabulary"
    assert arrays["label"].max() <= encoder.sizes["video"]
    ranking = encoder.encode_ranking(next(read_examples(features / "ranking_examples" / "gate")))
    assert ranking["recent_watches"].shape[1] == 20
    assert {name for name, array in ranking.items() if array.dtype == np.float32} == {
        *(feature.name for feature in FEATURES if feature.kind == "continuous"),
        "clicked",
        "watch_time_s",
    }
    assert encoder.quantiles["user_impressions"].shape == (256,)


def test_equal_inputs_give_equal_bytes(
    rows: Rows, featurized: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Threads and the order of input rows have no part in it."""
    turned = {name: of[::-1] for name, of in rows.items()}
    run(turned, tmp_path / "again", engine=EngineParams(threads=1))
    assert digests(tmp_path / "again" / "features") == digests(featurized[0] / "features")
    assert digests(tmp_path / "again" / "report") == digests(featurized[0] / "report")


def test_buckets_of_users_change_nothing_but_the_parts(
    rows: Rows, featurized: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run(rows, tmp_path / "buckets", Params(events_per_bucket=300))
    parts = list(
        (tmp_path / "buckets" / "features" / "retrieval_examples" / "training").glob("part-*.parquet")
    )
    assert 2 <= len(parts) <= 4
    expected = tables(featurized[0] / "features")
    found = tables(tmp_path / "buckets" / "features")
    assert found.keys() == expected.keys()
    for name, table in expected.items():
        # Examples come bucket by bucket, in order within each; the other tables know no buckets.
        of_users = "examples" in name or "requests" in name
        keys = ("shown_at", "watched_at", "request_id", "user_id", "video_id") if of_users else ()
        order = [(key, "ascending") for key in keys if key in table.column_names]
        assert_equal_rows(
            found[name].sort_by(order) if order else found[name],
            table.sort_by(order) if order else table,
            name,
        )
    assert (tmp_path / "buckets" / "features" / "quantiles.json").read_text() == (
        featurized[0] / "features" / "quantiles.json"
    ).read_text()


def test_absent_inputs_are_left_out_and_said(
    rows: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without = (
        "searches",
        "history",
        "impressions.device",
        "users.region",
        "videos.language",
        "impressions.logged_in",
    )
    run(rows, tmp_path, without=without)
    encoder = Encoder.load(tmp_path / "features")
    expected = [
        *("search_tokens", "region", "device", "logged_in", "language"),
        *("last_search_query", "recent_search_tokens"),
    ]
    assert encoder.manifest["absent_inputs"] == expected
    assert not set(expected) & {name for names in encoder.manifest["inputs"].values() for name in names}
    assert not {"search_token", "region", "language", "device"} & set(encoder.sizes)
    assert (
        "no values for them: search_tokens, region, device, logged_in, language, last_search_query, recent_search_tokens"
        in capsys.readouterr().err.replace("\n", " ")
    )
    encoder.encode_ranking(next(read_examples(tmp_path / "features" / "ranking_examples" / "gate")))


def nulled(rows: Rows, table: str, column: str) -> Rows:
    return {**rows, table: [{**row, column: None} for row in rows[table]]}


@pytest.mark.parametrize(
    ("table", "column", "lost"),
    [
        ("impressions", "device", ["device"]),
        ("videos", "duration_s", ["duration_s"]),
        ("videos", "topics", ["topics", "watches_of_topic", "since_watch_of_topic_s"]),
        (
            "videos",
            "channel_id",
            [
                *("channel_id", "channel_click_rate", "channel_mean_watch_time_s"),
                *("watches_of_channel", "since_watch_of_channel_s"),
            ],
        ),
        ("impressions", "position", ["position"]),
        ("impressions", "seed_video_id", ["seed_video_id"]),
        ("users", "age_years", ["age", "age_years"]),
        ("users", "gender", ["gender"]),
    ],
)
def test_a_column_of_nulls_is_as_good_as_absent(
    rows: Rows, tmp_path: Path, table: str, column: str, lost: list[str]
) -> None:
    run(nulled(rows, table, column), tmp_path)
    encoder = Encoder.load(tmp_path / "features")
    assert encoder.manifest["absent_inputs"] == lost
    encoder.encode_ranking(next(read_examples(tmp_path / "features" / "ranking_examples" / "training")))


def test_odd_values_reach_the_model_as_numbers(rows: Rows, tmp_path: Path) -> None:
    """Infinite lengths, negative ages of videos, a constant, what training has no value for, and unseen categories."""
    lengths = (math.inf, 60.0, 10.5, None)
    uploads = (BEGIN, BEGIN + dt.timedelta(days=30), None)
    videos = [
        {**row, "duration_s": lengths[number % 4], "uploaded_at": uploads[number % 3]}
        for number, row in enumerate(rows["videos"])
    ]
    training_ends = BEGIN + dt.timedelta(days=4)
    users = [{**row, "age_years": 31.0} for row in rows["users"]]
    impressions = [
        {
            **row,
            "device": "unseen" if row["shown_at"] >= training_ends else row["device"],
            "logged_in": None if row["shown_at"] < training_ends else True,
            "position": row["position"] + 100 * (row["shown_at"] >= training_ends),
        }
        for row in rows["impressions"]
    ]
    run({**rows, "videos": videos, "users": users, "impressions": impressions}, tmp_path)
    encoder = Encoder.load(tmp_path / "features")
    assert "logged_in" not in encoder.manifest["inputs"]["ranking"], "training has no value for it"
    assert set(encoder.quantiles["age_years"]) == {31.0}
    examples = pa.concat_tables(list(read_examples(tmp_path / "features" / "ranking_examples" / "gate")))
    assert pc.min(examples["video_age_s"]).as_py() < 0
    assert pc.max(examples["duration_s"]).as_py() == math.inf
    arrays = encoder.encode_ranking(examples)
    assert not arrays["device"].any()
    assert not arrays["position"].any()
    for name in (spec.name for spec in encoder.ranking_features if spec.kind == "continuous"):
        edges = encoder.quantiles[name]
        assert np.isfinite(edges).all(), name
        normalized = normalize(arrays[name], edges)
        assert ((normalized >= 0) & (normalized < 1)).all(), name
    assert set(normalize(arrays["age_years"], encoder.quantiles["age_years"])) == {0.5}


def test_string_ids_stay_strings(tmp_path: Path) -> None:
    run(make_rows(4, users=8, days=5, events_per_day=40, strings=True), tmp_path)
    features = tmp_path / "features"
    assert pq.read_table(features / "vocabularies" / "video")["token"].type == pa.string()
    labels = Encoder.load(features).encode_retrieval(
        next(read_examples(features / "retrieval_examples" / "training"))
    )
    assert labels["label"].min() >= 1


def test_vocabularies_are_cut_to_size(rows: Rows, tmp_path: Path) -> None:
    metrics = run(rows, tmp_path, Params(vocabulary_sizes=VocabularySizes(video=5), examples_per_user=3))
    assert metrics["vocabulary_video"] == 5
    assert metrics["retrieval_examples_training"] <= 12 * 3
    table = pa.concat_tables(list(read_examples(tmp_path / "features" / "retrieval_examples" / "training")))
    assert len(set(table["video_id"].to_pylist())) <= 5
    gate = pa.concat_tables(list(read_examples(tmp_path / "features" / "retrieval_examples" / "gate")))
    assert len(set(gate["video_id"].to_pylist())) > 5, "held-out labels are kept whatever the vocabulary"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda rows: {**rows, "watches": [{**row, "completed": False} for row in rows["watches"]]},
            r"no watch was completed in the training days 2026-03-01 to 2026-03-04[\s\S]*where: watches.completed, "
            r"\d+ rows[\s\S]*what to do",
        ),
        (
            lambda rows: {
                **rows,
                "impressions": [
                    {**row, "clicked": False, "watch_time_s": 0.0} for row in rows["impressions"]
                ],
            },
            r"no impression was clicked in the training days[\s\S]*where: impressions.clicked[\s\S]*what to do",
        ),
        (
            lambda rows: {
                **rows,
                "impressions": [row for row in rows["impressions"] if row["shown_at"].day == 1],
            },
            r"too few days of logs: 1",
        ),
    ],
    ids=["no completed watch", "no click", "one day"],
)
def test_logs_that_cannot_train_are_refused(
    rows: Rows, tmp_path: Path, spoil: Callable[[Rows], Rows], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(spoil(rows), tmp_path)


def test_few_days_leave_out_splits_and_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(make_rows(4, days=2), tmp_path)
    assert sorted(path.name for path in (tmp_path / "features" / "ranking_examples").iterdir()) == [
        "gate",
        "training",
    ]
    manifest = json.loads((tmp_path / "features" / "manifest.json").read_text())
    assert manifest["days"]["tuning"] is None
    assert "there is no day for: tuning, shadow" in capsys.readouterr().err


def test_one_user_with_most_of_the_events(tmp_path: Path) -> None:
    """His events go through as everybody's: bags stay at their length, counts run on."""
    rows = make_rows(4, users=3, days=5, events_per_day=30)
    heavy = make_rows(5, users=1, videos=8, days=5, events_per_day=4000)
    for table in ("impressions", "watches"):
        for row in heavy[table]:
            shifted = {**row, "user_id": 99}
            if table == "impressions":
                shifted["request_id"] += 1_000_000
            rows[table].append(shifted)
    rows["users"].append({"user_id": 99, "region": "north", "age_years": None})
    metrics = run(rows, tmp_path, Params(events_per_bucket=1000, examples_per_user=40))
    assert metrics["retrieval_examples_training"] <= 40 * 4
    table = pa.concat_tables(list(read_examples(tmp_path / "features" / "ranking_examples" / "shadow")))
    counts = [
        count
        for count, user in zip(*(table[c].to_pylist() for c in ("user_impressions", "user_id")), strict=True)
        if user == 99
    ]
    before = sum(row["shown_at"].day < 5 for row in heavy["impressions"])
    assert min(counts) == before > 10_000
    assert {len(bag) for bag in table["recent_watches"].to_pylist()} <= set(range(21))
