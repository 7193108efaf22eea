"""What candidate generation tells the ranker: the same in the pipeline and in serving, and nothing of the day itself."""

import dataclasses
import datetime as dt
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest
from tiny_world import DAYS, GATE_DAY, make_bundle

from watchnext.bundle import Bundle, write_bundle
from watchnext.config import RecommendParams, SourceQuotas, TrainingParams
from watchnext.errors import InputError
from watchnext.evaluation.candidates import nominated_by, score_drift, stored_scorer
from watchnext.features.batches import ADDED_INPUTS, OPENING, Encoder, read_examples
from watchnext.features.ranking_features import RequestContext, VideoStatistics, features_named
from watchnext.models import nominations, score_blocks, training
from watchnext.models.candidate_sources import SOURCES, CompletedWatches, read_corpus
from watchnext.models.shards import Shards
from watchnext.models.warm_start import WarmStart
from watchnext.recommend.parity import Parity, compare_features
from watchnext.recommend.recommender import Recommender
from watchnext.recommend.state import UserStates
from watchnext.stages.build_index import Params as IndexParams
from watchnext.stages.build_index import build_index
from watchnext.stages.nominate import Inputs, Params, nominate
from watchnext.stages.train_ranking import Params as RankingParams
from watchnext.stages.train_ranking import train_ranking
from watchnext.stages.train_retrieval import Params as RetrievalParams
from watchnext.stages.train_retrieval import train_retrieval

SETTINGS = RecommendParams(sources=SourceQuotas(tower=12, co_watched=6, popular=4, channels=4, fresh=2))
LAST_TRAINING_DAY = dt.date(2026, 1, DAYS - 3)


