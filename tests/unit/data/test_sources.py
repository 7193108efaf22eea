"""Which files a source finds and what it makes of them, and what the user reads when they are not usable."""

import datetime as dt
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from log_files import (
    KUAIRAND_MS,
    at,
    kuairand_log,
    kuairand_log_row,
    own_csv,
    refusal,
    rows,
    run_ingest,
    schema_form,
    write_csv,
    write_kuairand,
    write_schema_form,
)
from ruamel.yaml import YAML

from watchnext.config import load_section
from watchnext.errors import InputError
from watchnext.stages.ingest import Params


class TestSimulated:
    def test_files_in_schema_form_come_through_as_they_are(self, tmp_path: Path) -> None:
        run_ingest(write_schema_form(tmp_path / "logs"), tmp_path / "out")
        for name, expected in schema_form().items():
            assert rows(tmp_path / "out", name) == expected

    def test_further_text_columns_of_users_are_kept_and_other_columns_named(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tables = schema_form()
        tables["users"] = [{**row, "plan": "free", "score": 1.5} for row in tables["users"]]
        tables["watches"] = [{**row, "note": "x"} for row in tables["watches"]]
        metrics = run_ingest(write_schema_form(tmp_path / "logs", tables), tmp_path / "out")
        assert rows(tmp_path / "out", "users")[0] == {"user_id": 7, "region": "de", "plan": "free"}
        assert (metrics["users_ignored_columns"], metrics["watches_ignored_columns"]) == (1, 1)
        printed = capsys.readouterr().err
        assert "users: kept out score" in printed
        assert "watches: kept out note" in printed

    def test_a_folder_without_the_tables_names_expected_and_found(self, tmp_path: Path) -> None:
        tables = schema_form()
        del tables["watches"], tables["videos"]
        text = refusal(write_schema_form(tmp_path / "logs", tables), tmp_path / "out")
        assert "the folder lacks videos.parquet, watches.parquet" in text
        assert "there: impressions.parquet, users.parquet" in text
        assert "expected: videos.parquet, users.parquet, impressions.parquet, watches.parquet" in text

    def test_no_folder(self, tmp_path: Path) -> None:
        text = refusal(tmp_path / "nowhere", tmp_path / "out")
        assert "the folder of the logs is not there" in text
        assert "ingest.path" in text

    def test_a_file_where_a_folder_belongs(self, tmp_path: Path) -> None:
        (tmp_path / "logs.csv").write_text("a,b\n")
        assert "the logs should be a folder" in refusal(tmp_path / "logs.csv", tmp_path / "out")

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        (tmp_path / "logs").mkdir()
        assert "the folder is empty" in refusal(tmp_path / "logs", tmp_path / "out")

    def test_a_missing_column_is_named_with_those_that_are_there(self, tmp_path: Path) -> None:
        tables = schema_form()
        for row in tables["impressions"]:
            del row["clicked"], row["watch_time_s"]
        text = refusal(write_schema_form(tmp_path / "logs", tables), tmp_path / "out")
        assert "table impressions lacks columns clicked, watch_time_s" in text
        assert "impressions.parquet" in text
        assert "the file has: request_id, video_id, user_id, shown_at, position" in text

    def test_truncated_parquet(self, tmp_path: Path) -> None:
        logs = write_schema_form(tmp_path / "logs")
        whole = (logs / "impressions.parquet").read_bytes()
        (logs / "impressions.parquet").write_bytes(whole[: len(whole) // 2])
        text = refusal(logs, tmp_path / "out")
        assert (
            f"not a readable Parquet file ({len(whole) // 2:,} bytes): truncated, or of another format"
            in text
        )
        assert "impressions.parquet" in text

    def test_parquet_damaged_in_the_middle(self, tmp_path: Path) -> None:
        logs = write_schema_form(tmp_path / "logs")
        path = logs / "watches.parquet"
        content = bytearray(path.read_bytes())
        content[4:40] = b"\xff" * 36
        path.write_bytes(content)
        text = refusal(logs, tmp_path / "out")
        assert "the Parquet file cannot be read to its end: it is damaged" in text
        assert "watches.parquet" in text

    def test_a_file_of_no_bytes(self, tmp_path: Path) -> None:
        logs = write_schema_form(tmp_path / "logs")
        (logs / "users.parquet").write_bytes(b"")
        text = refusal(logs, tmp_path / "out")
        assert text.startswith("the file is empty")
        assert "users.parquet" in text

    def test_a_table_without_rows_is_refused_where_it_is_needed(self, tmp_path: Path) -> None:
        logs = write_schema_form(tmp_path / "logs")
        pq.write_table(pq.read_table(logs / "watches.parquet").slice(0, 0), logs / "watches.parquet")
        text = refusal(logs, tmp_path / "out")
        assert "the table holds no row" in text
        assert "watches.parquet" in text

    def test_an_optional_table_without_rows_is_absent(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        logs = write_schema_form(tmp_path / "logs")
        searches = pa.table({"user_id": [7], "searched_at": [at(0)], "query": ["cats"]})
        pq.write_table(searches.slice(0, 0), logs / "searches.parquet")
        run_ingest(logs, tmp_path / "out")
        assert not (tmp_path / "out" / "tables" / "searches").exists()
        assert "no table searches" in capsys.readouterr().err

    def test_an_unknown_time_zone(self, tmp_path: Path) -> None:
        text = refusal(write_schema_form(tmp_path / "logs"), tmp_path / "out", time_zone="Beijing")
        assert "`Beijing` is not a time zone" in text
        assert "ingest.time_zone" in text


class TestFiles:
    def test_own_columns_units_literals_and_lists(self, tmp_path: Path) -> None:
        tables = own_csv(tmp_path / "logs")
        metrics = run_ingest(
            tmp_path / "logs",
            tmp_path / "out",
            source="files",
            time_zone="Europe/Berlin",
            files={"tables": tables},
        )
        assert rows(tmp_path / "out", "videos") == [
            {
                "video_id": 1,
                "channel_id": "c10",
                "topics": ["a", "b"],
                "duration_s": 60.0,
                "uploaded_at": dt.datetime(2026, 2, 20, 8, tzinfo=dt.UTC),
            },
            {"video_id": 2, "channel_id": None, "topics": None, "duration_s": None, "uploaded_at": None},
        ]
        assert rows(tmp_path / "out", "users") == [
            {"user_id": "u07", "region": "de", "plan": "free"},
            {"user_id": "u08", "region": None, "plan": "paid"},
        ]
        impressions = rows(tmp_path / "out", "impressions")
        assert [row["watch_time_s"] for row in impressions] == [30.5, 0.0, 0.0]
        assert [row["clicked"] for row in impressions] == [True, False, False]
        assert [row["surface"] for row in impressions] == ["home"] * 3
        assert impressions[2]["shown_at"] - impressions[0]["shown_at"] == dt.timedelta(milliseconds=250)
        watches = rows(tmp_path / "out", "watches")
        # 13:00 in Berlin in winter is 12:00 UTC.
        assert watches[0]["watched_at"] == dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
        assert watches[1] == {
            "user_id": "u08",
            "video_id": 1,
            "watched_at": dt.datetime(2026, 3, 1, 23, 30, tzinfo=dt.UTC),
            "watch_time_s": None,
            "completed": True,
        }
        assert (metrics["users_ignored_columns"], metrics["impressions_ignored_columns"]) == (1, 1)

    def test_parquet_and_csv_give_the_same_tables(self, tmp_path: Path) -> None:
        tables = own_csv(tmp_path / "csv")
        (tmp_path / "parquet").mkdir()
        for path in (tmp_path / "csv").glob("*.csv"):
            pq.write_table(pacsv.read_csv(path), tmp_path / "parquet" / f"{path.stem}.parquet")
        as_parquet = {
            name: {**table, "path": table["path"].replace(".csv", ".parquet")}
            for name, table in tables.items()
        }
        # What is a number in CSV is one here, and a missing text is an empty one.
        del as_parquet["users"]["missing"]
        settings = {"source": "files", "time_zone": "Europe/Berlin"}
        run_ingest(tmp_path / "csv", tmp_path / "a", **settings, files={"tables": tables})
        run_ingest(tmp_path / "parquet", tmp_path / "b", **settings, files={"tables": as_parquet})
        for name in ("impressions", "watches"):
            assert rows(tmp_path / "a", name) == rows(tmp_path / "b", name)

    @pytest.mark.parametrize("path", ["impressions-*.csv", "impressions/", "impressions/*.csv"])
    def test_a_table_in_several_files(self, tmp_path: Path, path: str) -> None:
        tables = own_csv(tmp_path / "logs")
        whole = (tmp_path / "logs/impressions.csv").read_text().splitlines()
        folder = tmp_path / "logs" / ("impressions" if "/" in path else "")
        folder.mkdir(exist_ok=True)
        (folder / "impressions-1.csv").write_text("\n".join([whole[0], whole[3]]) + "\n")
        (folder / "impressions-2.csv").write_text("\n".join(whole[:3]) + "\n")
        settings = {"source": "files", "time_zone": "Europe/Berlin"}
        run_ingest(tmp_path / "logs", tmp_path / "one", **settings, files={"tables": tables})
        tables["impressions"]["path"] = path
        run_ingest(tmp_path / "logs", tmp_path / "several", **settings, files={"tables": tables})
        assert rows(tmp_path / "several", "impressions") == rows(tmp_path / "one", "impressions")

    @pytest.mark.parametrize("encoding", ["utf-16", "latin-1", "utf-8-sig", "cp1252"])
    def test_a_named_encoding_is_read(self, tmp_path: Path, encoding: str) -> None:
        tables = own_csv(tmp_path / "logs")
        people = [
            {"uid": "u07", "country": "Perú", "plan": "a,b"},
            {"uid": "ü8", "country": "de", "plan": 'x"\ny'},
        ]
        write_csv(tmp_path / "logs/users.csv", people, encoding=encoding)
        tables["users"]["encoding"] = encoding
        run_ingest(tmp_path / "logs", tmp_path / "out", source="files", files={"tables": tables})
        assert rows(tmp_path / "out", "users") == [
            {"user_id": "u07", "region": "Perú", "plan": "a,b"},
            {"user_id": "ü8", "region": "de", "plan": 'x"\ny'},
        ]

    def read_users(self, tmp_path: Path, content: bytes, **settings: object) -> str:
        tables = own_csv(tmp_path / "logs")
        (tmp_path / "logs/users.csv").write_bytes(content)
        tables["users"].update(settings)
        return refusal(tmp_path / "logs", tmp_path / "out", source="files", files={"tables": tables})

    def test_utf_16_taken_for_utf_8(self, tmp_path: Path) -> None:
        text = self.read_users(tmp_path, "uid,country,plan\nu07,de,free\n".encode("utf-16"))
        assert "the file is not utf-8 text" in text
        assert "users.csv, line 1" in text
        assert "bytes ff" in text
        assert "`encoding: utf-16`" in text

    def test_utf_16_without_a_byte_order_mark(self, tmp_path: Path) -> None:
        text = self.read_users(tmp_path, "uid,country,plan\nu07,de,free\n".encode("utf-16-le"))
        assert "it holds NUL characters, as UTF-16 read as utf-8 does" in text

    def test_latin_1_taken_for_utf_8_names_the_line(self, tmp_path: Path) -> None:
        text = self.read_users(tmp_path, "uid,country,plan\nu07,de,free\nu08,Perú,free\n".encode("latin-1"))
        assert "the file is not utf-8 text" in text
        assert "users.csv, line 3" in text
        assert "bytes fa 2c 66 72" in text
        assert "`encoding: latin-1`" in text

    def test_an_unknown_encoding(self, tmp_path: Path) -> None:
        assert "`utf8000` is not an encoding" in self.read_users(tmp_path, b"uid\n1\n", encoding="utf8000")

    def test_a_csv_of_no_bytes(self, tmp_path: Path) -> None:
        text = self.read_users(tmp_path, b"")
        assert "the file is empty" in text
        assert "users.csv" in text

    def test_a_csv_with_column_names_alone(self, tmp_path: Path) -> None:
        text = self.read_users(tmp_path, b"uid,country,plan\n")
        assert "the table holds no row" in text
        assert "users.csv" in text

    def test_rows_of_different_length(self, tmp_path: Path) -> None:
        text = self.read_users(tmp_path, b"uid,country,plan\nu07,de,free\nu08,de\n")
        assert "not readable as CSV" in text
        assert "Expected 3 columns, got 2" in text
        assert "`,` what separates its columns" in text

    def test_another_delimiter_shows_in_the_columns_that_are_there(self, tmp_path: Path) -> None:
        text = self.read_users(tmp_path, b"uid;country;plan\nu07;de;free\n")
        assert "the file has no column `uid`" in text
        assert "uid;country;plan" in text

    def test_column_names_that_come_twice(self, tmp_path: Path) -> None:
        assert "column names come twice" in self.read_users(tmp_path, b"uid,plan,country,plan\n1,2,3,4\n")

    def mapping_refusal(self, tmp_path: Path, table: str, **changes: object) -> str:
        tables = own_csv(tmp_path / "logs")
        for key, value in changes.items():
            tables[table][key] = {**tables[table]["columns"], **value} if isinstance(value, dict) else value
        return refusal(tmp_path / "logs", tmp_path / "out", source="files", files={"tables": tables})

    def test_a_name_that_is_no_column_of_ours(self, tmp_path: Path) -> None:
        text = self.mapping_refusal(tmp_path, "impressions", columns={"watchtime_s": "seen_ms"})
        assert "`watchtime_s` is not a column of impressions" in text
        assert "ingest.files.tables.impressions.columns.watchtime_s" in text
        assert "did you mean `watch_time_s`?" in text

    def test_a_name_that_is_no_column_of_theirs(self, tmp_path: Path) -> None:
        text = self.mapping_refusal(tmp_path, "impressions", columns={"clicked": "clik"})
        assert "the file has no column `clik`" in text
        assert "did you mean `click`?" in text

    def test_a_table_that_is_none_of_ours(self, tmp_path: Path) -> None:
        tables = own_csv(tmp_path / "logs")
        tables["impresions"] = tables["impressions"]
        text = refusal(tmp_path / "logs", tmp_path / "out", source="files", files={"tables": tables})
        assert "`impresions` is not a table" in text
        assert "did you mean `impressions`?" in text

    def test_a_table_that_is_not_mapped(self, tmp_path: Path) -> None:
        tables = own_csv(tmp_path / "logs")
        del tables["watches"]
        text = refusal(tmp_path / "logs", tmp_path / "out", source="files", files={"tables": tables})
        assert "the mapping lacks tables: watches" in text

    def test_a_needed_column_that_is_not_mapped(self, tmp_path: Path) -> None:
        text = self.mapping_refusal(tmp_path, "watches", columns={"completed": None})
        assert "table watches lacks column completed" in text
        assert "map it under params.yaml, ingest.files.tables.watches.columns" in text

    def test_a_path_that_leads_nowhere(self, tmp_path: Path) -> None:
        text = self.mapping_refusal(tmp_path, "watches", path="watch-*.csv")
        assert "there is no such file" in text
        assert "watch-*.csv" in text
        assert "there: impressions.csv, users.csv, videos.csv, watches.csv" in text

    def test_both_a_column_and_a_value(self, tmp_path: Path) -> None:
        text = self.mapping_refusal(
            tmp_path, "watches", columns={"origin": {"column": "began", "value": "home"}}
        )
        assert "a mapped column has either `column` or `value`" in text

    def test_one_instant_for_every_row(self, tmp_path: Path) -> None:
        text = self.mapping_refusal(tmp_path, "watches", columns={"watched_at": {"value": "2026-03-01"}})
        assert "`watched_at` cannot be one `value` for every row" in text

    def test_a_value_of_another_type(self, tmp_path: Path) -> None:
        text = self.mapping_refusal(tmp_path, "impressions", columns={"logged_in": {"value": "yes"}})
        assert "`'yes'` is no value for `logged_in`" in text

    def test_a_unit_where_there_is_none(self, tmp_path: Path) -> None:
        text = self.mapping_refusal(
            tmp_path, "impressions", columns={"clicked": {"column": "click", "unit": "ms"}}
        )
        assert "unit `ms` means nothing for `clicked`" in text

    def test_a_name_without_a_known_ending(self, tmp_path: Path) -> None:
        tables = own_csv(tmp_path / "logs")
        (tmp_path / "logs/users.csv").rename(tmp_path / "logs/users.log")
        tables["users"]["path"] = "users.log"
        settings = {"source": "files", "files": {"tables": tables}}
        assert "does not say whether `users.log` is CSV or Parquet" in refusal(
            tmp_path / "logs", tmp_path / "out", **settings
        )
        tables["users"]["format"] = "csv"
        run_ingest(tmp_path / "logs", tmp_path / "read", **settings)

    @pytest.mark.parametrize(
        ("key", "value", "expected"),
        [
            ("colums", {"user_id": "uid"}, "`ingest.files.tables.users.colums` is not a setting"),
            ("format", "json", "`ingest.files.tables.users.format` is 'json'"),
            ("delimiter", 7, "`ingest.files.tables.users.delimiter` is 7"),
        ],
    )
    def test_slips_in_the_settings_file(self, tmp_path: Path, key: str, value: object, expected: str) -> None:
        section = {"source": "files", "files": {"tables": {"users": {"path": "users.csv", key: value}}}}
        with (tmp_path / "params.yaml").open("w") as file:
            YAML().dump({"ingest": section}, file)
        with pytest.raises(InputError) as refused:
            load_section("ingest", Params, tmp_path / "params.yaml")
        assert expected in str(refused.value)


class TestKuaiRand:
    def test_a_page_is_one_user_instant_and_surface(self, tmp_path: Path) -> None:
        run_ingest(write_kuairand(tmp_path / "logs"), tmp_path / "out", source="kuairand")
        pages = [(row["request_id"], row["video_id"]) for row in rows(tmp_path / "out", "impressions")]
        assert pages == [
            (f"5-{KUAIRAND_MS}-0", 2),
            (f"5-{KUAIRAND_MS}-1", 1),
            (f"5-{KUAIRAND_MS}-1", 2),
            (f"6-{KUAIRAND_MS + 60_000}-1", 2),
            (f"6-{KUAIRAND_MS + 90_000}-1", 1),
        ]

    def test_watch_time_is_zero_without_a_click_and_clicks_without_play_stay(self, tmp_path: Path) -> None:
        run_ingest(write_kuairand(tmp_path / "logs"), tmp_path / "out", source="kuairand")
        seen = [(row["clicked"], row["watch_time_s"]) for row in rows(tmp_path / "out", "impressions")]
        assert seen == [(False, 0.0), (True, 61.802), (False, 0.0), (True, 0.0), (False, 0.0)]
        first = rows(tmp_path / "out", "impressions")[0]
        assert first["shown_at"] == dt.datetime(2022, 4, 24, 15, 5, 41, 436_000, tzinfo=dt.UTC)
        assert first["surface"] == "0"
        assert "sources" not in first

    def test_a_watch_is_a_click_or_a_long_view(self, tmp_path: Path) -> None:
        run_ingest(write_kuairand(tmp_path / "logs"), tmp_path / "out", source="kuairand")
        watches = [
            (row["user_id"], row["video_id"], row["watch_time_s"], row["completed"])
            for row in rows(tmp_path / "out", "watches")
        ]
        assert watches == [(5, 1, 61.802, True), (6, 2, 0.0, False), (6, 1, 49.109, True)]

    def test_copies_are_told_from_near_copies(self, tmp_path: Path) -> None:
        metrics = run_ingest(write_kuairand(tmp_path / "logs"), tmp_path / "out", source="kuairand")
        assert (metrics["impressions_exact_duplicates"], metrics["impressions_key_duplicates"]) == (1, 1)
        assert (metrics["watches_exact_duplicates"], metrics["watches_key_duplicates"]) == (1, 1)

    def test_videos_and_users(self, tmp_path: Path) -> None:
        run_ingest(write_kuairand(tmp_path / "logs"), tmp_path / "out", source="kuairand")
        assert rows(tmp_path / "out", "videos") == [
            {
                "video_id": 1,
                "channel_id": 70,
                "topics": ["39", "43"],
                "duration_s": 87.433,
                # Midnight of 10 April in Beijing.
                "uploaded_at": dt.datetime(2022, 4, 9, 16, tzinfo=dt.UTC),
            },
            {
                "video_id": 2,
                "channel_id": 71,
                "topics": None,
                "duration_s": None,
                "uploaded_at": dt.datetime(2022, 4, 8, 16, tzinfo=dt.UTC),
            },
        ]
        categories = {"user_active_degree": "full_active"}
        assert rows(tmp_path / "out", "users") == [
            {
                "user_id": 5,
                **categories,
                "is_video_author": "1",
                "fans_user_num_range": "[100,1k)",
                "onehot_feat4": "4",
            },
            {
                "user_id": 6,
                **categories,
                "is_video_author": "0",
                "fans_user_num_range": "[1,10)",
                "onehot_feat4": None,
            },
        ]

    def test_history_holds_what_was_shown_and_whether_it_was_a_long_view(self, tmp_path: Path) -> None:
        run_ingest(write_kuairand(tmp_path / "logs"), tmp_path / "out", source="kuairand")
        assert rows(tmp_path / "out", "history") == [
            {"user_id": 5, "position": 3, "video_id": 2, "completed": True},
            {"user_id": 5, "position": 4, "video_id": 1, "completed": False},
            {"user_id": 6, "position": 0, "video_id": 2, "completed": True},
        ]

    def test_history_is_optional_and_left_out_where_the_logs_cover_it(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        logs = write_kuairand(tmp_path / "logs")
        write_csv(logs / "log_standard_4_08_to_4_21_pure.csv", kuairand_log()[:1])
        run_ingest(logs, tmp_path / "overlapping", source="kuairand")
        assert "left out history_4_09_to_4_24.parquet" in capsys.readouterr().err
        assert not (tmp_path / "overlapping/tables/history").exists()
        (logs / "history_4_09_to_4_24.parquet").unlink()
        (logs / "log_standard_4_08_to_4_21_pure.csv").unlink()
        run_ingest(logs, tmp_path / "without", source="kuairand")
        assert not (tmp_path / "without/tables/history").exists()

    def test_random_logs_are_read_too_and_marked(self, tmp_path: Path) -> None:
        logs = write_kuairand(tmp_path / "logs")
        write_csv(
            logs / "log_random_4_22_to_5_08_pure.csv",
            [kuairand_log_row(6, 1, KUAIRAND_MS + 120_000, is_rand=1)],
        )
        run_ingest(logs, tmp_path / "out", source="kuairand")
        assert [row["sources"] for row in rows(tmp_path / "out", "impressions")] == [None] * 5 + [["random"]]

    def test_missing_files_are_named_by_pattern(self, tmp_path: Path) -> None:
        logs = write_kuairand(tmp_path / "logs")
        (logs / "user_features_pure.csv").unlink()
        text = refusal(logs, tmp_path / "out", source="kuairand")
        assert "this is not a KuaiRand folder: files are missing" in text
        assert "there: history_4_09_to_4_24.parquet, log_standard_4_25_to_5_06_pure.csv" in text
        assert "expected: log_standard_*.csv, user_features_*.csv, video_features_basic_*.csv" in text

    def test_a_missing_column_is_named(self, tmp_path: Path) -> None:
        log = [{name: value for name, value in row.items() if name != "long_view"} for row in kuairand_log()]
        text = refusal(write_kuairand(tmp_path / "logs", log), tmp_path / "out", source="kuairand")
        assert "the file lacks column long_view" in text
        assert "log_*.csv" in text

    def test_files_of_one_table_that_differ(self, tmp_path: Path) -> None:
        logs = write_kuairand(tmp_path / "logs")
        write_csv(logs / "log_standard_5_07_to_5_08_pure.csv", [{**kuairand_log()[0], "extra": 1}])
        text = refusal(logs, tmp_path / "out", source="kuairand")
        assert "files of one table differ in their columns" in text
        assert "first offenders: extra" in text


def test_the_example_in_the_guide_is_a_valid_setting() -> None:
    guide = (Path(__file__).parents[3] / "docs/bring-your-own-logs.md").read_text(encoding="utf-8")
    example = YAML(typ="safe").load(guide.split("```yaml\n")[1].split("```")[0])
    params = Params.model_validate(example["ingest"])
    assert set(params.files.tables) == {"videos", "users", "impressions", "watches"}
