"""Stage `featurize`: validated logs become vocabularies, quantiles and examples as of their instants, split by time."""

import csv
import tempfile
from collections import Counter
from pathlib import Path

from pydantic import Field

from watchnext.config import Section
from watchnext.console import say, track
from watchnext.data.split import SplitDays, days_between, rows_per_day, split_days, whole_days
from watchnext.engine import EngineParams, connect
from watchnext.features import (
    day_parts,
    further_examples,
    quantiles,
    ranking_features,
    retrieval_examples,
    vocabulary,
)
from watchnext.features.batches import write_manifest
from watchnext.features.history import day_ranges, make_streams, read_logs, read_once, user_buckets


class VocabularySizes(Section):
    """Section `featurize.vocabulary_sizes`: how many values of each id space a model knows, the most frequent ones."""

    video: int = Field(default=1_000_000, ge=1)
    channel: int = Field(default=200_000, ge=1)
    topic: int = Field(default=10_000, ge=1)
    language: int = Field(default=500, ge=1)
    region: int = Field(default=1_000, ge=1)
    gender: int = Field(default=20, ge=1)
    user_column: int = Field(default=1_000, ge=2)
    surface: int = Field(default=100, ge=1)
    device: int = Field(default=100, ge=1)
    position: int = Field(default=200, ge=1)
    search_token: int = Field(default=100_000, ge=1)
    search_query: int = Field(default=100_000, ge=1)


class Params(Section):
    """Section `featurize` of params.yaml."""

    vocabulary_sizes: VocabularySizes = VocabularySizes()
    labels: retrieval_examples.Labels = "all"
    examples_per_user: int | None = Field(default=50, ge=1)
    quantile_boundaries: int = Field(default=256, ge=2)
    events_per_bucket: int = Field(default=3_000_000, ge=1)


