"""The declared set of ranking features, by hand: one query a step, DuckDB's own windows and joins, no layer between."""

from pathlib import Path

import duckdb

from benchmarks.features.logs import BEGIN

_BEFORE = "RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING"
_MS = "CAST(floor(coalesce(watch_time_s, 0) * 1000 + 0.5) AS BIGINT)"
_END = "epoch_us({}) + CAST(floor(coalesce(watch_time_s, 0) * 1000000 + 0.5) AS BIGINT)"


def make_features(connection: duckdb.DuckDBPyConnection, tables: Path, statistics: Path, out: Path) -> None:
    """Write the features of all impressions to the Parquet file `out`; `statistics` is the table `video_statistics`."""

    def read(name: str) -> str:
        return f"'{tables}/{name}/part-*.parquet'"

    def events(name: str, query: str) -> None:
        connection.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS {query}")

    events(
        "shown",
        f"""SELECT request_id, video_id, user_id, position, surface, device, logged_in, seed_video_id, clicked,
            watch_time_s, shown_at, epoch_us(shown_at) AS t, CAST(shown_at AS DATE) AS day
            FROM {read("impressions")}""",
    )
    events("videos", f"SELECT *, epoch_us(uploaded_at) AS uploaded FROM {read('videos')}")
    events("topics", "SELECT DISTINCT video_id, unnest(topics) AS topic FROM videos")
    events(
        "watches",
        f"""SELECT user_id, video_id, channel_id, completed, {_END.format("watched_at")} AS t
            FROM {read("watches")} JOIN videos USING (video_id)""",
    )
    # ---- the user
    events("asked", "SELECT DISTINCT user_id, t FROM shown")
    events(
        "of_user",
        f"""SELECT user_id, t, max(impressions) AS impressions, max(clicks) AS clicks, max(ended) AS ended,
                max(watch_time_ms) AS watch_time_ms, CAST(max(watches) AS BIGINT) AS watches, max(last_watch) AS last_watch,
                CAST(max(completed) AS BIGINT) AS completed, CAST(max(tokens) AS BIGINT) AS tokens,
                max(last_search) AS last_search
            FROM (SELECT user_id, t, asked, sum(i) OVER w AS impressions, sum(c) OVER w AS clicks,
                    sum(e) OVER w AS ended, sum(ms) OVER w AS watch_time_ms, sum(n) OVER w AS watches,
                    max(CASE WHEN n = 1 THEN t END) OVER w AS last_watch, sum(d) OVER w AS completed,
                    sum(k) OVER w AS tokens, max(CASE WHEN k > 0 THEN t END) OVER w AS last_search
                FROM (
                    SELECT user_id, t, true AS asked, 0 AS i, 0 AS c, 0 AS e, 0 AS ms, 0 AS n, 0 AS d, 0 AS k
                        FROM asked
                    UNION ALL SELECT user_id, t, false, 1, CAST(clicked AS INT), 0, 0, 0, 0, 0 FROM shown
                    UNION ALL SELECT user_id, {_END.format("shown_at")}, false, 0, 0, 1, {_MS}, 0, 0, 0
                        FROM shown WHERE clicked
                    UNION ALL SELECT user_id, t, false, 0, 0, 0, 0, 1, CAST(completed AS INT), 0 FROM watches
                    UNION ALL SELECT user_id, epoch_us(searched_at), false, 0, 0, 0, 0, 0, 0, 3
                        FROM {read("searches")})
                WINDOW w AS (PARTITION BY user_id ORDER BY t {_BEFORE}))
            WHERE asked GROUP BY user_id, t""",
    )
    events(
        "bags",
        f"""SELECT user_id, any_value(v) AS watched, any_value(c) AS completed, any_value(k) AS tokens FROM (
                SELECT user_id, list(video_id ORDER BY t, video_id) AS v,
                    list(video_id ORDER BY t, video_id) FILTER (completed) AS c, NULL AS k
                    FROM watches GROUP BY user_id
                UNION ALL
                SELECT user_id, NULL, NULL, flatten(list(
                    [split_part("query", ' ', 1), "query", split_part("query", ' ', 2)] ORDER BY searched_at))
                    FROM {read("searches")} GROUP BY user_id)
            GROUP BY user_id""",
    )
    events(
        "requests",
        f"""SELECT o.user_id, o.t, o.impressions AS user_impressions, o.clicks / nullif(o.impressions, 0) AS user_click_rate,
                o.watch_time_ms / nullif(o.ended * 1000, 0) AS user_mean_watch_time_s,
                coalesce(o.completed, 0) AS user_completed_watches, (o.t - o.last_watch) / 1e6 AS since_watch_s,
                b.watched[o.watches] AS last_watched_video_id,
                b.completed[greatest(o.completed - 19, 1):o.completed] AS recent_watches,
                b.tokens[greatest(o.tokens - 19, 1):o.tokens] AS recent_search_tokens, s."query" AS last_search_query,
                u.region, u.gender, u.age_years, u.plan
            FROM of_user o LEFT JOIN bags b USING (user_id) LEFT JOIN {read("users")} u USING (user_id)
            LEFT JOIN {read("searches")} s ON s.user_id = o.user_id AND epoch_us(s.searched_at) = o.last_search""",
    )
    # ---- the user and the video, its channel, its topics
    events(
        "of_video",
        f"""SELECT DISTINCT user_id, video_id, t, sum(CAST(NOT clicked AS INT)) OVER w AS misses,
                max(t) OVER w AS last_shown,
                max(CASE WHEN NOT clicked THEN t END) OVER w AS last_miss
            FROM shown WINDOW w AS (PARTITION BY user_id, video_id ORDER BY t {_BEFORE})""",
    )
    events(
        "of_channel",
        f"""SELECT user_id, channel_id, t, max(n) AS watches, max(l) AS last_watch FROM (
                SELECT user_id, channel_id, t, asked, sum(n) OVER w AS n, max(CASE WHEN n = 1 THEN t END) OVER w AS l
                FROM (SELECT DISTINCT user_id, channel_id, t, true AS asked, 0 AS n
                        FROM shown JOIN videos USING (video_id)
                    UNION ALL SELECT user_id, channel_id, t, false, 1 FROM watches)
                WINDOW w AS (PARTITION BY user_id, channel_id ORDER BY t {_BEFORE}))
            WHERE asked GROUP BY user_id, channel_id, t""",
    )
    events("pairs", "SELECT DISTINCT user_id, video_id, t, topic FROM shown JOIN topics USING (video_id)")
    events(
        "of_topic",
        f"""SELECT p.user_id, p.video_id, p.t, max(q.n) AS watches, max(q.l) AS last_watch FROM pairs p JOIN (
                SELECT user_id, topic, t, max(n) AS n, max(l) AS l FROM (
                    SELECT user_id, topic, t, asked, sum(n) OVER w AS n,
                        max(CASE WHEN n = 1 THEN t END) OVER w AS l
                    FROM (SELECT DISTINCT user_id, topic, t, true AS asked, 0 AS n FROM pairs
                        UNION ALL SELECT user_id, topic, t, false, 1 FROM watches JOIN topics USING (video_id))
                    WINDOW w AS (PARTITION BY user_id, topic ORDER BY t {_BEFORE}))
                WHERE asked GROUP BY user_id, topic, t) q USING (user_id, topic, t)
            GROUP BY p.user_id, p.video_id, p.t""",
    )
    events("statistics", f"SELECT * FROM '{statistics}/part-*.parquet'")
    events(
        "channels",
        """SELECT channel_id, day, sum(impressions) AS channel_impressions, sum(clicks) AS channel_clicks,
            sum(watch_time_ms) AS channel_watch_time_ms FROM statistics GROUP BY channel_id, day""",
    )
    connection.execute(
        f"""COPY (SELECT s.request_id, s.video_id, s.user_id, s.shown_at, s.position, s.surface, s.device, s.clicked,
                s.watch_time_s, v.channel_id, v.language, s.seed_video_id, v.topics, v.duration_s,
                CAST(s.logged_in AS DOUBLE) AS logged_in, (s.t - v.uploaded) / 1e6 AS video_age_s,
                coalesce(d.impressions, 0) / nullif(least(s.day - DATE '{BEGIN}', 7), 0) AS video_impressions_per_day,
                coalesce(d.completed_watches, 0) / nullif(least(s.day - DATE '{BEGIN}', 7), 0)
                    AS video_completed_watches_per_day,
                d.clicks / nullif(d.impressions, 0) AS video_click_rate,
                d.watch_time_ms / nullif(d.clicks * 1000, 0) AS video_mean_watch_time_s,
                h.channel_clicks / nullif(h.channel_impressions, 0) AS channel_click_rate,
                h.channel_watch_time_ms / nullif(h.channel_clicks * 1000, 0) AS channel_mean_watch_time_s,
                coalesce(p.misses, 0) AS unclicked_impressions_of_video,
                (s.t - p.last_shown) / 1e6 AS since_impression_of_video_s,
                (s.t - p.last_miss) / 1e6 AS since_unclicked_impression_of_video_s,
                coalesce(c.watches, 0) AS watches_of_channel, (s.t - c.last_watch) / 1e6 AS since_watch_of_channel_s,
                coalesce(o.watches, 0) AS watches_of_topic, (s.t - o.last_watch) / 1e6 AS since_watch_of_topic_s,
                r.* EXCLUDE (user_id, t)
            FROM shown s JOIN videos v USING (video_id) JOIN requests r USING (user_id, t)
            LEFT JOIN of_video p USING (user_id, video_id, t)
            LEFT JOIN of_channel c ON c.user_id = s.user_id AND c.channel_id = v.channel_id AND c.t = s.t
            LEFT JOIN of_topic o ON o.user_id = s.user_id AND o.video_id = s.video_id AND o.t = s.t
            LEFT JOIN statistics d ON d.video_id = s.video_id AND d.day = s.day
            LEFT JOIN channels h ON h.channel_id = v.channel_id AND h.day = s.day
            ORDER BY s.shown_at, s.request_id, s.video_id)
        TO '{out}' (FORMAT parquet, COMPRESSION zstd)"""
    )
