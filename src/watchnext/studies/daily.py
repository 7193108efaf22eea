"""A new day of logs: begin with yesterday's weights, and how a model ages.

Section 3.3 of the paper: what people watch changes by the day, and a model "is trained" on logs that end before it is
served. So it is trained again and again. This study lives through seven days. Each day the training days grow by one; the
vocabulary of videos is counted anew; and candidate generation is trained twice: from random weights, with at most eight
passes over the examples, and from the weights that the same line of trainings had the day before (`warm_start`), with at
most two. Rows of videos are found by their ids, new ones begin as they would in a training from scratch.

The epoch is chosen on the day after the training days, and every model is judged on the day after that one, as the gate
does. The models from scratch are then also judged on all later days: the model of day n, on a day on which the model of
day n + 3 is fresh, is three days older than it. The difference between the two, same day, same users, same events, is
what three days without training cost. Videos that nobody had completed while a model was trained are no candidates of
it; `build_index` adds them by their facts, which softens what is measured here. Searches are left out: their vocabulary
is one of all days.
"""

import dataclasses
import datetime as dt
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from watchnext.console import say
from watchnext.evaluation.intervals import PerUser, bootstrap
from watchnext.features.batches import Encoder, Vocabulary
from watchnext.studies._lab import HELD_OUT_DAYS, Ground, Lab, next_day
from watchnext.studies._report import FULL, Claim, Result, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


SCRATCH = "from scratch"
WARM = "from yesterday's weights"
FRESH = "trained up to 2 days before"

NEW_DAYS = 7
FEWER_PASSES: Mapping[str, Any] = {"epochs": 2, "patience": 1}
INPUTS = ("history", "region", "example_age_s")
METRICS = ("map", "recall_at_100")

CLAIMS = (
    Claim("beginning with yesterday's weights takes less time", WARM, SCRATCH, "train_cpu_s", "less", vanishes=False),
    Claim("and is no worse than 3 % in what it finds", WARM, SCRATCH, "recall_at_100", "same", 0.03, vanishes=False),
    Claim("nor than 3 % in MAP", WARM, SCRATCH, "map", "same", 0.03, vanishes=False),
    Claim("a model loses what it finds within a week", "trained 7 days earlier", FRESH, "recall_at_100", "less",
          vanishes=False),
)  # fmt: skip


def older(days: int) -> str:
    """What a model that was trained so many days before the fresh one is called."""
    return f"trained {days} day{'s' if days > 1 else ''} earlier"


@dataclass
class Line:
    """What the trainings of one ground measured.

    Attributes:
        source: of the ground.
        by_variant: variant -> metric -> one value per day.
        aged: days older than the fresh model -> metric -> differences from it, one per pair of models.
    """

    source: str
    by_variant: dict[str, dict[str, list[PerUser]]] = dataclasses.field(default_factory=dict)
    aged: dict[int, dict[str, list[PerUser]]] = dataclasses.field(default_factory=dict)


def run(lab: Lab) -> Result:
    """Live through the days on every ground."""
    longer = dataclasses.replace(lab.settings, days=lab.settings.days + NEW_DAYS)
    grown = dataclasses.replace(lab, settings=longer)
    lines = [live(grown, ground) for ground in grown.grounds(lambda strength: {}, strengths=(FULL,))]
    rows = [row for source in dict.fromkeys(line.source for line in lines) for row in rows_of(source, lines)]
    return Result(
        rows,
        notes=notes(rows),
        draw=partial(draw, lines=lines),
        extra={"days_since_training": aging(rows)},
    )


def live(lab: Lab, ground: Ground) -> Line:
    """Train every day of a ground, and judge."""
    from watchnext.models.warm_start import WarmStart

    line = Line(ground.source)
    grounds = list(each_day(ground))
    candidates: list[tuple[Ground, Any]] = []
    yesterday: WarmStart | None = None
    for number, (today, tuning, judged) in enumerate(grounds):
        say(f"study daily: {ground.place}, seed {ground.seed}, day {number} of {NEW_DAYS}")
        ids = {name: vocabulary.tokens for name, vocabulary in today.encoder.vocabularies.items()}
        for variant in (SCRATCH, WARM) if number else (SCRATCH,):
            changes: dict[str, Any] = {}
            if variant == WARM:
                changes = {"start": yesterday, "ids": ids, **FEWER_PASSES}
            began = time.process_time()
            trained = lab.train(today, variant, inputs=INPUTS, tuning=tuning, **changes)
            took = time.process_time() - began
            if variant == WARM or number == 0:
                yesterday = WarmStart.of(trained.model, ids, "the day before")
            if variant == SCRATCH:
                candidates.append((today, trained))
            if number:
                measured = next_day(today, trained.embed, trained.candidate_embeddings, split=judged)
                measured["train_cpu_s"] = PerUser(np.array([took]), np.array([1.0]))
                for metric, value in measured.items():
                    line.by_variant.setdefault(variant, {}).setdefault(metric, []).append(value)
        models = [
            next_day(owner, model.embed, model.candidate_embeddings, split=judged)
            for owner, model in candidates
        ]
        for age, measured in enumerate(reversed(models[:-1]), start=1):
            for metric in METRICS:
                lost = measured[metric].minus(models[-1][metric])
                line.aged.setdefault(age, {}).setdefault(metric, []).append(lost)
    return line


