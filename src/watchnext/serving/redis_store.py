"""User state in Redis, for several servers that share it."""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from watchnext.errors import InputError
from watchnext.recommend.state import UserFacts
from watchnext.serving.events import Event
from watchnext.serving.user_store import Patience, facts_from_json, facts_to_json

log = logging.getLogger("watchnext.serving")

_EVENTS = "watchnext:events:"
_FACTS = "watchnext:facts:"
_VIDEOS = "watchnext:videos"
_REVISION = "watchnext:videos:revision"
_TIMEOUT_S = 1.0


class RedisUserStore:
    """A `UserStore` in Redis: a hash per user, event id -> event.

    What was acknowledged survives the end of this process, and that of Redis where it keeps an append-only file.

    Args:
        url: `redis://host:port/database`, as redis-py takes it.

    Raises:
        InputError: redis-py is not installed, or nothing answers there.
    """

    def __init__(self, url: str) -> None:
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError as error:
            raise InputError(
                "user state in Redis needs redis-py", where="--store", remedy="pip install 'watchnext[redis]'"
            ) from error
        self._patience = Patience("Redis", redis.RedisError)
        try:
            # Once more at once, for a connection that was closed meanwhile; nobody waits for a Redis that is gone.
            self._client: Any = redis.Redis.from_url(
                url,
                socket_timeout=_TIMEOUT_S,
                socket_connect_timeout=_TIMEOUT_S,
                retry=Retry(NoBackoff(), 1),
            )
            self._client.ping()
        except (redis.RedisError, ValueError) as error:
            raise InputError(
                "no Redis answers here",
                where="--store",
                offenders=[error],
                remedy="start it, or mend the address: redis://127.0.0.1:6379/0",
            ) from error
        with contextlib.suppress(redis.RedisError):  # a managed one may not tell
            if self._client.config_get("appendonly").get("appendonly") == "no":
                log.warning("this Redis forgets what it acknowledged when it ends: set `appendonly yes`")

    def add(self, events: Sequence[Event]) -> list[bool]:
        if not events:
            return []
        with self._patience.asked(), self._client.pipeline(transaction=True) as pipeline:
            for event in events:
                pipeline.hsetnx(_EVENTS + event.user_id, event.id, event.to_json())
            return [bool(new) for new in pipeline.execute()]

    def events(self, user_id: str) -> list[Event]:
        with self._patience.asked():
            kept = self._client.hgetall(_EVENTS + user_id)
        return [Event.from_json(user_id, event_id.decode(), text) for event_id, text in kept.items()]

    def put_facts(self, facts: Mapping[str, UserFacts]) -> None:
        if facts:
            with self._patience.asked():
                self._client.mset({_FACTS + user_id: facts_to_json(one) for user_id, one in facts.items()})

    def facts(self, user_id: str) -> UserFacts:
        with self._patience.asked():
            text = self._client.get(_FACTS + user_id)
        return UserFacts() if text is None else facts_from_json(text)

    def forget(self, user_id: str) -> int:
        with self._patience.asked(), self._client.pipeline(transaction=True) as pipeline:
            pipeline.hlen(_EVENTS + user_id)
            pipeline.delete(_EVENTS + user_id, _FACTS + user_id)
            return int(pipeline.execute()[0])

    def user_ids(self, at_most: int) -> list[str]:
        found: set[str] = set()
        with self._patience.asked():
            # A scan may name a key twice.
            for key in self._client.scan_iter(match=_EVENTS + "*", count=1000):
                found.add(key.decode().removeprefix(_EVENTS))
                if len(found) == at_most:
                    break
        return sorted(found)

    def walk(self) -> Iterator[list[Event]]:
        with self._patience.asked():
            # A scan may name a key twice.
            keys = set(self._client.scan_iter(match=_EVENTS + "*", count=1000))
        for key in sorted(keys):
            events = self.events(key.decode().removeprefix(_EVENTS))
            if events:
                yield events

    def put_videos(self, videos: Mapping[str, str]) -> None:
        if videos:
            with self._patience.asked(), self._client.pipeline(transaction=True) as pipeline:
                pipeline.hset(_VIDEOS, mapping=dict(videos))
                pipeline.incr(_REVISION)
                pipeline.execute()

    def videos_since(self, revision: int) -> tuple[int, dict[str, str]]:
        with self._patience.asked():
            now = int(self._client.get(_REVISION) or 0)
            if now == revision:
                return now, {}
            # All of them: what has not changed is there already. What comes between the two calls comes again.
            kept = self._client.hgetall(_VIDEOS)
        return now, {video_id.decode(): text.decode() for video_id, text in kept.items()}

    def close(self) -> None:
        self._client.close()
