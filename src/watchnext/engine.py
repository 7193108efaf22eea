"""Where tables are computed: DuckDB in this process, or Spark where one machine is not enough.

Tables are Ibis expressions and this module is the only one that knows which engine runs them. A table on disk
is a directory of `part-*.parquet` files, whatever wrote it.
"""

import contextlib
import itertools
import os
import re
import shutil
import socket
import sys
import tempfile
import time
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
from watchnext.engine_failures import another_version, duckdb_explained, spark_explained
from watchnext.errors import InputError

ROW_GROUP_ROWS = 122_880

CLUSTER_DIR = Path(".cluster")
"""Where a cluster of this machine keeps its settings, see `cluster`."""

CLUSTER_MASTER = "master"
"""The file in CLUSTER_DIR that names its master."""

_EXECUTOR_WAIT_S = 180.0
_PROBE_WAIT_S = 10.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


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


def trimmed(text: ir.StringValue) -> ir.StringValue:
    """Text without blanks at its ends.

    Not by Ibis's `strip`, whose list of blanks ends in `\\v\\f`: Spark takes these for letters, and makes `itness` of
    `fitness`.
    """
    return text.re_replace(r"^[ \t\n\r\f\x0b]+|[ \t\n\r\f\x0b]+$", "")


class EngineParams(Section):
    """Section `engine` of params.yaml."""

    kind: Literal["duckdb", "spark"] = "duckdb"
    master: str = "local[2]"
    threads: int = Field(default=2, ge=1)
    memory_limit_gb: float = Field(default=4.0, gt=0)
    spark_conf: dict[str, str | bool | int | float] = Field(default_factory=dict)


class Engine:
    """A connection that reads, computes and writes tables."""

    def __init__(self, backend: Any, kind: str, scratch: Path | None = None) -> None:
        self.backend = backend
        self.kind = kind
        self._scratch = scratch
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
            sql = f"SELECT * FROM ({self._typed_sql(table)} UNION ALL {_no_rows_sql(table)}) ORDER BY {order}"
            options = f"FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP_ROWS}"
            (rows,) = self.backend.raw_sql(f"COPY ({sql}) TO '{_quoted(target)}' ({options})").fetchone()
            return int(rows)
        ordered = table.order_by([ibis.asc(table[name], nulls_first=True) for name in sort_by])
        # Spark's pages and event log name a job by a line of Java unless they are told what it is for.
        jobs = self.backend._session.sparkContext
        jobs.setJobDescription(f"write {directory.parent.name}/{directory.name}")
        try:
            # Spark writes a directory of its own at a time, files named by a random id: they are moved under names
            # that keep the parts, and the rows, in order.
            with tempfile.TemporaryDirectory(prefix=".writing-", dir=directory) as writing:
                ordered.to_parquet_dir(str(Path(writing) / "rows"))
                written = [
                    shutil.move(file, directory / f"part-{part or 0:05d}-{number:05d}.parquet")
                    for number, file in enumerate(sorted((Path(writing) / "rows").glob("part-*.parquet")))
                ]
        finally:
            jobs.setJobDescription(None)
        return sum(pq.read_metadata(file).num_rows for file in written)

    def row_digests(self, table: ir.Table, by: str) -> dict[Any, str]:
        """Value of column `by` -> digest of its rows, whatever order they are in. DuckDB's own, and of its version.

        Sum and exclusive or of two 64-bit hashes of each row, and their number: they tell whether logs are the same, and
        are no defence against somebody who wants two logs to look alike.
        """
        if self.kind != "duckdb":
            raise NotImplementedError("digests of rows are DuckDB's")
        hashed = (
            f"SELECT {_name(by)} AS by_value, hash(rows) AS one, hash(rows, 1) AS other"
            f" FROM ({self.backend.compile(table)}) AS rows"
        )
        found = self.backend.raw_sql(
            "SELECT by_value, concat_ws('-', count(*), sum(one::HUGEINT), bit_xor(one), sum(other::HUGEINT),"
            f" bit_xor(other)) FROM ({hashed}) GROUP BY by_value"
        ).fetchall()
        return dict(found)

    def materialize(self, table: ir.Table) -> ir.Table:
        """Compute `table` once and keep the rows, in memory or spilled, for the expressions built on it.

        They are kept until the `scope` around the call ends, or the engine is closed.
        """
        if self.kind == "spark":
            kept = table.cache()
            self._kept.append(kept.release)
            return kept
        name = f"materialized_{next(self._numbers)}"
        self.backend.raw_sql(f"CREATE TEMP TABLE {name} AS {self._typed_sql(table)}")
        self._kept.append(lambda: self.backend.raw_sql(f"DROP TABLE {name}"))
        return self.backend.table(name)

    def cut(self, table: ir.Table, piece: ir.IntegerColumn, pieces: int) -> list[ir.Table]:
        """The rows of `table` in pieces, each of which is then read by itself; the table is gone through once.

        They are kept on disk until the `scope` around the call ends, or the engine is closed. DuckDB's alone.

        Args:
            table: of which every row is in a piece.
            piece: of each row the number of its piece, from 0.
            pieces: how many there are; one may be empty.
        """
        if self.kind != "duckdb":
            raise NotImplementedError("Spark cuts by itself")
        folder = Path(tempfile.mkdtemp(prefix="pieces-", dir=self._scratch))
        self._kept.append(lambda: shutil.rmtree(folder))
        sql = self._typed_sql(table.mutate(_piece=piece))
        # Written once and read once or twice: a quick compression.
        options = "FORMAT parquet, COMPRESSION lz4_raw, PARTITION_BY (_piece), OVERWRITE"
        self.backend.raw_sql(f"COPY ({sql}) TO '{_quoted(folder)}' ({options})")
        found = []
        for one in range(pieces):
            files = folder / f"_piece={one}"
            found.append(
                self.backend.read_parquet(str(files / "*.parquet"), hive_partitioning=False)
                if files.is_dir()
                else table.limit(0)
            )
        return found

    def frame(self, table: ir.Table) -> Any:
        """The rows of `table` as a data frame: pandas' on DuckDB; Spark's on Spark, where they stay on the cluster."""
        if self.kind == "spark":
            return self.backend._session.sql(self.backend.compile(table))
        return table.to_pandas()

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

    def _typed_sql(self, table: ir.Table) -> str:
        """DuckDB's query for `table`, every column cast to the type that Ibis says it has.

        Ibis leaves out casts that it holds for needless. They are not: a sum of integers is a HUGEINT here, which
        Parquet stores as double, a date plus an interval is a timestamp, and 0.0 a decimal.
        """
        columns = ", ".join(
            f"CAST({_name(name)} AS {DuckDBType.to_string(dtype)}) AS {_name(name)}"
            for name, dtype in table.schema().items()
        )
        # Not `ibis.to_sql`, which goes over the whole expression once more and formats the query for people.
        return f"SELECT {columns} FROM ({self.backend.compile(table)})"

    def _release(self, keep: int) -> None:
        while len(self._kept) > keep:
            self._kept.pop()()

    def close(self) -> None:
        # What Ibis caches it would drop when it is collected, by then on a closed connection.
        self._release(0)
        self.backend.disconnect()


