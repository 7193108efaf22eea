"""From a source's files to the project's tables: typed, without duplicates, sorted, with a note of what they are."""

import contextlib
import datetime as dt
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import ibis
import ibis.expr.datatypes as dtypes
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq

from watchnext.data.sources import Logs, RawColumn, RawTable
from watchnext.data.split import from_wall_clock, rows_per_day
from watchnext.engine import Engine, trimmed
from watchnext.errors import InputError
from watchnext.schema import TABLES, Kind, TableSchema

SOURCE_FILE = "source.json"

EARLIEST_AT_S = 631_152_000
"""1990-01-01: no log begins before. Milliseconds taken for microseconds land in 1970, years before."""

LATEST_AT_S = 4_102_444_800
"""2100-01-01. Milliseconds taken for seconds land 50,000 years after."""

_UNITS_PER_S = {"s": 1, "ms": 1_000, "us": 1_000_000}
_INTEGER_TEXT = r"^[+-]?[0-9]{1,18}(\.0+)?$"
_INT64_MAX = 2**63 - 1
_ID_TEXT = r"^(0|-?[1-9][0-9]{0,17})(\.0)?$"


@dataclass(frozen=True)
class IngestedTable:
    """What became of one table.

    Attributes:
        rows: rows stored.
        columns: columns stored, in order.
        absent_columns: columns of the schema that the source lacks, those without a single value included.
        empty_columns: those without a single value.
        ignored_columns: columns of the source's files that were kept out.
        exact_duplicates: rows dropped because another row equals them in everything.
        key_duplicates: rows dropped because another row has their key and differs elsewhere.
    """

    rows: int
    columns: tuple[str, ...]
    absent_columns: tuple[str, ...]
    empty_columns: tuple[str, ...]
    ignored_columns: tuple[str, ...]
    exact_duplicates: int
    key_duplicates: int


def ingest_logs(logs: Logs, engine: Engine, out_tables: Path) -> dict[str, IngestedTable]:
    """Store the tables of `logs` under `out_tables` in schema form, and `source.json` beside them.

    The same rows in any order give the same bytes (on DuckDB). Of rows that share a key and differ elsewhere the one
    stays that comes first with every further column in falling order: clicked before not, long watch before short.
    Rows without a key are left to `validate`.

    Raises:
        InputError: a value is not of its column's type, an instant is not plausible in its unit.
    """
    done: dict[str, IngestedTable] = {}
    with _damage_explained(logs):
        tables = logs.derive(_typed_files(logs))
        for name, schema in TABLES.items():
            if name in tables:
                ingested = _ingest_table(tables[name], schema, logs, engine, out_tables / name)
                if ingested is not None:
                    done[name] = ingested
    write_source(
        out_tables,
        {
            "source": logs.source,
            "time_zone": logs.time_zone,
            "tables": {
                name: {
                    "rows": table.rows,
                    "columns": list(table.columns),
                    "absent_columns": list(table.absent_columns),
                    "ignored_columns": list(table.ignored_columns),
                }
                for name, table in done.items()
            },
            "absent_tables": [name for name in TABLES if name not in done],
        },
    )
    return done


