"""Where logs come from: the simulator's files, KuaiRand's original files, or a user's own with a column mapping.

A source finds its files, says which of their columns are ours and in which unit they are, and how the project's
tables are made of them once `ingest` has typed them. It reads nothing but file headers itself.
"""

import codecs
import csv
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from pydantic import Field

from watchnext.config import Section
from watchnext.data.split import check_time_zone
from watchnext.engine import Engine
from watchnext.errors import InputError
from watchnext.schema import TABLES, Column, Kind, TableSchema

Unit = Literal["s", "ms", "us", "iso", "local"]
"""Of a number: seconds, milli- or microseconds (of an instant: since 1970 UTC). Of an instant as text or timestamp:
`iso` is ISO 8601, without an offset meaning UTC; `local` is what clocks in `ingest.time_zone` showed."""

BLOCK_BYTES = 8 << 20


class ColumnFrom(Section):
    """What one of our columns is made of: a column of theirs, or one value for every row."""

    column: str | None = None
    value: str | int | float | bool | None = None
    unit: Unit | None = None


class FileTable(Section):
    """One table of a user's own logs."""

    path: str
    format: Literal["csv", "parquet"] | None = None
    encoding: str = "utf-8"
    delimiter: str = ","
    list_separator: str = ","
    missing: list[str] = Field(default_factory=lambda: [""])
    columns: dict[str, str | ColumnFrom | None] = Field(default_factory=dict)


class Files(Section):
    """Setting `ingest.files`: which file holds which table."""

    tables: dict[str, FileTable] = Field(default_factory=dict)


@dataclass(frozen=True)
class RawColumn:
    """A column as the files hold it and what it should become.

    Attributes:
        theirs: its name in the files; None when it is `value` for every row.
        kind: the logical type that it is read as.
        unit: what a number or a text means, where the type leaves that open.
        id_space: for ids, which ids these are.
        value: one value for every row, when there is no column.
    """

    theirs: str | None
    kind: Kind
    unit: Unit | None = None
    id_space: str | None = None
    value: str | int | float | bool | None = None


@dataclass(frozen=True)
class RawTable:
    """Files of one layout, before their values are typed.

    Attributes:
        table: every column of the files; all of them text where the files are CSV.
        where: the files, as a user would name them.
        columns: name after typing -> where it comes from.
        ignored_columns: columns of the files that nothing reads.
        list_separator: what stands between the items of a list written as text.
        parquet: the files, where they are Parquet.
    """

    table: ir.Table
    where: str
    columns: Mapping[str, RawColumn]
    ignored_columns: tuple[str, ...] = ()
    list_separator: str = ","
    parquet: tuple[Path, ...] = ()


def _as_they_are(typed: Mapping[str, ir.Table]) -> dict[str, ir.Table]:
    return dict(typed)


@dataclass(frozen=True)
class Logs:
    """All that a source found.

    Attributes:
        source: which source.
        time_zone: IANA name; days are cut in it.
        raw: the files, by a name that `derive` knows.
        derive: makes the project's tables of the typed files. Columns that are not in the schema only tell rows apart
            that are equal otherwise.
        ignored_columns: per table of the schema, columns of the files that were kept out.
        extra_columns: per table, columns beyond the schema that are kept.
        notes: what a user should know about what was found.
    """

    source: str
    time_zone: str
    raw: Mapping[str, RawTable]
    ignored_columns: Mapping[str, tuple[str, ...]]
    extra_columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    derive: Callable[[Mapping[str, ir.Table]], dict[str, ir.Table]] = _as_they_are


