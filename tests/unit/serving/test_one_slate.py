"""Server, command and Python give one slate."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from live_server import LiveServer

import watchnext
from watchnext.errors import InputError


def recommend(project: Path, user: str, how_many: int, *flags: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "watchnext.cli",
        "recommend",
        "--user",
        user,
        "--how-many",
        str(how_many),
    ]
    done = subprocess.run([*command, *flags], cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_server_command_and_python_give_one_slate(server: LiveServer, serving_project: Path) -> None:
    """Of somebody with a past, down to the scores, and without leaving a trace."""
    service = watchnext.load("models:/watchnext@champion", root=serving_project)
    before = service.store.events("11")
    told = server.recommend(11, how_many=30, record=False)
    here = service.recommend("11", 30)
    done = recommend(serving_project, "11", 30, "--json")
    printed = json.loads(done.stdout)
    assert len({told["request_id"], here.request_id, printed["request_id"]}) == 3
    assert {key: printed[key] for key in printed if key != "request_id"} == {
        key: told[key] for key in told if key != "request_id"
    }
    assert list(here.slate.video_ids) == [video["video_id"] for video in told["videos"]]
    assert service.store.events("11") == before
    service.store.close()


def test_the_table_is_for_people(serving_project: Path) -> None:
    done = recommend(serving_project, "nobody known", 3)
    assert "nothing is known of this user" in " ".join(done.stderr.split())
    assert "popular" in done.stderr


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("watchnext@champion", "names no version"),
        ("models:/watchnext@king", "names no version"),
        ("models:/watchnext@challenger", "has no challenger"),
        ("models:/watchnext/99", "no version 99"),
    ],
)
def test_what_is_not_there_is_named(serving_project: Path, uri: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        watchnext.load(uri, root=serving_project)


def test_without_user_state_it_says_so(serving_project: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no user state"):
        watchnext.load("models:/watchnext@champion", root=serving_project, store=tmp_path / "users.db")
    assert not (tmp_path / "users.db").exists()