@pytest.fixture(scope="module")
def parts(
    world_tables: Path, world_features: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Outputs of the stages that `nominate` reads."""
    root = tmp_path_factory.mktemp("nominations")
    found = {
        "tables": world_tables, "features": world_features, "retrieval": root / "retrieval", "index": root / "index"
    }  # fmt: skip
    train_retrieval(
        RetrievalParams(epochs=3, embedding_dim=8),
        TrainingParams(),
        1,
        world_features,
        WarmStart.write_none(root / "start"),
        found["retrieval"],
        root / "r1",
    )
    build_index(IndexParams(), 1, found["retrieval"], world_features, found["index"], root / "r2")
    return found


def run(parts: dict[str, Path], out: Path, **changes: Any) -> Path:
    """The stage, with few epochs."""
    fitting = changes.pop("training", TrainingParams())
    given = {**parts, **{name: changes.pop(name) for name in ("tables", "features") if name in changes}}
    nominate(
        Params(**changes), SETTINGS, fitting, 1, given["tables"], given["features"], given["retrieval"],
        given["index"], out, out.with_name(out.name + "-report"),
    )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def nominated(parts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(parts, tmp_path_factory.mktemp("nominated") / "sources")


def scores(sources: Path, split: str) -> pa.Table:
    return pa.concat_tables(read_examples(sources / "scores" / split))


def days_of(features: Path, split: str) -> np.ndarray:
    return nominations.local_days(nominations.read_impressions(features, split)["shown_at"], "UTC")


def test_days_are_cut_into_blocks_and_the_first_is_scored_by_nobody() -> None:
    day = dt.date(2026, 3, 1)

    def blocks(days: int, number: int) -> list[tuple[int, int]]:
        found = nominations.training_blocks(day, day + dt.timedelta(days=days - 1), number)
        return [(begin.day, end.day) for begin, end in found]

    assert blocks(18, 2) == [(7, 12), (13, 18)]
    assert blocks(7, 2) == [(3, 4), (5, 7)]
    assert blocks(2, 5) == [(2, 2)]
    assert blocks(1, 2) == blocks(9, 0) == []


def test_scores_are_missing_before_the_first_block_and_known_after_it(
    nominated: Path, world_features: Path
) -> None:
    blocks = json.loads((nominated / "manifest.json").read_text())["blocks"]
    assert blocks[-1][1] == LAST_TRAINING_DAY.isoformat()
    table = scores(nominated, "training")
    days = days_of(world_features, "training")
    before = pa.array(days < np.datetime64(blocks[0][0]))
    assert sum(before.to_pylist()) > 0
    early, later = table.filter(before), table.filter(pa.array(~np.array(before)))
    for feature in nominations.FEATURES:
        if feature.source is None:
            assert not any(early[feature.name].to_pylist())
            assert {name for one in later[feature.name].to_pylist() for name in one} >= {
                "tower",
                "co_watched",
                "popular",
            }
        else:
            assert early[feature.name].null_count == early.num_rows
            assert later[feature.name].null_count < later.num_rows, feature.name
    tuning = scores(nominated, "tuning")
    assert tuning.num_rows == len(days_of(world_features, "tuning"))
    assert tuning["retrieval_score"].null_count < tuning.num_rows


def shuffled_from(day: dt.date, parts: dict[str, Path], out: Path, seed: int = 3) -> dict[str, Path]:
    """Another outcome of `day` and all later days: which video each watch is of is shuffled, in tables and examples.

    What requests and ranking examples say of users before is left as it is.
    """
    begins = pa.scalar(dt.datetime.combine(day, dt.time(), dt.UTC), pa.timestamp("us", tz="UTC"))
    changed = {"tables": out / "tables", "features": out / "features"}
    for name in changed:
        shutil.copytree(parts[name], changed[name])
    for directory in (changed["tables"] / "watches", changed["features"] / "retrieval_examples" / "training"):
        for path in directory.glob("*.parquet"):
            table = pq.read_table(path)
            late = pa.compute.greater_equal(table["watched_at"].cast(begins.type), begins)
            late = np.flatnonzero(late.to_numpy(zero_copy_only=False))
            videos = table["video_id"].to_numpy().copy()
            videos[late] = np.random.default_rng(seed).permutation(videos[late])
            place = table.column_names.index("video_id")
            pq.write_table(table.set_column(place, "video_id", pa.array(videos)), path)
    return changed


def test_scores_of_a_day_do_not_know_the_day(
    parts: dict[str, Path],
    nominated: Path,
    world_features: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Metamorphic: another outcome of a block's days leaves every score of the block as it is, to the last bit.

    Then the mutant, models fitted with the block's own days: the same comparison catches it, for the tower and for the
    co-watch table alike.
    """
    blocks = json.loads((nominated / "manifest.json").read_text())["blocks"]
    begin = dt.date.fromisoformat(blocks[-1][0])
    changed = shuffled_from(begin, parts, tmp_path)
    last = pa.array(days_of(world_features, "training") >= np.datetime64(begin))

    def of_last_block(sources: Path) -> pa.Table:
        return scores(sources, "training").filter(last)

    other = of_last_block(run(parts, tmp_path / "sound", **changed))
    assert other.equals(of_last_block(nominated))

    def with_the_day(method: Callable[..., Any]) -> Callable[..., Any]:
        return lambda self, instant: method(self, instant + (len(days) * 86_400_000_000))

    days = np.unique(days_of(world_features, "training"))
    for leaking in (score_blocks.DatedExamples, score_blocks.CompletedWatches):
        with monkeypatch.context() as mutant:
            mutant.setattr(leaking, "before", with_the_day(leaking.before))
            name = leaking.__name__
            leaked = of_last_block(run(parts, tmp_path / f"{name}-1"))
            leaked_other = of_last_block(run(parts, tmp_path / f"{name}-2", **changed))
        column = "retrieval_score" if leaking is score_blocks.DatedExamples else "co_watched_score"
        assert not leaked[column].equals(leaked_other[column]), column


def test_examples_known_before_an_instant_are_the_same_in_shards(
    parts: dict[str, Path], world_features: Path, tmp_path: Path
) -> None:
    """Every one of them, with the age that it has then; the newest is of age 0."""
    encoder = Encoder.load(world_features)
    watches = CompletedWatches.read(parts["tables"], read_corpus(encoder, world_features))

    def before(instant: int, at_once: int) -> Shards:
        examples = training.retrieval_shards(
            world_features / "retrieval_examples",
            score_blocks.dated(encoder, watches),
            RetrievalParams().labels.model_dump(),
            at_once=at_once,
            folder=tmp_path / "shards",
            seed=1,
        )
        return score_blocks.DatedExamples(examples).before(instant)

    def rows(shards: Shards) -> list[bytes]:
        found = []
        for part in shards.parts():
            assert set(part) == set(shards.names)
            columns = [part[name] for name in sorted(part)]
            found += [b"".join(one.tobytes() for one in row) for row in zip(*columns, strict=True)]
        return sorted(found)

    middle = int(np.median(watches.ended[watches.ended > 0]))
    whole, cut = before(middle, 1_000_000), before(middle, 100)
    assert whole.in_memory
    assert len(cut.rows) > 3
    assert 100 < whole.num_rows < before(1 << 62, 1_000_000).num_rows
    assert rows(cut) == rows(whole)
    assert min(part["example_age_s"].min() for part in cut.parts()) == 0.0
    assert before(-(1 << 62), 100).num_rows == 0


def test_blocks_are_trained_on_shards_where_examples_do_not_fit(
    parts: dict[str, Path], nominated: Path, tmp_path: Path
) -> None:
    """The models are others, as the order of examples is; the tables beside them and what they say are the same."""
    sources = run(parts, tmp_path / "sources", training=TrainingParams(examples_in_memory=200))
    assert [path.name for path in tmp_path.iterdir() if "shards" in path.name] == []
    one, other = scores(sources, "training"), scores(nominated, "training")
    for name in ("co_watched_score", "popular_score", "channel_score"):
        assert one[name].equals(other[name]), name
    ours, theirs = (table["retrieval_score"] for table in (one, other))
    assert ours.is_valid().equals(theirs.is_valid())
    assert not ours.equals(theirs)


def test_serving_makes_the_inputs_that_the_pipeline_makes(
    parts: dict[str, Path], nominated: Path, world_tables: Path, world_features: Path, tmp_path: Path
) -> None:
    """For every impression of the gate day, by the bundle's own models: one declaration, one function, two callers."""
    train_ranking(
        RankingParams(epochs=1, hidden_units=[4]), TrainingParams(), 1, world_features, nominated,
        tmp_path / "ranking", tmp_path / "report",
    )  # fmt: skip
    bundle = write_bundle(
        tmp_path / "bundle", features=world_features, retrieval=parts["retrieval"], index=parts["index"],
        ranking=tmp_path / "ranking", sources=nominated, recommend=SETTINGS.model_dump(),
    )  # fmt: skip
    recommender = Recommender.open(bundle)
    names = [feature.name for feature in nominations.FEATURES]
    assert set(names) <= set(bundle.manifest["inputs"]["ranking"])
    assert nominations.nominated_inputs(recommender.encoder) == names

    encoder = Encoder.load(bundle.features)
    scorer = stored_scorer(
        encoder, read_corpus(encoder, bundle.features), bundle.recommend["sources"], bundle.path, bundle.index,
        bundle.sources,
    )  # fmt: skip
    shown = nominations.read_impressions(world_features, "gate")
    expected = nominated_by(scorer, world_features, "gate")(shown)
    assert not any(name.startswith(OPENING) for name in expected.column_names), (
        "requests of this world are pages"
    )
    parts_of_day = [
        pq.read_table(path, filters=[("day", "=", GATE_DAY)])
        for path in sorted((world_features / "video_statistics").glob("*.parquet"))
    ]
    statistics = VideoStatistics.from_table(pa.concat_tables(parts_of_day))
    states = UserStates.read(world_tables, set(shown["user_id"].to_pylist()))
    compared = 0
    for request_id in sorted(set(shown["request_id"].to_pylist())):
        page = expected.filter(pa.compute.equal(expected["request_id"], request_id)).to_pylist()
        user_id = page[0]["user_id"]
        history, facts = states.history(user_id), states.facts_of(user_id)
        request = RequestContext(user_id=user_id, at=page[0]["shown_at"], surface="home", region=facts.region)
        videos = [row["video_id"] for row in page]
        found = recommender.nominations(history, request, videos, statistics)
        for name in names:
            values = [row[name] for row in page]
            if name == nominations.NOMINATED_BY:
                assert found[name].to_pylist() == values
            else:
                for ours, theirs in zip(found[name].to_pylist(), values, strict=True):
                    assert (ours is None) == (theirs is None)
                    assert ours is None or ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
                    compared += ours is not None
        assert np.isfinite(recommender.rank(history, request, videos, statistics)).all()
        # A server encodes them without a column of names in between.
        inputs = recommender.inputs(history, request, videos, statistics)
        for name, encoded in recommender.encoder.encode_some(found, names).items():
            np.testing.assert_array_equal(inputs[name], encoded, strict=True)
    assert compared > 400


def test_parity_covers_what_candidate_generation_says(
    parts: dict[str, Path], nominated: Path, world_tables: Path, world_features: Path
) -> None:
    """Every request of the gate day, from users' states. Then a server whose tower is off by a ten-thousandth."""
    encoder = Encoder.load(world_features)
    scorer = stored_scorer(
        encoder, read_corpus(encoder, world_features), SETTINGS.sources.model_dump(), parts["retrieval"],
        parts["index"], nominated / "tables",
    )  # fmt: skip
    features = features_named(encoder.manifest["inputs"]["ranking"])

    def compared(served: nominations.Scorer) -> Parity:
        return compare_features(world_tables, world_features, "gate", GATE_DAY, features, 1_000, served)

    found = compared(scorer)
    assert found.offenders() == []
    assert found.requests == 40
    shown = nominations.read_impressions(world_features, "gate").num_rows
    stored = sum(not feature.training_only for feature in features)
    assert found.values == shown * (stored + len(nominations.FEATURES))

    def drifted(arrays: Any) -> Any:
        queries = scorer.query_tower(arrays)
        return queries * np.float32(1.0001) if len(queries) == 1 else queries

    off = compared(dataclasses.replace(scorer, query_tower=drifted))
    assert {name for name, _, _ in off.offenders()} == {"retrieval_score"}


def test_where_requests_are_no_pages_scores_of_the_opening_are_kept_too(
    right_bundle: Bundle, world_features: Path
) -> None:
    """Single impressions of a user's day: each is compared with the others as of the first. Live scores differ."""
    encoder = Encoder.load(right_bundle.features)
    scorer = stored_scorer(
        encoder, read_corpus(encoder, right_bundle.features), right_bundle.recommend["sources"], right_bundle.path,
        right_bundle.index, right_bundle.sources,
    )  # fmt: skip
    shown = nominations.read_impressions(world_features, "gate")
    alone = shown.set_column(
        shown.column_names.index("request_id"), "request_id", pa.array(range(shown.num_rows))
    )
    table = nominated_by(scorer, world_features, "gate")(alone)
    for feature in nominations.FEATURES:
        # A page of this world is shown at one instant, which is its opening.
        assert table[OPENING + feature.name].equals(table[feature.name])


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        (
            {"inputs": Inputs(retrieval_score=False, candidate_sources=False)},
            ["co_watched_score", "popular_score", "channel_score"],
        ),
        ({"score_blocks": 0}, []),
        ({"inputs": Inputs(**dict.fromkeys(Inputs.model_fields, False))}, []),
    ],
)  # fmt: skip
def test_inputs_can_be_switched_off(
    parts: dict[str, Path], world_features: Path, tmp_path: Path, changes: dict[str, Any], left: list[str]
) -> None:
    sources = run(parts, tmp_path / "sources", block_epochs=1, **changes)
    encoder = Encoder.load(world_features).with_inputs(sources / ADDED_INPUTS)
    assert nominations.nominated_inputs(encoder) == left
    assert (sources / "tables" / "co_watched" / "neighbours.npy").is_file()
    train_ranking(
        RankingParams(epochs=1, hidden_units=[4]), TrainingParams(), 1, world_features, sources, tmp_path / "ranking",
        tmp_path / "report",
    )  # fmt: skip
    trained = json.loads((tmp_path / "ranking" / "manifest.json").read_text())["inputs"]
    assert [name for name in trained if name in {one.name for one in nominations.FEATURES}] == left


