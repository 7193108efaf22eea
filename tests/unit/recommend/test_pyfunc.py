"""The bundle behind `mlflow models serve`: the one that was registered, or none."""

from types import SimpleNamespace

import pandas as pd
import pytest
from mlflow.models.utils import _enforce_schema

from watchnext.bundle import Bundle
from watchnext.errors import InputError
from watchnext.recommend.pyfunc import BundleModel, example_of, signature_of


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


def test_facts_of_a_request_may_be_given_or_not(right_bundle: Bundle) -> None:
    """Region and gender, too, are known of some requests of a table and not of others, and older callers know none."""
    model = BundleModel()
    model.load_context(
        SimpleNamespace(
            artifacts={"bundle": str(right_bundle.path)}, model_config={"bundle_digest": right_bundle.digest}
        )
    )
    plain = example_of(right_bundle)
    facts = pd.concat([plain, plain]).assign(
        surface="home", device="tv", region=["north", None], gender=[None, "other"]
    )
    inputs = signature_of(right_bundle).inputs
    for asked in (plain, facts):
        answers = model.predict(None, _enforce_schema(asked, inputs))
        assert [len(video_ids) for video_ids in answers["video_ids"]] == [5] * len(asked)
