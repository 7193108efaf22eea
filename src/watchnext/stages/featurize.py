"""Stage `featurize`: validated logs become vocabularies, quantiles and examples as of their instants, split by time."""

import datetime
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from pydantic import Field

from watchnext.config import Section
from watchnext.console import say
from watchnext.data.split import day_begins_at, rows_per_day, split_days, whole_days
from watchnext.engine import EngineParams, connect
from watchnext.errors import InputError
from watchnext.features.history import make_streams, read_logs, to_microseconds
from watchnext.features.quantiles import compute_boundaries, write_boundaries
from watchnext.features.ranking_features import FEATURES, possible_features, ranking_tables, video_statistics
from watchnext.features.retrieval_examples import (
    INPUTS,
    choose_training,
    possible_inputs,
    retrieval_examples,
    retrieval_labels,
)
from watchnext.features.vocabulary import write_vocabularies


class VocabularySizes(Section):
    """Section `featurize.vocabulary_sizes`: how many values of each id space a model knows, the most frequent ones."""

    video: int = Field(default=1_000_000, ge=1)
    channel: int = Field(default=200_000, ge=1)
    topic: int = Field(default=10_000, ge=1)
    language: int = Field(default=500, ge=1)
    region: int = Field(default=1_000, ge=1)
    surface: int = Field(default=100, ge=1)
    device: int = Field(default=100, ge=1)
    search_token: int = Field(default=100_000, ge=1)


class Params(Section):
    """Section `featurize` of params.yaml."""

    vocabulary_sizes: VocabularySizes = VocabularySizes()
    examples_per_user: int = Field(default=50, ge=1)
    quantile_boundaries: int = Field(default=256, ge=2)
    users_per_bucket: int = Field(default=200_000, ge=1)


def featurize(
    params: Params, engine: EngineParams, seed: int, tables: Path, out_features: Path, out_report: Path
) -> dict[str, float | int | str]:
    """Make the features of `tables`.

    Raises:
        InputError: too few days, no completed watch or no click in the training days.
    """
    out_features.mkdir(parents=True)
    out_report.mkdir(parents=True)
    metrics: dict[str, float | int | str] = {}
    with (
        tempfile.TemporaryDirectory(dir=out_features.parent) as scratch,
        connect(engine, Path(scratch)) as opened,
    ):
        logs = read_logs(opened, tables)
        split = split_days(whole_days(rows_per_day(logs.tables["impressions"], "shown_at", logs.time_zone)))
        judged = {"tuning": split.tuning, "gate": split.gate, "shadow": split.shadow}
        splits = {"training": split.training, **{name: (day, day) for name, day in judged.items() if day}}
        if split.not_judged():
            say(
                f"featurize: too few days for the splits {', '.join(split.not_judged())}; what they judge is not judged"
            )
        newest = max(last for _, last in splits.values())
        number = (newest - split.training[0]).days + 2
        days = [split.training[0] + datetime.timedelta(days=later) for later in range(number)]
        trained_until_at = day_begins_at(split.training[1] + datetime.timedelta(days=1), logs.time_zone)

        streams = make_streams(opened, logs)
        training = {
            name: logs.tables[name].filter(logs.tables[name].day <= split.training[1])
            for name in ("impressions", "watches")
        } | {name: logs.tables[name] for name in ("videos", "users")}
        if "search_tokens" in streams.tables:
            tokens = streams.tables["search_tokens"]
            training["search_tokens"] = tokens.filter(tokens["at"] < to_microseconds(trained_until_at))
        sizes = write_vocabularies(
            opened, training, logs, params.vocabulary_sizes.model_dump(), out_features / "vocabularies"
        )
        if sizes["video"] == 0:
            raise InputError("no completed watch")

        inputs = possible_inputs(logs, sizes)
        labels = opened.materialize(retrieval_labels(opened, logs.tables))
        for name, (first, last) in splits.items():
            chosen = labels.filter(labels.day.between(first, last))
            newest_at = None
            if name == "training":
                newest_at = int(chosen["at"].max().execute())
                known = opened.read(out_features / "vocabularies" / "video")
                chosen = choose_training(chosen, known, seed, params.examples_per_user)
            examples = retrieval_examples(opened, logs.tables, streams, chosen, inputs, newest_at)
            metrics[f"retrieval_examples_{name}"] = opened.write(
                examples,
                out_features / "retrieval_examples" / name,
                sort_by=["watched_at", "user_id", "video_id"],
            )

        statistics = opened.materialize(video_statistics(opened, logs.tables, days))
        opened.write(statistics, out_features / "video_statistics", sort_by=["day", "video_id"])
        features = possible_features(logs, sizes)
        prepared = ranking_tables(opened, logs.tables, streams, statistics, days, features)
        for name, (first, last) in splits.items():
            metrics[f"ranking_examples_{name}"] = opened.write(
                prepared.between(first, last),
                out_features / "ranking_examples" / name,
                sort_by=["shown_at", "request_id", "video_id"],
            )
        continuous = [feature.name for feature in features if feature.kind == "continuous"]
        stored = opened.read(out_features / "ranking_examples" / "training")
        boundaries = compute_boundaries(stored, continuous, params.quantile_boundaries)
        features = tuple(feature for feature in features if boundaries.get(feature.name, [0.0]))
        write_boundaries(boundaries, out_features / "quantiles.json")
        opened.write(logs.tables["videos"], out_features / "videos", sort_by=["video_id"])

    present = {spec.name for spec in inputs} | {feature.name for feature in features}
    declared = [spec.name for spec, _ in INPUTS] + [feature.name for feature in FEATURES]
    absent = [name for name in declared if name not in present]
    if absent:
        say(
            f"featurize: absent from the models, because the logs have no values for them: {', '.join(absent)}"
        )
    manifest = {
        "format": 1,
        "source": logs.source,
        "time_zone": logs.time_zone,
        "data_digest": logs.digest,
        "days": split.to_manifest(),
        "trained_until_at": trained_until_at.isoformat(),
        "inputs": {
            "retrieval": [spec.name for spec in inputs],
            "ranking": [feature.name for feature in features],
        },
        "absent_inputs": absent,
        "retrieval_features": [asdict(spec) for spec in inputs],
        "ranking_features": [asdict(feature.spec) for feature in features],
    }
    (out_features / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    metrics.update({f"vocabulary_{space}": size for space, size in sizes.items()})
    return metrics