def test_the_drift_is_none_against_oneself_and_seen_against_another_scale(
    nominated: Path, parts: dict[str, Path], world_features: Path, tmp_path: Path
) -> None:
    """Scores of a model compared with themselves; then stored ones that are twice as large and one lower."""
    encoder = Encoder.load(world_features)
    scorer = stored_scorer(
        encoder, read_corpus(encoder, world_features), SETTINGS.sources.model_dump(), parts["retrieval"],
        parts["index"], nominated / "tables",
    )  # fmt: skip
    block = json.loads((nominated / "manifest.json").read_text())["blocks"][-1]
    shown = nominations.read_impressions(world_features, "training")
    own = nominated_by(scorer, world_features, "training")(shown)
    nominations.store(tmp_path / "own", own)
    drift = score_drift(scorer, world_features, tmp_path / "own", block, most=200)
    assert drift.pop("drift_candidate_sources_agreement") == 1.0
    for name, value in drift.items():
        assert value == pytest.approx(0.0 if name.endswith("_mean") else 1.0, abs=1e-4), name
    assert {
        "drift_retrieval_score_mean",
        "drift_co_watched_score_sd",
        "drift_popular_score_rank_correlation",
    } <= set(drift)

    place = own.column_names.index("retrieval_score")
    lower = pa.compute.add(pa.compute.multiply(own["retrieval_score"], 2.0), -1.0)
    nominations.store(tmp_path / "other", own.set_column(place, "retrieval_score", lower))
    moved = score_drift(scorer, world_features, tmp_path / "other", block, most=10_000)
    assert moved["drift_retrieval_score_sd"] == pytest.approx(0.5, rel=1e-3)
    assert moved["drift_retrieval_score_rank_correlation"] == pytest.approx(1.0, abs=1e-6)
    assert moved["drift_retrieval_score_mean"] > 0


