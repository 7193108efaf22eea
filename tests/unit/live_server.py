"""A real `watchnext serve` process on a free loopback port, and the registry that it follows."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from watchnext.registry import Registry

START_S = 300.0
"""How long a start may take on a machine that has other things to do."""

NAME = "watchnext"


def assign(root: Path, role: str, number: int | None) -> None:
    """Move an alias, as a promotion, a rollback or a hand in the MLflow UI would."""
    client = Registry.open(root)._client()
    if number is None:
        client.delete_registered_model_alias(NAME, role)
    else:
        client.set_registered_model_alias(NAME, role, str(number))


class LiveServer:
    """A server process in the project `root`, with what it logged."""

    def __init__(
        self,
        root: Path,
        *options: str,
        api_key: str | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        environment.pop("WATCHNEXT_API_KEY", None)
        environment |= variables or {}
        if api_key is not None:
            environment["WATCHNEXT_API_KEY"] = api_key
        self.api_key = api_key
        self.log: list[dict[str, Any]] = []
        command = [sys.executable, "-m", "watchnext.cli", "serve", "--port", "0", "--poll-s", "0.1", *options]
        self.process = subprocess.Popen(
            command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.address = self.wait_for("listening")["url"].removeprefix("http://")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append(json.loads(line) if line.startswith("{") else {"message": "", "text": line})

    def wait_for(self, message: str, **fields: Any) -> dict[str, Any]:
        """The first line of the log with this message and these fields."""
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            for line in list(self.log):
                if line["message"] == message and all(line.get(name) == fields[name] for name in fields):
                    return line
            assert self.process.poll() is None, f"the server ended: {self.log}"
            time.sleep(0.02)
        raise AssertionError(f"no line `{message}` {fields} in {self.log[-20:]}")

    def wait_until_ready(self) -> "LiveServer":
        until = time.monotonic() + START_S
        while self.get("/readyz")[0] != 200:
            assert time.monotonic() < until, self.log
            time.sleep(0.1)
        return self

    def connect(self, timeout_s: float = 30.0) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.address, timeout=timeout_s)

    def send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        connection: http.client.HTTPConnection | None = None,
        **headers: str,
    ) -> tuple[int, Any]:
        """Status and content, as JSON where it is."""
        own = connection or self.connect()
        given = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        if self.api_key is not None:
            given.setdefault("X-API-Key", self.api_key)
        try:
            own.request(method, path, body, given)
            answer = own.getresponse()
            content = answer.read()
        finally:
            if connection is None:
                own.close()
        is_json = (answer.getheader("content-type") or "").startswith("application/json")
        return answer.status, json.loads(content) if is_json else content.decode()

    def get(self, path: str) -> tuple[int, Any]:
        return self.send("GET", path)

    def post(self, path: str, content: Any, **more: Any) -> tuple[int, Any]:
        return self.send("POST", path, json.dumps(content).encode(), **more)

    def recommend(self, user_id: int | str, **fields: Any) -> dict[str, Any]:
        """A slate, which has to be given."""
        status, slate = self.post("/v1/recommend", {"user_id": user_id, **fields})
        assert status == 200, slate
        return dict(slate)

    def add(self, *events: dict[str, Any]) -> dict[str, int]:
        """Events, which have to be taken."""
        status, told = self.post("/v1/events", {"events": list(events)})
        assert status == 200, told
        return dict(told)

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, and wait for the end; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        status = self.process.wait(timeout=60)
        self._reader.join(timeout=10)
        return status
