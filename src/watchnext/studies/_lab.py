"""What studies are made of: worlds that are lived in, real logs, trainings, and both ways to measure them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from watchnext.console import say
from watchnext.data.simulate import logging_policy, run, write_tables
from watchnext.data.world import Dials, World, WorldSettings
from watchnext.errors import InputError
from watchnext.evaluation.intervals import PerUser, per_user
from watchnext.features.batches import Encoder, FeatureSpec, read_examples
from watchnext.studies._online import (
    Embed,
    Moment,
    Recorded,
    RetrievalPolicy,
    UserStates,
    WorldEncoder,
    watch_time,
)
from watchnext.studies._report import SIMULATED

DIALS = (0.0, 0.5, 1.0)
ALL_EXAMPLES = 1_000_000
HELD_OUT_DAYS = 3

Arrays = dict[str, np.ndarray]

INPUTS = ("history", "search_tokens", "region", "example_age_s")
"""Inputs that studies train with unless they say otherwise: those that a request of the simulated world shows, too."""

TRAINING: Mapping[str, Any] = {
    "embedding_dim": 32,
    "depth": 1,
    "watch_dropout": 0.3,
    "batch_size": 512,
    "negatives": 500,
    "learning_rate": 0.05,
    "epochs": 8,
    "patience": 2,
}
"""Settings of a training unless a study says otherwise; the rest are the defaults of `retrieval.train`."""


@dataclass(frozen=True)
class Settings:
    """How large a study is, and on what it runs.

    Attributes:
        data: folder of KuaiRand's original files; None leaves real logs out.
        simulated: whether the study runs in simulated worlds.
        users, videos, topics, days, pages_per_user_day: of each world; the last three days are held out.
        seeds: how many trainings of each variant; in the simulated world, how many worlds.
        online_days: how many days each model fills the pages.
    """

    data: Path | None = None
    simulated: bool = True
    users: int = 2_000
    videos: int = 2_000
    topics: int = 20
    days: int = 14
    pages_per_user_day: float = 1.0
    seeds: int = 3
    online_days: int = 5

    def __post_init__(self) -> None:
        if self.data is None and not self.simulated:
            raise InputError(
                "there is nothing to run the study on",
                where="--source kuairand",
                remedy="give the folder of KuaiRand's files by --data, or leave --source out",
            )
        if self.data is not None and not self.data.is_dir():
            raise InputError(
                "there is no such folder", where=str(self.data), remedy="give KuaiRand's by --data"
            )
        if self.days <= HELD_OUT_DAYS:
            raise InputError(f"{self.days} days leave none to train on", where="--days", remedy="at least 4")

    def shown(self) -> dict[str, Any]:
        """What a page says of it."""
        world = ("users", "videos", "topics", "days", "pages_per_user_day", "online_days")
        return {
            "sources": ", ".join(
                (["simulated"] if self.simulated else []) + (["kuairand"] if self.data is not None else [])
            ),
            "seeds": self.seeds,
            **({name: getattr(self, name) for name in world} if self.simulated else {}),
        }


class MakeFeatures(Protocol):
    """Takes logs through the stages `ingest` and `featurize`; handed in, since studies do not import stages."""

    def __call__(
        self, logs: Path, source: str, directory: Path, *, seed: int, examples_per_user: int
    ) -> Path:
        """Write below `directory`, and return the folder of the features."""


@dataclass(frozen=True)
class Ground:
    """Logs with their features, which models are trained and judged on; in the simulated world, more.

    Attributes:
        source: `simulated`, or the name of the logs.
        dial: strength of the mechanism, None on logs.
        seed: of the world and of what is trained on it.
        features: output of the stage featurize.
        encoder: its vocabularies.
        examples: the training examples as stored, those of one user not limited in number.
        arrays: the same, encoded.
        moment: the world at the end of the training days; None on logs.
    """

    source: str
    dial: float | None
    seed: int
    features: Path
    encoder: Encoder
    examples: pa.Table
    arrays: Arrays
    moment: Moment | None = None

    @property
    def users(self) -> np.ndarray:
        """int64 [num_examples], a number for the user of each training example."""
        codes = self.examples["user_id"].combine_chunks().dictionary_encode().indices
        return codes.to_numpy(zero_copy_only=False).astype(np.int64)

    @property
    def place(self) -> str:
        """Source and dial, for people."""
        return self.source if self.dial is None else f"{self.source}, dial {self.dial:g}"

    def held_out(self, split: str) -> pa.Table:
        """The examples of the day `tuning`, `gate` or `shadow`, as stored."""
        return pa.concat_tables(read_examples(self.features / "retrieval_examples" / split))

    def inputs(self, names: Sequence[str]) -> tuple[FeatureSpec, ...]:
        """The inputs of these names that the logs have, in the encoder's order."""
        return tuple(spec for spec in self.encoder.retrieval_features if spec.name in names)


