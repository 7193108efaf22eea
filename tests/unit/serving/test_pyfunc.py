"""The bundle behind `mlflow models serve`: the one that was registered, or none, and what is known of users beside it."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from mlflow.models.utils import _enforce_schema
from tiny_world import video_at

from watchnext.bundle import Bundle
from watchnext.errors import InputError
from watchnext.recommend.signature import example_of, signature_of
from watchnext.serving.events import Event, id_of
from watchnext.serving.pyfunc import BundleModel
from watchnext.serving.service import STATE_UNAVAILABLE
from watchnext.serving.stores import STORE_VARIABLE
from watchnext.serving.user_store import SqliteUserStore


def opened(bundle: Bundle) -> BundleModel:
    model = BundleModel()
    model.load_context(
        SimpleNamespace(artifacts={"bundle": str(bundle.path)}, model_config={"bundle_digest": bundle.digest})
    )
    return model


def test_only_the_bundle_that_was_registered_is_opened(right_bundle: Bundle, wrong_bundle: Bundle) -> None:
    """Both are whole. Meant to fail when any whole bundle in the version's folder was served."""
    model = opened(right_bundle)
    assert model.recommender.bundle.digest == right_bundle.digest
    artifacts = {"bundle": str(right_bundle.path)}
    with pytest.raises(InputError, match="not the bundle that was registered"):
        model.load_context(
            SimpleNamespace(artifacts=artifacts, model_config={"bundle_digest": wrong_bundle.digest})
        )


def test_facts_of_a_request_may_be_given_or_not(right_bundle: Bundle) -> None:
    """Some rows of a table know them and others do not, and older callers know none."""
    model = opened(right_bundle)
    plain = example_of(right_bundle)
    facts = pd.concat([plain, plain]).assign(
        surface="home", device="tv", region=["north", None], gender=[None, "other"], age_years=[31.0, None]
    )
    inputs = signature_of(right_bundle).inputs
    for asked in (plain, facts):
        answers = model.predict(None, _enforce_schema(asked, inputs))
        assert [len(video_ids) for video_ids in answers["video_ids"]] == [5] * len(asked)
        assert answers["personal"].all()
    with pytest.raises(InputError, match="are integers"):
        model.predict(None, plain.assign(exclude=[["text"]]))


def test_users_are_known_from_the_state_that_is_there(
    right_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a state nobody is known, and none is made; one that has gone meanwhile costs what is known alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(STORE_VARIABLE, raising=False)
    asked = pd.DataFrame({"user_id": ["Ann", "Ben"], "how_many": [400, 400]})
    nobody = opened(right_bundle).predict(None, asked)
    assert not nobody["personal"].any()
    assert list(tmp_path.iterdir()) == []

    row = {"video_id": video_at(80), "watched_at": 1_700_000_000_000_000, "watch_time_s": 60.0}
    row["completed"] = True
    store = SqliteUserStore(tmp_path / "users.db")
    store.add([Event("Ann", id_of("watches", row), "watches", row)])
    store.close()
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "users.db"))
    model = opened(right_bundle)
    known = model.predict(None, asked)
    assert known["personal"].tolist() == [True, False]
    assert video_at(80) not in known["video_ids"][0]
    assert video_at(80) in known["video_ids"][1]

    (tmp_path / "users.db").rename(tmp_path / "gone.db")
    blind = model.predict(None, asked)
    assert blind["degraded"].tolist() == [STATE_UNAVAILABLE] * 2
    assert blind["video_ids"].tolist() == nobody["video_ids"].tolist()
