"""What tests of a team's servers share."""

from collections.abc import Iterator

import postgresql
import pytest
from team_servers import Team, team_servers


@pytest.fixture(scope="session")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """PostgreSQL, MLflow in front of it, and Redis."""
    programs = postgresql.binaries()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql (.ci/run does)")
    with team_servers(programs, tmp_path_factory.mktemp("team")) as running:
        yield running