def test_the_table_in_the_docs_is_that_of_the_declarations() -> None:
    docs = (Path(__file__).parents[3] / "docs" / "candidates.md").read_text(encoding="utf-8")
    assert nominations.document() in docs


def test_scores_of_other_impressions_are_refused(nominated: Path, world_features: Path) -> None:
    shown = nominations.read_impressions(world_features, "training")
    for other in (shown.slice(1), shown.take(pa.array(np.arange(shown.num_rows)[::-1]))):
        with pytest.raises(InputError, match="not of the same impressions"):
            list(nominations.joined(nominated / "scores" / "training", iter([other])))


def test_impressions_without_a_request_are_an_error(world_features: Path, right_bundle: Bundle) -> None:
    encoder = Encoder.load(right_bundle.features)
    scorer = nominations.Scorer(
        {},
        dict.fromkeys(SOURCES, 1),
        read_corpus(encoder, right_bundle.features),
        encoder,
        lambda arrays: arrays,
    )
    shown = nominations.read_impressions(world_features, "gate").slice(0, 3)
    later = pa.compute.add(shown["shown_at"], pa.scalar(dt.timedelta(microseconds=1), pa.duration("us")))
    moved = shown.set_column(shown.column_names.index("shown_at"), "shown_at", later)
    with pytest.raises(InputError, match="3 impressions have no request"):
        scorer.score(moved, world_features, "gate")


def test_a_bundle_without_these_inputs_still_opens(world_features: Path, tmp_path: Path) -> None:
    recommender = Recommender.open(make_bundle(tmp_path, world_features))
    assert nominations.nominated_inputs(recommender.encoder) == []