def featurize(
    params: Params,
    engine: EngineParams,
    seed: int,
    tables: Path,
    out_features: Path,
    out_report: Path,
    earlier_features: Path | None = None,
    *,
    split: SplitDays | None = None,
    openings_in_training: bool = False,
) -> dict[str, float | int | str]:
    """Make the features of `tables`.

    Examples of days that are in `earlier_features`, made from the same events, facts and settings, are taken from there;
    what comes of it is, to the byte, what comes of making them all.

    `split` says which days train and judge; None leaves that to `split_days`, as the pipeline does. With
    `openings_in_training`, training examples without pages get their OPENING columns, too.

    Raises:
        InputError: too few days, or no completed watch or no click in the training days.
    """
    out_features.mkdir(parents=True)
    out_report.mkdir(parents=True)
    with (
        tempfile.TemporaryDirectory(prefix=".scratch-", dir=out_features) as scratch,
        connect(engine, Path(scratch)) as opened,
    ):
        logs = read_logs(opened, tables)
        if split is None:
            split = split_days(
                whole_days(rows_per_day(logs.tables["impressions"], "shown_at", logs.time_zone))
            )
        if split.not_judged():
            say(f"featurize: too few days of logs, so there is no day for: {', '.join(split.not_judged())}")
        training = vocabulary.training_tables(opened, logs, split)
        vocabulary.check_trainable(training, split)
        further, left_out = vocabulary.user_spaces(logs, training, params.vocabulary_sizes.user_column)
        if left_out:
            told = ", ".join(f"{column} ({why})" for column, why in left_out.items())
            say(f"featurize: columns of users that are no categories, and so no inputs: {told}")
        sizes = vocabulary.write_vocabularies(
            opened,
            training,
            logs,
            params.vocabulary_sizes.model_dump(),
            out_features / "vocabularies",
            further,
        )
        inputs = retrieval_examples.possible_inputs(logs, sizes)
        features = ranking_features.possible_features(logs, sizes)
        newest_at = retrieval_examples.newest_label_at(opened, training)
        begin_at = further_examples.logs_begin_at(opened, logs)

        opened.write(logs.tables["videos"], out_features / "videos", sort_by=["video_id"])
        ranking_features.write_video_statistics(opened, logs, split, out_features)
        held = [day for day in (split.tuning, split.gate, split.shadow) if day is not None]
        if openings_in_training:
            held += days_between(*split.training)
        pageless = ranking_features.days_without_pages(logs.tables["impressions"], held)
        rows: Counter[str] = Counter()
        # Spark cuts by users itself, and its buckets would only wait for each other.
        buckets = [logs] if opened.kind == "spark" else user_buckets(opened, logs, params.events_per_bucket)
        ranges = day_ranges(split)
        wanted = [day for span in ranges.values() for day in days_between(*span)]
        made_by, digests, earlier = "", {}, None
        if opened.kind == "duckdb":
            made_by = day_parts.recipe(
                logs,
                {
                    "seed": seed,
                    "featurize": params.model_dump(exclude={"events_per_bucket"}),
                    "first_day": wanted[0],
                    "retrieval": [spec.name for spec in inputs],
                    "ranking": [feature.name for feature in features],
                },
            )
            digests = day_parts.day_digests(opened, logs)
            earlier = day_parts.find_earlier(earlier_features, made_by, digests, wanted)
        parts = day_parts.DayParts(opened, out_features, buckets=len(buckets), earlier=earlier)
        if earlier is not None:
            left = [day for day in wanted if day >= earlier.before]
            say(
                f"featurize: {len(wanted) - len(left)} days are as they were, and so are their examples; made are those of "
                + (f"{left[0]} to {left[-1]}" if left else "none")
            )
        for part, own in enumerate(track(buckets, "featurize: users in buckets")):
            with opened.scope():
                if len(buckets) > 1:
                    own = read_once(opened, own)
                streams = make_streams(opened, own)
                with opened.scope():
                    rows.update(
                        retrieval_examples.write_retrieval_examples(
                            opened,
                            own,
                            streams,
                            split,
                            inputs,
                            out_features,
                            newest_at=newest_at,
                            seed=seed,
                            examples_per_user=params.examples_per_user,
                            which_labels=params.labels,
                            part=part,
                            earlier=earlier,
                        )
                    )
                with opened.scope():
                    retrieval_examples.write_ranking_requests(
                        opened, own, streams, split, inputs, part=part, parts=parts
                    )
                with opened.scope():
                    rows.update(
                        further_examples.write_further_examples(
                            opened,
                            own,
                            streams,
                            split,
                            inputs,
                            out_features,
                            newest_at=newest_at,
                            begin_at=begin_at,
                            seed=seed,
                            examples_per_user=params.examples_per_user,
                            part=part,
                            earlier=earlier,
                        )
                    )
                ranking_features.write_ranking_examples(
                    opened,
                    own,
                    streams,
                    split,
                    features,
                    out_features,
                    pageless=pageless,
                    part=part,
                    parts=parts,
                )
        rows.update(parts.finish())
        if made_by:
            day_parts.write_days(out_features, made_by, digests)
        examples = opened.read(out_features / "ranking_examples" / "training")
        boundaries = quantiles.compute_boundaries(
            examples,
            [feature.name for feature in features if feature.kind == "continuous"],
            params.quantile_boundaries,
            key=("request_id", "video_id"),
            rows=rows["ranking_examples_training"],
        )
        described = ranking_features.describe_inputs(examples, features)

    features = tuple(feature for feature in features if boundaries.get(feature.name, True))
    declared = dict.fromkeys(
        [
            *(one.spec.name for one in retrieval_examples.INPUTS),
            *(feature.name for feature in ranking_features.FEATURES),
        ]
    )
    present = {spec.name for spec in inputs} | {feature.name for feature in features}
    absent = [name for name in declared if name not in present]
    if absent:
        say(f"featurize: absent from the models, the logs have no values for them: {', '.join(absent)}")
    quantiles.write_boundaries(boundaries, out_features / "quantiles.json")
    write_manifest(
        out_features / "manifest.json",
        source=logs.source,
        time_zone=logs.time_zone,
        data_digest=logs.digest,
        days=split.to_manifest(),
        trained_until_at=vocabulary.trained_until_at(logs, split),
        retrieval=inputs,
        ranking=[feature.spec for feature in features],
        absent_inputs=absent,
    )
    with (out_report / "inputs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(described[0]))
        writer.writeheader()
        writer.writerows(described)
    return {
        **rows,
        "days_made": len([day for day in wanted if parts.makes(day)]),
        **{f"vocabulary_{space}": size for space, size in sizes.items()},
    }
