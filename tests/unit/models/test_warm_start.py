"""Beginning with the weights of an earlier training: whose rows are whose, and what is refused."""

import json
import shutil
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from live_server import NAME

from watchnext.bundle import Bundle
from watchnext.errors import InputError
from watchnext.features.batches import FeatureSpec
from watchnext.models import retrieval, training
from watchnext.models.warm_start import WarmStart
from watchnext.stages.choose_start import Params, choose_start

FEATURES = (
    FeatureSpec("history", "multivalent", "video", 5),
    FeatureSpec("region", "categorical", "region"),
    FeatureSpec("example_age_s", "continuous"),
)
REGIONS = ["north", "south", "west"]
YESTERDAY = [10, 11, 12, 13, 14, 15]
TODAY = [15, 99, 11, 10, 14]


def train(
    videos: Sequence[int], start: WarmStart | None = None, epochs: int = 1, seed: int = 3, **changes: Any
) -> retrieval.RetrievalModel:
    """Few steps on examples that mean nothing."""
    random = np.random.default_rng(0)
    training.start(seed, deterministic=True)
    settings: dict[str, Any] = {"embedding_dim": 8, "depth": 1, "learning_rate": 0.05, **changes}
    model, _ = retrieval.train(
        {
            "history": random.integers(0, len(videos) + 1, (64, 5)).astype(np.int32),
            "region": random.integers(0, 4, 64).astype(np.int32),
            "example_age_s": random.random(64).astype(np.float32),
            "label": random.integers(1, len(videos) + 1, 64).astype(np.int32),
        },
        FEATURES,
        vocabulary_sizes={"video": len(videos), "region": len(REGIONS)},
        watch_dropout=0.0,
        batch_size=16,
        negatives=4,
        epochs=epochs,
        patience=epochs,
        seed=seed,
        evaluate=lambda model: {},
        start=start,
        ids={"video": pa.array(videos), "region": pa.array(REGIONS)},
        **settings,
    )
    return model


