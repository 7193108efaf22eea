"""A world as large as is wanted, without training: a real bundle, registered and champion, and users with a past.

Videos lie in clusters, users watch within a few of them. The query tower is made by hand: its query embedding is the mean
embedding of the last completed videos, passed through ReLU layers as wide as trained ones. The ranker has random weights:
what a request costs does not depend on what they are. Everything else is what the pipeline writes, in its formats.
"""

import dataclasses
import datetime as dt
import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from watchnext.config import RecommendParams, SourceQuotas
from watchnext.console import say
from watchnext.recommend.state import UserFacts
from watchnext.serving.events import Event, EventTable, id_of

NAME = "watchnext"
EMBEDDING_DIM = 64
HIDDEN_UNITS = (1024, 512, 256)
CANDIDATES = 200
"""Sum of the sources' quotas: how many videos the ranker scores for a request."""

_STAMP, _RANKER = "world.json", "ranker.json"
_DAY_US = 86_400_000_000
_VIDEOS_PER_CLUSTER = 200
_CHANNELS_PER_CLUSTER = 10
_NEIGHBOURS = 100
_TOPICS = [f"topic {number}" for number in range(200)]
_WORDS = [f"word{number}" for number in range(5000)]
_SURFACES, _DEVICES, _REGIONS = ("home", "up_next"), ("phone", "tv", "desktop"), ("north", "south", "east")
_LANGUAGES, _GENDERS = ("en", "de", "fr", "es"), ("f", "m")
_BATCH_USERS = 2_000