def open_source(
    source: str, folder: Path, time_zone: str, files: Files, engine: Engine, scratch: Path
) -> Logs:
    """Find the files of `source`.

    Args:
        source: `simulated`, `kuairand` or `files`.
        folder: where they are.
        time_zone: IANA name, or `auto` for what the source declares.
        files: the column mapping; read by the source `files` alone.
        engine: what will read them.
        scratch: an existing folder for files that have to be rewritten before an engine can read them.

    Raises:
        InputError: the folder, a file, a column or a key of the mapping is not what it should be.
    """
    if not folder.is_dir():
        raise InputError(
            "the folder of the logs is not there" if not folder.exists() else "the logs should be a folder",
            where=f"{folder} (params.yaml, ingest.path)",
            remedy="set ingest.path to the folder that holds the logs"
            + (", or run `dvc repro`, which simulates some" if source == "simulated" else ""),
        )
    if time_zone != "auto":
        check_time_zone(time_zone, "params.yaml, ingest.time_zone")
    if source == "kuairand":
        return _open_kuairand(folder, "Asia/Shanghai" if time_zone == "auto" else time_zone, engine, scratch)
    zone = "UTC" if time_zone == "auto" else time_zone
    if source == "files":
        return _open_files(folder, zone, files, engine, scratch)
    return _open_simulated(folder, zone, engine)


# Files in schema form


def _open_simulated(folder: Path, time_zone: str, engine: Engine) -> Logs:
    present = {name: folder / f"{name}.parquet" for name in TABLES if (folder / f"{name}.parquet").is_file()}
    _require_tables(
        present,
        folder,
        expected=[f"{name}.parquet" for name, schema in TABLES.items() if not schema.optional],
        remedy="run `dvc repro`, which simulates logs; for your own logs set ingest.source to `files`",
    )
    raw, ignored, extra = {}, {}, {}
    for name, path in present.items():
        schema = TABLES[name]
        table = _read_parquet(engine, [path], str(path), str(path), optional=schema.optional)
        if table is None:
            continue
        # A table that takes further categorical columns takes the ones that are text.
        extras = tuple(
            column
            for column, dtype in table.schema().items()
            if schema.extra_columns and column not in schema.column_names and dtype.is_string()
        )
        columns = {
            column.name: _raw_column(column, column.name)
            for column in schema.columns
            if column.name in table.columns
        }
        columns |= {column: RawColumn(column, "string") for column in extras}
        _require_columns(schema, columns, table.columns, str(path), "")
        raw[name] = RawTable(table, str(path), columns, parquet=(path,))
        ignored[name] = tuple(sorted(set(table.columns) - set(columns)))
        extra[name] = extras
    return Logs("simulated", time_zone, raw, ignored, extra)


# A user's own files, with a mapping


def _open_files(folder: Path, time_zone: str, files: Files, engine: Engine, scratch: Path) -> Logs:
    setting = "params.yaml, ingest.files.tables"
    for name in files.tables:
        if name not in TABLES:
            raise InputError(
                f"`{name}` is not a table", where=setting, remedy=_did_you_mean(name, list(TABLES))
            )
    missing = [name for name, schema in TABLES.items() if not schema.optional and name not in files.tables]
    if missing:
        raise InputError(
            "the mapping lacks tables: " + ", ".join(missing),
            where=setting,
            remedy="name the file of each; docs/bring-your-own-logs.md has an example",
        )
    raw, ignored, extra = {}, {}, {}
    for name, mapping in files.tables.items():
        schema = TABLES[name]
        where = f"{setting}.{name}"
        paths = _find(folder, mapping.path, f"{where}.path")
        kind = mapping.format or _format_of(paths[0], where)
        shown = str(folder / mapping.path)
        if kind == "csv":
            table = _read_csv(
                engine, paths, scratch / name, mapping.encoding, mapping.delimiter, mapping.missing, where,
                optional=schema.optional,
            )  # fmt: skip
        else:
            pattern = str(paths[0]) if len(paths) == 1 else _pattern(folder, mapping.path, paths)
            table = _read_parquet(engine, paths, pattern, shown, optional=schema.optional)
        if table is None:
            continue
        columns, extras = _mapped_columns(schema, mapping, table.columns, shown, where)
        raw[name] = RawTable(
            table,
            shown,
            columns,
            list_separator=mapping.list_separator,
            parquet=tuple(paths) if kind == "parquet" else (),
        )
        read = {column.theirs for column in columns.values()}
        ignored[name] = tuple(sorted(set(table.columns) - read))
        extra[name] = extras
    return Logs("files", time_zone, raw, ignored, extra)