def each_day(ground: Ground) -> Iterator[tuple[Ground, str, str]]:
    """The ground as it is on the day before the first new one, and on each of the seven.

    Yields:
        A ground whose examples end with that day's training days and whose vocabulary of videos is of these; the names
        of the day that the epoch is chosen on, and of the one that models are judged on.
    """
    first, _ = (dt.date.fromisoformat(day) for day in ground.encoder.manifest["days"]["training"])
    last = dt.date.fromisoformat(ground.encoder.manifest["days"]["shadow"])
    table, days = write_days(ground)
    ends = [last - dt.timedelta(days=HELD_OUT_DAYS + later) for later in reversed(range(NEW_DAYS + 1))]
    if ends[0] < first:
        raise ValueError(f"logs from {first} to {last} hold no {NEW_DAYS} days of training")
    manifest = ground.encoder.manifest
    specs = [spec for spec in manifest["retrieval_features"] if spec["name"] in INPUTS]
    at = table["watched_at"].combine_chunks().cast(pa.int64()).to_numpy()
    for end in ends:
        some = np.flatnonzero(days <= np.datetime64(end))
        examples = table.take(pa.array(some))
        counted = examples["video_id"].combine_chunks().value_counts()
        order = np.lexsort((np.arange(len(counted)), -counted.field("counts").to_numpy()))
        tokens = counted.field("values").take(pa.array(order))
        video = Vocabulary("video", tokens, counted.field("counts").to_numpy()[order].astype(np.int64))
        encoder = Encoder(
            {**manifest, "retrieval_features": specs},
            {**ground.encoder.vocabularies, "video": video},
            ground.encoder.quantiles,
        )
        arrays = encoder.encode_retrieval(examples)
        arrays["example_age_s"] = ((at[some].max() - at[some]) / 1e6).astype(np.float32)
        tuning, judged = ((end + dt.timedelta(days=later)).isoformat() for later in (1, 2))
        yield dataclasses.replace(ground, encoder=encoder, examples=examples, arrays=arrays), tuning, judged


def write_days(ground: Ground) -> tuple[pa.Table, np.ndarray]:
    """Bring the completed watches of all days into the form of a held-out day, and store each day as a split.

    Returns:
        The watches of all days as examples, in order of time, and datetime64[D] their local days.
    """
    from watchnext.data.split import local_day
    from watchnext.engine import EngineParams, connect
    from watchnext.features.history import read_logs
    from watchnext.features.retrieval_examples import with_what_was_met

    manifest = ground.encoder.manifest
    stored = ground.features / "retrieval_examples"
    inputs = [spec.name for spec in ground.encoder.retrieval_features if spec.name in INPUTS]
    kept = ["user_id", "watched_at", "video_id", "asked_at", *inputs]
    order = ["watched_at", "user_id", "video_id"]
    with connect(EngineParams()) as engine:
        logs = read_logs(engine, ground.features.parent / "ingested")
        splits = [
            engine.read(stored / name).select(kept) for name in ("training", "tuning", "gate", "shadow")
        ]
        examples = splits[0].union(*splits[1:])
        examples = examples.mutate(example_age_s=examples.example_age_s * 0.0)
        examples = examples.mutate(day=local_day(examples.watched_at, manifest["time_zone"]))
        met = with_what_was_met(engine, examples, logs.tables)
        last = dt.date.fromisoformat(manifest["days"]["shadow"])
        for later in range(NEW_DAYS + HELD_OUT_DAYS):
            day = last - dt.timedelta(days=later)
            if not (stored / day.isoformat()).exists():
                engine.write(met.filter(met.day == day).drop("day"), stored / day.isoformat(), sort_by=order)
        table = examples.order_by(order).to_pyarrow()
    return table, table["day"].to_numpy().astype("datetime64[D]")


