"""Where tables are computed: DuckDB in this process, or Spark where one machine is not enough.

Tables are Ibis expressions and this module is the only one that knows which engine runs them. A table on disk
is a directory of `part-*.parquet` files, whatever wrote it.
"""

import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir
import pyarrow.parquet as pq
from ibis.backends.sql.datatypes import DuckDBType
from pydantic import Field

from watchnext.config import Section
from watchnext.errors import InputError

ROW_GROUP_ROWS = 122_880


@ibis.udf.scalar.builtin
def epoch_us(instant: dt.Timestamp(timezone="UTC")) -> int:  # type: ignore[valid-type, empty-body]
    """DuckDB's own function."""


@ibis.udf.scalar.builtin
def unix_micros(instant: dt.Timestamp(timezone="UTC")) -> int:  # type: ignore[valid-type, empty-body]
    """Spark's own function."""


@ibis.udf.scalar.builtin
def make_timestamptz(microseconds: int) -> dt.Timestamp(timezone="UTC", scale=6):  # type: ignore[valid-type]
    """DuckDB's own function."""


@ibis.udf.scalar.builtin
def timestamp_micros(microseconds: int) -> dt.Timestamp(timezone="UTC"):  # type: ignore[valid-type]
    """Spark's own function."""


class EngineParams(Section):
    """Section `engine` of params.yaml."""

    kind: Literal["duckdb", "spark"] = "duckdb"
    master: str = "local[2]"
    threads: int = Field(default=2, ge=1)
    memory_limit_gb: float = Field(default=4.0, gt=0)


