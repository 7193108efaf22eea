"""What a ranker learns of the simulated world, whose causes are known: one world, two models of its log."""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from watchnext.cli import make_features
from watchnext.features.batches import read_examples
from watchnext.models import ranking, training
from watchnext.studies._lab import Ground, Lab, Settings
from watchnext.studies.table1 import training_examples

SETTINGS = Settings(users=1_500, videos=300, topics=8, days=9, pages_per_user_day=1.5, seeds=1)
UNIT_S = 10.0
MISSES = "unclicked_impressions_of_video"
SINCE = ("since_impression_of_video_s", "since_unclicked_impression_of_video_s")


@dataclass(frozen=True)
class Learned:
    """A ranker of watch time, and one of the same rows that counts clicks, every click for one unit."""

    ground: Ground
    held: pa.Table
    watch_time: Any
    clicks: Any

    def scores(self, model: Any, table: pa.Table) -> np.ndarray:
        """Served logits, [num_impressions]."""
        return ranking.predict(model.tower, self.ground.encoder.encode_ranking(table))["logit"]


def fitted(ground: Ground, examples: dict[str, np.ndarray]) -> Any:
    training.start(1, deterministic=True)
    model, _ = ranking.train(
        examples, ground.encoder.ranking_features, vocabulary_sizes=ground.encoder.sizes,
        boundaries=ground.encoder.quantiles, hidden_units=[64, 32], dims_per_doubling=1.0, odds="impressions",
        unit_s=UNIT_S, cap_s=1_800.0, logit_bound=15.0, batch_size=1_024, learning_rate=0.02, epochs=4, patience=4,
        seed=1, evaluate=lambda model: {}, id_weights=True, l2=0.001,
    )  # fmt: skip
    return model


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Learned:
    ground = Lab(SETTINGS, tmp_path_factory.mktemp("world"), make_features).world(1.0, {"clickbait": 1.0}, 0)
    examples = training_examples(ground)
    clicks = {**examples, "watch_time_s": examples["clicked"] * np.float32(UNIT_S)}
    held = pa.concat_tables(read_examples(ground.features / "ranking_examples" / "gate"))
    return Learned(ground, held, fitted(ground, examples), fitted(ground, clicks))


def share_on_top(scores: np.ndarray, pages: np.ndarray, which: np.ndarray) -> float:
    """The share of pages whose best video is one of `which`."""
    order = np.lexsort((-scores, pages))
    first = np.r_[True, np.diff(pages[order]) != 0]
    return float(which[order][first].mean())


def test_clickbait_leads_by_clicks_and_not_by_expected_watch_time(learned: Learned) -> None:
    """Over the pages of a day that no model has seen. The model of clicks is the mutant: the same rows, clicks for time."""
    world = learned.ground.moment.world  # type: ignore[union-attr]
    bait_ids = world.videos.video_id[world.videos.clickbait]
    held = learned.held
    bait = np.isin(held["video_id"].to_numpy(), bait_ids)
    _, pages = np.unique(held["request_id"].to_numpy(), return_inverse=True)
    clicked = held["clicked"].to_numpy().astype(bool)
    assert clicked[bait].mean() > 1.05 * clicked[~bait].mean(), "they do lead by click rate"

    shown = float(bait.mean())
    by_clicks = share_on_top(learned.scores(learned.clicks, held), pages, bait)
    by_time = share_on_top(learned.scores(learned.watch_time, held), pages, bait)
    assert by_clicks > 1.05 * shown
    assert by_time < 0.8 * shown


def test_a_video_shown_again_and_again_without_a_watch_sinks(learned: Learned) -> None:
    """The same impressions, as if the video had been shown n times before, last a day ago, and left alone each time.

    In this world the drive to click falls as exp(-0.3 n).
    """
    before = learned.held.filter(pa.compute.equal(learned.held[MISSES], 0)).slice(0, 2_000)

    def shown_before(times: int) -> np.ndarray:
        table = before
        columns = {MISSES: float(times), **dict.fromkeys(SINCE, 86_400.0 if times else None)}
        for name, value in columns.items():
            column = pa.array([value] * table.num_rows, pa.float64())
            table = table.set_column(table.column_names.index(name), name, column)
        return learned.scores(learned.watch_time, table)

    logits = [shown_before(times) for times in (0, 1, 2, 4)]
    falls = [float(np.mean(later - earlier)) for earlier, later in itertools.pairwise(logits)]
    assert all(fall < -0.05 for fall in falls)
    assert -3.0 < sum(falls) < -0.7


@pytest.mark.parametrize(("surface", "slope"), [("home", -0.35), ("feed", -0.2)])
def test_the_position_is_worth_what_the_world_makes_of_it(
    learned: Learned, surface: str, slope: float
) -> None:
    """A page is looked at down to position k with probability (1 + k)^slope.

    What is added to the logit for a position, against the first one, is the logarithm of that; served is the same for
    every position.
    """
    places = np.arange(10)
    table = learned.held.filter(pa.compute.equal(learned.held["surface"], surface)).slice(0, 1)
    encoder, tower = learned.ground.encoder, learned.watch_time.tower

    def logits(position: int) -> Any:
        moved = table.set_column(
            table.column_names.index("position"), "position", pa.array([position], pa.int64())
        )
        arrays = encoder.encode_ranking(moved)
        added = tower.shallow.added(arrays, {"position": arrays["position"]})
        return float(added[0, 0]), float(ranking.predict(tower, arrays)["logit"][0])

    added, served = np.array([logits(place) for place in places.tolist()]).T
    effect, truth = added - added[0], slope * np.log1p(places)
    assert 0.7 < float(effect @ truth / (truth @ truth)) < 1.4
    assert np.corrcoef(effect, truth)[0, 1] > 0.9
    assert np.ptp(served) == 0.0
