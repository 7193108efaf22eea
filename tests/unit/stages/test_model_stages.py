"""The four stages of models, as plain functions on a world small enough for a test."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from model_stages import run_model_stages

from watchnext.config import RecommendParams, TrainingParams
from watchnext.errors import InputError
from watchnext.stages.build_index import Params as IndexParams
from watchnext.stages.build_index import build_index
from watchnext.stages.evaluate import Params as EvaluateParams
from watchnext.stages.evaluate import evaluate
from watchnext.stages.train_ranking import Params as RankingParams
from watchnext.stages.train_ranking import train_ranking


@pytest.fixture(scope="module")
def made(world_tables, world_features, tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return root, run_model_stages(root, world_tables, world_features, epochs=2, block_epochs=2)


def test_outputs_are_those_that_later_stages_read(made, world_features):
    root, metrics = made
    vocabulary = pq.read_table(world_features / "vocabularies" / "video").sort_by("index")
    embeddings = np.load(root / "retrieval" / "candidate_embeddings.npy", allow_pickle=False)
    assert embeddings.shape == (vocabulary.num_rows, 8)
    indexed = np.load(root / "index" / "candidate_embeddings.npy", allow_pickle=False)
    assert np.array_equal(indexed[: len(embeddings)], embeddings)
    assert len(indexed) == pq.read_table(world_features / "videos").num_rows
    with pa.OSFile(str(root / "index" / "rows.arrow")) as source:
        rows = pa.ipc.open_file(source).read_all()
    assert rows["video_id"].to_pylist()[: vocabulary.num_rows] == vocabulary["token"].to_pylist()
    assert sorted(rows["video_id"].to_pylist()) == sorted(
        pq.read_table(world_features / "videos")["video_id"].to_pylist()
    )
    for name in ("retrieval", "ranking"):
        manifest = json.loads((root / name / "manifest.json").read_text())
        assert manifest["weights_digest"] == metrics[f"train_{name}"]["weights_digest"]
        assert manifest["trained_until_at"]
    assert not list(root.rglob("*.pkl"))


def evaluate_again(root, tables, features, out, **params):
    models = (root / name for name in ("retrieval", "index", "sources", "ranking"))
    return evaluate(EvaluateParams(**params), RecommendParams(), tables, features, *models, out / "report")


def ranker_without(made, world_features, out, names):
    root, _ = made
    params = RankingParams(inputs_left_out=names, hidden_units=[8], epochs=1)
    train_ranking(
        params, TrainingParams(), 1, world_features, root / "sources", out / "model", out / "report"
    )
    return json.loads((out / "model" / "manifest.json").read_text())


def test_inputs_of_the_ranker_may_be_left_out(made, world_features, tmp_path):
    manifest = ranker_without(made, world_features, tmp_path, ["video_id", "recent_watches"])
    assert "duration_s" in manifest["inputs"]
    assert not {"video_id", "recent_watches"} & set(manifest["inputs"])
    assert manifest["params"]["inputs_left_out"] == ["video_id", "recent_watches"]


def test_what_is_left_out_has_to_be_an_input(made, world_features, tmp_path):
    with pytest.raises(InputError, match=r"(?s)no input of the ranker.*likes"):
        ranker_without(made, world_features, tmp_path, ["video_id", "likes"])


def test_reports_hold_curves_and_pictures(made):
    root, metrics = made
    for name in ("train_retrieval", "train_ranking"):
        curves = json.loads((root / "reports" / name / "curves.json").read_text())
        assert [step for step, _ in curves["loss"]] == [1, 2]
        assert any(metric.startswith("tuning_") for metric in curves)
    for picture in (
        "train_retrieval/curves",
        "train_ranking/curves",
        "evaluate/recall_by_k",
        "evaluate/reliability",
    ):
        assert (root / "reports" / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    for values in metrics.values():
        assert all(isinstance(value, (int, float, str)) for value in values.values())


def test_the_exact_index_finds_everything(made):
    _, metrics = made
    assert metrics["build_index"]["index_kind"] == "scann_exact"
    assert metrics["build_index"]["index_recall_at_100"] == metrics["evaluate"]["index_recall_at_100"] == 1.0
    assert metrics["evaluate"]["with_index_recall_at_100"] == metrics["evaluate"]["recall_at_100"]


def test_models_of_another_vocabulary_are_refused(world_features, tmp_path):
    (tmp_path / "model").mkdir()
    np.save(tmp_path / "model" / "candidate_embeddings.npy", np.zeros((3, 8), np.float32))
    with pytest.raises(InputError, match="3 candidate embeddings"):
        build_index(
            IndexParams(), 1, tmp_path / "model", world_features, tmp_path / "index", tmp_path / "report"
        )


def test_a_feature_that_serving_makes_otherwise_is_counted_and_named(
    made, world_tables, world_features, tmp_path, capsys
):
    root, metrics = made
    assert metrics["evaluate"]["feature_mismatches"] == 0
    assert metrics["evaluate"]["feature_requests"] > 20
    features = shutil.copytree(world_features, tmp_path / "features")
    for part in (features / "ranking_examples" / "gate").glob("part-*.parquet"):
        table = pq.read_table(part)
        column = table.column_names.index("user_impressions")
        pq.write_table(table.set_column(column, "user_impressions", pc.add(table[column], 1.0)), part)
    found = evaluate_again(root, world_tables, features, tmp_path, parity_requests=10)
    assert found["feature_requests"] == 10
    report = json.loads((tmp_path / "report" / "evaluation.json").read_text())["feature_mismatches"]
    assert list(report) == ["user_impressions"]
    assert report["user_impressions"]["mismatches"] == found["feature_mismatches"] >= 10
    first = report["user_impressions"]["first"]
    assert first["stored"] == first["served"] + 1
    told = capsys.readouterr()
    assert "user_impressions" in told.out + told.err


def test_without_a_gate_day_nothing_is_judged(made, world_tables, world_features, tmp_path):
    root, _ = made
    features = shutil.copytree(world_features, tmp_path / "features")
    manifest = json.loads((features / "manifest.json").read_text())
    manifest["days"]["gate"] = None
    (features / "manifest.json").write_text(json.dumps(manifest))
    found = evaluate_again(root, world_tables, features, tmp_path)
    assert found == {"gate_day": "none"}
