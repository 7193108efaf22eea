"""Which store a setting names."""

from pathlib import Path

from watchnext.serving.redis_store import RedisUserStore
from watchnext.serving.user_store import SqliteUserStore, UserStore

STORE_VARIABLE = "WATCHNEXT_STORE"
"""Where the processes of a server find the store: an address can hold a password, and command lines are public."""


def is_redis(place: str) -> bool:
    """Whether a setting names a Redis; it is the path of a file otherwise."""
    return place.startswith(("redis://", "rediss://", "unix://"))


def open_store(place: str) -> UserStore:
    """The store at `place`: the path of an SQLite file, or the address of a Redis.

    Raises:
        InputError: it cannot be opened.
    """
    return RedisUserStore(place) if is_redis(place) else SqliteUserStore(Path(place))