def stored(model: retrieval.RetrievalModel, directory: Path) -> WarmStart:
    """A model's weights, written by the stages and read for a training."""
    retrieval.save(model, directory)
    for space, ids in (("video", YESTERDAY), ("region", REGIONS)):
        folder = directory / "vocabularies" / space
        folder.mkdir(parents=True)
        indices = pa.array(range(1, len(ids) + 1), pa.int32())
        table = pa.table({"token": ids, "index": indices, "frequency": pa.array([1] * len(ids), pa.int64())})
        pq.write_table(table, folder / "part-00000.parquet")
    manifest = {"origin": "yesterday", "inputs": [spec.name for spec in FEATURES]}
    (directory / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    loaded = WarmStart.load(directory)
    assert loaded is not None
    return loaded


def test_rows_are_found_by_id_and_new_ones_begin_at_random(tmp_path: Path) -> None:
    """With a learning rate of nothing, weights stay as they began."""
    before = train(YESTERDAY, epochs=3)
    start = stored(before, tmp_path)
    after, at_random = train(TODAY, start, learning_rate=1e-12), train(TODAY, learning_rate=1e-12)
    known = [(new, YESTERDAY.index(video)) for new, video in enumerate(TODAY) if video in YESTERDAY]
    table, old_table, random_table = (
        one.query_tower.tables["video"].table.numpy() for one in (after, before, at_random)
    )
    candidates, old, random = (one.candidate_embeddings.numpy() for one in (after, before, at_random))
    for new, place in known:
        assert table[new + 1] == pytest.approx(old_table[place + 1])
        assert candidates[new] == pytest.approx(old[place])
    unknown = TODAY.index(99)
    assert candidates[unknown] == pytest.approx(random[unknown])
    assert table[unknown + 1] == pytest.approx(random_table[unknown + 1])
    assert candidates[0] != pytest.approx(random[0])
    for own, its in zip(after.query_tower.tower.weights, before.query_tower.tower.weights, strict=True):
        assert own.numpy() == pytest.approx(its.numpy())


def test_what_is_kept_in_memory_is_what_is_read_from_files(tmp_path: Path) -> None:
    model = train(YESTERDAY)
    own = WarmStart.of(model, {"video": pa.array(YESTERDAY), "region": pa.array(REGIONS)}, "memory")
    assert own.digest == stored(model, tmp_path).digest
    other = WarmStart.of(model, {"video": pa.array(YESTERDAY[::-1]), "region": pa.array(REGIONS)}, "memory")
    assert other.digest != own.digest


@pytest.mark.parametrize(
    ("changes", "named"), [({"embedding_dim": 4}, "(6, 8); now (5, 4)"), ({"depth": 2}, "5 weights; now 7")]
)
def test_another_network_is_refused_with_what_differs(
    changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    start = stored(train(YESTERDAY), tmp_path)
    with pytest.raises(InputError, match="another network") as caught:
        train(TODAY, start, **changes)
    assert any(named in str(offender) for offender in caught.value.offenders)


def test_damaged_weights_are_refused_by_name(tmp_path: Path) -> None:
    stored(train(YESTERDAY), tmp_path)
    (tmp_path / "candidate_embeddings.npy").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read"):
        WarmStart.load(tmp_path)


def choose(warm_start: str, features: Path, out: Path, earlier: Path | None = None) -> dict[str, Any] | None:
    chosen = choose_start(
        Params(), warm_start, "auto", features, out / "start", out / "report", earlier_start=earlier
    )
    return dict(chosen) if chosen is not None else None


def test_without_a_warm_start_nothing_is_chosen_and_nothing_changes(
    world_features: Path, tmp_path: Path
) -> None:
    chosen = choose("none", world_features, tmp_path)
    assert chosen == {"warm_start": "none", "bundle_digest": "none"}
    assert WarmStart.load(tmp_path / "start") is None
    assert choose("none", world_features, tmp_path / "again", tmp_path / "start") is None


def test_the_champion_is_fetched_and_stays_chosen_until_there_are_other_logs(
    serving_project: Path,
    world_features: Path,
    right_bundle: Bundle,
    wrong_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(serving_project)
    chosen = choose("champion", world_features, tmp_path)
    assert chosen == {
        "warm_start": f"the champion, version 1 of {NAME}",
        "bundle_digest": right_bundle.digest,
    }
    manifest = json.loads((tmp_path / "start/manifest.json").read_text(encoding="utf-8"))
    assert manifest["bundle_digest"] == right_bundle.digest
    assert (tmp_path / "start/candidate_embeddings.npy").read_bytes() == (
        right_bundle.index / "candidate_embeddings.npy"
    ).read_bytes()

    assert choose("champion", world_features, tmp_path / "again", tmp_path / "start") is None
    other = choose(str(wrong_bundle.path), world_features, tmp_path / "other", tmp_path / "start")
    assert other is not None
    assert other["bundle_digest"] == wrong_bundle.digest
    grown = shutil.copytree(world_features, tmp_path / "grown")
    content = json.loads((grown / "manifest.json").read_text(encoding="utf-8"))
    (grown / "manifest.json").write_text(json.dumps({**content, "data_digest": "1" * 64}), encoding="utf-8")
    assert choose("champion", grown, tmp_path / "next day", tmp_path / "start") is not None


def test_a_model_that_has_seen_what_is_judged_is_refused(
    right_bundle: Bundle, world_features: Path, tmp_path: Path
) -> None:
    earlier = shutil.copytree(world_features, tmp_path / "features")
    content = json.loads((earlier / "manifest.json").read_text(encoding="utf-8"))
    until = datetime.fromisoformat(content["trained_until_at"]) - timedelta(days=1)
    (earlier / "manifest.json").write_text(json.dumps({**content, "trained_until_at": until.isoformat()}))
    with pytest.raises(InputError, match="has seen what models are judged on"):
        choose(str(right_bundle.path), earlier, tmp_path)
    with pytest.raises(InputError, match="no such file"):
        choose(str(tmp_path / "nowhere"), earlier, tmp_path / "other")


def test_with_no_champion_training_begins_at_random(
    world_features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = choose("champion", world_features, tmp_path)
    assert chosen == {"warm_start": "none", "bundle_digest": "none"}
    assert WarmStart.load(tmp_path / "start") is None
