import numpy as np
import pytest
import tensorflow as tf

from watchnext.errors import InputError
from watchnext.features.batches import FeatureSpec
from watchnext.features.quantiles import normalize
from watchnext.models import ranking, towers, training
from watchnext.models.calibration import WatchTimeCurve

FEATURES = (
    FeatureSpec("video_id", "categorical", "video", None, "impression"),
    FeatureSpec("last_watched_video_id", "categorical", "video"),
    FeatureSpec("recent_watches", "multivalent", "video", 3),
    FeatureSpec("duration_s", "continuous", None, None, "impression"),
    FeatureSpec("since_watch_s", "continuous"),
)
BOUNDARIES = {"duration_s": np.array([0.0, 10.0, 20.0, 40.0]), "since_watch_s": np.array([0.0, 0.0, 5.0])}
SIZES = {"video": 30}


def examples(rows=200, seed=0):
    rng = np.random.default_rng(seed)
    clicked = rng.random(rows) < 0.3
    return {
        "video_id": rng.integers(0, 31, rows).astype(np.int32),
        "last_watched_video_id": rng.integers(0, 31, rows).astype(np.int32),
        "recent_watches": rng.integers(0, 31, (rows, 3)).astype(np.int32),
        "duration_s": rng.uniform(0, 50, rows).astype(np.float32),
        "since_watch_s": np.where(rng.random(rows) < 0.3, np.nan, rng.uniform(0, 9, rows)).astype(np.float32),
        "clicked": clicked.astype(np.float32),
        "watch_time_s": np.where(clicked, rng.uniform(1, 100, rows), 0.0).astype(np.float32),
    }


def train(arrays, features=FEATURES, **overrides):
    settings = {
        "hidden_units": [32],
        "dims_per_doubling": 1.0,
        "odds": "unclicked",
        "unit_s": 10.0,
        "cap_s": 1000.0,
        "logit_bound": 15.0,
        "batch_size": 50,
        "learning_rate": 0.02,
        "epochs": 1,
        "patience": 1,
        "seed": 3,
        "evaluate": lambda model: {},
    } | overrides
    training.start(settings["seed"], deterministic=True)
    return ranking.train(arrays, features, vocabulary_sizes=SIZES, boundaries=BOUNDARIES, **settings)[0]


@pytest.fixture(scope="module")
def trained():
    return train(examples())


def test_normalisation_in_the_graph_is_the_reference():
    boundaries = [
        np.array([0.0, 1.0, 1.0, 1.0, 8.0]),
        np.array([3.0]),
        np.array([]),
        np.array([-2.0, 5.0]),
        np.array([4.0, 4.0, 4.0]),
        np.array([-np.inf, 0.0, 2.0, np.inf, np.inf]),
        np.array([-1.0, -1.0, 0.5, 3.0, 3.0]),
    ]
    values = np.array([-1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 8.0, 99.0, np.inf, -np.inf, np.nan], np.float32)
    column = np.repeat(values[:, None], len(boundaries), axis=1)
    found = ranking.QuantileNormalizer(boundaries)(tf.constant(column)).numpy()
    for number, edges in enumerate(boundaries):
        missing = np.isnan(values) | (len(edges) == 0)
        assert np.array_equal(np.isnan(found[:, number]), missing)
        assert np.nan_to_num(found[:, number]) == pytest.approx(normalize(values, edges), abs=1e-6)
    assert np.nanmax(found) < 1.0


def test_a_missing_value_is_not_the_smallest_value(trained):
    """Fails without the missing indicator: both are 0 after normalisation."""
    arrays = {name: np.repeat(array[:1], 2, axis=0) for name, array in examples().items()}
    arrays["since_watch_s"] = np.array([np.nan, -1.0], np.float32)
    logits = ranking.predict(trained.tower, arrays)["logit"]
    assert logits[0] != logits[1]


def test_features_of_one_space_share_a_table_and_are_fed_separately(trained):
    """Fails where the embeddings are added up instead of put side by side."""
    assert list(trained.tower.tables) == ["video"]
    arrays = {name: np.repeat(array[:1], 2, axis=0) for name, array in examples().items()}
    arrays["video_id"] = np.array([4, 9], np.int32)
    arrays["last_watched_video_id"] = np.array([9, 4], np.int32)
    logits = ranking.predict(trained.tower, arrays)["logit"]
    assert logits[0] != logits[1]


