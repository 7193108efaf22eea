"""A PostgreSQL server of one's own, in a folder that goes with it."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path


def binaries() -> Path | None:
    """Where initdb and pg_ctl are: on the path, or where Debian puts them; None if nowhere."""
    on_path = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = Path(on_path).resolve() if on_path else (debian[-1] if debian else None)
    return found.parent if found is not None else None


@contextlib.contextmanager
def server(programs: Path) -> Iterator[str]:
    """Start a server on a free port of the loopback address; gives the SQLAlchemy address of an empty database.

    PostgreSQL refuses to run as root: for root it runs as the user that its package made.
    """
    user = "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="watchnext-postgresql-"))
    try:
        if user is not None:
            owner = pwd.getpwnam(user)
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]

        def run(*command: str) -> None:
            subprocess.run(
                command,
                check=True,
                user=user,
                cwd=folder,
                stdout=subprocess.DEVNULL,
                env={"PATH": "/usr/bin:/bin"},
            )

        data = str(folder / "data")
        run(
            str(programs / "initdb"),
            "-D",
            data,
            "-U",
            "watchnext",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-locale",
            "--no-sync",
        )
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        run(str(programs / "pg_ctl"), "-D", data, "-w", "-o", options, "-l", str(folder / "log"), "start")
        try:
            yield f"postgresql://watchnext@127.0.0.1:{port}/postgres"
        finally:
            run(str(programs / "pg_ctl"), "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
