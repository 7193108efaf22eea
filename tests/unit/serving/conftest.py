"""Both versions of the serving project, loaded in this process."""

from pathlib import Path

import pytest
from live_server import NAME

from watchnext.bundle import Bundle
from watchnext.recommend.recommender import Recommender
from watchnext.registry import Registry
from watchnext.serving.service import Served


@pytest.fixture(scope="module")
def versions(serving_project: Path, right_bundle: Bundle, wrong_bundle: Bundle) -> tuple[Served, Served]:
    registry = Registry.open(serving_project)
    one, other = (
        Served(registry.version(NAME, number), Recommender.open(bundle))
        for number, bundle in ((1, right_bundle), (2, wrong_bundle))
    )
    return one, other
