"""Who answers: threads, and a bounded line before them."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from watchnext.serving.edge import Limits

T = TypeVar("T")


class OverloadedError(Exception):
    """More requests wait than may."""


class Desk:
    """Threads that answer, and a bounded line before them."""

    def __init__(self, limits: Limits) -> None:
        self._pool = ThreadPoolExecutor(limits.threads, thread_name_prefix="answer")
        self._at_most = limits.threads + limits.waiting
        self._taken = 0

    async def run(self, work: Callable[[], T]) -> T:
        if self._taken >= self._at_most:
            raise OverloadedError
        self._taken += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._taken -= 1

    def close(self) -> None:
        self._pool.shutdown(wait=True)
