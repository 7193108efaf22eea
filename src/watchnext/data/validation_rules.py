"""What logs must satisfy: the thresholds, and every rule declared once.

From a rule's declaration come its Great Expectations expectation (`Check.expectation`), which judges, and its
table expression (`Check.violated_by`), which picks the rows to quarantine. Both read the same measured column,
so that what is judged and what is set aside cannot differ.
"""

import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir
from pydantic import Field, field_validator

from watchnext.config import Section
from watchnext.schema import Column, TableSchema

if TYPE_CHECKING:
    from great_expectations.expectations import Expectation

Scope = Literal["structure", "row", "day", "table"]
Severity = Literal["critical", "warning"]

DAY_S = 86_400.0
DEFINED_BY = {"video": "videos", "user": "users"}
"""The table whose key defines the ids of an id space."""


class Thresholds(Section):
    """Section `validate` of params.yaml: what is still plausible, and how much of the rest is let pass.

    Shares are fractions of the rows that a rule applies to, judged in each batch of its table.
    """

    max_bad_share: float = Field(default=0.001, ge=0, le=1)
    max_cascaded_share: float = Field(default=0.01, ge=0, le=1)
    max_bad_share_by_rule: dict[str, float] = Field(default_factory=dict)
    max_null_share: float = Field(default=0.95, ge=0, le=1)
    earliest_at: str = "2000-01-01T00:00:00Z"
    latest_at: str | None = None
    future_tolerance_s: float = Field(default=86_400.0, ge=0)
    order_tolerance_s: float = Field(default=86_400.0, ge=0)
    watch_time_max_s: float = Field(default=86_400.0, gt=0)
    watch_time_max_durations: float = Field(default=50.0, gt=0)
    watch_time_loop_floor_s: float = Field(default=60.0, gt=0)
    duration_max_s: float = Field(default=864_000.0, gt=0)
    max_click_without_watch_share: float = Field(default=0.05, ge=0, le=1)
    compare_days_before: int = Field(default=7, ge=1)
    compare_min_days: int = Field(default=3, ge=1)
    compare_min_rows: int = Field(default=500, ge=1)
    daily_volume_min_ratio: float = Field(default=0.25, ge=0)
    daily_volume_max_ratio: float = Field(default=4.0, gt=0)
    max_category_drift: float = Field(default=0.2, ge=0, le=1)
    max_categories: int = Field(default=200, ge=2)
    report_user_share: float = Field(default=0.05, gt=0, le=1)
    batch_rows: int = Field(default=250_000, ge=1)

    @field_validator("earliest_at", "latest_at")
    @classmethod
    def _is_instant(cls, value: str | None) -> str | None:
        if value is not None:
            parse_instant(value)
        return value

    def latest(self, now: datetime.datetime) -> datetime.datetime:
        """The last instant that is plausible: `latest_at`, or `now` plus the tolerance."""
        if self.latest_at is not None:
            return parse_instant(self.latest_at)
        return now + datetime.timedelta(seconds=self.future_tolerance_s)


def parse_instant(text: str) -> datetime.datetime:
    value = datetime.datetime.fromisoformat(text)
    if value.tzinfo is None:
        raise ValueError("an instant needs its offset, as in 2024-01-31T00:00:00Z")
    return value


@dataclass(frozen=True)
class Present:
    """The value is neither null nor NaN."""

    def violated_by(self, value: ir.Value) -> ir.BooleanValue:
        return is_missing(value)

    def expectation(self, column: str, **settings: Any) -> "Expectation":
        from great_expectations.expectations import ExpectColumnValuesToNotBeNull

        return ExpectColumnValuesToNotBeNull(column=column, **settings)

    def __str__(self) -> str:
        return "is present"