def rows_of(source: str, lines: Sequence[Line]) -> list[Row]:
    """Levels and differences of one source, its days and seeds taken together."""
    mine = [line for line in lines if line.source == source]
    dial = FULL if source == "simulated" else None

    def row(variant: str, metric: str, values: Sequence[PerUser], against: str = "") -> Row:
        # Each day has users of its own, and so has each world.
        found = bootstrap(values, same_users=False)
        return Row(source, dial, variant, metric, found.value, found.low, found.high, against)

    def of(variant: str, metric: str) -> list[PerUser]:
        return [value for line in mine for value in line.by_variant[variant][metric]]

    rows = []
    for metric in (*METRICS, "train_cpu_s"):
        rows += [row(variant, metric, of(variant, metric)) for variant in (SCRATCH, WARM)]
        pairs = zip(of(WARM, metric), of(SCRATCH, metric), strict=True)
        rows.append(row(WARM, metric, [one.minus(two) for one, two in pairs], SCRATCH))
    for metric in METRICS:
        rows.append(row(FRESH, metric, of(SCRATCH, metric)))
        for age in sorted(mine[0].aged):
            rows.append(
                row(older(age), metric, [one for line in mine for one in line.aged[age][metric]], FRESH)
            )
    return rows


def aging(rows: Sequence[Row]) -> dict[str, dict[str, dict[int, float]]]:
    """Source -> metric -> days older than the fresh model -> share of the fresh model's value that is lost."""
    lost: dict[str, dict[str, dict[int, float]]] = {}
    fresh = {
        (row.source, row.metric): row.estimate for row in rows if row.variant == FRESH and not row.against
    }
    for row in rows:
        if row.against == FRESH:
            share = -row.estimate / fresh[row.source, row.metric]
            of_metric = lost.setdefault(row.source, {}).setdefault(row.metric, {})
            of_metric[len(of_metric) + 1] = share
    return lost


def notes(rows: Sequence[Row]) -> list[str]:
    """What the figures say of time, and of how often to train."""
    told = [
        "Inputs of all: " + ", ".join(INPUTS) + ", where the logs have them.",
        f"Passes: from scratch at most 8, with yesterday's weights at most {FEWER_PASSES['epochs']}. `train_cpu_s` is the "
        "processor time of a training, the judging of its epochs included.",
    ]
    cpu = {row.variant: row.estimate for row in rows if row.metric == "train_cpu_s" and not row.against}
    told.append(f"Beginning with yesterday's weights takes {cpu[WARM] / cpu[SCRATCH]:.2f} of the time.")
    for source, of_metric in aging(rows).items():
        for metric, lost in of_metric.items():
            # Trained every k days, a model is 0 to k - 1 days older than one that is trained every day.
            means = [sum(list(lost.values())[: k - 1]) / k for k in range(2, len(lost) + 2)]
            said = ", ".join(f"every {k} days {mean:.1%}" for k, mean in enumerate(means, start=2))
            told.append(
                f"{source}: what is lost of {metric} against training every day, mean over days: {said}."
            )
    return told


def draw(rows: Sequence[Row], *, lines: Sequence[Line]) -> "Figure":
    """Quality and time by day; what a model loses by days since its training."""
    from matplotlib.figure import Figure

    sources = list(dict.fromkeys(line.source for line in lines))
    figure = Figure(figsize=(15, 4.2 * len(sources)), layout="constrained")
    for axes, source in zip(figure.subplots(len(sources), 3, squeeze=False), sources, strict=True):
        mine = [line for line in lines if line.source == source]
        for panel, metric in zip(axes[:2], ("recall_at_100", "train_cpu_s"), strict=True):
            for number, variant in enumerate((SCRATCH, WARM)):
                by_day = np.array([[one.mean for one in line.by_variant[variant][metric]] for line in mine])
                panel.plot(
                    range(1, by_day.shape[1] + 1),
                    by_day.mean(axis=0),
                    marker="o",
                    color=f"C{number}",
                    label=variant,
                )
            panel.set(title=f"{source}: {metric}", xlabel="new day of logs")
            panel.set_ylim(bottom=0)
            panel.grid(alpha=0.3)
        axes[0].legend(fontsize="small")
        for number, metric in enumerate(METRICS):
            aged = [row for row in rows if (row.source, row.metric, row.against) == (source, metric, FRESH)]
            level = next(
                row.estimate
                for row in rows
                if (row.source, row.variant, row.metric) == (source, FRESH, metric)
            )
            share = np.array([[row.estimate, row.low, row.high] for row in aged]) / (level or math.nan)
            days = np.arange(1, len(aged) + 1) + 0.1 * number
            ends = np.maximum([share[:, 0] - share[:, 1], share[:, 2] - share[:, 0]], 0.0)
            axes[2].errorbar(
                days, share[:, 0], yerr=ends, fmt="o-", capsize=3, color=f"C{number}", label=metric
            )
        axes[2].axhline(0.0, color="grey", linewidth=0.8)
        axes[2].set(
            title=f"{source}: share lost by days without training", xlabel="days older than the fresh model"
        )
        axes[2].grid(alpha=0.3)
        axes[2].legend(fontsize="small")
    return figure
