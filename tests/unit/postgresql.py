"""A PostgreSQL server of one's own, in a folder that goes with it."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import urllib.parse
from collections.abc import Iterator
from pathlib import Path


def binaries() -> Path | None:
    """Where initdb and pg_ctl are: on the path, or where Debian puts them; None if nowhere."""
    on_path = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = Path(on_path).resolve() if on_path else (debian[-1] if debian else None)
    return found.parent if found is not None else None


class PostgreSQL:
    """A server on a free port of the loopback address, in a folder of its own.

    PostgreSQL refuses to run as root: for root it runs as the user that its package made.

    Args:
        programs: where initdb and pg_ctl are.
        password: what its user `watchnext` has to show; None: nothing.
    """

    def __init__(self, programs: Path, password: str | None = None) -> None:
        self._programs = programs
        self._user = "postgres" if os.geteuid() == 0 else None
        self._folder = Path(tempfile.mkdtemp(prefix="watchnext-postgresql-"))
        if self._user is not None:
            owner = pwd.getpwnam(self._user)
            os.chown(self._folder, owner.pw_uid, owner.pw_gid)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        quoted = "" if password is None else f":{urllib.parse.quote(password, safe='')}"
        self._who = f"watchnext{quoted}"
        options = ["-U", "watchnext", "-E", "UTF8", "--no-locale", "--no-sync"]
        if password is None:
            options += ["-A", "trust"]
        else:
            file = self._folder / "password"
            file.write_text(password, encoding="utf-8")
            options += ["-A", "scram-sha-256", "--pwfile", str(file)]
        self._run("initdb", *options)
        self.start()

    def address(self, database: str = "postgres") -> str:
        """As SQLAlchemy takes it."""
        return f"postgresql://{self._who}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str) -> None:
        """Run a statement outside of a transaction."""
        import psycopg

        with psycopg.connect(self.address(), autocommit=True) as connection:
            connection.execute(statement)

    def start(self) -> None:
        listen = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self._folder}"
        log = str(self._folder / "log")
        self._run("pg_ctl", "-w", "-o", f"{listen} -c fsync=off", "-l", log, "start")

    def kill(self) -> None:
        """End it at once, as `kill -9` of all its processes would. What was committed is there at the next start."""
        self._run("pg_ctl", "-m", "immediate", "stop")

    def remove(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):  # it may be down
            self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, program: str, *options: str) -> None:
        subprocess.run(
            [str(self._programs / program), "-D", str(self._folder / "data"), *options],
            check=True,
            user=self._user,
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": "/usr/bin:/bin"},
        )


@contextlib.contextmanager
def server(programs: Path, password: str | None = None) -> Iterator[PostgreSQL]:
    """A running server with an empty database."""
    running = PostgreSQL(programs, password)
    try:
        yield running
    finally:
        running.remove()
