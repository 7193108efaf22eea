"""Logs of any size, drawn by DuckDB from hashes: what is measured is how rows are worked on, not what they say."""

import datetime as dt
import json
from pathlib import Path

import duckdb

from watchnext.data.split import SplitDays

BEGIN = dt.date(2026, 3, 1)
DAYS = 14
SPLIT = SplitDays(
    training=(BEGIN, BEGIN + dt.timedelta(days=DAYS - 4)),
    tuning=BEGIN + dt.timedelta(days=DAYS - 3),
    gate=BEGIN + dt.timedelta(days=DAYS - 2),
    shadow=BEGIN + dt.timedelta(days=DAYS - 1),
)
PAGE = 10
IMPRESSIONS_PER_USER = 200
VIDEOS = 100_000
CHANNELS = 5_000
TOPICS = 200

_US = 1_000_000
_SPAN_US = DAYS * 86_400 * _US
_BEGIN_US = int(dt.datetime.combine(BEGIN, dt.time(), dt.UTC).timestamp()) * _US


def write_logs(rows: int, directory: Path) -> Path:
    """The validated tables of `rows` impressions: pages of ten, a tenth clicked, as many watches again from elsewhere."""
    users = max(1, rows // IMPRESSIONS_PER_USER)

    def uniform(stream: int, key: str) -> str:
        # Hashed twice: the hashes of one key with two streams are not independent, and users would have a time of day.
        return f"((hash(hash({key}, {stream})) >> 11) / 9007199254740992.0)"

    def instant(microseconds: str) -> str:
        return f"make_timestamptz(CAST({microseconds} AS BIGINT))"

    def popular(stream: int, key: str) -> str:
        return f"CAST(floor(pow({uniform(stream, key)}, 2) * {VIDEOS}) AS BIGINT)"

    page = f"(i // {PAGE})"
    page_us = f"{_BEGIN_US} + floor({uniform(2, page)} * {_SPAN_US})"
    topic = f"'topic ' || CAST(floor(%s * {TOPICS}) AS INT)"
    queries = {
        "videos": f"""
            SELECT i AS video_id, CAST(floor({uniform(1, "i")} * {CHANNELS}) AS BIGINT) AS channel_id,
                list_distinct([{topic % uniform(2, "i")}, {topic % uniform(3, "i")}]) AS topics,
                30 + floor({uniform(4, "i")} * 600) AS duration_s,
                {instant(f"{_BEGIN_US} - {uniform(5, 'i')} * {2 * _SPAN_US}")} AS uploaded_at,
                'language ' || (i % 5) AS language
            FROM range({VIDEOS}) t(i)""",
        "users": f"""
            SELECT i AS user_id, 'region ' || (i % 50) AS region, ['female', 'male', 'other'][1 + i % 3] AS gender,
                15.0 + i % 60 AS age_years, ['free', 'paid'][1 + i % 2] AS plan
            FROM range({users}) t(i)""",
        "impressions": f"""
            SELECT {page} AS request_id, {popular(3, "i")} AS video_id,
                CAST(floor({uniform(1, page)} * {users}) AS BIGINT) AS user_id, {instant(page_us)} AS shown_at,
                ['home', 'next'][1 + {page} % 2] AS surface, i % {PAGE} AS position,
                ['tv', 'phone', 'web'][1 + {page} % 3] AS device, {page} % 4 > 0 AS logged_in,
                {uniform(4, "i")} < 0.1 AS clicked,
                CASE WHEN {uniform(4, "i")} < 0.1 THEN floor({uniform(5, "i")} * 300000) / 1000 ELSE 0.0 END
                    AS watch_time_s,
                CASE WHEN i % 3 = 0 THEN {popular(6, "i")} END AS seed_video_id
            FROM range({rows}) t(i)
            QUALIFY row_number() OVER (PARTITION BY {page}, {popular(3, "i")}) = 1""",
        "watches": f"""
            SELECT user_id, video_id, shown_at AS watched_at, watch_time_s, watch_time_s > 60 AS completed,
                surface AS origin
            FROM '{directory}/impressions/part-*.parquet' WHERE clicked
            UNION ALL
            SELECT CAST(floor({uniform(7, "i")} * {users}) AS BIGINT), {popular(8, "i")},
                {instant(f"{_BEGIN_US} + floor({uniform(9, 'i')} * {_SPAN_US})")},
                floor({uniform(10, "i")} * 300000) / 1000, {uniform(10, "i")} > 0.2, 'search'
            FROM range({rows // 10}) t(i)""",
        "searches": f"""
            SELECT CAST(floor({uniform(11, "i")} * {users}) AS BIGINT) AS user_id,
                {instant(f"{_BEGIN_US} + floor({uniform(12, 'i')} * {_SPAN_US})")} AS searched_at,
                'word' || CAST(floor({uniform(13, "i")} * 1000) AS INT) || ' topic' || (i % 200) AS "query"
            FROM range({max(1, rows // 50)}) t(i)
            QUALIFY row_number() OVER (PARTITION BY user_id, searched_at) = 1""",
    }
    with duckdb.connect() as connection:
        connection.execute(
            f"SET threads = 2; SET TimeZone = 'UTC'; SET temp_directory = '{directory}/.spill'"
        )
        connection.execute("SET memory_limit = '6GB'")
        for name, query in queries.items():
            (directory / name).mkdir(parents=True)
            connection.execute(f"COPY ({query}) TO '{directory}/{name}/part-00000.parquet'")
    source = {"source": "benchmark", "time_zone": "UTC", "digest": "0" * 64, "tables": {}}
    (directory / "source.json").write_text(json.dumps(source))
    return directory