@dataclass(frozen=True)
class Within:
    """The value lies between two bounds, None for unbounded; missing values pass."""

    minimum: float | None = None
    maximum: float | None = None
    above_minimum: bool = False

    def violated_by(self, value: ir.Value) -> ir.BooleanValue:
        outside: ir.BooleanValue = ibis.literal(False)
        if self.minimum is not None:
            outside = outside | ((value <= self.minimum) if self.above_minimum else (value < self.minimum))
        if self.maximum is not None:
            outside = outside | (value > self.maximum)
        return outside.fill_null(False) & ~is_missing(value)

    def expectation(self, column: str, **settings: Any) -> "Expectation":
        from great_expectations.expectations import ExpectColumnValuesToBeBetween

        return ExpectColumnValuesToBeBetween(
            column=column,
            min_value=self.minimum,
            max_value=self.maximum,
            strict_min=self.above_minimum,
            **settings,
        )

    def __str__(self) -> str:
        lower = None if self.minimum is None else f"{'>' if self.above_minimum else '≥'} {self.minimum:g}"
        upper = None if self.maximum is None else f"≤ {self.maximum:g}"
        return " and ".join(bound for bound in (lower, upper) if bound is not None)


@dataclass(frozen=True)
class OneOf:
    """The value is one of a few; missing values pass."""

    values: tuple[str | bool, ...]

    def violated_by(self, value: ir.Value) -> ir.BooleanValue:
        return value.notin(self.values).fill_null(False)

    def expectation(self, column: str, **settings: Any) -> "Expectation":
        from great_expectations.expectations import ExpectColumnValuesToBeInSet

        return ExpectColumnValuesToBeInSet(column=column, value_set=list(self.values), **settings)

    def __str__(self) -> str:
        return "is " + " or ".join(str(value).lower() for value in self.values)


@dataclass(frozen=True)
class Exists:
    """The table has the column."""

    def violated_by(self, value: ir.Value) -> ir.BooleanValue:
        raise TypeError("no row can be blamed for a column that is absent")

    def expectation(self, column: str, **settings: Any) -> "Expectation":
        from great_expectations.expectations import ExpectColumnToExist

        settings.pop("mostly")
        return ExpectColumnToExist(column=column, **settings)

    def __str__(self) -> str:
        return "is there"


Check = Present | Within | OneOf | Exists


def is_missing(value: ir.Value) -> ir.BooleanValue:
    if value.type().is_floating():
        return value.isnull() | value.isnan().fill_null(False)
    return value.isnull()


@dataclass(frozen=True)
class Rule:
    """One thing that must hold, declared once for the judge and for the quarantine.

    Attributes:
        name: what the quarantine's `reason` and the settings call it.
        table: the table it is about.
        column: the column that a reader should look at.
        check: what the measured column must satisfy.
        meaning: one sentence for reports.
        scope: which frame it is judged on.
        measured: name of the measured column; the table's own `column` where empty.
        measure: for row rules, how to compute it from the table (with its references joined).
        needs: for row rules, the columns that this takes; the rule is left out where one is absent.
        max_bad_share: largest share of the rows it applies to that may break it.
        quarantines: whether rows that break it are set aside.
        severity: a broken `critical` rule stops the pipeline, a broken `warning` is reported.
        by_clock: whether what is measured depends on the present instant.
    """

    name: str
    table: str
    column: str
    check: Check
    meaning: str
    scope: Scope = "row"
    measured: str = ""
    measure: Callable[[ir.Table], ir.Value] | None = None
    needs: tuple[str, ...] = ()
    max_bad_share: float = 0.0
    quarantines: bool = False
    severity: Severity = "critical"
    by_clock: bool = False

    @property
    def judged_column(self) -> str:
        return self.measured or self.column

    def expectation(self) -> "Expectation":
        """The Great Expectations form of the rule."""
        return self.check.expectation(
            self.judged_column,
            mostly=1.0 - self.max_bad_share,
            severity=self.severity,
            description=self.meaning,
            meta={"rule": self.name},
        )

    def violated_by(self, measured: ir.Table) -> ir.BooleanValue:
        """Whether a row breaks the rule; never null. `measured` holds the measured column."""
        return self.check.violated_by(measured[self.judged_column])


