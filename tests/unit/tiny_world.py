"""A world with one right answer, and bundles that know it or do not.

Videos have a place in a ring, and every user watches them in order, two a day, each user from another place: the
next watch is always the video after the last one. An impression's watch time depends on the video alone. So a
query tower that steps forward is right, and a ranker that looks the video's watch time up is right. User u watches
11 u minutes after 1 o'clock, is shown a page 3 hours later and watches again an hour after that.
"""

import datetime as dt
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from watchnext.bundle import Bundle, write_bundle
from watchnext.config import RecommendParams
from watchnext.engine import EngineParams
from watchnext.features.batches import Encoder, FeatureSpec
from watchnext.models.candidate_sources import Corpus, fit_co_watched
from watchnext.stages.featurize import Params, featurize

USERS = 40
VIDEOS = 400
DAYS = 8
FIRST_VIDEO = 1000
BEGIN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
SHADOW_DAY = (BEGIN + dt.timedelta(days=DAYS - 1)).date()
GATE_DAY = (BEGIN + dt.timedelta(days=DAYS - 2)).date()


def video_at(place: int) -> int:
    """The video at a place of the ring."""
    return FIRST_VIDEO + place % VIDEOS


def watch_time_s(video_id: int) -> float:
    """How long a clicked video is watched: not in the order of the ring."""
    return 10.0 + 5.0 * ((video_id * 37) % 101)


def write_tables(directory: Path) -> Path:
    """The validated tables of the world."""
    watches, impressions = [], []
    for day in range(DAYS):
        for user in range(USERS):
            at = BEGIN + dt.timedelta(days=day, hours=1, minutes=11 * user)
            for step in range(2):
                video = video_at(10 * user + 2 * day + step)
                watches.append((user, video, at + dt.timedelta(hours=4 * step), 60.0, True, "external"))
            for position in range(6):
                video = video_at(17 * user + 31 * day + 7 * position)
                clicked = position in (1, 3, 4)
                time_s = watch_time_s(video) if clicked else 0.0
                request = day * USERS + user
                shown_at = at + dt.timedelta(hours=3)
                impressions.append((request, video, user, shown_at, "home", position, clicked, time_s))
    instant = pa.timestamp("us", tz="UTC")
    tables = {
        "videos": pa.table(
            {
                "video_id": [FIRST_VIDEO + place for place in range(VIDEOS)],
                "channel_id": [place % 20 for place in range(VIDEOS)],
                "topics": [[f"topic {place % 7}"] for place in range(VIDEOS)],
                "duration_s": [100.0 + place for place in range(VIDEOS)],
                "uploaded_at": pa.array([BEGIN - dt.timedelta(days=9)] * VIDEOS, instant),
            }
        ),
        "users": pa.table(
            {"user_id": list(range(USERS)), "region": [f"region {user % 3}" for user in range(USERS)]}
        ),
        "watches": _table(
            watches,
            ("user_id", "video_id", "watched_at", "watch_time_s", "completed", "origin"),
            "watched_at",
        ),
        "impressions": _table(
            impressions,
            (
                "request_id",
                "video_id",
                "user_id",
                "shown_at",
                "surface",
                "position",
                "clicked",
                "watch_time_s",
            ),
            "shown_at",
        ),
    }
    for name, table in tables.items():
        (directory / name).mkdir(parents=True)
        pq.write_table(table, directory / name / "part-00000.parquet")
    source = {
        "source": "simulated",
        "time_zone": "UTC",
        "digest": "a" * 64,
        "tables": {},
        "absent_tables": [],
    }
    (directory / "source.json").write_text(json.dumps(source), encoding="utf-8")
    return directory


def _table(rows: Sequence[tuple[object, ...]], names: Sequence[str], instant: str) -> pa.Table:
    columns = dict(zip(names, (list(column) for column in zip(*rows, strict=True)), strict=True))
    columns[instant] = pa.array(columns[instant], pa.timestamp("us", tz="UTC"))
    return pa.table(columns)


def write_features(tables: Path, directory: Path) -> Path:
    """The world's features, by the stage itself."""
    featurize(Params(), EngineParams(), 1, tables, directory, directory.with_name(directory.name + "-report"))
    return directory