@contextlib.contextmanager
def connect(params: EngineParams, scratch: Path | None = None) -> Iterator[Engine]:
    """Open the engine that `params` names; `scratch` is where it may spill.

    Raises:
        InputError: Spark's master or its workers cannot be used, now or within the block: which, and why; or DuckDB finds
            no room on a disk or in memory.
    """
    if params.kind == "duckdb":
        backend = ibis.duckdb.connect(threads=params.threads, memory_limit=f"{params.memory_limit_gb}GB")
        backend.raw_sql("SET TimeZone = 'UTC'")
        backend.raw_sql("SET preserve_insertion_order = true")
        if scratch is not None:
            backend.raw_sql(f"SET temp_directory = '{_quoted(scratch)}'")
        engine = Engine(backend, params.kind, scratch)
        try:
            with duckdb_explained():
                yield engine
        finally:
            engine.close()
        return
    with spark_explained(params.master):
        engine = Engine(_connect_spark(params), params.kind)
        try:
            if not params.master.startswith("local"):
                _check_executors(engine.backend._session, params.master)
            yield engine
        finally:
            engine.close()


def _no_rows_sql(table: ir.Table) -> str:
    """DuckDB's query for no rows of the columns of `table`, any of which could be null for all that DuckDB knows.

    Parquet says of each column whether it may hold nulls, and DuckDB writes what it can prove: of the same rows another
    thing each time that they come another way.
    """
    columns = ", ".join(
        f"CAST(NULL AS {DuckDBType.to_string(dtype)}) AS {_name(name)}"
        for name, dtype in table.schema().items()
    )
    return f"SELECT {columns} FROM range(0)"


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
    is_local = params.master.startswith("local")
    hosts = _hosts_of(params.master)
    if hosts:
        _probe(params.master, hosts)
    if is_local or any(host in _LOOPBACK for host, _ in hosts):
        # A driver on loopback could not be reached by executors elsewhere.
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    told = CLUSTER_DIR / CLUSTER_MASTER
    if told.is_file() and told.read_text(encoding="utf-8") == params.master:
        # From a file, because Spark shows settings that Python hands over in the list of processes.
        os.environ.setdefault("SPARK_CONF_DIR", str((CLUSTER_DIR / "conf").absolute()))
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    settings: dict[str, Any] = {
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.ansi.enabled": False,
        "spark.driver.memory": f"{max(1, int(params.memory_limit_gb))}g",
        "spark.ui.enabled": False,
        "spark.ui.showConsoleProgress": False,
        "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    }
    if is_local:
        # Spark's 200 partitions are meant for a cluster; on one machine they are 200 tiny tasks per join.
        settings["spark.sql.shuffle.partitions"] = 2 * params.threads
    builder = SparkSession.builder.master(params.master).appName("watchnext")
    for key, value in {**settings, **params.spark_conf}.items():
        builder = builder.config(key, str(value).lower() if isinstance(value, bool) else str(value))
    return ibis.pyspark.connect(builder.getOrCreate())


def _hosts_of(master: str) -> list[tuple[str, int]]:
    """Host and port of each master of a standalone cluster: `spark://one:7077,two:7077` names two."""
    if not master.startswith("spark://"):
        return []
    hosts = re.findall(r"([^,:/]+|\[[^\]]+\]):(\d+)", master.removeprefix("spark://"))
    if not hosts:
        raise InputError(
            f"`{master}` names no host and port",
            where="params.yaml, engine.master",
            remedy="spark://HOST:7077, or local[2] for this machine",
        )
    return [(host.strip("[]"), int(port)) for host, port in hosts]


def _probe(master: str, hosts: Sequence[tuple[str, int]]) -> None:
    """Knock before Spark does, which tries for a minute and then fails with a page of stack trace."""
    found = []
    for host, port in hosts:
        try:
            socket.create_connection((host, port), timeout=_PROBE_WAIT_S).close()
        except OSError as error:
            found.append(f"{host}:{port}: {error.strerror or error}")
        else:
            return
    raise InputError(
        "Spark's master cannot be reached",
        where=f"params.yaml, engine.master: {master}",
        offenders=found,
        remedy="start it (on this machine: `make cluster-up`), mend the address, or set engine.kind to duckdb",
    )


def _check_executors(session: Any, master: str) -> None:
    """Wait for executors, and hold what they run to what this process runs, before there is anything to lose.

    Raises:
        InputError: no executor comes, or one has another version of Spark.
    """
    context = session.sparkContext
    scheduler = context._jsc.sc()
    deadline = time.monotonic() + _EXECUTOR_WAIT_S
    # The driver is one of those that this counts.
    while (executors := scheduler.getExecutorMemoryStatus().size() - 1) < max(1, _granted(context, master)):
        if time.monotonic() > deadline:
            raise InputError(
                f"the cluster gave {executors or 'no'} executors within {_EXECUTOR_WAIT_S:.0f} s",
                where=f"engine.master: {master}",
                remedy="look at the master's page: are its workers alive, have they free cores, and as much memory as "
                "spark.executor.memory (1g unless engine.spark_conf says otherwise)?",
            )
        time.sleep(0.1)
    tasks = 2 * max(executors, context.defaultParallelism)
    # Evaluated where the task runs, by Java: no executor needs a Python for it, or for anything else.
    of_executor = "java_method('org.apache.spark.package', 'SPARK_VERSION')"
    answers = session.range(0, tasks, 1, tasks).selectExpr(f"{of_executor} AS version").collect()
    others = sorted({row.version for row in answers} - {session.version})
    if others:
        raise another_version(master, session.version, [f"Spark {version}" for version in others])


def _granted(context: Any, master: str) -> int:
    """How many executors a standalone master has told its workers to start for this application."""
    java, granted = context._jvm, 0
    for host, port in _hosts_of(master):
        address = java.org.apache.spark.rpc.RpcAddress(host, port)
        environment = java.org.apache.spark.SparkEnv.get().rpcEnv()
        question = getattr(java, "org.apache.spark.deploy.DeployMessages$RequestMasterState$")
        answer = environment.setupEndpointRef(address, "Master").askSync(
            getattr(question, "MODULE$"), java.scala.reflect.ClassTag.Any()
        )
        granted += sum(
            one.executors().size() for one in answer.activeApps() if one.id() == context.applicationId
        )
    return granted
