"""`dvc repro` on a tiny world, as a user runs it: real DVC, Great Expectations, TensorFlow, ScaNN, MLflow and SQLite."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from conftest import TABLES, Project
from watchnext import config

pytestmark = pytest.mark.pipeline

STAGES_BEFORE_RANKING = (
    "simulate",
    "ingest",
    "validate",
    "featurize",
    "train_retrieval",
    "build_index",
    "nominate",
)
"""Of these, and `choose_start`, which runs each time and has nothing to do."""


def ran(printed: str) -> list[str]:
    """The stages that DVC said it ran."""
    return [stage for stage in config.STAGES if f"Running stage '{stage}'" in printed]


def test_logs_in_champion_out(finished: Project) -> None:
    (model,) = finished.status()
    assert model["name"] == "watchnext"
    champion = model["roles"]["champion"]
    assert int(champion["version"]) == 1
    assert champion["reason"]
    assert "previous" not in model["roles"]
    for stage in config.STAGES:
        assert finished.metrics(stage), stage
    decision = json.loads((finished.root / "reports/promote/decision.json").read_text(encoding="utf-8"))
    assert decision["checks"]
    for page in (
        "reports/validate/summary.html",
        "reports/promote/decision.html",
        "reports/compare_shadow/decision.html",
    ):
        assert (finished.root / page).is_file(), page


def test_one_parent_run_with_a_child_for_every_stage(finished: Project) -> None:
    runs = finished.runs()
    (parent,) = [run for run in runs if run["parent"] is None]
    children = [run for run in runs if run["parent"] == parent["id"]]
    assert sorted(run["name"] for run in children) == sorted(config.STAGES)
    assert {run["status"] for run in runs} == {"FINISHED"}
    evaluate = next(run for run in children if run["name"] == "evaluate")
    for name, value in finished.metrics("evaluate").items():
        if isinstance(value, float):
            assert evaluate["metrics"][name] == pytest.approx(value)


def test_moved_and_given_bad_logs_for_a_while_a_project_says_so_and_then_a_repro_has_nothing_to_do(
    finished: Project, tmp_path: Path
) -> None:
    """What was made stays through both, and the repro after them runs nothing but three looks at the registry."""
    project = Project(tmp_path / "elsewhere")
    shutil.copytree(finished.root, project.root, symlinks=True)
    made = project.digests("data", "reports", "metrics")
    said = project.run("dvc", "repro", succeeds=False)
    assert "watchnext registry relocate" in said
    assert str(finished.root) in said.replace("\n", "")
    project.run("watchnext", "registry", "relocate")
    roles = project.roles()

    shutil.copytree(project.root / "data/simulated/logs", project.root / "broken")
    (project.root / "broken/watches.parquet").unlink()
    sound = project.root.joinpath("params.yaml").read_text(encoding="utf-8")
    project.set_params({"ingest.path": "broken"})
    said = project.run("dvc", "repro", succeeds=False)
    assert ran(said) == ["ingest"]
    assert "watches.parquet" in said
    project.root.joinpath("params.yaml").write_text(sound, encoding="utf-8")

    before = project.status(), len(project.runs())
    printed = project.run("dvc", "repro")
    assert ran(printed) == ["choose_start", "promote", "compare_shadow"]
    assert printed.count("nothing to do") == 3
    assert project.digests("data", "reports", "metrics") == made
    assert (project.status(), len(project.runs())) == before
    assert project.roles() == roles == {"champion": 1}


def test_a_changed_ranking_parameter_reruns_nothing_upstream_and_cached_stages_show_in_the_new_run(
    copy_of_finished: Project,
) -> None:
    """As an experiment that reads equal logs from elsewhere, too: ingest makes the same tables, and nothing follows."""
    project = copy_of_finished
    upstream = ("data/features", "data/retrieval", "data/index")
    before = project.digests(*upstream)
    first = {run["id"] for run in project.runs()}
    shutil.copytree(project.root / "data/simulated/logs", project.root / "elsewhere")
    printed = project.run("dvc", "exp", "run", "-S", "ingest.path=elsewhere", "-S", "train_ranking.epochs=2")
    assert config.read_params(project.root / "params.yaml")["ingest"]["path"] == "elsewhere"
    assert "train_ranking" in ran(printed)
    assert set(ran(printed)) & set(STAGES_BEFORE_RANKING) == {"ingest"}
    assert project.digests(*upstream) == before
    new = [run for run in project.runs() if run["id"] not in first]
    assert sorted(run["name"] for run in new if run["parent"]) == sorted(config.STAGES)
    cached = {run["name"] for run in new if run["tags"].get("watchnext.from_cache") == "true"}
    assert cached == {*STAGES_BEFORE_RANKING, "choose_start"} - {"ingest"}
    roles = project.roles()
    verdicts = project.metrics("promote")["verdict"], project.metrics("compare_shadow")["verdict"]
    expected = {
        ("rejected", "none"): {"champion": 1},
        ("held", "none"): {"champion": 1},
        ("challenger", "keep"): {"champion": 1},
        ("challenger", "crown"): {"champion": 2, "previous": 1},
    }
    assert roles == expected[verdicts]


def test_an_equal_model_behind_a_tree_index_is_crowned_and_a_ruined_one_rejected(
    copy_of_finished: Project,
) -> None:
    """The same models behind ScaNN's tree instead of its exact search, then a query tower that learned nothing."""
    project = copy_of_finished
    exact = project.metrics("build_index")["index_kind"]
    # Where the tree finds all that exact search does, a nearly equal score still tells the slates of the two apart.
    project.set_params(
        {
            "build_index.search": "tree",
            "build_index.recall_floor": 0.97,
            "recommend.score.duration_power": 0.01,
            # The tree's few other nominations move the loss of this little day by some per cent: no harm is ruled out.
            "promote.checks.weighted_pairwise_loss.margin": 0.5,
            "compare_shadow.vetoes.weighted_pairwise_loss.margin": 0.5,
        }
    )
    # The ranker's inputs on the tuning day come through the index, so it is trained anew; the towers are not.
    assert "train_retrieval" not in ran(project.run("dvc", "repro"))
    assert (exact, project.metrics("build_index")["index_kind"]) == ("scann_exact", "scann")
    assert project.metrics("promote")["verdict"] == "challenger"
    shadow = project.metrics("compare_shadow")
    assert (shadow["verdict"], shadow["champion_version"], shadow["challenger_version"]) == ("crown", 1, 2)
    assert shadow["slate_overlap_at_20"] > 0.9
    assert project.roles() == {"champion": 2, "previous": 1}
    children = [run["name"] for run in project.runs() if run["tags"].get("watchnext.from_cache") == "false"]
    assert children.count("compare_shadow") >= 1

    project.set_params({"train_retrieval.learning_rate": 1e-6, "train_retrieval.epochs": 1})
    project.run("dvc", "repro")
    promoted = project.metrics("promote")
    assert (promoted["verdict"], promoted["role"], promoted["model_version"]) == ("rejected", "none", 3)
    assert "recall_at_100" in promoted["reason"]
    assert project.metrics("compare_shadow")["verdict"] == "none"
    assert project.roles() == {"champion": 2, "previous": 1}


