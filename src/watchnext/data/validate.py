"""Judge ingested logs with Great Expectations: clean rows go through, bad ones are set aside with a reason.

The rules stand in `validation_rules`. Each has one of four scopes, and each scope is a frame that Great
Expectations sees:

* `structure`: one row, a table's columns with their types as values. Nothing else is judged where it fails.
* `row`: the rows themselves, batch by batch; event tables in batches of whole days. On Spark they stay there.
* `day`: one row per day: volume and category shares against the days before.
* `table`: one row per table: rows, clicks, nulls, the most active user.
"""

import copy
import datetime
import os
import shutil
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo

import ibis
import ibis.expr.types as ir
import numpy as np
import pandas as pd

from watchnext.console import track
from watchnext.data.ingest import read_source, write_source
from watchnext.data.judged_days import Counts, JudgedDays
from watchnext.data.split import local_day
from watchnext.data.validation_rules import (
    DEFINED_BY,
    Exists,
    OneOf,
    Present,
    Rule,
    Thresholds,
    Within,
    day_rules,
    epoch_s,
    is_missing,
    kind_of,
    parse_instant,
    row_rules,
    structure_rules,
    table_rules,
)
from watchnext.engine import Engine
from watchnext.errors import InputError
from watchnext.schema import TABLES, Column, TableSchema

if TYPE_CHECKING:
    from great_expectations.core import ExpectationValidationResult

# Every UTC offset in use is a multiple of a quarter of an hour: counts by quarter add up to days anywhere.
_QUARTER_S = 900
_OFFENDERS = 5


@dataclass
class Verdict:
    """How one rule fared over the frames it was judged on.

    Attributes:
        rule: the rule.
        judged: rows (or days, or columns) it was judged on, missing values left out where it passes them.
        broken_by: how many of these break it.
        failed_in: labels of the batches in which more than the allowed share broke it.
        observed: for `structure`, `day` and `table` rules, the values that broke it.
        offenders: the first few rows that break it, as text.
    """

    rule: Rule
    judged: int = 0
    broken_by: int = 0
    failed_in: list[str] = field(default_factory=list)
    observed: list[str] = field(default_factory=list)
    offenders: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return bool(self.failed_in)

    @property
    def status(self) -> Literal["failed", "warning", "below threshold", "passed"]:
        if self.failed:
            return "failed" if self.rule.severity == "critical" else "warning"
        return "below threshold" if self.broken_by else "passed"


@dataclass
class TableReport:
    """What became of one table."""

    name: str
    rows: int = 0
    quarantined: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    days: pd.DataFrame | None = None
    newly_absent_columns: list[str] = field(default_factory=list)
    newly_absent: bool = False
    rows_judged: int = 0

    @property
    def clean(self) -> int:
        return self.rows - self.quarantined


@dataclass
class Report:
    """What became of the logs: the content of the summary page and of the metrics."""

    source: Mapping[str, Any]
    tables: list[TableReport] = field(default_factory=list)

    @property
    def verdicts(self) -> list[Verdict]:
        return [verdict for table in self.tables for verdict in table.verdicts]

    @property
    def failures(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.status == "failed"]

    @property
    def warnings(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.status == "warning"]

    def metrics(self) -> dict[str, float | int | str]:
        """Flat figures of the run."""
        metrics: dict[str, float | int | str] = {
            "expectations": len(self.verdicts),
            "expectations_failed": len(self.failures),
            "expectations_warned": len(self.warnings),
            "quarantined_rows": sum(table.quarantined for table in self.tables),
        }
        for table in self.tables:
            metrics[f"{table.name}_rows"] = table.rows
            metrics[f"{table.name}_clean_rows"] = table.clean
            metrics[f"{table.name}_quarantined_rows"] = table.quarantined
            metrics[f"{table.name}_rows_judged"] = table.rows_judged
            if table.days is not None:
                metrics[f"{table.name}_days"] = len(table.days)
            for reason, count in table.reasons.items():
                metrics[f"{table.name}_quarantined_{reason}"] = count
        for verdict in self.verdicts:
            if verdict.rule.name == "click_without_watch_time" and verdict.judged:
                metrics["click_without_watch_share"] = verdict.broken_by / verdict.judged
        return metrics


