"""The bundle behind `mlflow models serve`: the one that was registered, or none."""

from types import SimpleNamespace

import pytest

from watchnext.bundle import Bundle
from watchnext.errors import InputError
from watchnext.recommend.pyfunc import BundleModel


def test_only_the_bundle_that_was_registered_is_opened(right_bundle: Bundle, wrong_bundle: Bundle) -> None:
    """Both are whole. Meant to fail when any whole bundle in the version's folder was served."""
    model = BundleModel()
    artifacts = {"bundle": str(right_bundle.path)}
    model.load_context(
        SimpleNamespace(artifacts=artifacts, model_config={"bundle_digest": right_bundle.digest})
    )
    assert model.recommender.bundle.digest == right_bundle.digest
    with pytest.raises(InputError, match="not the bundle that was registered"):
        model.load_context(
            SimpleNamespace(artifacts=artifacts, model_config={"bundle_digest": wrong_bundle.digest})
        )