def kind_of(dtype: dt.DataType, zoned: bool = True) -> str:
    """The schema's word for a column type, or the engine's own where the schema has none.

    Args:
        dtype: as the engine reports it.
        zoned: whether the engine says that a timestamp is an instant; Spark does not, and means one.
    """
    if dtype.is_integer():
        return "int"
    if dtype.is_float64():
        return "float"
    if dtype.is_boolean():
        return "bool"
    if dtype.is_string():
        return "string"
    if dtype.is_timestamp() and (dtype.timezone is not None or not zoned):
        return "instant"
    if dtype.is_array():
        return f"list[{kind_of(dtype.value_type, zoned)}]"
    return str(dtype)


def structure_rules(
    schema: TableSchema, columns: Mapping[str, str], id_kinds: Mapping[str, str]
) -> list[Rule]:
    """Columns that must be there and their types.

    Args:
        schema: the table's schema.
        columns: the columns that are there, and their kinds.
        id_kinds: kind of the ids of each id space that a table defines.
    """
    rules = []
    for column in schema.columns:
        if column.name not in columns:
            if not column.optional:
                rules.append(
                    Rule(
                        f"{column.name}_missing",
                        schema.name,
                        column.name,
                        Exists(),
                        "the column is there",
                        "structure",
                    )
                )
            continue
        allowed: tuple[str, ...] = (column.kind,)
        meaning = f"the column holds {column.kind} values"
        if column.kind == "id":
            allowed = ("int", "string")
            meaning = "the column holds ids: integers or strings"
            own = id_kinds.get(column.id_space or "")
            if own in allowed:
                allowed = (own,)
                meaning = f"the column holds ids of the type that `{column.id_space}s` has: {own}"
        rules.append(
            Rule(f"{column.name}_type", schema.name, column.name, OneOf(allowed), meaning, "structure")
        )
    return rules


def row_rules(
    schema: TableSchema, columns: Sequence[str], thresholds: Thresholds, now: datetime.datetime
) -> list[Rule]:
    """What each row of a table must satisfy, from the schema and the thresholds.

    Args:
        schema: the table's schema.
        columns: the columns that are there and not all null.
        thresholds: bounds and shares.
        now: the present instant, for what is in the future.
    """
    present = [column for column in schema.columns if column.name in columns]
    bad: dict[str, Any] = {"max_bad_share": thresholds.max_bad_share, "quarantines": True}
    rules: list[Rule] = []
    for column in present:
        rules += _column_rules(schema, column, thresholds, now)
    key = ", ".join(schema.key)
    rules.append(
        Rule(
            "duplicate_key",
            schema.name,
            key,
            Within(maximum=0),
            f"no earlier row has the same {key}",
            measured="earlier rows with this key",
            measure=lambda table: table["fact copies before"],
            **bad,
        )
    )
    if "duration_s" in columns:
        rules.append(
            Rule(
                "duration_s_absurd",
                schema.name,
                "duration_s",
                Within(maximum=thresholds.duration_max_s),
                "a video has a plausible length",
                **bad,
            )
        )
    if "watch_time_s" in columns:
        rules += [
            Rule(
                "watch_time_s_absurd",
                schema.name,
                "watch_time_s",
                Within(maximum=thresholds.watch_time_max_s),
                "nobody watches one video this long without a break",
                **bad,
            ),
            Rule(
                "watch_time_s_exceeds_duration",
                schema.name,
                "watch_time_s",
                Within(maximum=thresholds.watch_time_max_durations),
                "watch time stays within a number of the video's durations (loops are real; milliseconds "
                "taken for seconds are not)",
                measured="watch time in durations",
                needs=("watch_time_s", "fact duration_s"),
                measure=lambda table: (
                    table["watch_time_s"]
                    / _at_least(table["fact duration_s"], thresholds.watch_time_loop_floor_s)
                ),
                **bad,
            ),
        ]
    if {"clicked", "watch_time_s"} <= set(columns):
        rules.append(
            Rule(
                "click_without_watch_time",
                schema.name,
                "watch_time_s",
                Within(minimum=0, above_minimum=True),
                "a click is followed by watch time",
                measured="watch time after a click",
                measure=lambda table: ibis.ifelse(
                    table["clicked"], table["watch_time_s"], ibis.null("float64")
                ),
                max_bad_share=thresholds.max_click_without_watch_share,
            )
        )
    if {"sources", "source_scores"} <= set(columns):
        rules.append(
            Rule(
                "source_scores_mismatch",
                schema.name,
                "source_scores",
                Within(minimum=0, maximum=0),
                "every candidate source has one score",
                measured="sources minus scores",
                measure=lambda table: table["sources"].length() - table["source_scores"].length(),
                **bad,
            )
        )
    if "request_id" in columns:
        rules.append(
            Rule(
                "request_mixed",
                schema.name,
                "request_id",
                Within(maximum=1),
                "a request is one page: one user, one instant",
                measured="users and instants of the request",
                measure=lambda table: table["fact request parties"],
                **bad,
            )
        )
    if schema.instant is not None:
        for other, fact in (("uploaded_at", "upload"), ("signed_up_at", "sign-up")):
            rules.append(
                Rule(
                    f"{schema.instant}_before_{fact.replace('-', '_')}",
                    schema.name,
                    schema.instant,
                    Within(minimum=-thresholds.order_tolerance_s / DAY_S),
                    f"nothing happens before the {fact} (`{other}`)",
                    measured=f"days since {fact}",
                    needs=(f"fact {other}",),
                    measure=_days_since(schema.instant, f"fact {other}"),
                    **bad,
                )
            )
    return [_with_own_share(rule, thresholds) for rule in rules]