def test_a_score_depends_on_its_own_row_alone(trained):
    arrays = examples(40)
    whole = ranking.predict(trained.tower, arrays)["logit"]
    some = ranking.predict(trained.tower, {name: array[7:9] for name, array in arrays.items()})["logit"]
    assert some == pytest.approx(whole[7:9], rel=1e-5, abs=1e-6)


def test_normalising_once_gives_the_logits_of_the_serving_graph(trained):
    arrays = examples(40)
    once = {name: tf.constant(array) for name, array in ranking.normalize_once(trained.tower, arrays).items()}
    assert trained.tower(once).numpy() == pytest.approx(
        ranking.predict(trained.tower, arrays)["logit"], abs=1e-5
    )


def test_a_saved_ranker_answers_alike_and_its_logit_is_bounded(tmp_path):
    model = train(examples(), logit_bound=0.001)
    ranking.save(model, tmp_path)
    loaded = ranking.load_ranker(tmp_path / "ranker")
    answer = loaded(examples(9))
    assert answer["logit"] == pytest.approx(ranking.predict(model.tower, examples(9))["logit"])
    assert np.abs(answer["logit"]).max() == pytest.approx(0.001)
    assert answer["expected_watch_time_s"] == pytest.approx(10.0 * np.exp(answer["logit"]), rel=1e-5)
    one = loaded({name: array[:1] for name, array in examples(9).items()})
    assert one["logit"].shape == (1,)


def test_equal_seeds_give_equal_weights(trained):
    assert training.weights_digest(train(examples()).weights) == training.weights_digest(trained.weights)
    assert training.weights_digest(train(examples(), seed=4).weights) != training.weights_digest(
        trained.weights
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clicked": 0.0, "watch_time_s": 0.0}, "no impression was clicked and watched"),
        ({"clicked": 1.0}, "every impression was clicked"),
        ({"clicked": 1.0, "watch_time_s": np.nan}, "no watch time that is a number"),
    ],
)
def test_examples_that_teach_no_odds_are_refused(change, message):
    arrays = examples()
    for name, value in change.items():
        arrays[name] = np.full_like(arrays[name], value)
    with pytest.raises(InputError, match=message):
        train(arrays)


def test_where_every_impression_is_a_unit_negative_clicks_alone_teach_watch_time():
    """The bias starts at log(sum T / N): without inputs that tell anything it stays there."""
    arrays = examples(400)
    arrays["clicked"][:] = 1.0
    arrays["watch_time_s"][:] = 40.0
    model = train(arrays, odds="impressions", learning_rate=1e-6)
    last = model.tower.nets[0][-1]
    last.kernel.assign(tf.zeros_like(last.kernel))
    expected = ranking.predict(model.tower, {name: array[:1] for name, array in arrays.items()})
    assert expected["expected_watch_time_s"] == pytest.approx([40.0], rel=1e-4)


QUERY = tuple(spec.name for spec in FEATURES if spec.side == "query")


def test_one_row_of_the_query_side_stands_for_all_candidates(trained, tmp_path):
    """Scores of a request are those of the same rows with the query side repeated."""
    repeated = examples(40)
    for name in QUERY:
        repeated[name] = np.repeat(repeated[name][:1], 40, axis=0)
    once = {name: array[:1] if name in QUERY else array for name, array in repeated.items()}
    ranking.save(trained, tmp_path)
    loaded = ranking.load_ranker(tmp_path / "ranker")
    assert loaded(once)["logit"] == pytest.approx(loaded(repeated)["logit"], rel=1e-5, abs=1e-6)


def test_a_query_side_that_is_neither_one_nor_one_per_impression_is_refused(trained, tmp_path):
    """One impression and two queries would broadcast to two scores."""
    ranking.save(trained, tmp_path)
    loaded = ranking.load_ranker(tmp_path / "ranker")
    for queries, impressions in ((2, 1), (3, 40)):
        arrays = {
            name: array[: queries if name in QUERY else impressions] for name, array in examples(40).items()
        }
        with pytest.raises(tf.errors.InvalidArgumentError, match="neither one row nor one per impression"):
            loaded(arrays)


@pytest.mark.parametrize("side", ["query", "impression"])
def test_features_of_one_side_alone_make_a_ranker(side):
    features = tuple(spec for spec in FEATURES if spec.side == side)
    model = train(examples(), features)
    assert ranking.predict(model.tower, examples(7))["logit"].shape == (7,)