@dataclass(frozen=True)
class Batch:
    """Rows that are judged together.

    Attributes:
        label: what reports call it.
        frame: what is to be judged, its judged columns; None: all of it was judged earlier.
        earlier: what was counted on the rest of it when that was judged.
    """

    label: str
    frame: Any = None
    earlier: Counts = field(default_factory=dict)


class Judge:
    """Great Expectations, off the net: labelled frames in, verdicts out, one suite per table and scope.

    Args:
        on_spark: whether frames of rows are Spark's; those of all other scopes are pandas' anyway.
    """

    def __init__(self, on_spark: bool = False) -> None:
        # Off before the import: the library reads it when its context is made.
        os.environ.setdefault("GX_ANALYTICS_ENABLED", "False")
        import great_expectations
        from great_expectations.data_context.types.base import ProgressBarsConfig

        self._gx = great_expectations
        self._context = great_expectations.get_context(mode="ephemeral")
        self._context.enable_analytics(False)
        self._context.variables.progress_bars = ProgressBarsConfig(globally=False)
        self._frames: Any = self._context.data_sources.add_pandas("tables")
        # Not persisted by it: nothing would let go of them.
        self._rows: Any = (
            self._context.data_sources.add_spark("rows", persist=False) if on_spark else self._frames
        )

    def judge(self, rules: Sequence[Rule], batches: Iterable[Batch]) -> list[Verdict]:
        """Judge rules of one table and scope, batch by batch.

        Raises:
            RuntimeError: an expectation could not be evaluated, which is a defect of this module.
        """
        name = rules[0].table if rules[0].scope == "row" else f"{rules[0].table}_{rules[0].scope}"
        suite = self._gx.ExpectationSuite(name=name, expectations=[rule.expectation() for rule in rules])
        self._context.suites.add(suite)
        source = self._rows if rules[0].scope == "row" else self._frames
        asset = source.add_dataframe_asset(name)
        definition = self._context.validation_definitions.add(
            self._gx.ValidationDefinition(
                name=name, data=asset.add_batch_definition_whole_dataframe(name), suite=suite
            )
        )
        verdicts = {rule.name: Verdict(rule) for rule in rules}
        for batch in batches:
            results = {}
            if batch.frame is not None:
                outcome = definition.run(
                    batch_parameters={"dataframe": batch.frame},
                    result_format={"result_format": "SUMMARY", "partial_unexpected_count": _OFFENDERS},
                    run_id=self._gx.core.run_identifier.RunIdentifier(run_name=batch.label.replace(" ", "_")),
                )
                for result in outcome.results:
                    configuration = result.expectation_config
                    assert configuration is not None
                    assert configuration.meta is not None
                    results[configuration.meta["rule"]] = result
            for name, verdict in verdicts.items():
                _add(verdict, batch, results.get(name))
        return list(verdicts.values())

    def write_docs(self, directory: Path) -> None:
        """Write Data Docs, HTML pages of every suite and result, to `directory`."""
        for site in list(self._context.get_site_names()):
            self._context.delete_data_docs_site(site)
        self._context.add_data_docs_site(
            site_name="watchnext",
            site_config={
                "class_name": "SiteBuilder",
                "store_backend": {
                    "class_name": "TupleFilesystemStoreBackend",
                    "base_directory": str(directory.absolute()),
                },
                "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            },
        )
        self._context.build_data_docs()
        # Two thirds of the site's bytes, for a how-to that no page shows.
        for picture in (directory / "static" / "images").glob("*.gif"):
            picture.unlink()


def _add(verdict: Verdict, batch: Batch, result: "ExpectationValidationResult | None") -> None:
    """Add what was found in a batch, earlier and now (`result`, None: nothing was left to judge), to a rule's verdict."""
    judged, broken_by = batch.earlier.get(verdict.rule.name, (0, 0))
    if result is not None:
        if (result.exception_info or {}).get("raised_exception"):
            raise RuntimeError(f"{verdict.rule.table}.{verdict.rule.name}: {result.exception_info}")
        found = result.result
        if isinstance(verdict.rule.check, Exists):
            judged, broken_by = 1, int(not result.success)
        else:
            judged += int(found["element_count"])
            if not isinstance(verdict.rule.check, Present):
                judged -= int(found.get("missing_count") or 0)
            broken_by += int(found["unexpected_count"])
            verdict.observed += [str(value) for value in found.get("partial_unexpected_list") or ()]
    verdict.judged += judged
    verdict.broken_by += broken_by
    # As Great Expectations reckons it, to the bit.
    if broken_by and (judged - broken_by) / judged < 1.0 - verdict.rule.max_bad_share:
        verdict.failed_in.append(batch.label)


def validate_tables(
    engine: Engine,
    tables: Path,
    out_tables: Path,
    out_quarantine: Path,
    thresholds: Thresholds,
    now: datetime.datetime | None = None,
    earlier_report: Path | None = None,
) -> tuple[Report, Judge, JudgedDays]:
    """Judge every table of `tables`, write clean rows and quarantined rows, and say what was found.

    Args:
        engine: where tables are computed.
        tables: ingested tables with their `source.json`.
        out_tables: gets the clean rows in the same layout, `source.json` brought up to date. Only whole and
            fit for use when the report holds no failures.
        out_quarantine: gets the bad rows, one folder per table, with the extra column `reason`.
        thresholds: bounds and shares.
        now: the present instant; None for the clock's.
        earlier_report: the report of an earlier run. On DuckDB what the judge counted on days that are as they were is taken
            from it.

    Returns:
        What was found, the judge, which can write its Data Docs, and the days that were judged, for the next run.

    Raises:
        InputError: there are no tables, or a setting names a rule that does not exist.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    source = read_source(tables)
    judge = Judge(on_spark=engine.kind == "spark")
    judged_days = JudgedDays.open(earlier_report, thresholds, thresholds.latest(now).timestamp())
    report = Report(source)
    there: dict[str, ir.Table] = {}
    for schema in TABLES.values():
        # Without the folder only an optional table gets by; the engine says which one is missing.
        if (tables / schema.name).is_dir() or not schema.optional:
            there[schema.name] = engine.read(tables / schema.name)
            report.tables.append(TableReport(schema.name))
    out_tables.mkdir(parents=True, exist_ok=True)
    out_quarantine.mkdir(parents=True, exist_ok=True)

    kinds = {
        name: {c: kind_of(t, engine.kind != "spark") for c, t in table.schema().items()}
        for name, table in there.items()
    }
    id_kinds = {
        space: kinds[name][f"{space}_id"]
        for space, name in DEFINED_BY.items()
        if f"{space}_id" in kinds.get(name, {})
    }
    for table in report.tables:
        rules = structure_rules(TABLES[table.name], kinds[table.name], id_kinds)
        table.verdicts += judge.judge(rules, [Batch("columns", pd.DataFrame([kinds[table.name]]))])
        for verdict in table.verdicts:
            if verdict.failed:
                found = kinds[table.name].get(verdict.rule.column)
                verdict.offenders = [
                    f"found {found}" if found else f"columns: {', '.join(kinds[table.name])}"
                ]
    if report.failures:
        return report, judge, judged_days

    for table in track(report.tables, "validate: tables"):
        work = _Work(engine, judge, judged_days, tables, out_tables, out_quarantine, thresholds, now, source)
        with engine.scope():
            work.run(TABLES[table.name], there[table.name], table)
    _check_rule_names(report, thresholds)
    if not report.failures:
        _write_source(report, out_tables)
    return report, judge, judged_days


def _check_rule_names(report: Report, thresholds: Thresholds) -> None:
    known = {f"{verdict.rule.table}.{verdict.rule.name}" for verdict in report.verdicts}
    unknown = sorted(set(thresholds.max_bad_share_by_rule) - known)
    if unknown:
        raise InputError(
            "a threshold is set for a rule that these tables do not have",
            where="params.yaml, validate.max_bad_share_by_rule",
            offenders=unknown,
            remedy="rules: " + ", ".join(sorted(known)),
        )


def _write_source(report: Report, out_tables: Path) -> None:
    source = copy.deepcopy(dict(report.source))
    described = source.setdefault("tables", {})
    for table in report.tables:
        if table.newly_absent:
            described.pop(table.name, None)
            source["absent_tables"] = sorted({*source.get("absent_tables", []), table.name})
            continue
        entry = described.setdefault(table.name, {})
        entry["rows"] = table.clean
        absent = set(table.newly_absent_columns)
        entry["columns"] = [name for name in entry.get("columns", []) if name not in absent]
        entry["absent_columns"] = sorted({*entry.get("absent_columns", []), *absent})
    write_source(out_tables, source)


@dataclass(frozen=True)
class _Work:
    """The way of one table through measuring, judging and writing."""

    engine: Engine
    judge: Judge
    judged_days: JudgedDays
    tables: Path
    out_tables: Path
    out_quarantine: Path
    thresholds: Thresholds
    now: datetime.datetime
    source: Mapping[str, Any]

    def run(self, schema: TableSchema, raw: ir.Table, report: TableReport) -> None:
        totals = self._totals(schema, raw)
        report.rows = int(totals["rows"])
        whole = table_rules(schema, raw.columns, self.thresholds)
        if report.rows == 0 and schema.optional:
            report.newly_absent = True
            return
        report.verdicts += self.judge.judge(whole, [Batch("whole table", pd.DataFrame([totals]))])
        for verdict in report.verdicts:
            if verdict.failed and verdict.rule.scope == "table":
                verdict.offenders = [f"{verdict.rule.judged_column}: {totals[verdict.rule.judged_column]:g}"]
            if verdict.failed and verdict.rule.name == "one_user_dominates":
                verdict.offenders.append(f"user_id={totals['most active user']}")
        report.newly_absent_columns = [
            verdict.rule.column
            for verdict in report.verdicts
            if verdict.rule.name.endswith("_all_null") and verdict.failed
        ]
        if report.rows == 0:
            return

        used = [name for name in raw.columns if name not in report.newly_absent_columns]
        rules = row_rules(schema, used, self.thresholds, self.now)
        prepared = self._with_facts(schema, raw.select(used))
        rules = [rule for rule in rules if set(rule.needs) <= set(prepared.columns)]
        measured = prepared.mutate(
            **{rule.judged_column: rule.measure(prepared) for rule in rules if rule.measure is not None}
        )
        verdicts = self.judge.judge(rules, self._batches(schema, measured, rules, report))
        report.verdicts += verdicts
        broken = [verdict for verdict in verdicts if verdict.broken_by]
        for verdict in broken:
            verdict.offenders = self._offenders(schema, measured, verdict.rule)
        clean = self._set_aside(
            schema, raw, measured, used, [v.rule for v in broken if v.rule.quarantines], report
        )
        if schema.instant is not None and report.clean:
            self._judge_days(schema, clean, report)

    def _totals(self, schema: TableSchema, raw: ir.Table) -> dict[str, Any]:
        figures: dict[str, ir.Value] = {"rows": raw.count()}
        for column in schema.columns:
            if column.name in raw.columns and column.nullable:
                figures[f"values in {column.name}"] = (~is_missing(raw[column.name])).sum()
        for name in ("clicked", "completed"):
            if name in raw.columns:
                figures[f"rows {name}"] = raw[name].fill_null(False).sum()
        totals = {
            name: 0 if pd.isna(value) else value for name, value in _row(raw.aggregate(**figures)).items()
        }
        rows = int(totals["rows"])
        for column in schema.columns:
            if f"values in {column.name}" in totals:
                totals[f"share of nulls in {column.name}"] = 1 - totals[f"values in {column.name}"] / max(
                    rows, 1
                )
        if schema.instant is not None and rows:
            per_user = raw.group_by("user_id").aggregate(n=raw.count())
            top = _row(per_user.order_by([ibis.desc("n"), ibis.asc("user_id")]).limit(1))
            totals["share of the most active user"] = top["n"] / rows
            totals["most active user"] = top["user_id"]
        elif schema.instant is not None:
            totals["share of the most active user"] = 0.0
        return totals

    def _with_facts(self, schema: TableSchema, table: ir.Table) -> ir.Table:
        """`table` with what its rules need to know from elsewhere, in columns that begin with `fact `."""
        key = [table[name] for name in schema.key]
        # A window over every row is dear; nearly always a cheap count shows that it is not needed.
        repeated = table.group_by(key).aggregate(n=table.count())
        if int(repeated.filter(repeated.n > 1).count().execute()):
            order = [
                ibis.asc(table[name], nulls_first=True) for name in table.columns if name not in schema.key
            ]
            earlier = ibis.row_number().over(group_by=key, order_by=order or key)
            # Once, not once for every batch.
            table = self.engine.materialize(table.mutate(**{"fact copies before": earlier.cast("int64")}))
        else:
            table = table.mutate(**{"fact copies before": ibis.literal(0, "int64")})

        if "request_id" in table.columns:
            pages = table.group_by("request_id").aggregate(
                **{"fact users": table["user_id"].nunique(), "fact instants": table["shown_at"].nunique()}
            )
            pages = pages.select(
                "request_id",
                **{"fact request parties": ibis.greatest(pages["fact users"], pages["fact instants"])},
            )
            pages = pages.filter(pages["fact request parties"] > 1)
            if int(pages.count().execute()):
                table = _attach(table, "request_id", pages, "request_id", ["fact request parties"])
                parties = table["fact request parties"].fill_null(1)
            else:
                parties = ibis.literal(1)
            table = table.mutate(**{"fact request parties": parties.cast("int64")})

        for column in schema.columns:
            space = column.id_space or ""
            if (
                column.name not in table.columns
                or space not in DEFINED_BY
                or schema.name == DEFINED_BY[space]
            ):
                continue
            table = self._with_reference(table, column, space)
        return table

    def _with_reference(self, table: ir.Table, column: Column, space: str) -> ir.Table:
        name = DEFINED_BY[space]
        sound = self.engine.read(self.out_tables / name)
        facts: dict[str, ir.Value] = {"fact sound": ibis.literal(True)}
        if not column.optional:
            if "duration_s" in sound.columns:
                facts["fact duration_s"] = sound["duration_s"]
            for instant in ("uploaded_at", "signed_up_at"):
                if instant in sound.columns:
                    facts[f"fact {instant}"] = epoch_s(sound[instant])
        sound = sound.select(f"{space}_id", **facts)
        table = _attach(table, column.name, sound, f"{space}_id", list(facts))
        is_sound = table["fact sound"].fill_null(False)
        aside = self.out_quarantine / name
        known = is_sound
        if aside.is_dir():
            ids = (
                self.engine.read(aside)
                .select(f"{space}_id")
                .distinct()
                .mutate(**{"fact aside": ibis.literal(True)})
            )
            table = _attach(table, column.name, ids, f"{space}_id", ["fact aside"])
            known = table["fact sound"].fill_null(False) | table["fact aside"].fill_null(False)
            is_sound = table["fact sound"].fill_null(False)
        none = ibis.null("boolean")
        table = table.mutate(
            **{
                f"fact {column.name} known": ibis.ifelse(table[column.name].isnull(), none, known),
                f"fact {column.name} sound": ibis.ifelse(
                    table[column.name].isnull() | ~known, none, is_sound
                ),
            }
        )
        return table.drop("fact sound", *(["fact aside"] if aside.is_dir() else []))

    def _batches(
        self, schema: TableSchema, measured: ir.Table, rules: Sequence[Rule], report: TableReport
    ) -> Iterator[Batch]:
        """Batches of about `batch_rows` rows: whole days of an event table, parts of any other (all of it on Spark)."""
        columns = list(dict.fromkeys(rule.judged_column for rule in rules))
        instant = [] if schema.instant is None else [schema.instant]
        judged = measured.select(
            **{name: measured[name] for name in instant if name not in columns},
            **{name: _null_if_missing(measured[name]) for name in columns},
        )
        if self.engine.kind == "spark":
            # Once, not once for every batch: what is measured takes joins over all rows.
            judged = self.engine.materialize(judged)
        if schema.instant is not None:
            yield from self._batches_of_days(schema, judged, rules, report)
            return
        report.rows_judged = report.rows
        if self.engine.kind == "spark":
            yield Batch("all rows", self.engine.frame(judged))
            return
        parts = max(1, round(report.rows / self.thresholds.batch_rows))
        per_part = -(-report.rows // parts)
        whole = judged.to_pyarrow()
        for part in range(parts):
            label = "all rows" if parts == 1 else f"part {part + 1} of {parts}"
            yield Batch(label, whole.slice(part * per_part, per_part).to_pandas())

    def _batches_of_days(
        self, schema: TableSchema, judged: ir.Table, rules: Sequence[Rule], report: TableReport
    ) -> Iterator[Batch]:
        """Batches of an event table. Days that an earlier run has judged are not in their frames."""
        assert schema.instant is not None
        columns = list(dict.fromkeys(rule.judged_column for rule in rules))
        groups = self._groups(schema, judged)
        at = epoch_s(judged[schema.instant])
        digests: Mapping[datetime.date, str] = {}
        if self.engine.kind == "duckdb" and groups[0]:
            # Instants outside of the days, such as those of the year 58000, are of no day.
            within = at.between(self._midnight(groups[0][0]), self._midnight(_after(groups[-1][-1])) - 1)
            zone = str(self.source.get("time_zone", "UTC"))
            day = ibis.ifelse(
                within.fill_null(False), local_day(judged[schema.instant], zone), ibis.null("date")
            )
            judged = judged.mutate(**{"fact day": day})
            clocked = {rule.judged_column for rule in rules if rule.by_clock}
            seen = judged.filter(judged["fact day"].notnull()).drop(*clocked & set(judged.columns))
            digests = self.engine.row_digests(seen, "fact day")
        for index, group in enumerate(groups):
            earlier = {
                day: counts
                for day in group
                if day in digests
                and (counts := self.judged_days.earlier(rules, _text(day), digests[day])) is not None
            }
            inside: ir.BooleanValue = ibis.literal(True)
            if index > 0:
                inside = inside & (at >= self._midnight(group[0]))
            if index < len(groups) - 1:
                inside = inside & (at < self._midnight(groups[index + 1][0]))
            # Rows without an instant, and the open ends, belong to the first and the last batch.
            inside = inside.fill_null(index == 0)
            if earlier:
                inside = inside & judged["fact day"].notin(list(earlier)).fill_null(True)
            rows = judged.filter(inside)
            frame = self.engine.frame(rows.select(columns))
            counted: dict[datetime.date, Counts] = {}
            if self.engine.kind == "spark":
                report.rows_judged = report.rows
            elif len(frame) or not earlier:
                report.rows_judged += len(frame)
                counted = self._counts_by_day(rows, rules) if digests else {}
            else:
                frame = None
            for day, counts in {**earlier, **counted}.items():
                self.judged_days.keep(schema.name, _text(day), digests[day], counts)
            label = f"{_text(group[0])} to {_text(group[-1])}" if group else "all rows"
            yield Batch(label, frame, _summed(earlier.values()))

    def _counts_by_day(self, rows: ir.Table, rules: Sequence[Rule]) -> dict[datetime.date, Counts]:
        """What the judge counts on rows with a column `fact day`, day by day; rows of no day are left out."""
        rows = rows.filter(rows["fact day"].notnull())
        figures: dict[str, ir.Value] = {}
        for rule in rules:
            value = rows[rule.judged_column]
            judged = rows.count() if isinstance(rule.check, Present) else (~is_missing(value)).sum()
            figures[f"judged {rule.name}"] = judged
            figures[f"broken {rule.name}"] = rule.violated_by(rows).sum()
        of_days = rows.group_by("fact day").aggregate(**figures)
        return {
            row["fact day"]: {
                rule.name: (int(row[f"judged {rule.name}"]), int(row[f"broken {rule.name}"]))
                for rule in rules
            }
            for row in of_days.to_pyarrow().to_pylist()
        }

    def _groups(self, schema: TableSchema, table: ir.Table) -> list[list[datetime.date]]:
        """Groups of days of about `batch_rows` rows, in order; one empty group where no row has a plausible instant."""
        days = self._by_day(schema, table)
        groups: list[list[datetime.date]] = [[]]
        held = 0
        for day, count in days["rows"].items():
            if held and held + count > self.thresholds.batch_rows:
                groups.append([])
                held = 0
            groups[-1].append(day)
            held += count
        if len(groups) > 1 and held < self.thresholds.batch_rows / 2:
            last = groups.pop()
            groups[-1] += last
        return groups

    def _midnight(self, day: datetime.date) -> int:
        return int(datetime.datetime.combine(day, datetime.time(), tzinfo=self._zone).timestamp())

    @property
    def _zone(self) -> ZoneInfo:
        return ZoneInfo(str(self.source.get("time_zone", "UTC")))

    def _by_day(self, schema: TableSchema, table: ir.Table, column: str | None = None) -> pd.DataFrame:
        """Rows by day of the source's time zone, and by `column`; implausible instants are left out."""
        latest = self.thresholds.latest(self.now).timestamp()
        earliest = parse_instant(self.thresholds.earliest_at).timestamp()
        seconds = epoch_s(table[schema.instant])
        plausible = table.filter(((seconds >= earliest) & (seconds <= latest)).fill_null(False))
        quarter = (epoch_s(plausible[schema.instant]) // _QUARTER_S).cast("int64")
        by: dict[str, ir.Value] = {"quarter": quarter}
        if column is not None:
            by["category"] = plausible[column].cast("string").fill_null("(null)")
        counts = plausible.group_by(**by).aggregate(rows=plausible.count()).to_pandas()
        instants = pd.to_datetime(counts["quarter"] * _QUARTER_S, unit="s", utc=True)
        counts["day"] = instants.dt.tz_convert(self._zone).dt.date
        by_day = counts.groupby(["day", *(["category"] if column is not None else [])], sort=True)[
            "rows"
        ].sum()
        return by_day.unstack(fill_value=0) if column is not None else by_day.to_frame()

    def _offenders(self, schema: TableSchema, measured: ir.Table, rule: Rule) -> list[str]:
        shown = [*schema.key, *([schema.instant] if schema.instant else [])]
        shown += [name for name in rule.column.split(", ") if name in measured.columns]
        shown = list(dict.fromkeys(shown))
        order = [
            ibis.asc(measured[name], nulls_first=True) for name in schema.sort_by if name in measured.columns
        ]
        columns = {name: measured[name].cast("string") for name in shown}
        if rule.measured and not isinstance(rule.check, OneOf):
            columns[rule.measured] = measured[rule.measured].cast("string")
        first = (
            measured.filter(rule.violated_by(measured)).order_by(order).limit(_OFFENDERS).select(**columns)
        )
        return [
            ", ".join(f"{name}={value}" for name, value in row.items())
            for row in first.to_pyarrow().to_pylist()
        ]

    def _set_aside(
        self,
        schema: TableSchema,
        raw: ir.Table,
        measured: ir.Table,
        used: Sequence[str],
        rules: Sequence[Rule],
        report: TableReport,
    ) -> ir.Table:
        """Write the clean rows and the quarantine; return the clean rows as stored."""
        target = self.out_tables / schema.name
        sort_by = [name for name in schema.sort_by if name in used]
        if not rules and len(used) == len(raw.columns):
            # Nothing to take out: the same files, to the byte.
            shutil.copytree(self.tables / schema.name, target)
            return self.engine.read(target)
        if not rules:
            self.engine.write(raw.select(used), target, sort_by)
            return self.engine.read(target)
        reason: ir.StringValue = ibis.literal("")
        for rule in rules:
            reason = reason + ibis.ifelse(rule.violated_by(measured), f"; {rule.name}", "")
        flagged = measured.mutate(reason=reason.substr(2))
        self.engine.write(flagged.filter(flagged.reason == "").select(used), target, sort_by)
        aside = self.out_quarantine / schema.name
        report.quarantined = self.engine.write(
            flagged.filter(flagged.reason != "").select(*used, "reason"), aside, [*sort_by, "reason"]
        )
        quarantined = self.engine.read(aside)
        counts = quarantined.aggregate(
            **{rule.name: reason_names(quarantined.reason, rule.name).sum() for rule in rules}
        )
        report.reasons = {name: int(count) for name, count in _row(counts).items()}
        return self.engine.read(target)

    def _judge_days(self, schema: TableSchema, clean: ir.Table, report: TableReport) -> None:
        counts = self._by_day(schema, clean)["rows"]
        calendar = pd.date_range(counts.index[0], counts.index[-1], freq="D").date
        rows = counts.reindex(calendar, fill_value=0)
        days = pd.DataFrame({"day": [_text(day) for day in calendar], "rows": rows.to_numpy()})
        limits = self.thresholds
        judged = statistics.median(rows) >= limits.compare_min_rows or limits.compare_min_rows <= 1
        days["rows of a day between others"] = rows.to_numpy(float) if judged else np.nan
        days["rows over the median of the days before"] = _over_median_before(rows.to_numpy(float), limits)
        categories = []
        for column in schema.columns:
            name = column.name
            if name not in clean.columns or column.kind not in ("string", "bool") or name == "query":
                continue
            by_day = self._by_day(schema, clean, name).reindex(calendar, fill_value=0)
            if by_day.shape[1] <= limits.max_categories:
                days[f"drift of {name}"] = _drift(by_day.to_numpy(float), limits)
                categories.append(name)
        report.days = days
        rules = day_rules(schema, categories, limits)
        frame = days.drop(columns=["day", "rows"])
        label = f"{days['day'].iloc[0]} to {days['day'].iloc[-1]}"
        verdicts = self.judge.judge(rules, [Batch(label, frame)])
        for verdict in verdicts:
            name = verdict.rule.judged_column
            values = days[name]
            check = verdict.rule.check
            assert isinstance(check, Within)
            low = -np.inf if check.minimum is None else check.minimum
            high = np.inf if check.maximum is None else check.maximum
            outside = days[(values < low) | (values > high)]
            verdict.offenders = [
                f"{day}: {name} {value:.3g} ({count} rows)"
                for day, value, count in outside[["day", name, "rows"]]
                .head(_OFFENDERS)
                .itertuples(index=False)
            ]
        report.verdicts += verdicts


def _null_if_missing(value: ir.Value) -> ir.Value:
    """NaN as null: to pandas both are missing, to Spark NaN is the greatest number."""
    return ibis.ifelse(value.isnan(), ibis.null(value.type()), value) if value.type().is_floating() else value


def reason_names(reason: ir.StringValue, name: str) -> ir.BooleanValue:
    """Whether a quarantined row's `reason`, rule names joined by "; ", names the rule."""
    return (ibis.literal("; ") + reason + "; ").contains(f"; {name}; ")


def _attach(table: ir.Table, on: str, other: ir.Table, other_key: str, columns: list[str]) -> ir.Table:
    """`table` with `columns` of the row of `other` whose key equals `on`; null where there is none."""
    other = other.select(**{"fact key": other[other_key]}, **{name: other[name] for name in columns})
    joined = table.left_join(other, [table[on] == other["fact key"]])
    return joined.drop("fact key")


def _over_median_before(rows: np.ndarray, limits: Thresholds) -> np.ndarray:
    """Rows of each day over the median of the days before it; NaN where these are too few or too small."""
    ratios = np.full(len(rows), np.nan)
    for day in range(limits.compare_min_days, len(rows)):
        before = float(np.median(rows[max(0, day - limits.compare_days_before) : day]))
        if before >= limits.compare_min_rows:
            ratios[day] = rows[day] / before
    return ratios


def _drift(rows: np.ndarray, limits: Thresholds) -> np.ndarray:
    """Total variation distance of each day's category shares from those of the days before it, pooled.

    Args:
        rows: [num_days, num_categories] rows.
        limits: how many days to pool, and how few are too few.

    Returns:
        [num_days], 0 for equal shares, 1 for disjoint categories, NaN where there are too few days or rows.
    """
    drift = np.full(len(rows), np.nan)
    for day in range(limits.compare_min_days, len(rows)):
        before = rows[max(0, day - limits.compare_days_before) : day].sum(axis=0)
        if min(before.sum(), rows[day].sum()) >= limits.compare_min_rows:
            drift[day] = 0.5 * np.abs(rows[day] / rows[day].sum() - before / before.sum()).sum()
    return drift


def _row(table: ir.Table) -> dict[str, Any]:
    return table.to_pyarrow().to_pylist()[0]


def _text(day: datetime.date) -> str:
    return day.isoformat()


def _after(day: datetime.date) -> datetime.date:
    return day + datetime.timedelta(days=1)


def _summed(counts: Iterable[Counts]) -> Counts:
    """What was counted on several days, of each rule."""
    total: dict[str, tuple[int, int]] = {}
    for one in counts:
        for name, (judged, broken) in one.items():
            before = total.get(name, (0, 0))
            total[name] = (before[0] + judged, before[1] + broken)
    return total
