"""Typed, sorted, de-duplicated tables from the source's own files."""

import tempfile
from pathlib import Path
from typing import Literal

from watchnext.config import Section
from watchnext.console import print_table, say
from watchnext.data.ingest import ingest_logs, write_report
from watchnext.data.sources import Files, open_source
from watchnext.engine import EngineParams, connect
from watchnext.schema import TABLES


class Params(Section):
    """Section `ingest` of params.yaml."""

    source: Literal["simulated", "kuairand", "files"] = "simulated"
    path: str = "data/simulated/logs"
    time_zone: str = "auto"
    files: Files = Files()


def ingest(
    params: Params, engine: EngineParams, logs: Path, out_tables: Path, out_report: Path
) -> dict[str, float | int | str]:
    """Bring the source's logs into schema form.

    Args:
        params: which source, its time zone and, for `files`, its column mapping.
        engine: where tables are computed.
        logs: the folder that holds the source's files; `ingest.path` as dvc.yaml passes it.
        out_tables: one directory per table, and `source.json`.
        out_report: impressions per local day, as a picture and as CSV.

    Returns:
        Rows and dropped duplicates per table, and how many columns were kept out.

    Raises:
        InputError: files, columns, values or the mapping are not what they should be.
    """
    out_tables.mkdir(parents=True)
    # Beside the outputs, where every worker of a cluster sees it, and gone with them when a stage is killed.
    with (
        tempfile.TemporaryDirectory(prefix=".scratch-", dir=out_tables) as scratch,
        connect(engine, Path(scratch) / "spill") as connection,
    ):
        found = open_source(params.source, logs, params.time_zone, params.files, connection, Path(scratch))
        tables = ingest_logs(found, connection, out_tables)
        days = write_report(out_tables, found.time_zone, connection, out_report)
    say(f"ingest: source {found.source} from {logs}; days are cut in {found.time_zone}")
    print_table(
        "Ingested",
        ("table", "rows", "exact duplicates dropped", "same key dropped", "absent columns"),
        (
            (
                name,
                f"{table.rows:,}",
                table.exact_duplicates,
                table.key_duplicates,
                ", ".join(table.absent_columns),
            )
            for name, table in tables.items()
        ),
    )
    for name, table in tables.items():
        if table.ignored_columns:
            say(f"{name}: kept out {', '.join(table.ignored_columns)}")
        if table.empty_columns:
            say(f"{name}: without a single value, so treated as absent: {', '.join(table.empty_columns)}")
    absent = [name for name in TABLES if name not in tables]
    for note in (*found.notes, *(f"no table {name}: what is made of it will be absent" for name in absent)):
        say(note)
    metrics: dict[str, float | int | str] = {
        "source": found.source,
        "time_zone": found.time_zone,
        "local_days": len(days),
        "duplicates_dropped": sum(t.exact_duplicates + t.key_duplicates for t in tables.values()),
        "ignored_columns": sum(len(t.ignored_columns) for t in tables.values()),
    }
    for name, table in tables.items():
        metrics[f"{name}_rows"] = table.rows
        metrics[f"{name}_exact_duplicates"] = table.exact_duplicates
        metrics[f"{name}_key_duplicates"] = table.key_duplicates
        metrics[f"{name}_ignored_columns"] = len(table.ignored_columns)
    return metrics