def write_report(tables: Path, time_zone: str, engine: Engine, out_report: Path) -> dict[dt.date, int]:
    """Count impressions per local day: as `impressions_per_day.csv` and as a picture.

    Returns:
        The counts, by day.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = rows_per_day(engine.read(tables / "impressions"), "shown_at", time_zone)
    out_report.mkdir(parents=True, exist_ok=True)
    lines = [f"{day.isoformat()},{rows}" for day, rows in counts.items()]
    (out_report / "impressions_per_day.csv").write_text(
        "\n".join(["day,impressions", *lines]) + "\n", encoding="utf-8"
    )
    figure = Figure(figsize=(8, 3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.bar([day.isoformat() for day in counts], list(counts.values()))
    axes.set_title(f"Impressions per day in {time_zone}")
    axes.set_ylabel("impressions")
    axes.tick_params(axis="x", rotation=90)
    figure.savefig(out_report / "impressions_per_day.png", dpi=100)
    return counts


def digest_of(tables: Path) -> str:
    """sha256 over the names and bytes of every part file under `tables`, which identifies a data set."""
    digest = hashlib.sha256()
    for path in sorted(tables.glob("*/part-*.parquet")):
        digest.update(path.relative_to(tables).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def read_source(tables: Path) -> dict[str, Any]:
    """The note that stands beside tables: source, time zone, digest, and per table rows and columns.

    Raises:
        InputError: there is none.
    """
    path = tables / SOURCE_FILE
    if not path.is_file():
        raise InputError(
            "no ingested tables here", where=str(path), remedy="run `dvc repro`, which makes them"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def write_source(tables: Path, source: Mapping[str, Any]) -> None:
    """Write the note beside `tables`, with the digest of the tables as they stand."""
    content = {**source, "digest": digest_of(tables)}
    (tables / SOURCE_FILE).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _damage_explained(logs: Logs) -> Iterator[None]:
    """Name the damaged file when the engine fails on one whose footer was whole."""
    try:
        yield
    except duckdb.Error as error:
        for path in (path for raw in logs.raw.values() for path in raw.parquet):
            try:
                for _ in pq.ParquetFile(path).iter_batches():
                    pass
            except (pa.ArrowException, OSError) as damage:
                raise InputError(
                    "the Parquet file cannot be read to its end: it is damaged",
                    where=str(path),
                    offenders=[str(damage).splitlines()[0]],
                    remedy="copy or export the file again",
                ) from error
        raise


# Values to types


@dataclass(frozen=True)
class _Parsed:
    """A column on its way to its type: its value (null where it has none), and which rows cannot be right."""

    value: ir.Value
    wrong: ir.BooleanValue | None = None
    implausible: ir.BooleanValue | None = None


def _typed_files(logs: Logs) -> dict[str, ir.Table]:
    text_ids = _text_id_spaces(logs)
    typed = {}
    for name, raw in logs.raw.items():
        parsed = {
            ours: _parse(raw, ours, column, logs.time_zone, text_ids) for ours, column in raw.columns.items()
        }
        _refuse_wrong_values(raw, parsed)
        typed[name] = raw.table.select(**{ours: column.value for ours, column in parsed.items()})
    return typed


def _text_id_spaces(logs: Logs) -> set[str]:
    """The id spaces whose ids are strings: any column of theirs holds something else than integers.

    `007` is a string: as the integer 7 it would meet another id. So are hashes that take all of 64 bits.
    """
    text = set()
    for raw in logs.raw.values():
        questions = {}
        for ours, column in raw.columns.items():
            if column.kind != "id":
                continue
            values = _values(raw, column)
            if column.theirs is None:
                if isinstance(column.value, str):
                    text.add(str(column.id_space))
            elif values.type().is_string():
                questions[ours] = (values.notnull() & ~values.re_search(_ID_TEXT)).any()
            elif values.type().is_uint64():
                questions[ours] = (values > _INT64_MAX).any()
        if questions:
            answers = raw.table.aggregate(**questions).to_pyarrow().to_pylist()[0]
            text |= {str(raw.columns[ours].id_space) for ours, is_text in answers.items() if is_text}
    return text


def _values(raw: RawTable, column: RawColumn) -> ir.Value:
    return ibis.literal(column.value) if column.theirs is None else raw.table[column.theirs]


def _parse(raw: RawTable, ours: str, column: RawColumn, time_zone: str, text_ids: set[str]) -> _Parsed:
    values = _values(raw, column)
    kind: Kind = column.kind
    if kind == "id":
        kind = "string" if column.id_space in text_ids else "int"
    if column.theirs is None:
        return _Parsed(values.cast(_dtype(kind)))
    if _is_nothing(values.type()):
        return _Parsed(ibis.null(_dtype(kind)))
    if kind == "string":
        parsed = _parse_string(values)
    elif kind == "int":
        parsed = _parse_int(values)
    elif kind == "float":
        parsed = _parse_float(values, _UNITS_PER_S.get(column.unit or "s", 1))
    elif kind == "bool":
        parsed = _parse_bool(values)
    elif kind == "instant":
        parsed = _parse_instant(values, column.unit, time_zone, raw, ours)
    else:
        parsed = _parse_list(values, kind, raw.list_separator)
    if parsed is None:
        raise InputError(
            f"`{ours}` should be {_in_words(column.kind)}, and the column is {values.type()}",
            where=f"{raw.where}, column {column.theirs}",
            remedy="convert it, or map another column",
        )
    return parsed


def _parse_string(values: ir.Value) -> _Parsed | None:
    if values.type().is_string():
        return _Parsed(values)
    if values.type().is_numeric() or values.type().is_boolean():
        if values.type().is_floating():
            # Pandas turns integers with a gap into floats; 3.0 is the category 3.
            values = ibis.cases(
                (values.isnan(), ibis.null("string")),
                (values == values.round(), values.round().cast("int64").cast("string")),
                else_=values.cast("string"),
            )
        return _Parsed(values.cast("string"))
    return None


def _parse_int(values: ir.Value) -> _Parsed | None:
    dtype = values.type()
    if dtype.is_uint64():
        return _Parsed(values.try_cast("int64"), wrong=values > _INT64_MAX)
    if dtype.is_integer() or dtype.is_boolean():
        return _Parsed(values.cast("int64"))
    if dtype.is_floating() or dtype.is_decimal():
        present = values.notnull() & ~values.cast("float64").isnan()
        whole = present & (values == values.round()) & (values.abs() < 2**53)
        return _Parsed(ibis.cases((whole, values.round().cast("int64"))), wrong=present & ~whole)
    if dtype.is_string():
        right = values.re_search(_INTEGER_TEXT)
        number = values.re_replace(r"\.0+$", "").try_cast("int64")
        return _Parsed(ibis.cases((right, number)), wrong=values.notnull() & ~right)
    return None


def _parse_float(values: ir.Value, per_unit: int) -> _Parsed | None:
    dtype = values.type()
    if dtype.is_string():
        number = values.try_cast("float64")
        wrong = values.notnull() & number.isnull()
    elif dtype.is_numeric():
        number = values.cast("float64")
        wrong = None
    else:
        return None
    number = ibis.cases((number.isnan(), ibis.null("float64")), else_=number)
    return _Parsed(number / float(per_unit) if per_unit != 1 else number, wrong)


def _parse_bool(values: ir.Value) -> _Parsed | None:
    dtype = values.type()
    if dtype.is_boolean():
        return _Parsed(values)
    if dtype.is_string():
        text = trimmed(values).lower()
        value = ibis.cases(
            (text.isin(["1", "true", "t", "yes", "y", "1.0"]), True),
            (text.isin(["0", "false", "f", "no", "n", "0.0"]), False),
        )
    elif dtype.is_numeric():
        value = ibis.cases((values == 1, True), (values == 0, False))
    else:
        return None
    return _Parsed(value, wrong=values.notnull() & value.isnull())


def _parse_instant(
    values: ir.Value, unit: str | None, time_zone: str, raw: RawTable, ours: str
) -> _Parsed | None:
    dtype = values.type()
    if dtype.is_date():
        value = from_wall_clock(values, time_zone)
        return _Parsed(value, implausible=_implausible_instant(value))
    if dtype.is_timestamp():
        value = from_wall_clock(values, time_zone) if unit == "local" else _as_utc(values)
        return _Parsed(value, implausible=_implausible_instant(value))
    if unit in _UNITS_PER_S:
        return _parse_epoch(values, _UNITS_PER_S[unit])
    if dtype.is_numeric():
        raise InputError(
            f"`{ours}` holds numbers, and nothing says in which unit",
            where=raw.where,
            offenders=_first(raw.table, values.notnull(), values),
            remedy=f"map it as `{ours}: {{column: ..., unit: ms}}` (or s, us) in ingest.files.tables",
        )
    if not dtype.is_string():
        return None
    if unit == "local":
        wall_clock = values.try_cast(dtypes.Timestamp(scale=6))
        value = from_wall_clock(wall_clock, time_zone)
    else:
        value = values.try_cast(dtypes.Timestamp(timezone="UTC", scale=6))
    return _Parsed(value, wrong=values.notnull() & value.isnull(), implausible=_implausible_instant(value))


def _parse_epoch(values: ir.Value, units_per_s: int) -> _Parsed | None:
    dtype = values.type()
    if dtype.is_integer():
        number: ir.Value = values.cast("int64")
        present = values.notnull()
        wrong = None
    elif dtype.is_string():
        number = values.try_cast(dtypes.Decimal(38, 6))
        present = number.notnull()
        wrong = values.notnull() & number.isnull()
    elif dtype.is_numeric():
        present = values.notnull() & ~values.cast("float64").isnan()
        number = values.cast("float64")
        wrong = None
    else:
        return None
    plausible = present & number.between(EARLIEST_AT_S * units_per_s, LATEST_AT_S * units_per_s)
    us_per_unit = 1_000_000 // units_per_s
    # What is not plausible is not multiplied: it could overflow before it is reported.
    microseconds = ibis.cases((plausible, number)) * us_per_unit
    if not dtype.is_integer():
        microseconds = microseconds.round().cast("int64")
    return _Parsed(_from_epoch_us(microseconds), wrong, implausible=present & ~plausible)


def _parse_list(values: ir.Value, kind: Kind, separator: str) -> _Parsed | None:
    item = "string" if kind == "list[string]" else "float64"
    dtype = values.type()
    if dtype.is_string():
        # Spark splits at a regular expression, DuckDB at a text: this one is the same as either.
        between = "\x1f"
        items = trimmed(values).re_replace(rf"\s*{re.escape(separator)}\s*", between).split(between)
        if item == "string":
            return _Parsed(items)
        numbers = items.try_cast(dtypes.Array(dtypes.float64))
        return _Parsed(numbers, wrong=values.notnull() & numbers.isnull())
    if dtype.is_array():
        inner = dtype.value_type
        if inner.is_string() and item == "string":
            return _Parsed(values)
        if inner.is_numeric() or _is_nothing(inner):
            return _Parsed(values.cast(dtypes.Array(dtypes.dtype(item))))
    return None


def _implausible_instant(value: ir.TimestampValue) -> ir.BooleanValue:
    earliest = ibis.timestamp("1990-01-01T00:00:00+00:00")
    latest = ibis.timestamp("2100-01-01T00:00:00+00:00")
    return value.notnull() & ((value < earliest) | (value > latest))


def _as_utc(values: ir.TimestampValue) -> ir.TimestampValue:
    return values.cast(dtypes.Timestamp(timezone="UTC", scale=6))


def _from_epoch_us(microseconds: ir.IntegerValue) -> ir.TimestampValue:
    if microseconds.get_backend().name == "pyspark":
        return _timestamp_micros(microseconds)
    return _as_utc(_make_timestamp(microseconds))


# The bodies are never run: these declare functions that the engines have.
@ibis.udf.scalar.builtin(name="make_timestamp", signature=((dtypes.int64,), dtypes.Timestamp(scale=6)))
def _make_timestamp(microseconds): ...  # type: ignore[no-untyped-def]


@ibis.udf.scalar.builtin(
    name="timestamp_micros", signature=((dtypes.int64,), dtypes.Timestamp(timezone="UTC", scale=6))
)
def _timestamp_micros(microseconds): ...  # type: ignore[no-untyped-def]


def _is_nothing(dtype: dtypes.DataType) -> bool:
    """Whether this is the type of a column without a single value; Ibis has no name for DuckDB's."""
    return dtype.is_null() or (dtype.is_unknown() and "NULL" in str(dtype))