def _column_rules(
    schema: TableSchema, column: Column, thresholds: Thresholds, now: datetime.datetime
) -> Iterator[Rule]:
    bad: dict[str, Any] = {"max_bad_share": thresholds.max_bad_share, "quarantines": True}
    name = column.name
    if not column.nullable:
        measured: dict[str, Any] = {}
        if column.kind == "instant" or column.kind.startswith("list"):
            # Great Expectations hashes its frames, which fails on lists and on years past 9999.
            # An `ifelse`, because Ibis writes `x IS NOT NULL IN (...)` without the brackets that it needs.
            measured = {
                "measured": f"{name} is present",
                "measure": lambda table: ibis.ifelse(table[name].isnull(), False, True),
            }
        check: Check = OneOf((True,)) if measured else Present()
        yield Rule(f"{name}_null", schema.name, name, check, "the value is present", **measured, **bad)
    if column.minimum is not None or column.maximum is not None:
        check = Within(column.minimum, column.maximum)
        yield Rule(f"{name}_out_of_range", schema.name, name, check, f"{column.meaning}: {check}", **bad)
    if column.kind == "instant":
        for suffix, check, meaning in (
            (
                "in_the_future",
                Within(minimum=0),
                f"not after {thresholds.latest(now):%Y-%m-%d %H:%M} UTC "
                "(a year of five digits: milliseconds were taken for seconds)",
            ),
            (
                "too_early",
                Within(
                    maximum=(thresholds.latest(now) - parse_instant(thresholds.earliest_at)).total_seconds()
                    / DAY_S
                ),
                f"not before {thresholds.earliest_at} "
                "(1970: seconds were taken for milliseconds, or zero for absent)",
            ),
        ):
            yield Rule(
                f"{name}_{suffix}",
                schema.name,
                name,
                check,
                meaning,
                measured=f"days from {name} to the latest plausible instant",
                measure=lambda table: (thresholds.latest(now).timestamp() - epoch_s(table[name])) / DAY_S,
                by_clock=True,
                **bad,
            )
    if column.kind == "id" and column.id_space in DEFINED_BY and schema.name != DEFINED_BY[column.id_space]:
        # A seed video may have left the catalogue since: the impression itself is still a sound one.
        is_optional = column.optional
        yield Rule(
            f"{name}_unknown",
            schema.name,
            name,
            OneOf((True,)),
            f"the id is in `{DEFINED_BY[column.id_space]}`",
            measured=f"{name} is known",
            measure=lambda table: table[f"fact {name} known"],
            max_bad_share=thresholds.max_cascaded_share if is_optional else thresholds.max_bad_share,
            quarantines=not is_optional,
        )
        if not is_optional:
            yield Rule(
                f"{name}_quarantined",
                schema.name,
                name,
                OneOf((True,)),
                f"the row of `{DEFINED_BY[column.id_space]}` that the id names was not set aside",
                measured=f"{name} is sound",
                measure=lambda table: table[f"fact {name} sound"],
                max_bad_share=thresholds.max_cascaded_share,
                quarantines=True,
            )


