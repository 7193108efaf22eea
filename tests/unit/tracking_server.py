"""A real `mlflow server` of a test's own."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from live_server import START_S


class TrackingServer:
    """An `mlflow server` on a free port of loopback.

    Args:
        folder: where it works and keeps its log, `server.log`.
        store: address of its database. It gets it by a variable, as docs/scale.md says: command lines are public.
        artifacts: folder of the artifacts that it hands in and out by HTTP; None: clients write to files themselves.
    """

    def __init__(self, folder: Path, store: str, artifacts: Path | None = None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.log = folder / "server.log"
        self._store = store
        self._options = [] if artifacts is None else ["--artifacts-destination", artifacts.as_uri()]
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", *self._options]
        variables = {
            "MLFLOW_BACKEND_STORE_URI": self._store,
            "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http",
            "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes for what is not used here
        }
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                command,
                cwd=self.log.parent,
                env={**os.environ, **variables},
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        end = time.monotonic() + START_S
        while True:
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=5.0).close()
                return
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.2)

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def client(self) -> Any:
        from mlflow.tracking import MlflowClient

        return MlflowClient(self.uri, self.uri)
