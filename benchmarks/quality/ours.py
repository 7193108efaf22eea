"""This project's model: the stages' own features, training and candidate embeddings, judged like the peers.

python -m benchmarks.quality.ours --tables DIR --validation DAY DIR --test DAY DIR [--test ...] --work DIR --out DIR
"""

import argparse
import datetime as dt
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import CannotMeasure
from benchmarks.quality import measure
from benchmarks.quality.data import Logs
from benchmarks.quality.folds import Fold
from benchmarks.quality.tuning import say
from watchnext import config
from watchnext.data.split import SplitDays
from watchnext.engine import EngineParams
from watchnext.features.batches import Encoder, read_examples
from watchnext.stages import featurize, train_retrieval

NAME = "watchnext"
_LARGER: dict[str, Any] = {
    "head": "linear",
    "watch_dropout": 0.5,
    "shown_dropout": 0.5,
    "embedding_dim": 128,
    "batch_size": 1024,
    "in_batch_negatives": False,
    "epochs": 10,
}
CONFIGS: tuple[dict[str, Any], ...] = ({}, _LARGER, {**_LARGER, "averaged_passes": 1.0})
"""What is tried, as changes to params.yaml's `train_retrieval`: as many as the trained peers may try."""


class Day:
    """One fold with the project's features of the days before it.

    Args:
        logs: the validated tables.
        tables: their directory.
        day: the day that is predicted.
        fold: its events, as the peers have them.
        features: gets the output of the stage featurize.
        seed: of the run.
    """

    def __init__(self, logs: Logs, tables: Path, day: dt.date, fold: Fold, features: Path, seed: int) -> None:
        self.fold = fold
        before = [one for one in logs.days if one < day]
        split = SplitDays(training=(before[0], before[-1]), tuning=None, gate=day, shadow=None)
        featurize.featurize(
            config.load_section("featurize", featurize.Params),
            config.load_section("engine", EngineParams),
            seed,
            tables,
            features,
            features.with_name(features.name + "-report"),
            split=split,
        )
        self.encoder = Encoder.load(features)
        self._stored, self._seed = features / "retrieval_examples", seed
        self._training: tuple[Any, dict[str, np.ndarray]] | None = None
        self.events = self._encoded_events(logs, features)
        tokens = self.encoder.vocabularies["video"].tokens.to_numpy(zero_copy_only=False)
        self.code = np.searchsorted(logs.video_ids, tokens)
        """[V of the model] video code of each row of the candidate embeddings."""

    def _encoded_events(self, logs: Logs, features: Path) -> dict[str, np.ndarray]:
        table = pa.concat_tables(read_examples(features / "retrieval_examples" / "gate"))
        user = np.searchsorted(logs.user_ids, table["user_id"].to_numpy())
        video = np.searchsorted(logs.video_ids, table["video_id"].to_numpy())
        at = table["watched_at"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
        stored = {
            key: row for row, key in enumerate(zip(user.tolist(), video.tolist(), at.tolist(), strict=True))
        }
        fold = self.fold
        wanted = zip(
            fold.event_user.tolist(), fold.event_item.tolist(), fold.event_at_us.tolist(), strict=True
        )
        try:
            rows = [stored[key] for key in wanted]
        except KeyError as error:
            raise CannotMeasure(f"the stage featurize has no example of the event {error}") from None
        return self.encoder.encode_retrieval(table.take(rows))

    def training(self, labels: train_retrieval.Labels) -> dict[str, np.ndarray]:
        """The training examples with these labels; the last ones asked for are kept."""
        from watchnext.models import training as fitting

        if self._training is None or self._training[0] != labels:
            self._training = None  # Let go before the next are made: they are the largest thing here.
            further = partial(
                fitting.with_further_examples, stored=self._stored, seed=self._seed, **labels.model_dump()
            )
            examples = fitting.encode_all(self._stored / "training", self.encoder.encode_retrieval, further)
            self._training = labels, examples
        return self._training[1]

    def scorer(self, model: Any) -> measure.Scorer:
        """Scores of the retrieval model at hand, by video code."""
        from watchnext.models import retrieval

        queries = retrieval.embed_queries(model.query_tower, self.events)
        candidates = model.candidate_embeddings.numpy()

        def score(begin: int, end: int) -> np.ndarray:
            scores = np.full((end - begin, self.fold.num_items), -np.inf, np.float32)
            scores[:, self.code] = queries[begin:end] @ candidates.T
            return scores

        return score

    def train(
        self, changed: dict[str, Any], seed: int, epochs: int | None
    ) -> tuple[Any, Any, list[np.ndarray]]:
        """Train as the stage train_retrieval does.

        Args:
            changed: settings that differ from params.yaml.
            seed: of the run.
            epochs: train exactly so many; None: until the day stops improving, and keep the ranks of every epoch.

        Returns:
            The model, its training, and per epoch the ranks of the day's events.
        """
        from watchnext.models import retrieval
        from watchnext.models import training as fitting

        params = config.load_section("train_retrieval", train_retrieval.Params)
        params = train_retrieval.Params.model_validate({**params.model_dump(), **changed})
        ranks: list[np.ndarray] = []

        def evaluate(model: Any) -> dict[str, float]:
            if epochs is not None:
                return {}
            ranks.append(measure.ranks_by_filter(self.fold, self.scorer(model)))
            by_filter = measure.metrics_by_filter(ranks[-1])
            return by_filter[measure.best_filter(by_filter, measure.OBJECTIVE)]

        fitting.start(seed, deterministic=True)
        settings = params.of_the_model()
        if epochs is not None:
            settings |= {"epochs": epochs, "patience": epochs}
        model, trained = retrieval.train(
            self.training(params.labels),
            [spec for spec in self.encoder.retrieval_features if params.inputs.wants(spec.name)],
            vocabulary_sizes=self.encoder.sizes,
            seed=seed,
            evaluate=evaluate,
            objective=measure.OBJECTIVE,
            where=NAME,
            **settings,
        )
        return model, trained, ranks


def tune(day: Day, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The configuration, epoch and filter with the most recall_at_100 on the validation day; and what was tried."""
    tried = []
    for changed in CONFIGS:
        begun = time.monotonic()
        _, trained, ranks = day.train(changed, seed, None)
        by_filter = measure.metrics_by_filter(ranks[trained.best_epoch - 1])
        filtered = measure.best_filter(by_filter, measure.OBJECTIVE)
        tried.append(
            {
                "config": changed,
                "passes": trained.best_epoch,
                "filter": filtered,
                "value": by_filter[filtered][measure.OBJECTIVE],
                "metrics": by_filter,
                "seconds": round(time.monotonic() - begun, 1),
            }
        )
        say(
            f"{NAME} {json.dumps(changed)}, pass {trained.best_epoch}: {measure.OBJECTIVE} {tried[-1]['value']:.4f}, "
            f"map {by_filter[filtered]['map']:.4f} ({filtered}), {tried[-1]['seconds']} s"
        )
    return max(tried, key=lambda one: one["value"]), tried


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=Path, required=True)
    parser.add_argument("--validation", nargs=2, required=True, metavar=("DAY", "DIR"))
    parser.add_argument("--test", nargs=2, action="append", default=[], metavar=("DAY", "DIR"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    logs = Logs(arguments.tables)

    def open_day(name: str, directory: str) -> Day:
        fold = Fold.load(Path(directory))
        features = arguments.work / f"features-{name}"
        return Day(logs, arguments.tables, dt.date.fromisoformat(name), fold, features, arguments.seed)

    chosen, tried = tune(open_day(*arguments.validation), arguments.seed)
    for place, (name, directory) in enumerate(arguments.test):
        day = open_day(name, directory)
        model, _, _ = day.train(chosen["config"], arguments.seed, chosen["passes"])
        np.save(arguments.out / f"ranks-{place}.npy", measure.ranks_by_filter(day.fold, day.scorer(model)))
    result = {"peer": NAME, "chosen": chosen, "tried": tried}
    (arguments.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