def _dtype(kind: Kind) -> dtypes.DataType:
    return {
        "string": dtypes.string,
        "int": dtypes.int64,
        "float": dtypes.float64,
        "bool": dtypes.boolean,
        "instant": dtypes.Timestamp(timezone="UTC", scale=6),
        "list[string]": dtypes.Array(dtypes.string),
        "list[float]": dtypes.Array(dtypes.float64),
        "id": dtypes.int64,
    }[kind]


def _in_words(kind: Kind) -> str:
    return {
        "string": "text",
        "int": "an integer",
        "float": "a number",
        "bool": "true or false (or 1 or 0)",
        "instant": "an instant",
        "list[string]": "a list of texts",
        "list[float]": "a list of numbers",
        "id": "an id",
    }[kind]


def _refuse_wrong_values(raw: RawTable, parsed: Mapping[str, _Parsed]) -> None:
    questions = {"rows": raw.table.count()}
    for ours, column in parsed.items():
        if column.wrong is not None:
            questions[f"wrong {ours}"] = column.wrong.sum()
        if column.implausible is not None:
            questions[f"implausible {ours}"] = column.implausible.sum()
    if len(questions) == 1:
        return
    answers = raw.table.aggregate(**questions).to_pyarrow().to_pylist()[0]
    for ours, column in parsed.items():
        spec = raw.columns[ours]
        where = f"{raw.where}, column {spec.theirs}"
        values = _values(raw, spec)
        wrong = answers.get(f"wrong {ours}")
        if wrong:
            raise InputError(
                f"`{ours}` should be {_in_words(spec.kind)}: {wrong:,} of {answers['rows']:,} values are not",
                where=where,
                offenders=_first(raw.table, column.wrong, values),
                remedy="mend the column; values that stand for nothing can be listed under `missing`, and an instant "
                "as a number needs its `unit` (ingest.files.tables)",
            )
        implausible = answers.get(f"implausible {ours}")
        if implausible:
            raise _wrong_unit(raw, ours, column, int(implausible), int(answers["rows"]))


