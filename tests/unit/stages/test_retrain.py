"""The champion's recipe on the present features: what its bundle says it was made with, and nothing of params.yaml."""

import json
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from tiny_world import write_models

from watchnext.bundle import Bundle, write_bundle
from watchnext.config import RecommendParams
from watchnext.errors import InputError
from watchnext.stages._retrain import BUNDLE, retrain
from watchnext.stages.build_index import Params as IndexParams
from watchnext.stages.nominate import Params as NominateParams
from watchnext.stages.train_ranking import Params as RankingParams
from watchnext.stages.train_retrieval import Params as RetrievalParams
from watchnext.tracking import Tracker

SETTINGS = Path(__file__).parents[3] / "params.yaml"


@pytest.fixture
def champion(world_features: Path, tmp_path: Path) -> Bundle:
    """A bundle that says that it was made with small settings, none of which params.yaml has."""
    parts = write_models(tmp_path / "champion", world_features)
    for part, params in {
        "retrieval": RetrievalParams(epochs=1, embedding_dim=8),
        "index": IndexParams(recall_floor=0.5),
        "sources": NominateParams(block_epochs=1),
        "ranking": RankingParams(epochs=1, hidden_units=[8]),
    }.items():
        manifest = parts[part] / "manifest.json"
        content = json.loads(manifest.read_text(encoding="utf-8"))
        manifest.write_text(json.dumps({**content, "params": params.model_dump()}), encoding="utf-8")
    recommend = RecommendParams(exclude="shown").model_dump()
    return write_bundle(tmp_path / "champion" / "bundle", **parts, recommend=recommend)


def test_the_champions_settings_are_trained_on_the_present_features(
    champion: Bundle,
    world_features: Path,
    world_tables: Path,
    project_root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Meant to fail with the settings of params.yaml, of which the digest would be another; and, with the pipeline's own
    folder of checkpoints, where a candidate that was trained halfway was cleared away."""
    shutil.copy2(SETTINGS, project_root / "params.yaml")
    (project_root / "data").mkdir()
    (project_root / "data" / "features").symlink_to(world_features)
    (project_root / "data" / "validated").symlink_to(world_tables)
    monkeypatch.chdir(project_root)
    halfway = [
        project_root / ".checkpoints" / stage / "of the candidate" / "step-000000000001"
        for stage in ("train_retrieval", "train_ranking")
    ]
    for folder in halfway:
        folder.mkdir(parents=True)
    made = retrain(champion, "version 1 of watchnext")
    assert made.params_digest == champion.params_digest
    assert (made.data_digest, made.trained_until_at) == (champion.data_digest, champion.trained_until_at)
    assert made.digest != champion.digest
    assert made.path == BUNDLE
    assert not (project_root / "metrics").exists(), "the pipeline's own metrics stay"
    assert all(folder.is_dir() for folder in halfway), "and so does what it has trained halfway"
    assert not list((project_root / ".checkpoints" / "champions_recipe").glob("*/*"))
    assert YAML(typ="safe").load(SETTINGS) == YAML(typ="safe").load(project_root / "params.yaml")
    tracker = Tracker.open(project_root)
    (run,) = tracker._search("tags.`watchnext.champions_recipe` = 'version 1 of watchnext'")
    assert run.info.status == "FINISHED"
    assert run.data.params["train_retrieval.embedding_dim"] == "8"
    assert tracker.logged_stages(run.info.run_id) == {
        "train_retrieval", "choose_start", "build_index", "nominate", "train_ranking", "package",
    }  # fmt: skip


def test_a_bundle_that_does_not_say_what_it_was_made_with_is_refused(right_bundle: Bundle) -> None:
    with pytest.raises(InputError, match="does not say what it was made with") as refused:
        retrain(right_bundle, "version 1 of watchnext")
    assert refused.value.offenders == ("build_index", "nominate")
