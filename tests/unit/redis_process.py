"""A real Redis of a test's own."""

import contextlib
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from watchnext.errors import InputError
from watchnext.serving.redis_store import RedisUserStore

_START_S = 30.0


class RedisProcess:
    """A redis-server on a free port of loopback, which keeps what it acknowledged in `directory`."""

    def __init__(self, directory: Path, password: str | None = None) -> None:
        if shutil.which("redis-server") is None:
            pytest.skip("no redis-server here: apt-get install redis-server (.ci/run does)")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._requires = [] if password is None else ["--requirepass", password]
        self.address = f"redis://{'' if password is None else f':{password}@'}127.0.0.1:{self.port}/0"
        self._directory = directory
        self.start()

    def start(self) -> None:
        options = [
            "--bind",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--appendonly",
            "yes",
            "--save",
            "",
            *self._requires,
        ]
        command = ["redis-server", *options, "--dir", str(self._directory)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        until = time.monotonic() + _START_S
        while time.monotonic() < until:
            with contextlib.suppress(InputError):
                RedisUserStore(self.address).close()
                return
            time.sleep(0.05)
        raise AssertionError("redis-server does not start")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