def test_without_mlruns_the_cached_bundle_is_registered_anew(copy_of_finished: Project) -> None:
    project = copy_of_finished
    bundle = project.digests("data/bundle")
    shutil.rmtree(project.root / "mlruns")
    printed = project.run("dvc", "repro")
    assert ran(printed) == ["choose_start", "promote", "compare_shadow"]
    assert project.digests("data/bundle") == bundle
    (model,) = project.status()
    assert model["roles"]["champion"] is not None
    runs = project.runs()
    children = {run["name"]: run for run in runs if run["parent"]}
    assert sorted(children) == sorted(config.STAGES)
    assert children["evaluate"]["metrics"]["recall_at_100"] == pytest.approx(
        project.metrics("evaluate")["recall_at_100"]
    )


def test_the_truth_of_the_world_reaches_no_artifact(copy_of_finished: Project) -> None:
    """The rows of the truth permuted, every stage after `simulate` makes the same tables, weights and figures."""
    import numpy as np
    import pyarrow.parquet as pq

    def artifacts() -> tuple[object, ...]:
        manifests = [project.root / f"data/{model}/manifest.json" for model in ("retrieval", "ranking")]
        weights = [json.loads(path.read_text(encoding="utf-8"))["weights_digest"] for path in manifests]
        return project.digests(*TABLES), weights, project.metrics("evaluate")

    project = copy_of_finished
    before = artifacts()
    truths = sorted((project.root / "data/simulated/truth").glob("*.parquet"))
    assert truths
    for path in truths:
        table = pq.read_table(path)
        pq.write_table(table.take(np.random.default_rng(0).permutation(table.num_rows)), path)
    # In one process, whose libraries start once.
    stages = [*STAGES_BEFORE_RANKING[1:], "train_ranking", "evaluate"]
    said = project.run(sys.executable, __file__, *stages)
    assert [name for name in stages if f"{name}: done in" in said] == stages
    assert artifacts() == before


if __name__ == "__main__":
    for name in sys.argv[1:]:
        status, told = Project(Path.cwd()).run_here(name)
        sys.stderr.write(told)
        if status:
            sys.exit(status)