def _mapped_columns(
    schema: TableSchema, mapping: FileTable, theirs: Sequence[str], shown: str, where: str
) -> tuple[dict[str, RawColumn], tuple[str, ...]]:
    columns: dict[str, RawColumn] = {}
    extras = []
    for ours, given in mapping.columns.items():
        key = f"{where}.columns.{ours}"
        if ours not in schema.column_names:
            if not schema.extra_columns:
                raise InputError(
                    f"`{ours}` is not a column of {schema.name}",
                    where=key,
                    remedy=_did_you_mean(ours, schema.column_names)
                    + " (a line reads `our name: their name`)",
                )
            extras.append(ours)
        if given is None:
            continue
        spec = ColumnFrom(column=given) if isinstance(given, str) else given
        if (spec.column is None) == (spec.value is None):
            raise InputError("a mapped column has either `column` or `value`", where=key)
        if spec.column is not None and spec.column not in theirs:
            raise InputError(
                f"the file has no column `{spec.column}`",
                where=f"{shown} ({key})",
                remedy=_did_you_mean(spec.column, theirs),
            )
        column = (
            schema.column(ours) if ours in schema.column_names else Column(ours, "string", "", nullable=True)
        )
        _check_unit(column, spec.unit, key)
        _check_value(column, spec.value, key)
        columns[ours] = RawColumn(spec.column, column.kind, spec.unit, column.id_space, spec.value)
    for column in schema.columns:
        if column.name not in mapping.columns and column.name in theirs:
            columns[column.name] = _raw_column(column, column.name)
    _require_columns(schema, columns, theirs, shown, f"; map it under {where}.columns")
    order = [*schema.column_names, *extras]
    return dict(sorted(columns.items(), key=lambda item: order.index(item[0]))), tuple(extras)


def _check_unit(column: Column, unit: Unit | None, key: str) -> None:
    if unit is None or column.kind == "instant" or (column.name.endswith("_s") and unit in ("s", "ms", "us")):
        return
    raise InputError(
        f"unit `{unit}` means nothing for `{column.name}`",
        where=key,
        remedy="units are for instants (s, ms, us, iso, local) and for durations (s, ms, us)",
    )


def _check_value(column: Column, value: str | int | float | bool | None, key: str) -> None:
    if value is None:
        return
    if column.kind not in _VALUE_TYPES:
        raise InputError(
            f"`{column.name}` cannot be one `value` for every row", where=key, remedy="name a `column`"
        )
    if type(value) not in _VALUE_TYPES[column.kind]:
        raise InputError(
            f"`{value!r}` is no value for `{column.name}`", where=key, remedy="see its type in the schema"
        )


_VALUE_TYPES: Mapping[Kind, tuple[type, ...]] = {
    "id": (int, str),
    "string": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
}


# KuaiRand


_LOG = {
    "user_id": RawColumn("user_id", "id", id_space="user"),
    "video_id": RawColumn("video_id", "id", id_space="video"),
    "shown_at": RawColumn("time_ms", "instant", "ms"),
    "time_ms": RawColumn("time_ms", "int"),
    "surface": RawColumn("tab", "string"),
    "clicked": RawColumn("is_click", "bool"),
    "completed": RawColumn("long_view", "bool"),
    "play_time_s": RawColumn("play_time_ms", "float", "ms"),
    "random": RawColumn("is_rand", "bool"),
}
_VIDEOS = {
    "video_id": RawColumn("video_id", "id", id_space="video"),
    "channel_id": RawColumn("author_id", "id", id_space="channel"),
    "topics": RawColumn("tag", "list[string]"),
    "duration_s": RawColumn("video_duration", "float", "ms"),
    "uploaded_at": RawColumn("upload_dt", "instant", "local"),
}
_HISTORY = {
    "user_id": RawColumn("user_id", "id", id_space="user"),
    "position": RawColumn("position", "int"),
    "video_id": RawColumn("video_id", "id", id_space="video"),
    "completed": RawColumn("long_view", "bool"),
}
# Counts and register_days stand beside the range that they fall into, which is what is kept of them.
_USER_CATEGORIES = re.compile(r"user_active_degree|is_\w+|\w+_range|onehot_feat\d+")
_KUAIRAND_PATTERNS = ("log_standard_*.csv", "user_features_*.csv", "video_features_basic_*.csv")


