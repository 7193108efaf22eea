"""The bundle: what goes in comes out, and nothing that was not packaged is ever loaded."""

import json
import pickle
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from watchnext.bundle import FORMAT, Bundle, read_digest, write_bundle
from watchnext.errors import InputError

UNTIL = "2026-01-15T00:00:00+00:00"


def make_parts(root: Path, videos: int = 3) -> dict[str, Path]:
    """Outputs of the stages, as small as they can be; the models are files with a few bytes."""
    parts = {name: root / name for name in ("features", "retrieval", "index", "ranking", "sources")}

    def write_json(path: Path, **content: object) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")

    def write_table(directory: Path, **columns: list[object]) -> None:
        directory.mkdir(parents=True)
        pq.write_table(pa.table(columns), directory / "part-00000.parquet")

    write_json(
        parts["features"] / "manifest.json",
        format=1,
        source="simulated",
        time_zone="UTC",
        data_digest="d" * 64,
        trained_until_at=UNTIL,
        params={"history_length": 50},
    )
    write_json(parts["features"] / "quantiles.json")
    ids: list[object] = list(range(videos))
    write_table(parts["features"] / "vocabularies" / "video", token=ids, index=[i + 1 for i in range(videos)])
    write_table(parts["features"] / "videos", video_id=ids)
    write_table(
        parts["features"] / "video_statistics",
        video_id=[0, 0, 1],
        day=[date(2026, 1, 16), date(2026, 1, 17), date(2026, 1, 17)],
        clicks=[1, 2, 3],
    )
    write_json(
        parts["retrieval"] / "manifest.json",
        inputs=["history"],
        embedding_dim=2,
        trained_until_at=UNTIL,
        params={"epochs": 1},
    )
    (parts["retrieval"] / "query_tower" / "variables").mkdir(parents=True)
    (parts["retrieval"] / "query_tower" / "saved_model.pb").write_bytes(b"tower")
    (parts["retrieval"] / "query_tower" / "variables" / "variables.index").write_bytes(b"weights")
    np.save(parts["retrieval"] / "candidate_embeddings.npy", np.zeros((videos, 2), np.float32))
    write_json(parts["index"] / "manifest.json", kind="scann", vocabulary_rows=videos, embedding_dim=2)
    (parts["index"] / "rows.arrow").write_bytes(b"rows")
    np.save(parts["index"] / "candidate_embeddings.npy", np.zeros((videos + 1, 2), np.float32))
    write_json(
        parts["ranking"] / "manifest.json", inputs=["video"], trained_until_at=UNTIL, params={"epochs": 2}
    )
    write_json(parts["sources"] / "manifest.json", trained_until_at=UNTIL, params={"neighbours": 1})
    (parts["sources"] / "tables" / "co_watched").mkdir(parents=True)
    np.save(parts["sources"] / "tables" / "co_watched" / "neighbours.npy", np.zeros((videos, 1), np.int32))
    (parts["ranking"] / "ranker").mkdir()
    (parts["ranking"] / "ranker" / "saved_model.pb").write_bytes(b"ranker")
    return parts


def packaged(out: Path, **parts: Path) -> Bundle:
    """A bundle of these parts with settings that stand for any."""
    return write_bundle(out, **parts, recommend={"exclude": "shown", "sources": {"tower": 2}})


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return packaged(tmp_path / "bundle", **make_parts(tmp_path / "parts"))


def test_a_bundle_says_what_it_is_made_of(bundle: Bundle) -> None:
    assert bundle.source == "simulated"
    assert bundle.data_digest == "d" * 64
    assert bundle.trained_until_at == datetime(2026, 1, 15, tzinfo=UTC)
    assert set(bundle.manifest["files"]) == {
        "features/manifest.json",
        "features/quantiles.json",
        "features/video_statistics/part-00000.parquet",
        "features/videos/part-00000.parquet",
        "features/vocabularies/video/part-00000.parquet",
        "index/candidate_embeddings.npy",
        "index/manifest.json",
        "index/rows.arrow",
        "query_tower/saved_model.pb",
        "query_tower/variables/variables.index",
        "ranker/saved_model.pb",
        "sources/co_watched/neighbours.npy",
    }
    assert bundle.manifest["libraries"]["tensorflow"].startswith("2.20")
    assert (bundle.query_tower / "saved_model.pb").read_bytes() == b"tower"


def test_the_statistics_are_those_of_the_last_day(bundle: Bundle) -> None:
    table = pq.read_table(bundle.features / "video_statistics" / "part-00000.parquet")
    assert table.to_pylist() == [
        {"video_id": 0, "day": date(2026, 1, 17), "clicks": 2},
        {"video_id": 1, "day": date(2026, 1, 17), "clicks": 3},
    ]


def test_equal_parts_give_the_same_digest_wherever_they_are(bundle: Bundle, tmp_path: Path) -> None:
    elsewhere = packaged(tmp_path / "b", **make_parts(tmp_path / "again"))
    assert elsewhere.digest == bundle.digest == read_digest(bundle.path)
    other = make_parts(tmp_path / "other")
    (other["ranking"] / "ranker" / "saved_model.pb").write_bytes(b"rankeR")
    assert packaged(tmp_path / "c", **other).digest != bundle.digest