def _wrong_unit(raw: RawTable, ours: str, column: _Parsed, implausible: int, rows: int) -> InputError:
    spec = raw.columns[ours]
    values = _values(raw, spec)
    offenders = _first(raw.table, column.implausible, values)
    unit = spec.unit if spec.unit in _UNITS_PER_S else None
    looks_like = {_unit_of(offender) for offender in offenders} - {None} if unit else set()
    guess = f"; they look like {' or '.join(sorted(str(name) for name in looks_like))}" if looks_like else ""
    which = "every value" if implausible == rows else f"{implausible:,} of {rows:,} values"
    mixed = implausible < rows
    return InputError(
        f"`{ours}` {'mixes units' if mixed and unit else 'is not plausible'}: {which} would be before 1990 or after 2100"
        + (f" in {unit}{guess}" if unit else ""),
        where=f"{raw.where}, column {spec.theirs}",
        offenders=offenders,
        remedy="bring the column to one unit, and name it as `unit` in ingest.files.tables"
        if mixed or not looks_like
        else f"set `unit: {min(str(name) for name in looks_like)}` for this column in ingest.files.tables",
    )


def _unit_of(value: object) -> str | None:
    """The unit in which a number since 1970 is a plausible instant."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    for unit, per_s in _UNITS_PER_S.items():
        if EARLIEST_AT_S * per_s <= number <= LATEST_AT_S * per_s:
            return unit
    return None


def _first(table: ir.Table, rows: ir.BooleanValue, values: ir.Value) -> list[str]:
    """The first few distinct values among `rows`, in their own order, so that an error reads the same every time."""
    found = table.filter(rows).select(value=values).distinct().order_by("value").limit(5)
    return [str(value) for value in found.to_pyarrow()["value"].to_pylist()]


# Typed rows to a table


def _ingest_table(
    table: ir.Table, schema: TableSchema, logs: Logs, engine: Engine, directory: Path
) -> IngestedTable | None:
    columns = [name for name in schema.column_names if name in table.columns]
    nothing_in = _all_null(table, [name for name in columns if schema.column(name).optional])
    columns = [name for name in columns if name not in nothing_in]
    columns += [name for name in logs.extra_columns.get(schema.name, ()) if name in table.columns]
    evidence = [name for name in table.columns if name not in columns and name not in nothing_in]

    unique, exact, conflicting, keyless = _without_duplicates(
        table.select(*columns, *evidence), schema.key, columns
    )
    stored = unique.select(*columns)
    order = [name for name in schema.sort_by if name in columns]
    if keyless:
        order += [name for name in columns if name not in order]
    rows = engine.write(stored, directory, order)
    if rows == 0:
        return None
    return IngestedTable(
        rows=rows,
        columns=tuple(columns),
        absent_columns=tuple(name for name in schema.column_names if name not in columns),
        empty_columns=tuple(nothing_in),
        ignored_columns=tuple(logs.ignored_columns.get(schema.name, ())),
        exact_duplicates=exact,
        key_duplicates=conflicting,
    )


def _all_null(table: ir.Table, names: Sequence[str]) -> list[str]:
    """Optional columns without a single value: as good as absent, and treated so."""
    if not names:
        return []
    present = table.aggregate(**{name: table[name].count() for name in names}).to_pyarrow().to_pylist()[0]
    return [name for name in names if present[name] == 0]


def _without_duplicates(
    table: ir.Table, key: Sequence[str], columns: Sequence[str]
) -> tuple[ir.Table, int, int, int]:
    """`table` with one row per key, and how many rows were exact duplicates, shared a key only, had no key.

    Only the rows whose key comes twice go through a window: they are few, and a window over all would cost more than
    the rest of ingest together.
    """
    has_key = ibis.and_(*(table[name].notnull() for name in key))
    doubled = (
        table.filter(has_key)
        .group_by(list(key))
        .aggregate(_rows=ibis._.count())
        .filter(lambda t: t["_rows"] > 1)
    )
    keyless = int(table.filter(~has_key).count().to_pyarrow().as_py())
    counted = doubled.aggregate(keys=doubled.count(), rows=doubled["_rows"].sum()).to_pyarrow().to_pylist()[0]
    keys, rows = counted["keys"], counted["rows"]
    if not keys:
        return table, 0, 0, keyless
    doubles = table.semi_join(doubled, list(key))
    distinct = int(doubles.distinct().count().to_pyarrow().as_py())
    rest = [name for name in columns if name not in key]
    window = ibis.window(group_by=list(key), order_by=[ibis.desc(name, nulls_first=False) for name in rest])
    chosen = (
        doubles.mutate(_place=ibis.row_number().over(window))
        .filter(lambda t: t["_place"] == 0)
        .drop("_place")
    )
    unique = table.anti_join(doubled, list(key)).union(chosen)
    return unique, int(rows) - distinct, distinct - int(keys), keyless