def _open_kuairand(folder: Path, time_zone: str, engine: Engine, scratch: Path) -> Logs:
    logs = [*sorted(folder.glob("log_standard_*.csv")), *sorted(folder.glob("log_random_*.csv"))]
    users = sorted(folder.glob("user_features_*.csv"))
    videos = sorted(folder.glob("video_features_basic_*.csv"))
    if not (logs and users and videos):
        raise InputError(
            "this is not a KuaiRand folder: files are missing",
            where=str(folder),
            offenders=_listing(folder),
            remedy="expected: "
            + ", ".join(_KUAIRAND_PATTERNS)
            + " (log_random_*.csv is read too where it is there)",
        )
    raw = {
        "log": _kuairand_csv(engine, logs, scratch / "log", _LOG, folder / "log_*.csv"),
        "videos": _kuairand_csv(
            engine, videos, scratch / "videos", _VIDEOS, folder / "video_features_basic_*.csv"
        ),
        "users": _kuairand_csv(
            engine,
            users,
            scratch / "users",
            {"user_id": RawColumn("user_id", "id", id_space="user")},
            folder / "user_features_*.csv",
            categories=_USER_CATEGORIES,
        ),
    }
    ignored = {
        "impressions": raw["log"].ignored_columns,
        "watches": raw["log"].ignored_columns,
        "videos": raw["videos"].ignored_columns,
        "users": raw["users"].ignored_columns,
    }
    histories = sorted(folder.glob("history_*.parquet"))
    overlapping = [path.name for path in histories if not _ends_before(path, logs)]
    histories = [path for path in histories if path.name not in overlapping]
    notes = [f"left out {name}: the logs cover its days themselves" for name in overlapping]
    if histories:
        shown = str(folder / "history_*.parquet")
        parts = [_read_parquet(engine, [path], str(path), str(path), optional=True) for path in histories]
        found = [part for part in parts if part is not None]
        if found:
            table = ibis.union(*found) if len(found) > 1 else found[0]
            _require_theirs(_HISTORY, table.columns, shown)
            raw["history"] = RawTable(
                table, shown, _HISTORY, _unread(_HISTORY, table.columns), parquet=tuple(histories)
            )
            ignored["history"] = raw["history"].ignored_columns
    extras = {"users": tuple(name for name in raw["users"].columns if name != "user_id")}
    with_random = any(path.name.startswith("log_random_") for path in logs)

    def derive(typed: Mapping[str, ir.Table]) -> dict[str, ir.Table]:
        return _kuairand_tables(typed, with_random)

    return Logs("kuairand", time_zone, raw, ignored, extras, tuple(notes), derive)