def test_the_first_layer_of_both_sides_is_the_layer_over_all_inputs(trained):
    """The split product against one product of the inputs side by side."""
    arrays = {name: tf.constant(array) for name, array in examples(9).items()}
    tower = trained.tower
    hidden = tf.concat(
        [tower._side(side, arrays, training=False) for side in ("query", "impression")], axis=1
    )
    first, last = tower.nets[0]
    logits = last(first(hidden))[:, 0]
    assert tower(arrays).numpy() == pytest.approx(logits.numpy(), rel=1e-5, abs=1e-6)
    assert hidden.shape[1] == sum(tower.widths)


def test_what_is_known_in_training_alone_is_no_input_of_the_saved_ranker(tmp_path):
    position = FeatureSpec("position", "categorical", "video", None, "impression", training_only=True)
    arrays = examples() | {"position": np.arange(200, dtype=np.int32) % 5}
    model = train(arrays, (*FEATURES, position))
    ranking.save(model, tmp_path)
    answer = ranking.load_ranker(tmp_path / "ranker")(examples(9))
    assert answer["logit"] == pytest.approx(ranking.predict(model.tower, examples(9))["logit"], rel=1e-5)
    with pytest.raises(ValueError, match="only categories can be known in training alone"):
        train(arrays, (*FEATURES, FeatureSpec("duration_s", "continuous", training_only=True)))


def test_the_packed_inputs_give_the_scores_of_the_named_ones(trained, tmp_path):
    """What other systems ask by names and what serving asks are one ranker; a bundle of before has names alone."""
    ranking.save(trained, tmp_path)
    towers.save_signature(trained.tower, trained.tower.serve, str(tmp_path / "named"))
    packed, named = (ranking.load_ranker(tmp_path / name) for name in ("ranker", "named"))
    assert set(packed.module.signatures) == {"serving_default", "packed"}
    assert set(named.module.signatures) == {"serving_default"}
    for name, values in named(examples(30, seed=5)).items():
        assert packed(examples(30, seed=5))[name] == pytest.approx(values, rel=1e-5, abs=1e-6)


def test_without_powers_a_continuous_feature_enters_as_it_is():
    with_powers, plain = (train(examples(), powers=powers).tower for powers in (True, False))
    assert sum(with_powers.widths) - sum(plain.widths) == 2 * 2


def test_bfloat16_products_train_to_nearly_the_same_scores():
    rounded, exact = (train(examples(), matmul_dtype=dtype).tower for dtype in ("bfloat16", "float32"))
    found = ranking.predict(rounded, examples(50, seed=1))["logit"]
    assert found == pytest.approx(ranking.predict(exact, examples(50, seed=1))["logit"], abs=0.1)


def test_no_examples_is_an_error_that_says_so():
    with pytest.raises(InputError, match="there are no training examples"):
        train({name: array[:0] for name, array in examples().items()})


def id_weight(tower, feature, value):
    return tower.id_weights.table[tower.id_weights.begins[feature] + value - 1, 0]


def test_id_weights_are_nothing_at_first_and_then_what_is_added_to_the_logit():
    """Weights of one id in two inputs are two; a bag adds its known ids' mean, what is unknown adds 0."""
    model = train(examples(), id_weights=True, learning_rate=1e-9)
    tower = model.tower
    tower.id_weights.table.assign(tf.zeros_like(tower.id_weights.table))
    arrays = {name: np.repeat(array[:1], 3, axis=0) for name, array in examples().items()}
    arrays["video_id"] = np.array([7, 0, 7], np.int32)
    arrays["last_watched_video_id"] = np.array([0, 7, 7], np.int32)
    arrays["recent_watches"] = np.array([[0, 0, 0], [7, 0, 9], [0, 9, 0]], np.int32)
    before = ranking.predict(tower, arrays)["logit"]
    without = train(examples(), learning_rate=1e-9).tower
    assert before == pytest.approx(ranking.predict(without, arrays)["logit"], abs=1e-5)
    table = np.zeros(tower.id_weights.table.shape, np.float32)
    for feature, value, weight in (
        ("video_id", 7, 0.5), ("last_watched_video_id", 7, -2.0), ("recent_watches", 7, 4.0), ("recent_watches", 9, 1.0),
    ):  # fmt: skip
        table[tower.id_weights.begins[feature] + value - 1] = weight
    tower.id_weights.table.assign(table)
    added = ranking.predict(tower, arrays)["logit"] - before
    assert added == pytest.approx([0.5, -2.0 + (4.0 + 1.0) / 2, 0.5 - 2.0 + 1.0], abs=1e-5)