def test_the_settings_digest_follows_the_settings_alone(bundle: Bundle, tmp_path: Path) -> None:
    weights = make_parts(tmp_path / "weights")
    (weights["ranking"] / "ranker" / "saved_model.pb").write_bytes(b"rankeR")
    assert packaged(tmp_path / "b", **weights).params_digest == bundle.params_digest
    settings = make_parts(tmp_path / "settings")
    manifest = settings["ranking"] / "manifest.json"
    manifest.write_text(
        manifest.read_text(encoding="utf-8").replace('"epochs": 2', '"epochs": 3'), encoding="utf-8"
    )
    assert packaged(tmp_path / "c", **settings).params_digest != bundle.params_digest


def test_a_moved_bundle_opens(bundle: Bundle, tmp_path: Path) -> None:
    bundle.path.rename(tmp_path / "moved")
    assert Bundle.open(tmp_path / "moved", expected_digest=bundle.digest).digest == bundle.digest


def _change(path: Path) -> None:
    (path / "ranker" / "saved_model.pb").write_bytes(b"rankeX")


def _change_same_size_array(path: Path) -> None:
    np.save(path / "index" / "candidate_embeddings.npy", np.ones((3, 2), np.float32))


def _remove(path: Path) -> None:
    (path / "index" / "rows.arrow").unlink()


def _add(path: Path) -> None:
    (path / "index" / "scann_docids.npy").write_bytes(b"more")


def _add_hidden(path: Path) -> None:
    (path / "query_tower" / ".hidden").write_bytes(b"more")


def _add_listed_pickle(path: Path) -> None:
    _list(path, "index/scann_docids.pkl", pickle.dumps([1, 2]))


def _add_listed_pickle_in_disguise(path: Path) -> None:
    _list(path, "index/rows.bin", pickle.dumps({"a": 1}))


def _list(path: Path, name: str, content: bytes) -> None:
    from hashlib import sha256

    (path / name).write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"][name] = {"sha256": sha256(content).hexdigest(), "bytes": len(content)}
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def _link_file(path: Path) -> None:
    target = path.parent / "elsewhere"
    (path / "ranker" / "saved_model.pb").rename(target)
    (path / "ranker" / "saved_model.pb").symlink_to(target)


def _link_folder(path: Path) -> None:
    target = path.parent / "elsewhere"
    (path / "ranker").rename(target)
    (path / "ranker").symlink_to(target)


def _other_format(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": FORMAT + 1}), encoding="utf-8")


def _point_outside(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    (path.parent / "outside").write_bytes(b"x")
    manifest["files"]["../outside"] = {"sha256": "0" * 64, "bytes": 1}
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_change, "were changed after it was packaged"),
        (_change_same_size_array, "were changed after it was packaged"),
        (_remove, "lacks files"),
        (_point_outside, "lacks files"),
        (_add, "does not list"),
        (_add_hidden, "does not list"),
        (_add_listed_pickle, "must not contain pickles"),
        (_add_listed_pickle_in_disguise, "must not contain pickles"),
        (_link_file, "must not contain links"),
        (_link_folder, "must not contain links"),
        (_other_format, "reads formats 1, 2, 3, 4"),
        (lambda path: (path / "manifest.json").unlink(), "no such file"),
        (lambda path: (path / "manifest.json").write_text("{", encoding="utf-8"), "not JSON"),
        (lambda path: (path / "manifest.json").write_text("[]", encoding="utf-8"), "not a manifest"),
    ],
)
def test_a_damaged_bundle_is_refused(bundle: Bundle, damage: Callable[[Path], object], message: str) -> None:
    damage(bundle.path)
    with pytest.raises(InputError, match=message):
        Bundle.open(bundle.path)


def test_a_bundle_with_a_rewritten_manifest_is_not_the_registered_one(bundle: Bundle) -> None:
    """Consistent in itself, so that only the recorded digest can tell."""
    _list(bundle.path, "ranker/saved_model.pb", b"another ranker")
    assert Bundle.open(bundle.path).digest != bundle.digest
    with pytest.raises(InputError, match="not the bundle that was registered"):
        Bundle.open(bundle.path, expected_digest=bundle.digest)


def test_parts_of_different_trainings_are_not_packaged(tmp_path: Path) -> None:
    parts, other = make_parts(tmp_path / "one"), make_parts(tmp_path / "other", videos=4)
    with pytest.raises(InputError, match="different trainings"):
        packaged(tmp_path / "bundle", **{**parts, "retrieval": other["retrieval"]})
    assert not (tmp_path / "bundle").exists()
    manifest = parts["ranking"] / "manifest.json"
    manifest.write_text(
        manifest.read_text(encoding="utf-8").replace("2026-01-15", "2026-01-14"), encoding="utf-8"
    )
    with pytest.raises(InputError, match="different trainings"):
        packaged(tmp_path / "bundle", **parts)