def _kuairand_tables(typed: Mapping[str, ir.Table], with_random: bool) -> dict[str, ir.Table]:
    """KuaiRand's files as the project's tables.

    * A request is what one user was shown on one surface at one instant: KuaiRand has no id of a page.
    * `watch_time_s` of an impression is 0 without a click, as the schema has it; KuaiRand counts seconds of play
      under a video that was passed over. 453 clicks have no play time and stay clicks of 0 s.
    * A watch is a play that was clicked or came to a long view; a long view completes it.
    * `history` is what was shown before the logs; its long views are the completed watches. Where a video was shown
      several times and the long view could be that of any (`ambiguous_repeat`), the row that carries it stands: the
      watch is certain, its place is not.
    """
    log = typed["log"]
    rest = [name for name in log.columns if name not in _LOG]
    impressions = log.select(
        "video_id",
        "user_id",
        "shown_at",
        "surface",
        "clicked",
        *rest,
        "play_time_s",
        "completed",
        "random",
        request_id=ibis.literal("").concat(
            log.user_id.cast("string"), "-", log.time_ms.cast("string"), "-", log.surface.fill_null("")
        ),
        watch_time_s=ibis.cases((log.clicked, log.play_time_s), else_=0.0),
        **({"sources": ibis.cases((log.random, ibis.array(["random"])))} if with_random else {}),
    )
    watches = log.filter(log.clicked | log.completed).select(
        "user_id",
        "video_id",
        "completed",
        "clicked",
        "surface",
        "random",
        *rest,
        watched_at="shown_at",
        watch_time_s="play_time_s",
    )
    users = typed["users"]
    users = users.mutate(
        **{name: _whole_category(users[name]) for name in users.columns if name != "user_id"}
    )
    tables = {
        "videos": typed["videos"],
        "users": users,
        "impressions": impressions,
        "watches": watches,
    }
    if "history" in typed:
        tables["history"] = typed["history"]
    return tables


def _whole_category(values: ir.StringValue) -> ir.Value:
    """A category with gaps was written as a float: 3.0 is 3.

    Without a group that the replacement names: DuckDB calls it `\\1`, Spark `$1`.
    """
    return values.re_search(r"^-?[0-9]+\.0$").ifelse(values.re_replace(r"\.0$", ""), values)


def _kuairand_csv(
    engine: Engine,
    paths: Sequence[Path],
    scratch: Path,
    columns: Mapping[str, RawColumn],
    shown: Path,
    categories: re.Pattern[str] | None = None,
) -> RawTable:
    table = _read_csv(engine, paths, scratch, "utf-8", ",", [""], str(shown), optional=False)
    assert table is not None  # only an optional table may be empty
    _require_theirs(columns, table.columns, str(shown))
    found = dict(columns)
    if categories is not None:
        found |= {name: RawColumn(name, "string") for name in table.columns if categories.fullmatch(name)}
    if columns is _LOG:
        # What is not read still tells two rows of one instant apart from one row written twice.
        found |= {f"_{name}": RawColumn(name, "string") for name in _unread(columns, table.columns)}
    return RawTable(table, str(shown), found, _unread(columns if columns is _LOG else found, table.columns))


def _ends_before(history: Path, logs: Sequence[Path]) -> bool:
    """Whether a history file ends before the logs begin, by the days in the names: `_4_09_to_4_24`."""

    def days(path: Path) -> list[tuple[int, int]]:
        return [
            (int(month), int(day)) for month, day in re.findall(r"_(\d{1,2})_(\d{1,2})(?=[_.])", path.name)
        ]

    begins = [day for path in logs for day in days(path)[:1]]
    ends = days(history)[-1:]
    return bool(ends) and bool(begins) and ends[0] < min(begins)


# Reading files


def _read_parquet(
    engine: Engine, paths: Sequence[Path], pattern: str, where: str, *, optional: bool
) -> ir.Table | None:
    """The table in Parquet files of one layout; None when it is optional and holds no row."""
    rows = 0
    first: pa.Schema | None = None
    for path in paths:
        if path.stat().st_size == 0:
            raise InputError("the file is empty", where=str(path), remedy="export it again")
        try:
            metadata = pq.read_metadata(path)
            schema = metadata.schema.to_arrow_schema()
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(
                f"not a readable Parquet file ({path.stat().st_size:,} bytes): truncated, or of another format",
                where=str(path),
                offenders=[str(error).splitlines()[0]],
                remedy="copy or export the file again",
            ) from None
        rows += metadata.num_rows
        if first is not None and (schema.names, schema.types) != (first.names, first.types):
            raise InputError(
                "files of one table differ in their columns",
                where=f"{path} against {paths[0]}",
                offenders=sorted({str(item) for item in schema} ^ {str(item) for item in first}),
                remedy="export them alike",
            )
        first = first or schema
    if rows == 0:
        _refuse_if_needed(where, optional)
        return None
    return engine.backend.read_parquet(pattern)