@dataclasses.dataclass(frozen=True)
class Size:
    """How large a world is.

    Attributes:
        videos: in the corpus.
        users: that have events.
        events: of a user, in the mean; how many one has is lognormal, at most 20 times as many.
        hidden_units: of the ranker.
        fixed_index: (leaves to search, candidates scored again) of the index; None: tuned by the stage's own code.
    """

    videos: int = 1_000_000
    users: int = 200_000
    events: int = 30
    hidden_units: tuple[int, ...] = HIDDEN_UNITS
    fixed_index: tuple[int, int] | None = None

    @property
    def clusters(self) -> int:
        return max(4, self.videos // _VIDEOS_PER_CLUSTER)


def make(project: Path, size: Size, versions: int = 1) -> Path:
    """A project folder with registered versions, the first one champion, and a filled user state.

    A folder that was made with the same size, within the last day, is taken as it is: videos and events age.

    Args:
        project: the folder.
        size: of the world.
        versions: how many versions are registered; they differ in the ranker's weights.

    Returns:
        `project`.
    """
    stamp = project / _STAMP
    wanted = json.dumps({**dataclasses.asdict(size), "versions": versions, "code": _code_digest()})
    now = dt.datetime.now(dt.UTC)
    if stamp.is_file():
        made = json.loads(stamp.read_text(encoding="utf-8"))
        if made["world"] == wanted and now - dt.datetime.fromisoformat(made["at"]) < dt.timedelta(days=1):
            return project
    for name in ("mlruns", "state", "parts"):
        shutil.rmtree(project / name, ignore_errors=True)
    project.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(7)
    at = int(now.timestamp()) * 1_000_000
    write_models(project / "parts", size, at, draw)
    say("world: models are written")
    register(project, project / "parts", size, versions)
    shutil.rmtree(project / "parts")
    say("world: versions are registered")
    fill_users(project / "state" / "users.db", size, at, draw)
    say("world: users have a past")
    stamp.write_text(json.dumps({"world": wanted, "at": now.isoformat()}), encoding="utf-8")
    return project


def _code_digest() -> str:
    """Of what decides which files a world has: this module, and how towers are saved."""
    from watchnext.models import forward

    sources = Path(__file__).read_bytes() + Path(forward.__file__).read_bytes()
    return hashlib.sha256(sources).hexdigest()[:12]


def embeddings_of(size: Size, draw: np.random.Generator) -> npt.NDArray[np.float32]:
    """Candidate embeddings [videos, EMBEDDING_DIM]: clusters, and a last component that says how popular a video is."""
    centres = draw.standard_normal((size.clusters, EMBEDDING_DIM), np.float32)
    embeddings = 0.5 * draw.standard_normal((size.videos, EMBEDDING_DIM), np.float32)
    embeddings += centres[np.arange(size.videos) % size.clusters]
    # The vocabulary is in the order of frequency, which falls with the rank as in logs.
    embeddings[:, -1] = -0.5 * np.log(np.arange(1, size.videos + 1, dtype=np.float32))
    return embeddings


def queries_of(
    embeddings: npt.NDArray[np.float32], size: Size, number: int, draw: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Query embeddings [number, EMBEDDING_DIM] of users of this world."""
    queries = np.stack([embeddings[_watched(size, 10, draw)].mean(axis=0) for _ in range(number)])
    queries[:, -1] = 1.0
    return queries


def _watched(size: Size, number: int, draw: np.random.Generator) -> npt.NDArray[np.int64]:
    """Rows of the videos that one user watches: of three clusters, the popular ones more often."""
    clusters = draw.integers(0, size.clusters, 3)
    within = size.videos // size.clusters
    depth = np.minimum(within - 1, (within * draw.random(number) ** 3).astype(np.int64))
    return depth * size.clusters + clusters[draw.integers(0, 3, number)]


def write_models(parts: Path, size: Size, at: int, draw: np.random.Generator) -> None:
    """What `write_bundle` puts together: the outputs of the stages that it takes, in folders of their names."""
    embeddings = embeddings_of(size, draw)
    write_features(parts / "features", size, at, draw)
    _write_retrieval(parts / "retrieval", parts / "features", embeddings)
    _write_index(parts / "index", embeddings, size, draw)
    _write_sources(parts / "sources", parts / "features", size, draw)


def write_features(directory: Path, size: Size, at: int, draw: np.random.Generator) -> None:
    """Vocabularies, quantiles, the tables `videos` and `video_statistics`, and the manifest."""
    from watchnext.features.batches import write_manifest
    from watchnext.features.quantiles import write_boundaries
    from watchnext.features.ranking_features import FEATURES
    from watchnext.features.retrieval_examples import INPUTS

    rows = np.arange(size.videos)
    channels = rows % size.clusters * _CHANNELS_PER_CLUSTER + draw.integers(
        0, _CHANNELS_PER_CLUSTER, size.videos
    )
    spaces: dict[str, pa.Array] = {
        "video": pa.array(rows + 1),
        "channel": pa.array(np.arange(size.clusters * _CHANNELS_PER_CLUSTER)),
        "topic": pa.array(_TOPICS),
        "language": pa.array(_LANGUAGES),
        "surface": pa.array(_SURFACES),
        "device": pa.array(_DEVICES),
        "region": pa.array(_REGIONS),
        "gender": pa.array(_GENDERS),
        "search_query": pa.array(_WORDS),
        "search_token": pa.array(_WORDS),
        "position": pa.array(np.arange(20)),
    }
    for space, tokens in spaces.items():
        table = pa.table(
            {
                "token": tokens,
                "index": pa.array(np.arange(1, len(tokens) + 1), pa.int32()),
                "frequency": np.maximum(1, 1_000_000 // np.arange(1, len(tokens) + 1)),
            }
        )
        _write(table, directory / "vocabularies" / space)
    # Of a year; what is new is rare and of every cluster.
    uploaded = at - (365 * _DAY_US * draw.random(size.videos)).astype(np.int64)
    of_video = [_topics_of(cluster) for cluster in range(size.clusters)]
    _write(
        pa.table(
            {
                "video_id": spaces["video"],
                "channel_id": channels,
                "topics": pa.array(of_video).take(pa.array(rows % size.clusters)),
                "duration_s": draw.lognormal(5.0, 1.0, size.videos),
                "uploaded_at": pa.array(uploaded, pa.timestamp("us", tz="UTC")),
                "language": pa.array(_LANGUAGES).take(
                    pa.array(draw.integers(0, len(_LANGUAGES), size.videos))
                ),
            }
        ),
        directory / "videos",
    )
    seen = np.flatnonzero(draw.random(size.videos) < 0.3)
    impressions = draw.integers(1, 2000, len(seen))
    clicks = (impressions * draw.random(len(seen)) * 0.2).astype(np.int64)
    day = dt.datetime.fromtimestamp(at / 1e6, dt.UTC).date()
    _write(
        pa.table(
            {
                "video_id": seen + 1,
                "channel_id": channels[seen],
                "day": pa.array([day] * len(seen), pa.date32()),
                "covered_days": np.full(len(seen), 7),
                "impressions": impressions,
                "clicks": clicks,
                "watch_time_ms": clicks * draw.integers(1_000, 200_000, len(seen)),
                "completed_watches": clicks // 2,
            }
        ),
        directory / "video_statistics",
    )
    continuous = [feature.name for feature in FEATURES if feature.kind == "continuous"]
    write_boundaries(
        {name: np.sort(draw.lognormal(3.0, 3.0, 256)).tolist() for name in continuous},
        directory / "quantiles.json",
    )
    write_manifest(
        directory / "manifest.json",
        source="simulated",
        time_zone="UTC",
        data_digest="0" * 64,
        days={},
        trained_until_at=_until(at),
        retrieval=[one.spec for one in INPUTS],
        ranking=[feature.spec for feature in FEATURES],
        absent_inputs=[],
    )


def _topics_of(cluster: int) -> list[str]:
    return [_TOPICS[(7 * cluster + step) % len(_TOPICS)] for step in range(1 + cluster % 3)]


def _until(at: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(at // 1_000_000, dt.UTC).replace(hour=0, minute=0, second=0)


def _write_retrieval(directory: Path, features: Path, embeddings: npt.NDArray[np.float32]) -> None:
    import tensorflow as tf

    from watchnext.features.batches import Encoder
    from watchnext.models.retrieval import QueryTower, save_query_tower

    encoder = Encoder.load(features)
    tower = QueryTower(
        encoder.retrieval_features,
        vocabulary_sizes=encoder.sizes,
        embedding_dim=EMBEDDING_DIM,
        depth=3,
        longest_example_age_s=86_400.0,
        head="linear",
    )
    numbers = {"unit": tf.float32, "continuous": tf.float32}
    tower(  # which so gets its weights
        {
            spec.name: tf.zeros([1, spec.length] if spec.length else [1], numbers.get(spec.kind, tf.int32))
            for spec in encoder.retrieval_features
        }
    )
    tower.tables["video"].table.assign(np.concatenate([np.zeros((1, EMBEDDING_DIM), np.float32), embeddings]))
    # x = relu(x) - relu(-x): the pooled history, which enters first, leaves as it came.
    both = np.concatenate([np.eye(EMBEDDING_DIM), -np.eye(EMBEDDING_DIM)], axis=1)
    for number, layer in enumerate(tower.tower.layers):
        kernel = np.zeros(layer.kernel.shape, np.float32)
        if number == 0:
            kernel[:EMBEDDING_DIM, : 2 * EMBEDDING_DIM] = both
        elif number < len(tower.tower.layers) - 1:
            kernel[: 2 * EMBEDDING_DIM, : 2 * EMBEDDING_DIM] = np.eye(2 * EMBEDDING_DIM)
        else:
            kernel[: 2 * EMBEDDING_DIM] = both.T[:, : EMBEDDING_DIM - 1]
        layer.kernel.assign(kernel)
    directory.mkdir(parents=True)
    save_query_tower(tower, directory / "query_tower")
    np.save(directory / "candidate_embeddings.npy", embeddings)
    _manifest(
        directory,
        features,
        inputs=[spec.name for spec in encoder.retrieval_features],
        embedding_dim=EMBEDDING_DIM,
    )


def write_ranking(directory: Path, features: Path, hidden_units: Sequence[int], seed: int) -> None:
    """A ranker with random weights, saved as the stage saves one; two folders above, how wide what it reads is."""
    import tensorflow as tf

    from watchnext.features.batches import Encoder
    from watchnext.models import ranking

    encoder = Encoder.load(features)
    tf.random.set_seed(seed)
    tower = ranking.RankingTower(
        encoder.ranking_features,
        vocabulary_sizes=encoder.sizes,
        boundaries=encoder.quantiles,
        hidden_units=hidden_units,
        dims_per_doubling=1.0,
        initial_logit=0.0,
        logit_bound=15.0,
        unit_s=10.0,
    )
    directory.mkdir(parents=True)
    (directory.parent.parent / _RANKER).write_text(json.dumps({"widths": tower.widths}), encoding="utf-8")
    ranking.save(
        ranking.RankingModel(tower, lambda logits, clicked, watch_time_s: tf.reduce_mean(logits)), directory
    )
    _manifest(
        directory, features, inputs=[spec.name for spec in encoder.ranking_features], params={"seed": seed}
    )


def ranker_operations(project: Path, candidates: int = CANDIDATES) -> float:
    """Floating-point operations of the ranker's products for one request: see `models.ranking.RankingTower`."""
    query, impression = json.loads((project / _RANKER).read_text(encoding="utf-8"))["widths"]
    hidden = json.loads(json.loads((project / _STAMP).read_text(encoding="utf-8"))["world"])["hidden_units"]
    above = sum(below * width for below, width in itertools.pairwise((*hidden, 1)))
    return 2.0 * (hidden[0] * (query + candidates * impression) + candidates * above)


def _write_index(
    directory: Path, embeddings: npt.NDArray[np.float32], size: Size, draw: np.random.Generator
) -> None:
    from watchnext.config import load_section
    from watchnext.evaluation.index_tuning import tune_index
    from watchnext.index.scann import ScannSearcher
    from watchnext.stages.build_index import Params

    directory.mkdir(parents=True)
    if size.fixed_index is None:
        tuned = {
            "brute_force_below",
            "num_neighbors",
            "recall_floor",
            "leaf_shares",
            "reorder_factors",
            "soar_lambda",
        }
        settings = load_section("build_index", Params).model_dump(include=tuned)
        queries = queries_of(embeddings, size, 300, draw)
        searcher = tune_index(embeddings, queries, **settings).searcher
    else:
        leaves, reorder = size.fixed_index
        searcher = ScannSearcher.build(embeddings, brute_force_below=0).tuned(
            leaves_to_search=leaves, reorder=reorder
        )
    searcher.save(directory / "scann")
    np.save(directory / "candidate_embeddings.npy", embeddings)
    rows = np.arange(len(embeddings))
    table = pa.table({"row": pa.array(rows, pa.int32()), "video_id": pa.array(rows + 1)})
    with (
        pa.OSFile(str(directory / "rows.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    (directory / "manifest.json").write_text(
        json.dumps(
            {"kind": searcher.kind, "vocabulary_rows": len(embeddings), "embedding_dim": EMBEDDING_DIM}
        )
    )


def _write_sources(directory: Path, features: Path, size: Size, draw: np.random.Generator) -> None:
    """Co-watched videos of the same cluster, and the inputs of the ranker that candidate generation makes."""
    from watchnext.models.nominations import FEATURES, write_inputs

    within = size.videos // size.clusters
    kept = min(_NEIGHBOURS, within - 1)
    steps = (np.arange(1, kept + 1) * max(1, (within - 1) // kept))[None, :]
    rows = np.arange(size.clusters * within)
    near = np.full((size.videos, _NEIGHBOURS), -1, np.int32)
    near[: len(rows), :kept] = (rows // size.clusters)[:, None] + steps
    near[: len(rows), :kept] %= within
    near[: len(rows), :kept] = near[: len(rows), :kept] * size.clusters + (rows % size.clusters)[:, None]
    similar = np.zeros((size.videos, _NEIGHBOURS), np.float32)
    similar[: len(rows), :kept] = -np.sort(-draw.random((len(rows), kept), np.float32), axis=1)
    tables = directory / "tables" / "co_watched"
    tables.mkdir(parents=True)
    np.save(tables / "neighbours.npy", near)
    np.save(tables / "similarities.npy", similar)
    scored = [feature.name for feature in FEATURES]
    edges = {
        feature.name: np.linspace(0.0, 50.0, 256).tolist()
        for feature in FEATURES
        if feature.source is not None
    }
    write_inputs(directory / "added_inputs.json", scored, edges)
    shutil.copy2(directory / "added_inputs.json", features / "added_inputs.json")  # for the ranker's encoder
    _manifest(directory, features)


def register(project: Path, parts: Path, size: Size, versions: int) -> None:
    """Bundles of these parts, as versions 1 to `versions` of the registry in `project`; the first is champion."""
    from watchnext.bundle import write_bundle
    from watchnext.decisions.gate import _register
    from watchnext.registry import Registry
    from watchnext.tracking import Tracker

    (project / "mlruns").mkdir(exist_ok=True)
    registry = Registry.open(project)
    run_id = Tracker.open(project).pipeline_run("1-1.00")
    quotas = SourceQuotas()
    assert sum(quotas.model_dump().values()) == CANDIDATES
    for number in range(1, versions + 1):
        write_ranking(parts / "ranking", parts / "features", size.hidden_units, number)
        bundle = write_bundle(
            parts / "bundle",
            features=parts / "features",
            retrieval=parts / "retrieval",
            index=parts / "index",
            ranking=parts / "ranking",
            sources=parts / "sources",
            recommend=RecommendParams(sources=quotas).model_dump(),
        )
        _register(registry, NAME, bundle, run_id)
        for name in ("bundle", "ranking"):
            shutil.rmtree(parts / name)
    give_role(project, "champion", 1)


def give_role(project: Path, role: str, number: int | None) -> None:
    """Let a version have a role in the registry, or nobody."""
    from watchnext.registry import Registry

    client = Registry.open(project)._client()
    if number is None:
        client.delete_registered_model_alias(NAME, role)
    else:
        client.set_registered_model_alias(NAME, role, str(number))


def fill_users(path: Path, size: Size, at: int, draw: np.random.Generator) -> None:
    """Users "1" to "N" with watches, impressions and searches of the last 30 days, by the store's own methods."""
    from watchnext.serving.user_store import SqliteUserStore

    store = SqliteUserStore(path)
    try:
        # In the order of the file's key: it then grows at its end.
        users = sorted(range(1, size.users + 1), key=str)
        for begin in range(0, len(users), _BATCH_USERS):
            some = users[begin : begin + _BATCH_USERS]
            store.add([event for user in some for event in _past(user, size, at, draw)])
            store.put_facts(
                {
                    str(user): UserFacts(_REGIONS[user % len(_REGIONS)], 18.0 + user % 60, _GENDERS[user % 2])
                    for user in some
                }
            )
    finally:
        store.close()


def _past(user: int, size: Size, at: int, draw: np.random.Generator) -> Iterator[Event]:
    number = int(min(20 * size.events, max(3, draw.lognormal(np.log(size.events) - 0.5, 1.0))))
    videos = (_watched(size, number, draw) + 1).tolist()
    instants = np.sort(at - (30 * _DAY_US * draw.random(number)).astype(np.int64)).tolist()
    kinds = draw.random(number).tolist()
    device, name = _DEVICES[user % len(_DEVICES)], str(user)
    for place, (video, when, kind) in enumerate(zip(videos, instants, kinds, strict=True)):
        table: EventTable
        row: dict[str, Any]
        if kind < 0.4:
            table = "watches"
            row = {"video_id": video, "watched_at": when, "watch_time_s": 60.0, "completed": kind < 0.3}
        elif kind < 0.95:
            table = "impressions"
            row = {
                "request_id": f"{user}-{place // 8}",
                "video_id": video,
                "shown_at": when,
                "clicked": kind < 0.5,
                "watch_time_s": 60.0 if kind < 0.5 else 0.0,
                "device": device,
                "logged_in": True,
            }
        else:
            table, row = "searches", {"searched_at": when, "query": _WORDS[video % len(_WORDS)]}
        yield Event(name, id_of(table, row), table, row)


def _write(table: pa.Table, directory: Path) -> None:
    directory.mkdir(parents=True)
    pq.write_table(table, directory / "part-00000.parquet", compression="zstd")


def _manifest(directory: Path, features: Path, **content: object) -> None:
    until = json.loads((features / "manifest.json").read_text(encoding="utf-8"))["trained_until_at"]
    (directory / "manifest.json").write_text(
        json.dumps({"trained_until_at": until, **content}), encoding="utf-8"
    )