@dataclass(frozen=True)
class Trained:
    """A trained retrieval model.

    Attributes:
        embed: its query tower; takes what the encoder makes, and adds what the study derives from it.
        inputs: what the encoder has to make.
        candidate_embeddings: float32 [V, embedding_dim], row r = vocabulary index r + 1.
        model: the model itself.
        best_epoch: the epoch that was kept.
    """

    embed: Embed
    inputs: tuple[FeatureSpec, ...]
    candidate_embeddings: np.ndarray
    model: Any
    best_epoch: int


def no_derived(arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Nothing is derived from the encoded inputs."""
    return arrays


@dataclass
class Lab:
    """Makes grounds, trains on them and measures.

    Attributes:
        settings: sizes and seeds.
        scratch: folder for logs and features, gone after the study.
        make_features: see `MakeFeatures`.
    """

    settings: Settings
    scratch: Path
    make_features: MakeFeatures
    _made: dict[Any, Ground] = field(default_factory=dict)

    def grounds(
        self,
        dials: Callable[[float], Mapping[str, float]],
        *,
        preset: str = "default",
        strengths: Sequence[float] = DIALS,
    ) -> Iterator[Ground]:
        """Every ground of a study: real logs once per seed, then worlds; see `worlds`."""
        if self.settings.data is not None:
            for seed in range(self.settings.seeds):
                yield self.kuairand(seed)
        yield from self.worlds(dials, preset=preset, strengths=strengths)

    def worlds(
        self,
        dials: Callable[[float], Mapping[str, float]],
        *,
        preset: str = "default",
        strengths: Sequence[float] = DIALS,
    ) -> Iterator[Ground]:
        """Worlds of each strength and seed; none where the settings leave the simulator out.

        Args:
            dials: strength of the mechanism -> dials of the world, see `data.world.Dials`.
            preset: of the worlds.
            strengths: of the mechanism.
        """
        if self.settings.simulated:
            for strength in strengths:
                for seed in range(self.settings.seeds):
                    yield self.world(strength, dials(strength), seed, preset=preset)

    def kuairand(self, seed: int = 0) -> Ground:
        """KuaiRand's logs; a seed has trainings of its own, on the same logs.

        Raises:
            InputError: there is no folder of them, or its files are not what they should be.
        """
        if self.settings.data is None:
            raise InputError("this part of the study needs real logs", remedy="--data with KuaiRand's folder")
        first = self._made.get("kuairand")
        if first is None:
            first = self._ground(self.settings.data, "kuairand", None, 0, self.scratch / "kuairand")
            self._made["kuairand"] = first
        return replace(first, seed=seed)

    def world(
        self, dial: float | None, dials: Mapping[str, float], seed: int, *, preset: str = "default"
    ) -> Ground:
        """A world after its days under the policy of the logs, with the features of its logs.

        Args:
            dial: strength of the mechanism, for the rows.
            dials: of the world.
            seed: other seeds give other worlds of the same kind.
            preset: of the world.
        """
        own = self.settings
        settings = WorldSettings(
            preset=preset,  # type: ignore[arg-type]
            users=own.users,
            videos=own.videos,
            topics=own.topics,
            days=own.days,
            pages_per_user_day=own.pages_per_user_day,
            dials=Dials(**dials),
        )
        say(
            f"study: a world with {', '.join(f'{name} {value:g}' for name, value in dials.items()) or 'default dials'}, "
            f"seed {seed}"
        )
        world = World(settings, 1_000 + seed)
        policy = logging_policy(world)
        state = run(world, policy, settings.burn_in_days).state
        users = UserStates(len(world.users.user_id), len(world.videos.video_id))
        training = run(world, Recorded(policy, users), own.days - HELD_OUT_DAYS, state)
        moment = Moment(world, training.state, users.copy())
        held_out = run(world, policy, HELD_OUT_DAYS, training.state)
        tables = dict(held_out.tables)
        for name in ("impressions", "watches", "searches"):
            if name in tables:
                tables[name] = pa.concat_tables([training.tables[name], held_out.tables[name]])
        number = len(list(self.scratch.glob("world-*")))
        directory = self.scratch / f"world-{number:03d}"
        write_tables(tables, directory / "logs")
        return self._ground(directory / "logs", SIMULATED, dial, seed, directory, moment)

    def _ground(
        self,
        logs: Path,
        source: str,
        dial: float | None,
        seed: int,
        directory: Path,
        moment: Moment | None = None,
    ) -> Ground:
        features = self.make_features(logs, source, directory, seed=seed, examples_per_user=ALL_EXAMPLES)
        encoder = Encoder.load(features)
        examples = pa.concat_tables(read_examples(features / "retrieval_examples" / "training"))
        return Ground(
            source, dial, seed, features, encoder, examples, encoder.encode_retrieval(examples), moment
        )

    def train(
        self,
        ground: Ground,
        name: str,
        *,
        arrays: Mapping[str, np.ndarray] | None = None,
        rows: np.ndarray | None = None,
        inputs: Sequence[str] = INPUTS,
        derived: Sequence[FeatureSpec] = (),
        derive: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] = no_derived,
        seed: int | None = None,
        tuning: str = "tuning",
        **changes: Any,
    ) -> Trained:
        """Train a retrieval model, its epoch chosen on the tuning day.

        Args:
            ground: what to train on.
            name: of the variant, for progress.
            arrays: training examples in place of the ground's own.
            rows: which of the examples; None for all.
            inputs: names of the inputs; those that the logs lack are left out.
            derived: further inputs.
            derive: adds them to encoded examples and requests.
            seed: of the training; None: the ground's.
            tuning: the split that the epoch is chosen on.
            changes: of `TRAINING`, and further arguments of `retrieval.train`.
        """
        import tensorflow as tf

        from watchnext.models import retrieval, training

        seed = ground.seed if seed is None else seed
        tf.keras.backend.clear_session()
        training.start(seed, deterministic=True)
        examples = dict(derive(ground.arrays if arrays is None else arrays))
        if rows is not None:
            examples = {key: array[rows] for key, array in examples.items()}
        encoded = ground.inputs(inputs)

        def embedder(model: Any) -> Embed:
            return lambda given: retrieval.embed_queries(model.query_tower, derive(given))

        def judge(model: Any) -> dict[str, float]:
            judged = next_day(ground, embedder(model), model.candidate_embeddings.numpy(), split=tuning)
            return {"tuning_map": judged["map"].mean}

        model, outcome = retrieval.train(
            examples,
            (*encoded, *derived),
            vocabulary_sizes=ground.encoder.sizes,
            seed=seed,
            evaluate=judge,
            objective="tuning_map",
            where=f"{name} ({ground.place}, seed {ground.seed})",
            **{**TRAINING, **changes},
        )
        return Trained(
            embedder(model), encoded, model.candidate_embeddings.numpy(), model, outcome.best_epoch
        )

    def measure(self, ground: Ground, trained: Trained) -> dict[str, PerUser]:
        """Both ways: `map` and `recall_at_100` of the gate day, and in a world its watch time."""
        measured = next_day(ground, trained.embed, trained.candidate_embeddings)
        if ground.moment is not None:
            measured |= self.online(ground, trained)
        return measured

    def online(
        self,
        ground: Ground,
        trained: Trained,
        searcher: Any = None,
        videos: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, PerUser]:
        """Watch time while the model fills the pages from the end of the training days on; see `watch_time`.

        Args:
            ground: a world.
            trained: the model.
            searcher: finds candidates; None for exact search.
            videos: name -> bool [num_videos], see `watch_time`.
        """
        from watchnext.index.search import ExactSearcher

        if ground.moment is None:
            raise ValueError("real logs cannot be lived on in")
        moment = ground.moment
        policy = RetrievalPolicy(
            moment.world,
            moment.users.copy(),
            WorldEncoder(moment.world, ground.encoder, trained.inputs),
            trained.embed,
            searcher or ExactSearcher(trained.candidate_embeddings),
        )
        return watch_time(moment, policy, self.settings.online_days, 5_000 + ground.seed, videos)


def next_day(ground: Ground, embed: Embed, candidates: Any, *, split: str = "gate") -> dict[str, PerUser]:
    """Offline metrics of one held-out day, what was watched before left out, as slates are served.

    Args:
        ground: whose day.
        embed: the query tower.
        candidates: candidate embeddings, or an index over them.
        split: tuning, gate or shadow.
    """
    from watchnext.evaluation.metrics import average_precisions
    from watchnext.evaluation.offline import evaluate_retrieval

    result = evaluate_retrieval(
        embed,
        candidates,
        ground.encoder,
        ground.features / "retrieval_examples" / split,
        exclude="watched",
    )
    return {
        "map": per_user(average_precisions(result.ranks), result.user_ids),
        "recall_at_100": per_user((result.ranks <= 100).astype(np.float64), result.user_ids),
    }


def at_most(users: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Rows of at most `limit` examples of each user, chosen at random, in ascending order.

    Args:
        users: [num_examples].
        limit: the paper's fixed number of examples per user.
        seed: of the choice.
    """
    order = np.lexsort((np.random.default_rng(seed).random(len(users)), users))
    grouped = users[order]
    place = np.arange(len(grouped)) - np.searchsorted(grouped, grouped)
    return np.sort(order[place < limit])