def table_rules(schema: TableSchema, columns: Sequence[str], thresholds: Thresholds) -> list[Rule]:
    """What a table as a whole must satisfy."""
    rules = [Rule("no_rows", schema.name, "", Within(minimum=1), "the table has rows", "table", "rows")]
    for column in schema.columns:
        if column.name not in columns or not column.nullable:
            continue
        if column.optional:
            rules.append(
                Rule(
                    f"{column.name}_all_null",
                    schema.name,
                    column.name,
                    Within(minimum=1),
                    "an optional column has values; where it has none it is treated as absent",
                    "table",
                    f"values in {column.name}",
                    severity="warning",
                )
            )
        else:
            rules.append(
                Rule(
                    f"{column.name}_mostly_null",
                    schema.name,
                    column.name,
                    Within(maximum=thresholds.max_null_share),
                    "a column that the source may not lack is not practically empty",
                    "table",
                    f"share of nulls in {column.name}",
                )
            )
    for column_name, meaning in (
        ("clicked", "somebody clicked"),
        ("completed", "somebody completed a video"),
    ):
        # An optional table may hold nothing to learn from: it is not what models are fitted on alone.
        if column_name in columns and not schema.optional:
            rules.append(
                Rule(
                    f"zero_{column_name}",
                    schema.name,
                    column_name,
                    Within(minimum=1),
                    f"{meaning}: without it there is nothing to learn from",
                    "table",
                    f"rows {column_name}",
                )
            )
    if schema.instant is not None:
        rules.append(
            Rule(
                "one_user_dominates",
                schema.name,
                "user_id",
                Within(maximum=thresholds.report_user_share),
                "no single user makes up a large part of the table (a crawler, a shared account)",
                "table",
                "share of the most active user",
                severity="warning",
            )
        )
    return [_with_own_share(rule, thresholds) for rule in rules]


def day_rules(schema: TableSchema, categories: Sequence[str], thresholds: Thresholds) -> list[Rule]:
    """What each day of an event table must satisfy, against the days before it."""
    rules = [
        Rule(
            "day_missing",
            schema.name,
            schema.instant or "",
            Within(minimum=1),
            "no day between the first and the last is without rows",
            "day",
            "rows of a day between others",
        ),
        Rule(
            "daily_volume",
            schema.name,
            schema.instant or "",
            Within(thresholds.daily_volume_min_ratio, thresholds.daily_volume_max_ratio),
            "a day's rows, divided by the median of the days before, stay within bounds",
            "day",
            "rows over the median of the days before",
        ),
    ]
    rules += [
        Rule(
            f"{name}_drift",
            schema.name,
            name,
            Within(maximum=thresholds.max_category_drift),
            "the share of rows that changed category against the days before (total variation distance)",
            "day",
            f"drift of {name}",
        )
        for name in categories
    ]
    return [_with_own_share(rule, thresholds) for rule in rules]


def _with_own_share(rule: Rule, thresholds: Thresholds) -> Rule:
    own = thresholds.max_bad_share_by_rule.get(f"{rule.table}.{rule.name}")
    if own is None:
        return rule
    return replace(rule, max_bad_share=own)


def _at_least(value: ir.Value, floor: float) -> ir.Value:
    # `greatest` alone would turn a null into the floor.
    return ibis.ifelse(value.isnull(), ibis.null("float64"), ibis.greatest(value, ibis.literal(floor)))


def _days_since(instant: str, fact: str) -> Callable[[ir.Table], ir.Value]:
    return lambda table: (epoch_s(table[instant]) - table[fact]) / DAY_S


def epoch_s(instant: ir.TimestampValue) -> ir.IntegerValue:
    """Whole seconds since 1970 UTC, rounded down."""
    # Ibis types them as 32 bits, and mixed-up units give years that need more; DuckDB gives a fraction, which a
    # cast to integers would round into the next day.
    return instant.epoch_seconds().cast("float64").floor().cast("int64")
