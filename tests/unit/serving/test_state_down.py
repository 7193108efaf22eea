"""User state that goes away and comes back: a real Redis that is killed and started again."""

import time
from pathlib import Path

import pytest
from redis_process import RedisProcess
from tiny_world import video_at

import watchnext
from watchnext.errors import InputError
from watchnext.serving.events import Event, id_of
from watchnext.serving.service import STATE_UNAVAILABLE
from watchnext.serving.stores import open_store
from watchnext.serving.user_store import StoreUnavailableError


def test_without_user_state_the_answer_is_what_is_popular_and_says_so(
    serving_project: Path, tmp_path: Path
) -> None:
    """Nothing is taken for kept meanwhile; back again, everything that was acknowledged is there."""
    row = {"video_id": video_at(80), "watched_at": 1_700_000_000_000_000, "watch_time_s": 60.0}
    row["completed"] = True
    event = Event("Ann", id_of("watches", row), "watches", row)
    redis = RedisProcess(tmp_path)
    try:
        service = watchnext.load("models:/watchnext/1", root=serving_project, store=redis.address)
        assert service.add([event]) == [True]
        known = service.recommend("Ann", record=True)
        assert (known.degraded, known.slate.personal) == ("", True)

        redis.kill()
        blind = service.recommend("Ann", record=True)
        assert (blind.degraded, blind.slate.personal) == (STATE_UNAVAILABLE, False)
        assert blind.slate.video_ids == service.recommend("nobody").slate.video_ids
        with pytest.raises(StoreUnavailableError):
            service.add([event])
        with pytest.raises(InputError, match="no Redis answers"):
            open_store(redis.address)

        redis.start()
        until = time.monotonic() + 60.0
        while (back := service.recommend("Ann")).degraded:  # it is tried again after a moment
            assert time.monotonic() < until
            time.sleep(0.1)
        assert (back.degraded, back.slate.personal) == ("", True)
        kept = service.store.events("Ann")
        assert len(kept) == 1 + len(known.slate.videos)
        assert event.id in {one.id for one in kept}
        service.store.close()
    finally:
        redis.kill()