def write_models(
    directory: Path,
    features: Path,
    *,
    steps: int = 1,
    watch_time_sign: float = 1.0,
    first: int | None = None,
) -> dict[str, Path]:
    """Outputs of the training stages as they would be, with models that are made by hand.

    Args:
        directory: where to.
        features: of the world.
        steps: how far the query tower steps along the ring; 1 is right.
        watch_time_sign: 1 for a ranker that is right, -1 for one that is upside down.
        first: a video that the ranker puts first in every slate.
    """
    import tensorflow as tf

    from watchnext.index.scann import ScannSearcher

    encoder = Encoder.load(features)
    tokens = encoder.vocabularies["video"].tokens.to_pylist()
    size = len(tokens)
    index_of = {token: index for index, token in enumerate(tokens, start=1)}
    following = np.zeros(size + 1, np.int32)
    expected = np.zeros(size + 1, np.float32)
    for token, index in index_of.items():
        following[index] = index_of.get(video_at(token - FIRST_VIDEO + steps), 0)
        expected[index] = 300.0 + watch_time_sign * (watch_time_s(token) - 300.0)
    if first is not None:
        expected[index_of[first]] = 2 * expected.max()

    class QueryTower(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.following = tf.Variable(following)

        def __call__(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            history = inputs["history"]
            length = tf.reduce_sum(tf.cast(history > 0, tf.int32), axis=1)
            last = tf.gather(history, tf.maximum(length - 1, 0), batch_dims=1)
            first, second = tf.gather(self.following, last), None
            second = tf.gather(self.following, first)
            embedding = tf.one_hot(first - 1, size) + 0.5 * tf.one_hot(second - 1, size)
            return {"embedding": embedding + 0.0 * tf.reduce_sum(inputs["example_age_s"])}

    class Ranker(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.expected = tf.Variable(expected)

        def __call__(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            time_s = tf.gather(self.expected, inputs["video_id"])
            return {"expected_watch_time_s": time_s, "logit": tf.math.log(time_s)}

    parts = {name: directory / name for name in ("retrieval", "index", "ranking", "sources")}
    parts["features"] = features
    _save(QueryTower(), encoder.retrieval_features, parts["retrieval"] / "query_tower")
    _save(Ranker(), encoder.ranking_features, parts["ranking"] / "ranker")
    embeddings = np.eye(size, dtype=np.float32)
    np.save(parts["retrieval"] / "candidate_embeddings.npy", embeddings)
    ScannSearcher.build(embeddings, brute_force_below=10_000).save(parts["index"] / "scann")
    np.save(parts["index"] / "candidate_embeddings.npy", embeddings)
    table = pa.table({"row": np.arange(size), "video_id": tokens})
    with (
        pa.OSFile(str(parts["index"] / "rows.arrow"), "wb") as file,
        pa.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_table(table)
    until = encoder.manifest["trained_until_at"]
    _write_json(
        parts["retrieval"] / "manifest.json",
        inputs=[spec.name for spec in encoder.retrieval_features],
        embedding_dim=size,
        trained_until_at=until,
        params={"steps": steps},
    )
    _write_json(
        parts["ranking"] / "manifest.json",
        inputs=[spec.name for spec in encoder.ranking_features],
        trained_until_at=until,
        params={"sign": watch_time_sign},
    )
    _write_json(
        parts["index"] / "manifest.json", kind="scann_exact", vocabulary_rows=size, embedding_dim=size
    )
    corpus = Corpus(encoder.vocabularies["video"], pq.read_table(features / "videos"))
    users = np.repeat(np.arange(USERS), 2 * (DAYS - 3))
    watched = [video_at(10 * user + step) for user in range(USERS) for step in range(2 * (DAYS - 3))]
    co_watched = fit_co_watched(corpus, users, corpus.rows(pa.array(watched)))
    co_watched.save(parts["sources"] / "tables" / "co_watched")
    _write_json(parts["sources"] / "manifest.json", trained_until_at=until)
    return parts


def make_bundle(
    directory: Path,
    features: Path,
    *,
    steps: int = 1,
    watch_time_sign: float = 1.0,
    first: int | None = None,
    recommend: Mapping[str, Any] | None = None,
) -> Bundle:
    """A bundle of hand-made models, see `write_models`, with the default settings `recommend`."""
    parts = write_models(
        directory / "parts", features, steps=steps, watch_time_sign=watch_time_sign, first=first
    )
    return write_bundle(directory / "bundle", **parts, recommend=recommend or RecommendParams().model_dump())


def as_format_1(bundle: Bundle, path: Path) -> Bundle:
    """A copy of a bundle as it was written before bundles had sources and settings of their own."""
    shutil.copytree(bundle.path, path)
    shutil.rmtree(path / "sources")
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    del manifest["recommend"]
    files = {name: entry for name, entry in manifest["files"].items() if not name.startswith("sources/")}
    (path / "manifest.json").write_text(
        json.dumps({**manifest, "format": 1, "files": files}), encoding="utf-8"
    )
    return Bundle.open(path)


def _save(model: object, specs: Sequence[FeatureSpec], path: Path) -> None:
    import tensorflow as tf

    signature = {}
    for spec in specs:
        shape = [None] if spec.length is None else [None, spec.length]
        dtype = tf.float32 if spec.kind == "continuous" else tf.int32
        signature[spec.name] = tf.TensorSpec(shape, dtype, name=spec.name)
    function = tf.function(model.__call__).get_concrete_function(**signature)  # type: ignore[operator]
    path.parent.mkdir(parents=True, exist_ok=True)
    tf.saved_model.save(model, str(path), signatures={"serving_default": function})


def _write_json(path: Path, **content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