class Engine:
    """A connection that reads, computes and writes tables."""

    def __init__(self, backend: Any, kind: str) -> None:
        self.backend = backend
        self.kind = kind
        self._kept: list[Callable[[], Any]] = []
        self._numbers = itertools.count()

    def read(self, directory: Path) -> ir.Table:
        """The table stored in `directory`.

        Raises:
            InputError: there is no such table.
        """
        parts = sorted(directory.glob("part-*.parquet"))
        if not parts:
            raise InputError("no table here", where=str(directory), remedy="run `dvc repro`, which makes it")
        # Spark probes a pattern as if it were a file and logs a page of stack trace; a directory it reads quietly.
        return self.backend.read_parquet(
            str(directory if self.kind == "spark" else directory / "part-*.parquet")
        )

    def microseconds(self, instant: ir.Value) -> ir.IntegerValue:
        """Instants -> int64 microseconds since 1970 UTC: exact, and orders and windows are cheapest on integers."""
        return unix_micros(instant) if self.kind == "spark" else epoch_us(instant)

    def instant(self, microseconds: ir.IntegerValue) -> ir.TimestampValue:
        """int64 microseconds since 1970 UTC -> instants; the inverse of `microseconds`."""
        return timestamp_micros(microseconds) if self.kind == "spark" else make_timestamptz(microseconds)

    def collect(self, values: ir.Value, place: ir.IntegerColumn) -> ir.Value:
        """The values of a group as a list, in the order of `place`, which has no ties in it; none may be null."""
        if self.kind == "spark":
            # Ibis cannot order what Spark collects; structs sort by their first field.
            return ibis.struct({"place": place, "value": values}).collect().sort().map(lambda row: row.value)
        return values.collect(order_by=place)

    def write(self, table: ir.Table, directory: Path, sort_by: Sequence[str], part: int | None = None) -> int:
        """Store `table` in `directory`, rows in the total order `sort_by`, and return the number of rows.

        On DuckDB the same rows give the same bytes.

        Args:
            table: what to store.
            directory: replaced, unless `part` is given.
            sort_by: columns that order the rows totally; nulls first.
            part: adds the rows to the directory as this part, from 0; None: they are all of the table.
        """
        if part is None and directory.exists():
            shutil.rmtree(directory)
        directory.mkdir(parents=True, exist_ok=True)
        if self.kind == "duckdb":
            target = directory / f"part-{part or 0:05d}.parquet"
            order = ", ".join(f"{_name(column)} ASC NULLS FIRST" for column in sort_by)
            sql = f"{_typed_sql(table)} ORDER BY {order}"
            options = f"FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP_ROWS}"
            (rows,) = self.backend.raw_sql(f"COPY ({sql}) TO '{_quoted(target)}' ({options})").fetchone()
            return int(rows)
        ordered = table.order_by([ibis.asc(table[name], nulls_first=True) for name in sort_by])
        # Spark writes a directory of its own at a time, files named by a random id: they are moved under names
        # that keep the parts, and the rows, in order.
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=directory) as writing:
            ordered.to_parquet_dir(str(Path(writing) / "rows"))
            written = [
                shutil.move(file, directory / f"part-{part or 0:05d}-{number:05d}.parquet")
                for number, file in enumerate(sorted((Path(writing) / "rows").glob("part-*.parquet")))
            ]
        return sum(pq.read_metadata(file).num_rows for file in written)

    def materialize(self, table: ir.Table) -> ir.Table:
        """Compute `table` once and keep the rows, in memory or spilled, for the expressions built on it.

        They are kept until the `scope` around the call ends, or the engine is closed.
        """
        if self.kind == "spark":
            kept = table.cache()
            self._kept.append(kept.release)
            return kept
        name = f"materialized_{next(self._numbers)}"
        self.backend.raw_sql(f"CREATE TEMP TABLE {name} AS {_typed_sql(table)}")
        self._kept.append(lambda: self.backend.raw_sql(f"DROP TABLE {name}"))
        return self.backend.table(name)

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Let go, at the end of the block, of what was materialized in it."""
        outside = len(self._kept)
        try:
            yield
        finally:
            self._release(outside)

    def remove(self, directory: Path) -> None:
        """Delete a table that `write` stored."""
        shutil.rmtree(directory)

    def _release(self, keep: int) -> None:
        while len(self._kept) > keep:
            self._kept.pop()()

    def close(self) -> None:
        # What Ibis caches it would drop when it is collected, by then on a closed connection.
        self._release(0)
        self.backend.disconnect()


@contextlib.contextmanager
def connect(params: EngineParams, scratch: Path | None = None) -> Iterator[Engine]:
    """Open the engine that `params` names; `scratch` is where it may spill."""
    if params.kind == "duckdb":
        backend = ibis.duckdb.connect(threads=params.threads, memory_limit=f"{params.memory_limit_gb}GB")
        backend.raw_sql("SET TimeZone = 'UTC'")
        backend.raw_sql("SET preserve_insertion_order = true")
        if scratch is not None:
            backend.raw_sql(f"SET temp_directory = '{_quoted(scratch)}'")
    else:
        backend = _connect_spark(params)
    engine = Engine(backend, params.kind)
    try:
        yield engine
    finally:
        engine.close()


def _typed_sql(table: ir.Table) -> str:
    """DuckDB's query for `table`, every column cast to the type that Ibis says it has.

    Ibis leaves out casts that it holds for needless. They are not: a sum of integers is a HUGEINT here, which
    Parquet stores as double, a date plus an interval is a timestamp, and 0.0 a decimal.
    """
    columns = ", ".join(
        f"CAST({_name(name)} AS {DuckDBType.to_string(dtype)}) AS {_name(name)}"
        for name, dtype in table.schema().items()
    )
    return f"SELECT {columns} FROM ({ibis.to_sql(table, dialect='duckdb')})"


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def _connect_spark(params: EngineParams) -> Any:
    try:
        from pyspark.sql import SparkSession
    except ImportError:
        raise InputError(
            "engine.kind is spark, and pyspark is not installed",
            where="params.yaml, engine.kind",
            remedy="pip install 'watchnext[spark]' (and Java 17), or set engine.kind to duckdb",
        ) from None
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    builder = SparkSession.builder.master(params.master)
    if params.master.startswith("local"):
        # Spark's 200 partitions are meant for a cluster; on one machine they are 200 tiny tasks per join.
        builder = builder.config("spark.sql.shuffle.partitions", str(2 * params.threads))
    session = (
        builder.appName("watchnext")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.ansi.enabled", "false")
        .config("spark.driver.memory", f"{max(1, int(params.memory_limit_gb))}g")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.parquet.outputTimestampType", "TIMESTAMP_MICROS")
        .getOrCreate()
    )
    return ibis.pyspark.connect(session)