def test_an_id_that_training_did_not_show_keeps_no_weight_and_a_penalty_takes_the_others_back():
    arrays = examples()
    arrays["video_id"] = np.where(arrays["video_id"] == 7, 8, arrays["video_id"])
    free, held = (train(arrays, id_weights=True, l2=l2, epochs=3, patience=3).tower for l2 in (0.0, 1.0))
    assert float(id_weight(free, "video_id", 7)) == 0.0
    assert float(id_weight(free, "video_id", 8)) != 0.0
    norms = [float(tf.reduce_sum(tf.square(tower.id_weights.table))) for tower in (free, held)]
    assert norms[1] < norms[0] / 10


def test_the_penalty_is_half_of_l2_times_the_squares():
    model = train(examples(), id_weights=True, l2=0.0, nets=2)
    inputs = {name: tf.constant(array) for name, array in examples(20).items()}
    plain = float(model.compute_loss(inputs))
    model.l2 = 0.5
    kernels = [layer.kernel for net in model.tower.nets for layer in net]
    of_ids, *of_kernels = (
        float(np.square(one.numpy()).sum()) for one in (model.tower.id_weights.table, *kernels)
    )
    squares = of_ids + sum(of_kernels) / 2
    assert float(model.compute_loss(inputs)) == pytest.approx(plain + 0.25 * squares, rel=1e-5)


def test_spaces_with_few_examples_per_id_are_not_embedded():
    """200 examples of 30 videos: 6.7 each."""
    embedded, plain = (
        train(examples(), id_weights=True, rows_per_embedded_id=rows).tower for rows in (6.0, 7.0)
    )
    assert list(embedded.tables) == ["video"]
    assert list(plain.tables) == []
    assert plain.widths == [4, 4]
    assert embedded.widths == [4 + 2 * 5, 4 + 5]


def test_a_calibrated_ranker_serves_the_curve_and_the_same_logits(tmp_path):
    model = train(examples(), id_weights=True)
    before = ranking.predict(model.tower, examples(9))
    assert before["expected_watch_time_s"] == pytest.approx(10.0 * np.exp(before["logit"]), rel=1e-5)
    model.tower.calibrate(WatchTimeCurve((-20.0, 0.0, 20.0), (1.0, 5.0, 50.0)))
    ranking.save(model, tmp_path)
    answer = ranking.load_ranker(tmp_path / "ranker")(examples(9))
    assert answer["logit"] == pytest.approx(before["logit"], rel=1e-5)
    log_s = np.interp(before["logit"], [-20.0, 0.0, 20.0], np.log([1.0, 5.0, 50.0]))
    assert answer["expected_watch_time_s"] == pytest.approx(np.exp(log_s), rel=1e-4)


def test_networks_begin_apart_and_the_logit_is_the_mean_of_theirs(tmp_path):
    model = train(examples(), id_weights=True, nets=3)
    arrays = examples(9)
    alone = model.tower.logits_by_net({name: tf.constant(array) for name, array in arrays.items()}).numpy()
    assert alone.shape == (9, 3)
    assert np.abs(alone[:, 0] - alone[:, 1]).max() > 1e-3
    ranking.save(model, tmp_path)
    answer = ranking.load_ranker(tmp_path / "ranker")(arrays)
    assert answer["logit"] == pytest.approx(alone.mean(axis=1), rel=1e-4, abs=1e-5)


def test_a_network_among_others_learns_from_its_own_errors_alone():
    """Its gradient is that of its own loss, a third of it, whatever the other two say."""
    tower = train(examples(), nets=3).tower
    loss = ranking.RankingModel(
        tower, lambda logits, clicked, time: tf.reduce_sum(tf.square(logits))
    ).compute_loss
    inputs = {name: tf.constant(array) for name, array in examples(9).items()}
    bias = tower.nets[1][-1].bias
    with tf.GradientTape() as tape:
        value = loss(inputs)
    expected = 2 * float(tf.reduce_sum(tower.logits_by_net(inputs)[:, 1])) / 3
    assert float(tape.gradient(value, bias)[0]) == pytest.approx(expected, rel=1e-4)
