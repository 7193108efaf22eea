"""Addresses of servers: how they are written where people read them, and whether anything answers there.

MLflow asks a database or a tracking server that is not there again and again, for minutes, before it says so; here it
is said at once.
"""

import re
import socket
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING

from watchnext.errors import InputError

if TYPE_CHECKING:
    import sqlalchemy

_PATIENCE_S = 5
_AUTHORITY = re.compile(r"(://[^\s:/@]*):\S*@")
_QUERY = re.compile(r"([?&]password=)[^\s&]*")
_PORTS = {"http": 80, "https": 443}
_DATABASE_ERRORS = frozenset({"OperationalError", "InterfaceError"})


def without_passwords(text: str) -> str:
    """A text without the passwords of the addresses in it.

    >>> without_passwords("postgresql://ann:se/c@ret@db.example:5432/mlflow?sslmode=require")
    'postgresql://ann:***@db.example:5432/mlflow?sslmode=require'
    >>> without_passwords("http://127.0.0.1:5000 and redis://:secret@127.0.0.1:6379/0")
    'http://127.0.0.1:5000 and redis://:***@127.0.0.1:6379/0'
    """
    return _QUERY.sub(r"\1***", _AUTHORITY.sub(r"\1:***@", text))


def is_postgresql(address: str) -> bool:
    """Whether an address names a PostgreSQL database (`postgresql://` or `postgresql+driver://`)."""
    return re.match(r"postgresql(\+\w+)?://", address) is not None


def check_answers(address: str) -> None:
    """See that a PostgreSQL database lets us in, or that something listens where a tracking server should be.

    Addresses of another kind (files, other databases) are taken as they are.

    Raises:
        InputError: nothing answers there within five seconds, or PostgreSQL refuses us.
    """
    if is_postgresql(address):
        connect(address).close()
    elif address.startswith(("http://", "https://")):
        _reach(address)


def connect(address: str) -> "sqlalchemy.Connection":
    """A connection to a PostgreSQL database, in which every statement is committed at once.

    Raises:
        InputError: nothing answers there within five seconds, or PostgreSQL refuses us.
    """
    import sqlalchemy

    try:
        engine = sqlalchemy.create_engine(
            address, poolclass=sqlalchemy.NullPool, connect_args={"connect_timeout": _PATIENCE_S}
        )
        return engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    except ModuleNotFoundError as error:
        raise InputError(
            "PostgreSQL needs its driver",
            where=without_passwords(address),
            offenders=[error],
            remedy="pip install 'watchnext[postgresql]'",
        ) from error
    except (sqlalchemy.exc.SQLAlchemyError, ValueError) as error:
        raise unanswered(error, address) from error


def _reach(address: str) -> None:
    parts = urllib.parse.urlsplit(address)
    host = parts.hostname or ""
    proxies = urllib.request.getproxies()
    if parts.scheme in proxies and not urllib.request.proxy_bypass(host):
        return  # only the proxy knows
    try:
        socket.create_connection((host, parts.port or _PORTS[parts.scheme]), timeout=_PATIENCE_S).close()
    except (OSError, ValueError) as error:
        raise unanswered(error, address) from error


def is_lost(error: BaseException) -> bool:
    """Whether an error, or one that led to it, says that a server cannot be reached, went away, or cannot go on."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for one in chain:
        library = type(one).__module__.partition(".")[0]
        if (
            isinstance(one, ConnectionError | TimeoutError)
            or (library in ("sqlalchemy", "psycopg") and type(one).__name__ in _DATABASE_ERRORS)
            or library in ("requests", "urllib3")
        ):
            return True
    return False


def unanswered(error: BaseException, address: str) -> InputError:
    """What to tell of a server at `address` that cannot be reached, went away, or cannot go on."""
    is_database = is_postgresql(address)
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return InputError(
        "the database does not answer" if is_database else "the tracking server does not answer",
        where=without_passwords(address),
        offenders=[without_passwords(first)],
        remedy=(
            "start PostgreSQL or mend the address"
            if is_database
            else "start the server, and the database behind it, or mend the address"
        )
        + ", then run again: nothing half done needs mending, the next run finishes it",
    )
