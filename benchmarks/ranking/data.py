"""From validated tables to folds: every impression with its features, cut by day."""

import datetime as dt
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.ranking.folds import Fold, Input, Rows
from watchnext import config
from watchnext.data.split import SplitDays, rows_per_day, whole_days
from watchnext.engine import EngineParams, connect
from watchnext.evaluation.offline import (
    REQUEST,
    group_impressions,
    hold_openings,
    hold_query_side,
    impression_slices,
)
from watchnext.features.batches import Encoder, FeatureSpec, read_examples
from watchnext.features.history import read_logs
from watchnext.stages import featurize

LEAK = "user_click_rate"
"""Tells nothing of videos: where what is known of the user stands still within a group, it scores exactly 0.5."""


class Examples:
    """The ranking examples of all whole days, made once by the stage featurize.

    A feature is as of the instant of its impression, and the statistics of a video as of midnight before, whatever
    days they are cut into afterwards. What does depend on the cut, vocabularies and quantiles, each fold makes from
    its own training rows.

    Args:
        tables: what the stage validate leaves.
        work: gets the output of featurize.
        seed: of the run.

    Attributes:
        days: whole local days, ascending.
        group_kind: `request`, or `user_surface_day`, see `evaluation.offline.group_impressions`.
        live: inputs as of each impression.
        held: inputs with all that depends on the user as of the first impression of the group.
        slices: name -> bool [rows of all days], by what was known before each impression.
    """

    def __init__(self, tables: Path, work: Path, seed: int) -> None:
        engine = config.load_section("engine", EngineParams)
        with connect(engine, work / "scratch") as opened:
            logs = read_logs(opened, tables)
            self.source = logs.source
            self.days = whole_days(rows_per_day(logs.tables["impressions"], "shown_at", logs.time_zone))
        features = work / "features"
        featurize.featurize(
            config.load_section("featurize", featurize.Params),
            engine,
            seed,
            tables,
            features,
            work / "features-report",
            split=SplitDays(
                training=(self.days[0], self.days[-2]), tuning=None, gate=self.days[-1], shadow=None
            ),
            openings_in_training=True,
        )
        self.encoder = Encoder.load(features)
        table = pa.concat_tables(
            [
                part
                for split in ("training", "gate")
                for part in read_examples(features / "ranking_examples" / split)
            ],
            promote_options="default",
        ).sort_by([("shown_at", "ascending"), ("request_id", "ascending"), ("video_id", "ascending")])
        zone = self.encoder.manifest["time_zone"]
        local = pc.local_timestamp(
            table["shown_at"].cast(pa.timestamp("us", "UTC")).cast(pa.timestamp("us", zone))
        )
        self.day = local.cast(pa.date32()).to_numpy()
        self.groups, self.group_kind = group_impressions(table, zone)
        self.users = table["user_id"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
        self.slices = impression_slices(table)
        self.clicked = table["clicked"].to_numpy().astype(bool)
        watched_s = pc.fill_null(table["watch_time_s"], 0.0).to_numpy()
        self.watch_time_s = np.where(self.clicked, watched_s, 0.0)
        # What nothing that has yet to be ranked has, no model is given.
        self.specs: tuple[FeatureSpec, ...] = tuple(
            spec for spec in self.encoder.ranking_features if not spec.training_only
        )
        self.live = self._encoded(table)
        self.held = self.live
        if self.group_kind != REQUEST:
            self.held = hold_query_side(self._encoded(hold_openings(table)), self.specs, self.groups)

    def _encoded(self, table: pa.Table) -> dict[str, np.ndarray]:
        arrays = self.encoder.encode_ranking(table)
        return {spec.name: arrays[spec.name] for spec in self.specs}

    def fold(self, day: dt.date, training: str) -> Fold:
        """Everything before `day` to learn from, and the impressions of `day` to score.

        Args:
            day: a whole local day.
            training: `live` or `held`, the inputs of the training rows; those of the day are held.
        """
        before, of_day = self.day < np.datetime64(day), self.day == np.datetime64(day)
        inputs = {"live": self.live, "held": self.held}[training]
        learned = {name: array[before] for name, array in inputs.items()}
        scored = {name: array[of_day] for name, array in self.held.items()}
        sizes, boundaries = {}, {}
        for space in dict.fromkeys(spec.space for spec in self.specs if spec.space is not None):
            names = [spec.name for spec in self.specs if spec.space == space and spec.kind != "unit"]
            seen = np.zeros(self.encoder.sizes[space] + 1, np.int64)
            for name in names:
                seen += np.bincount(learned[name].ravel(), minlength=len(seen))
            seen[0] = 0
            codes = np.zeros(len(seen), np.int32)
            order = np.argsort(-seen, kind="stable")[: np.count_nonzero(seen)]
            codes[order] = np.arange(1, len(order) + 1)
            sizes[space] = len(order)
            for arrays in (learned, scored):
                arrays.update({name: codes[arrays[name]] for name in names})
        count = config.load_section("featurize", featurize.Params).quantile_boundaries
        for spec in self.specs:
            if spec.kind == "continuous":
                values = learned[spec.name].astype(np.float64)
                values = values[~np.isnan(values)]
                boundaries[spec.name] = (
                    np.quantile(values, np.arange(count) / (count - 1)) if len(values) else np.empty(0)
                )
        return Fold(
            tuple(Input(one.name, one.kind, one.space, one.length, one.side) for one in self.specs),
            sizes,
            boundaries,
            self._rows(learned, before),
            self._rows(scored, of_day),
        )

    def _rows(self, inputs: dict[str, np.ndarray], which: np.ndarray) -> Rows:
        return Rows(
            inputs,
            self.clicked[which],
            self.watch_time_s[which].astype(np.float32),
            self.groups[which],
            self.users[which],
        )
