"""What people read of addresses, and which errors say that a server is gone."""

import pytest

from watchnext.addresses import check_answers, is_lost, unanswered, without_passwords
from watchnext.errors import InputError


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://ann:se/c@ret:1@db.example/mlflow", "postgresql://ann:***@db.example/mlflow"),
        ("postgresql+psycopg://ann:a%40b@h:1/m?x=y", "postgresql+psycopg://ann:***@h:1/m?x=y"),
        ("postgresql://ann@h/m?password=secret&x=y", "postgresql://ann@h/m?password=***&x=y"),
        ("redis://:secret@127.0.0.1:6379/0", "redis://:***@127.0.0.1:6379/0"),
        ("API request to http://a:b@h:1/api failed: x@y", "API request to http://a:***@h:1/api failed: x@y"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        (
            "sqlite:////home/ann/my project/mlruns/mlflow.db",
            "sqlite:////home/ann/my project/mlruns/mlflow.db",
        ),
    ],
)
def test_passwords_are_left_out(text: str, shown: str) -> None:
    assert without_passwords(text) == shown


def test_what_says_that_a_server_is_gone() -> None:
    error = RuntimeError("while asking http://ann:secret@h")
    error.__cause__ = ConnectionResetError("gone")
    assert is_lost(error)
    assert not is_lost(FileNotFoundError("a file"))
    assert not is_lost(ValueError("a setting"))
    told = unanswered(error, "http://ann:secret@h")
    assert told.where == "http://ann:***@h"
    assert "secret" not in str(told)


def test_files_are_not_asked() -> None:
    check_answers("sqlite:////nowhere/at/all.db")
    with pytest.raises(InputError, match="does not answer"):
        check_answers("http://127.0.0.1:0")