def _read_csv(
    engine: Engine,
    paths: Sequence[Path],
    scratch: Path,
    encoding: str,
    delimiter: str,
    missing: Sequence[str],
    where: str,
    *,
    optional: bool,
) -> ir.Table | None:
    """The table in CSV files of one layout, every column as text; None when it is optional and holds no row.

    They are rewritten as Parquet first: what a value means must not depend on what an engine guesses from the first
    rows, and both engines read the same then.
    """
    scratch.mkdir()
    rows = 0
    names: list[str] | None = None
    for number, path in enumerate(paths):
        header = _header(path, encoding, delimiter)
        if names is not None and sorted(header) != sorted(names):
            raise InputError(
                "files of one table differ in their columns",
                where=f"{path} against {paths[0]}",
                offenders=sorted(set(header) ^ set(names)),
                remedy="export them alike",
            )
        names = names or header
        rows += _to_parquet(path, scratch / f"part-{number:05d}.parquet", names, encoding, delimiter, missing)
    if rows == 0:
        _refuse_if_needed(", ".join(str(path) for path in paths) if len(paths) < 3 else where, optional)
        return None
    return engine.read(scratch)


def _to_parquet(
    path: Path, target: Path, names: list[str], encoding: str, delimiter: str, missing: Sequence[str]
) -> int:
    rows = 0
    schema = pa.schema([(name, pa.string()) for name in names])
    try:
        reader = pacsv.open_csv(
            path,
            read_options=pacsv.ReadOptions(encoding=encoding, block_size=BLOCK_BYTES),
            parse_options=pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(
                column_types=schema,
                include_columns=names,
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
                null_values=[*missing],
            ),
        )
        with pq.ParquetWriter(target, schema, compression="snappy") as writer:
            for batch in reader:
                rows += batch.num_rows
                writer.write_batch(batch)
    except pa.ArrowInvalid as error:
        raise InputError(
            "not readable as CSV",
            where=str(path),
            offenders=[str(error).splitlines()[0]],
            remedy=f"is `{delimiter}` what separates its columns, and is every text with it inside in quotes?",
        ) from None
    return rows


def _header(path: Path, encoding: str, delimiter: str) -> list[str]:
    """The column names of a CSV file, after a check that all of it is text in `encoding`."""
    if path.stat().st_size == 0:
        raise InputError(
            "the file is empty", where=str(path), remedy="export it again, with a line of column names"
        )
    _check_encoding(path, encoding)
    with path.open(encoding="utf-8-sig" if _is_utf8(encoding) else encoding, newline="") as file:
        header = next(csv.reader(file, delimiter=delimiter), [])
    doubles = sorted({name for name in header if header.count(name) > 1})
    if doubles:
        raise InputError("column names come twice", where=str(path), offenders=doubles)
    return header


def _check_encoding(path: Path, encoding: str) -> None:
    remedy = (
        "name the file's encoding, e.g. `encoding: utf-16` or `encoding: latin-1`, under its table in ingest.files.tables, "
        "or save it as UTF-8"
    )
    try:
        decoder = codecs.getincrementaldecoder(encoding)()
    except LookupError:
        raise InputError(
            f"`{encoding}` is not an encoding",
            where=f"{path} (params.yaml, ingest.files)",
            remedy="e.g. utf-8, utf-16, latin-1",
        ) from None
    with path.open("rb") as file:
        lines, at, block = 1, 0, b""
        try:
            while True:
                block = file.read(BLOCK_BYTES)
                text = decoder.decode(block, final=not block)
                if "\0" in text:
                    raise InputError(
                        f"the file is not {encoding} text: it holds NUL characters, as UTF-16 read as {encoding} does",
                        where=f"{path}, line {lines + text[: text.index(chr(0))].count(chr(10))}",
                        remedy=remedy,
                    )
                if not block:
                    return
                lines += text.count("\n")
                at += len(block)
        except UnicodeDecodeError as error:
            offending = error.object[error.start : error.start + 4]
            raise InputError(
                f"the file is not {encoding} text",
                where=f"{path}, line {lines + error.object[: error.start].count(10)}",
                offenders=[f"bytes {offending.hex(' ')}"],
                remedy=remedy,
            ) from None


