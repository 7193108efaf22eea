"""Types, duplicates, order and digests; values that cannot be right are refused with a message."""

import datetime as dt
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from log_files import (
    BEGIN_MS,
    at,
    kuairand_log,
    own_csv,
    refusal,
    rows,
    run_ingest,
    schema_form,
    write_csv,
    write_kuairand,
    write_schema_form,
)

from watchnext.data.ingest import digest_of, read_source, write_source
from watchnext.engine import EngineParams
from watchnext.errors import InputError
from watchnext.stages.ingest import Params, ingest


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def many_impressions(count: int) -> list[dict[str, Any]]:
    """Impressions with ties in every leading sort column, copies and near-copies."""
    rng = np.random.default_rng(4)
    made = [
        {
            "request_id": f"p{number // 4}",
            "video_id": int(rng.integers(1, 5)),
            "user_id": 7 + number // 4 % 2,
            "shown_at": at(number // 16),
            "position": None if number % 5 == 0 else number % 4,
            "clicked": bool(rng.random() < 0.5),
            "watch_time_s": float(rng.integers(0, 3)),
            "sources": ["popular", "co-watched"][: number % 3],
        }
        for number in range(count)
    ]
    keyless = [{**made[0], "request_id": None, "watch_time_s": float(n)} for n in range(3)]
    return [*made, *made[::7], *keyless]


@pytest.mark.parametrize("source", ["simulated", "kuairand", "files"])
def test_order_of_input_rows_does_not_matter_to_a_byte(tmp_path: Path, source: str) -> None:
    """Seen to fail without the window's order, and without the further sort columns for rows that have no key."""
    shuffler = random.Random(5)
    settings: dict[str, Any] = {"source": source}
    if source == "simulated":
        tables = {**schema_form(), "impressions": many_impressions(400)}
        write_schema_form(tmp_path / "a", tables)
        write_schema_form(tmp_path / "b", {name: shuffler.sample(of, len(of)) for name, of in tables.items()})
    elif source == "kuairand":
        log = kuairand_log() * 40
        write_kuairand(tmp_path / "a", log)
        write_kuairand(tmp_path / "b", shuffler.sample(log, len(log)))
    else:
        settings["files"] = {"tables": own_csv(tmp_path / "a")}
        for path in (tmp_path / "a").glob("*.csv"):
            header, *lines = path.read_text().splitlines()
            (tmp_path / "b").mkdir(exist_ok=True)
            (tmp_path / "b" / path.name).write_text("\n".join([header, *reversed(lines)]) + "\n")
    metrics = run_ingest(tmp_path / "a", tmp_path / "of_a", **settings)
    assert metrics == run_ingest(tmp_path / "b", tmp_path / "of_b", **settings)
    assert contents(tmp_path / "of_a") == contents(tmp_path / "of_b")


def test_again_gives_the_same_bytes(tmp_path: Path) -> None:
    logs = write_schema_form(tmp_path / "logs")
    run_ingest(logs, tmp_path / "once")
    run_ingest(logs, tmp_path / "twice")
    assert contents(tmp_path / "once") == contents(tmp_path / "twice")
    # What was ingested is in schema form, so ingesting it once more changes nothing.
    for table in ("videos", "users", "impressions", "watches"):
        (tmp_path / "form").mkdir(exist_ok=True)
        pq.write_table(
            pq.read_table(tmp_path / "once/tables" / table), tmp_path / "form" / f"{table}.parquet"
        )
    run_ingest(tmp_path / "form", tmp_path / "thrice")
    assert digest_of(tmp_path / "thrice/tables") == digest_of(tmp_path / "once/tables")


def test_nothing_but_tables_and_the_note_is_left(tmp_path: Path) -> None:
    run_ingest(write_kuairand(tmp_path / "logs"), tmp_path / "out", source="kuairand")
    names = {path.name for path in (tmp_path / "out/tables").iterdir()}
    assert names == {"videos", "users", "impressions", "watches", "history", "source.json"}
    assert {path.name for path in (tmp_path / "out/report").iterdir()} == {
        "impressions_per_day.csv",
        "impressions_per_day.png",
    }
    assert (tmp_path / "out/report/impressions_per_day.csv").read_text() == "day,impressions\n2022-04-24,5\n"


def test_stored_types_are_the_schemas(tmp_path: Path) -> None:
    tables = schema_form()
    for row in tables["impressions"]:
        row |= {
            "sources": ["popular"],
            "source_scores": [1],
            "seed_video_id": 1.0,
            "propensity": np.float32(0.5),
        }
        row["clicked"] = int(row["clicked"])
    run_ingest(write_schema_form(tmp_path / "logs", tables), tmp_path / "out")
    types = {
        field.name: str(field.type)
        for field in pq.read_schema(tmp_path / "out/tables/impressions/part-00000.parquet")
    }
    assert types == {
        "request_id": "string",
        "video_id": "int64",
        "user_id": "int64",
        "shown_at": "timestamp[us, tz=UTC]",
        "position": "int64",
        "clicked": "bool",
        "watch_time_s": "double",
        "sources": "list<element: string>",
        "source_scores": "list<element: double>",
        "seed_video_id": "int64",
        "propensity": "double",
    }


def test_note_beside_the_tables(tmp_path: Path) -> None:
    tables = schema_form()
    tables["watches"] = [{**row, "note": "x"} for row in tables["watches"]]
    run_ingest(write_schema_form(tmp_path / "logs", tables), tmp_path / "out", time_zone="Asia/Tokyo")
    note = json.loads((tmp_path / "out/tables/source.json").read_text())
    assert note["source"] == "simulated"
    assert note["time_zone"] == "Asia/Tokyo"
    assert note["absent_tables"] == ["searches", "history"]
    assert note["tables"]["watches"] == {
        "rows": 2,
        "columns": ["user_id", "video_id", "watched_at", "watch_time_s", "completed"],
        "absent_columns": ["origin"],
        "ignored_columns": ["note"],
    }
    assert note == read_source(tmp_path / "out/tables")
    assert note["digest"] == digest_of(tmp_path / "out/tables")


def test_digest_follows_the_rows(tmp_path: Path) -> None:
    run_ingest(write_schema_form(tmp_path / "logs"), tmp_path / "out")
    tables = tmp_path / "out/tables"
    before = read_source(tables)
    part = tables / "watches/part-00000.parquet"
    pq.write_table(pq.read_table(part).slice(1), part)
    write_source(tables, before)
    assert read_source(tables)["digest"] == digest_of(tables) != before["digest"]
    with pytest.raises(InputError, match="no ingested tables here"):
        read_source(tmp_path)


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.parametrize("source", ["kuairand", "files"])
def test_spark_gives_the_same_rows(tmp_path: Path, source: str) -> None:
    settings: dict[str, Any] = {"source": source}
    if source == "kuairand":
        write_kuairand(tmp_path / "logs")
    else:
        settings |= {"files": {"tables": own_csv(tmp_path / "logs")}, "time_zone": "Europe/Berlin"}
    metrics = run_ingest(tmp_path / "logs", tmp_path / "out", **settings)
    on_spark = ingest(
        Params.model_validate(settings),
        EngineParams(kind="spark"),
        tmp_path / "logs",
        tmp_path / "spark/tables",
        tmp_path / "spark/report",
    )
    assert on_spark == metrics
    for name in read_source(tmp_path / "out/tables")["tables"]:
        assert rows(tmp_path / "spark", name) == rows(tmp_path / "out", name)


class TestDuplicates:
    def impressions(
        self, tmp_path: Path, more: list[dict[str, Any]]
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        tables = schema_form()
        tables["impressions"] = [*tables["impressions"], *more]
        metrics = run_ingest(write_schema_form(tmp_path / "logs", tables), tmp_path / "out")
        return rows(tmp_path / "out", "impressions"), metrics

    def test_copies_go_and_are_counted(self, tmp_path: Path) -> None:
        first = schema_form()["impressions"][0]
        stored, metrics = self.impressions(tmp_path, [first, first])
        assert stored == schema_form()["impressions"]
        assert (metrics["impressions_exact_duplicates"], metrics["impressions_key_duplicates"]) == (2, 0)
        assert metrics["duplicates_dropped"] == 2

    def test_of_one_key_the_clicked_and_longest_row_stays(self, tmp_path: Path) -> None:
        """Seen to fail with ascending order in the window."""
        first, second, _ = schema_form()["impressions"]
        longer = {**first, "watch_time_s": 31.0}
        shown_again = {**second, "watch_time_s": 9.0}
        stored, metrics = self.impressions(
            tmp_path, [longer, shown_again, {**second, "clicked": True}, longer]
        )
        assert stored[0] == longer
        assert stored[1] == {**second, "clicked": True}
        assert len(stored) == 3
        assert (metrics["impressions_exact_duplicates"], metrics["impressions_key_duplicates"]) == (1, 3)

    def test_rows_without_a_key_are_left_to_validate(self, tmp_path: Path) -> None:
        keyless = {**schema_form()["impressions"][0], "request_id": None}
        stored, metrics = self.impressions(tmp_path, [keyless, keyless])
        assert sum(row["request_id"] is None for row in stored) == 2
        assert metrics["duplicates_dropped"] == 0


class TestIds:
    @pytest.mark.parametrize(
        ("ids", "stored"),
        [
            (["1", "2"], [1, 2]),
            (["01", "2"], ["01", "2"]),
            (["a", "2"], ["2", "a"]),
            (["9" * 18, "2"], [2, int("9" * 18)]),
            (["9" * 19, "2"], ["2", "9" * 19]),
        ],
    )
    def test_text_ids_are_integers_only_if_all_of_their_space_are(
        self, tmp_path: Path, ids: list[str], stored: list[object]
    ) -> None:
        tables = own_csv(tmp_path / "logs")
        videos = [{"id": name, "channel": "", "tags": "", "length_ms": "", "published": ""} for name in ids]
        write_csv(tmp_path / "logs/videos.csv", videos)
        run_ingest(tmp_path / "logs", tmp_path / "out", source="files", files={"tables": tables})
        assert [row["video_id"] for row in rows(tmp_path / "out", "videos")] == stored
        # The impressions' video ids are 1 and 2 in either case: one type per id space.
        found = {row["video_id"] for row in rows(tmp_path / "out", "impressions")}
        assert found == ({1, 2} if isinstance(stored[0], int) else {"1", "2"})

    def test_hashes_of_64_bits_become_text(self, tmp_path: Path) -> None:
        logs = write_schema_form(tmp_path / "logs")
        users = pa.table({"user_id": pa.array([2**64 - 1, 7], pa.uint64())})
        pq.write_table(users, logs / "users.parquet")
        run_ingest(logs, tmp_path / "out")
        assert [row["user_id"] for row in rows(tmp_path / "out", "users")] == [str(2**64 - 1), "7"]
        assert {row["user_id"] for row in rows(tmp_path / "out", "watches")} == {"7", "8"}

    def test_integers_that_pandas_made_floats(self, tmp_path: Path) -> None:
        logs = write_schema_form(tmp_path / "logs")
        pq.write_table(pa.table({"user_id": [7.0, 8.0]}), logs / "users.parquet")
        run_ingest(logs, tmp_path / "out")
        assert [row["user_id"] for row in rows(tmp_path / "out", "users")] == [7, 8]

    def test_fractions_are_no_ids(self, tmp_path: Path) -> None:
        logs = write_schema_form(tmp_path / "logs")
        pq.write_table(pa.table({"user_id": [7.5, 8.0]}), logs / "users.parquet")
        text = refusal(logs, tmp_path / "out")
        assert "`user_id` should be an id: 1 of 2 values are not" in text
        assert "first offenders: 7.5" in text


class TestValues:
    def test_an_optional_column_without_a_value_is_absent(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tables = schema_form()
        for row in tables["impressions"]:
            row["device"] = None
            row["position"] = None
        run_ingest(write_schema_form(tmp_path / "logs", tables), tmp_path / "out")
        note = read_source(tmp_path / "out/tables")["tables"]["impressions"]
        assert {"device", "position"} <= set(note["absent_columns"])
        assert (
            "impressions: without a single value, so treated as absent: position, device"
            in capsys.readouterr().err
        )

    def test_a_needed_column_without_a_value_keeps_its_place_and_type(self, tmp_path: Path) -> None:
        tables = schema_form()
        for row in tables["videos"]:
            row["duration_s"] = None
            row["channel_id"] = None
        run_ingest(write_schema_form(tmp_path / "logs", tables), tmp_path / "out")
        schema = pq.read_schema(tmp_path / "out/tables/videos/part-00000.parquet")
        assert (schema.field("duration_s").type, schema.field("channel_id").type) == (
            pa.float64(),
            pa.int64(),
        )

    def test_not_a_number_is_missing(self, tmp_path: Path) -> None:
        tables = schema_form()
        tables["videos"][0]["duration_s"] = float("nan")
        run_ingest(write_schema_form(tmp_path / "logs", tables), tmp_path / "out")
        assert rows(tmp_path / "out", "videos")[0]["duration_s"] is None

    def test_text_in_a_column_of_numbers(self, tmp_path: Path) -> None:
        tables = own_csv(tmp_path / "logs")
        path = tmp_path / "logs/impressions.csv"
        path.write_text(path.read_text().replace("30500", "half a minute"))
        text = refusal(tmp_path / "logs", tmp_path / "out", source="files", files={"tables": tables})
        assert "`watch_time_s` should be a number: 1 of 3 values are not" in text
        assert "impressions.csv, column seen_ms" in text
        assert "first offenders: half a minute" in text

    def test_text_where_parquet_should_hold_numbers(self, tmp_path: Path) -> None:
        tables = schema_form()
        for row in tables["watches"]:
            row["watch_time_s"] = "long"
        text = refusal(write_schema_form(tmp_path / "logs", tables), tmp_path / "out")
        assert "`watch_time_s` should be a number: 2 of 2 values are not" in text

    @pytest.mark.parametrize(
        ("table", "column", "value", "expected"),
        [
            (
                "impressions",
                "clicked",
                "perhaps",
                "`clicked` should be true or false (or 1 or 0): 3 of 3 values",
            ),
            ("impressions", "clicked", 2, "`clicked` should be true or false (or 1 or 0): 3 of 3 values"),
            ("impressions", "position", 0.5, "`position` should be an integer: 3 of 3 values"),
            ("impressions", "position", "first", "`position` should be an integer: 3 of 3 values"),
            (
                "impressions",
                "clicked",
                [True],
                "`clicked` should be true or false (or 1 or 0), and the column is array",
            ),
            ("impressions", "shown_at", "soon", "`shown_at` should be an instant: 3 of 3 values are not"),
            ("impressions", "shown_at", True, "`shown_at` should be an instant, and the column is boolean"),
            ("videos", "topics", 7, "`topics` should be a list of texts, and the column is int64"),
            ("users", "region", [1], "`region` should be text, and the column is array<int64>"),
        ],
    )
    def test_wrong_types(self, tmp_path: Path, table: str, column: str, value: object, expected: str) -> None:
        tables = schema_form()
        for row in tables[table]:
            row[column] = value
        text = refusal(write_schema_form(tmp_path / "logs", tables), tmp_path / "out")
        assert expected in text
        assert f"{table}.parquet, column {column}" in text


class TestInstants:
    @pytest.mark.parametrize(
        ("unit", "value"),
        [("s", BEGIN_MS / 1000), ("ms", BEGIN_MS), ("us", BEGIN_MS * 1000), ("s", f"{BEGIN_MS}e-3")],
    )
    def test_units_of_numbers(self, tmp_path: Path, unit: str, value: object) -> None:
        text, found = self.watched_at(tmp_path, [value, value], unit)
        assert text == ""
        assert found == {at(0)}

    @pytest.mark.parametrize(
        "value", ["2026-03-01T12:00:00Z", "2026-03-01 13:00:00+01:00", "2026-03-01 12:00:00"]
    )
    def test_iso_text_without_an_offset_is_utc(self, tmp_path: Path, value: str) -> None:
        assert self.watched_at(tmp_path, [value, value], "iso") == ("", {at(0)})
        assert self.watched_at(tmp_path / "again", [value, value], None) == ("", {at(0)})

    def test_every_unit_keeps_microseconds(self, tmp_path: Path) -> None:
        _, found = self.watched_at(tmp_path, [BEGIN_MS * 1000 + 1, BEGIN_MS * 1000 + 1], "us")
        assert found == {at(0) + dt.timedelta(microseconds=1)}

    def test_a_unit_that_does_not_fit_is_named_with_the_one_that_does(self, tmp_path: Path) -> None:
        text, _ = self.watched_at(tmp_path, [BEGIN_MS // 1000, BEGIN_MS // 1000 + 1], "ms")
        assert "`watched_at` is not plausible: every value would be before 1990 or after 2100 in ms" in text
        assert "they look like s" in text
        assert f"first offenders: {BEGIN_MS // 1000}; {BEGIN_MS // 1000 + 1}" in text
        assert "set `unit: s`" in text

    @pytest.mark.parametrize(
        ("unit", "other"), [("ms", BEGIN_MS // 1000), ("s", BEGIN_MS), ("ms", BEGIN_MS * 1000)]
    )
    def test_mixed_units_are_refused_with_the_first_offenders(
        self, tmp_path: Path, unit: str, other: int
    ) -> None:
        right = BEGIN_MS // 1000 if unit == "s" else BEGIN_MS
        text, _ = self.watched_at(tmp_path, [right, other], unit)
        assert f"`watched_at` mixes units: 1 of 2 values would be before 1990 or after 2100 in {unit}" in text
        looks_like = {BEGIN_MS // 1000: "s", BEGIN_MS: "ms", BEGIN_MS * 1000: "us"}[other]
        assert f"they look like {looks_like}" in text
        assert f"first offenders: {other}" in text
        assert "watches.parquet, column at" in text

    def test_numbers_without_a_unit(self, tmp_path: Path) -> None:
        text, _ = self.watched_at(tmp_path, [BEGIN_MS, BEGIN_MS], None)
        assert "`watched_at` holds numbers, and nothing says in which unit" in text
        assert "unit: ms" in text

    def test_instants_of_1970_in_typed_files(self, tmp_path: Path) -> None:
        """What becomes of seconds that some export took for milliseconds."""
        tables = schema_form()
        tables["impressions"][1]["shown_at"] = dt.datetime(1970, 1, 21, 12, 19, tzinfo=dt.UTC)
        text = refusal(write_schema_form(tmp_path / "logs", tables), tmp_path / "out")
        assert "`shown_at` is not plausible: 1 of 3 values would be before 1990 or after 2100" in text
        assert "first offenders: 1970-01-21 12:19:00+00:00" in text

    def watched_at(self, tmp_path: Path, values: list[Any], unit: str | None) -> tuple[str, set[dt.datetime]]:
        """Ingest watches at these instants: the refusal, or what is stored."""
        tables = own_csv(tmp_path / "logs")
        watches = {"uid": ["u07", "u08"], "id": [1, 1], "at": values, "seconds": [1.0, 2.0], "done": [1, 0]}
        pq.write_table(pa.table(watches), tmp_path / "logs/watches.parquet")
        tables["watches"]["path"] = "watches.parquet"
        tables["watches"]["columns"]["watched_at"] = {"column": "at", "unit": unit}
        try:
            run_ingest(tmp_path / "logs", tmp_path / "out", source="files", files={"tables": tables})
        except InputError as error:
            return str(error), set()
        return "", {row["watched_at"] for row in rows(tmp_path / "out", "watches")}