def _is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name == "utf-8"


def _refuse_if_needed(where: str, optional: bool) -> None:
    """An optional table may be empty: it is absent then."""
    if not optional:
        raise InputError(
            "the table holds no row", where=where, remedy="export it again; this table is needed"
        )


def _find(folder: Path, path: str, where: str) -> list[Path]:
    whole = folder / path
    if whole.is_file():
        return [whole]
    if whole.is_dir():
        found = [item for item in sorted(whole.iterdir()) if item.suffix in (".csv", ".parquet")]
    else:
        found = (
            sorted(folder.glob(path)) if not Path(path).is_absolute() else sorted(Path("/").glob(path[1:]))
        )
    if not found:
        raise InputError(
            "there is no such file",
            where=f"{whole} ({where})",
            offenders=_listing(folder),
            remedy="paths are relative to ingest.path",
        )
    return found


def _pattern(folder: Path, path: str, paths: Sequence[Path]) -> str:
    whole = folder / path
    return str(whole / f"*{paths[0].suffix}") if whole.is_dir() else str(whole)


def _format_of(path: Path, where: str) -> Literal["csv", "parquet"]:
    formats: dict[str, Literal["csv", "parquet"]] = {".csv": "csv", ".parquet": "parquet"}
    if path.suffix not in formats:
        raise InputError(
            f"the name does not say whether `{path.name}` is CSV or Parquet",
            where=where,
            remedy="set `format: csv` or `format: parquet`",
        )
    return formats[path.suffix]


def _listing(folder: Path) -> list[str]:
    found = sorted(item.name + ("/" if item.is_dir() else "") for item in folder.iterdir())
    more = len(found) - 4
    return (
        ["there: " + ", ".join(found[:4]) + (f" and {more} more" if more > 0 else "")]
        if found
        else ["the folder is empty"]
    )


# Checks of columns


def _raw_column(column: Column, theirs: str) -> RawColumn:
    return RawColumn(theirs, column.kind, None, column.id_space)


def _require_tables(
    present: Mapping[str, Path], folder: Path, *, expected: Sequence[str], remedy: str
) -> None:
    missing = [name for name in expected if name.removesuffix(".parquet") not in present]
    if missing:
        raise InputError(
            "the folder lacks " + ", ".join(missing),
            where=str(folder),
            offenders=_listing(folder),
            remedy=f"expected: {', '.join(expected)}; {remedy}",
        )


def _require_columns(
    schema: TableSchema, columns: Mapping[str, RawColumn], theirs: Sequence[str], where: str, remedy: str
) -> None:
    missing = [column.name for column in schema.columns if not column.optional and column.name not in columns]
    if missing:
        raise InputError(
            f"table {schema.name} lacks column" + ("s " if len(missing) > 1 else " ") + ", ".join(missing),
            where=where,
            remedy="the file has: " + ", ".join(theirs) + remedy,
        )


def _require_theirs(columns: Mapping[str, RawColumn], theirs: Sequence[str], where: str) -> None:
    missing = sorted({column.theirs for column in columns.values() if column.theirs} - set(theirs))
    if missing:
        raise InputError(
            "the file lacks column" + ("s " if len(missing) > 1 else " ") + ", ".join(missing),
            where=where,
            remedy="the file has: " + ", ".join(theirs),
        )


def _unread(columns: Mapping[str, RawColumn], theirs: Sequence[str]) -> tuple[str, ...]:
    read = {column.theirs for column in columns.values()}
    return tuple(sorted(name for name in theirs if name not in read))


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean `{close[0]}`?" if close else "known here: " + ", ".join(known)
