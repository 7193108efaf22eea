import math

import numpy as np
import pytest
import tensorflow as tf

from watchnext.errors import InputError
from watchnext.features.batches import FeatureSpec
from watchnext.models import retrieval, training
from watchnext.models.samplers import make_sampler

HISTORY = FeatureSpec("history", "multivalent", "video", 5)
TOKENS = FeatureSpec("search_tokens", "multivalent", "search_token", 4)
REGION = FeatureSpec("region", "categorical", "region")
AGE = FeatureSpec("example_age_s", "continuous")
ALL = (HISTORY, TOKENS, REGION, AGE)
SIZES = {"video": 12, "search_token": 6, "region": 3}


def examples(rows=64, seed=0, videos=12):
    rng = np.random.default_rng(seed)
    return {
        "history": rng.integers(0, videos + 1, (rows, 5)).astype(np.int32),
        "search_tokens": rng.integers(0, 7, (rows, 4)).astype(np.int32),
        "region": rng.integers(0, 4, rows).astype(np.int32),
        "example_age_s": rng.uniform(0, 1e6, rows).astype(np.float32),
        "label": rng.integers(1, videos + 1, rows).astype(np.int32),
    }


def train(arrays, features=ALL, sizes=None, **overrides):
    settings = {
        "embedding_dim": 4,
        "depth": 2,
        "watch_dropout": 0.2,
        "batch_size": 16,
        "negatives": 8,
        "learning_rate": 0.05,
        "epochs": 2,
        "patience": 1,
        "seed": 3,
        "evaluate": lambda model: {},
    } | overrides
    training.start(settings["seed"], deterministic=True)
    return retrieval.train(arrays, features, vocabulary_sizes=sizes or SIZES, **settings)[0]


@pytest.fixture(scope="module")
def trained():
    return train(examples())


@pytest.mark.parametrize("in_batch", [True, False])
def test_the_model_trains_the_corrected_softmax_over_batch_labels_and_shared_draws(monkeypatch, in_batch):
    """Against the definition in NumPy: e^s / Q summed over what was drawn, hits and the user's own watches left out.

    Fails without the correction, with its sign reversed, with Q lacking either term, and with a summed loss.
    """
    tower = retrieval.QueryTower(
        ALL, vocabulary_sizes=SIZES, embedding_dim=4, depth=1, longest_example_age_s=1e6
    )
    frequency = np.arange(1, 13)
    model = retrieval.RetrievalModel(
        tower,
        make_sampler("uniform", num_candidates=12, label_frequency=frequency, alpha=0.0),
        label_frequency=frequency,
        batch_size=6,
        negatives=4,
        in_batch_negatives=in_batch,
    )
    drawn = np.array([0, 3, 3, 11])
    monkeypatch.setattr(model.sampler, "draw", lambda num, unique: tf.constant(drawn, tf.int32))
    batch = examples(6)
    batch["label"] = np.array([1, 1, 4, 9, 12, 2], np.int32)
    batch["user"] = np.array([5, 6, 5, 7, 8, 9], np.int64)
    loss = float(model.compute_loss({name: tf.constant(array) for name, array in batch.items()}))

    labels = batch["label"] - 1
    counts = 4 / 12 + (5 * frequency / frequency.sum() if in_batch else np.zeros(12))
    scores = retrieval.embed_queries(tower, batch) @ model.candidate_embeddings.numpy().T
    losses = []
    for row, label in enumerate(labels):
        others = [labels[i] for i in range(6) if batch["user"][i] != batch["user"][row]] if in_batch else []
        kept = [candidate for candidate in [*others, *drawn] if candidate != label]
        total = np.exp(scores[row, label]) + (np.exp(scores[row, kept]) / counts[kept]).sum()
        losses.append(math.log(total) - scores[row, label])
    assert loss == pytest.approx(np.mean(losses), rel=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"pooling": "sum"},
        {"pooling": "max"},
        {"sampler": "log_uniform", "unique_negatives": True},
        {"sampler": "uniform", "in_batch_negatives": False},
        {"estimator": "tfrs"},
        {"averaged_passes": 3.0},
        {"head": "linear", "shown_dropout": 0.5},
        {"head": "linear", "depth": 0, "matmul_dtype": "bfloat16"},
        {"negatives": 100},  # more than there are candidates
        {"batch_size": 1000},  # more than there are examples
    ],
)
def test_every_setting_trains(settings):
    model = train(examples(), **settings)
    assert np.isfinite(model.candidate_embeddings.numpy()).all()
    assert np.isfinite(retrieval.embed_queries(model.query_tower, examples(5, seed=2))).all()


def test_an_unknown_number_says_that_it_is_unknown_and_a_known_0_does_not():
    features = (FeatureSpec("age", "unit"),)
    tower = retrieval.QueryTower(
        features, vocabulary_sizes={}, embedding_dim=3, depth=0, longest_example_age_s=1.0
    )
    embedded = retrieval.embed_queries(tower, {"age": np.array([np.nan, 0.0, 0.5, 1.0], np.float32)})
    assert np.isfinite(embedded).all()
    assert not np.allclose(embedded[0], embedded[1])
    assert embedded[2] == pytest.approx((embedded[1] + embedded[3]) / 2, abs=1e-6)


def test_the_example_age_that_is_served_is_a_setting():
    arrays = examples(4) | {"example_age_s": np.zeros(4, np.float32)}
    tower = retrieval.QueryTower(
        ALL, vocabulary_sizes=SIZES, embedding_dim=4, depth=0, longest_example_age_s=1e5,
        serving_example_age_s=-3600.0,
    )  # fmt: skip
    earlier = tower(
        {name: tf.constant(array) for name, array in arrays.items()}
        | {"example_age_s": tf.fill([4], -3600.0)}
    )
    assert retrieval.embed_queries(tower, arrays) == pytest.approx(earlier.numpy(), abs=1e-6)


def test_equal_seeds_give_equal_weights_and_other_seeds_other_ones():
    digests = [training.weights_digest(train(examples(), seed=seed).weights) for seed in (3, 3, 4)]
    assert digests[0] == digests[1] != digests[2]


def test_the_averages_reach_the_model():
    raw, averaged = (train(examples(), averaged_passes=passes).weights for passes in (0.0, 3.0))
    assert training.weights_digest(raw) != training.weights_digest(averaged)


def test_a_model_told_which_labels_were_not_watched_recommends_what_is(tmp_path):
    """Everybody watches videos 1 to 4, and is shown 9 to 12, twice as often, without watching them.

    Seen to fail where the mark does not reach the tower, and where what is served is the model of unwatched labels.
    """
    arrays = examples(600)
    unwatched = np.arange(600) % 3 > 0
    arrays["label"] = (arrays["label"] % 4 + np.where(unwatched, 9, 1)).astype(np.int32)
    examples_of = {"told": arrays | {"unwatched_label": unwatched.astype(np.float32)}, "not told": arrays}
    watched_share = {}
    for name, told in examples_of.items():
        model = train(told, epochs=20)
        retrieval.save(model, tmp_path / name)
        queries = retrieval.load_query_tower(tmp_path / name / "query_tower")(examples(50, seed=2))
        odds = np.exp(queries @ model.candidate_embeddings.numpy().T)
        watched_share[name] = float((odds[:, :4].sum(axis=1) / odds.sum(axis=1)).mean())
    assert watched_share["told"] > 0.9
    assert watched_share["not told"] == pytest.approx(1 / 3, abs=0.1)


def test_unknown_ids_and_padding_change_nothing(trained):
    tower = trained.query_tower
    batch = examples(3)
    padded = batch | {"history": np.pad(batch["history"], ((0, 0), (2, 7)))}
    assert retrieval.embed_queries(tower, padded) == pytest.approx(
        retrieval.embed_queries(tower, batch), abs=1e-6
    )


def test_dropout_is_for_training_alone(trained):
    batch = {name: tf.constant(array) for name, array in examples(8).items()}
    tower = trained.query_tower
    assert np.array_equal(tower(batch).numpy(), tower(batch).numpy())
    assert not np.array_equal(tower(batch, training=True).numpy(), tower(batch).numpy())


def test_inputs_that_the_logs_lack_are_absent_from_the_model(tmp_path):
    model = train(examples(), (HISTORY,))
    retrieval.save(model, tmp_path)
    loaded = retrieval.load_query_tower(tmp_path / "query_tower")
    assert loaded({"history": examples(2)["history"]}).shape == (2, 4)


def test_a_saved_tower_answers_alike_for_many_rows_and_for_one(tmp_path, trained):
    model = trained
    retrieval.save(model, tmp_path)
    loaded = retrieval.load_query_tower(tmp_path / "query_tower")
    batch = examples(5)
    expected = retrieval.embed_queries(model.query_tower, batch)
    assert loaded(batch) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    one = loaded({name: array[:1] for name, array in batch.items()})
    assert one == pytest.approx(expected[:1], rel=1e-5, abs=1e-6)
    candidates = np.load(tmp_path / "candidate_embeddings.npy", allow_pickle=False)
    assert candidates.shape == (12, 4)
    assert candidates.dtype == np.float32


def test_a_user_of_whom_nothing_is_known_gets_a_finite_embedding(trained):
    empty = {name: np.zeros_like(array[:1]) for name, array in examples(1).items()}
    embedding = retrieval.embed_queries(trained.query_tower, empty)
    assert np.isfinite(embedding).all()


@pytest.mark.parametrize(("depth", "is_linear"), [(0, True), (2, False)])
def test_depth_0_is_linear(depth, is_linear):
    """f({1,2}) + f({3,4}) = f({1,3}) + f({2,4}) holds without ReLU layers, and not with them."""
    tf.keras.utils.set_random_seed(5)
    tower = retrieval.QueryTower(
        (HISTORY,), vocabulary_sizes=SIZES, embedding_dim=4, depth=depth, longest_example_age_s=1.0
    )
    embedded = tower({"history": tf.constant([[1, 2], [3, 4], [1, 3], [2, 4]])}).numpy()
    equal = np.allclose(embedded[0] + embedded[1], embedded[2] + embedded[3], atol=1e-5)
    assert equal == is_linear


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_linear_head_has_a_bias_per_video_and_components_of_either_sign(depth):
    """Untrained, the bias orders videos by how often they are labels; the ReLU head has no component below 0."""
    frequency = np.array([5, 0, 90, 30, 1, 1, 1, 1, 1, 1, 1, 1])

    def model(head):
        tf.keras.utils.set_random_seed(5)
        tower = retrieval.QueryTower(
            ALL, vocabulary_sizes=SIZES, embedding_dim=8, depth=depth, longest_example_age_s=1e6, head=head
        )
        sampler = make_sampler("uniform", num_candidates=12, label_frequency=frequency, alpha=0.0)
        built = retrieval.RetrievalModel(tower, sampler, label_frequency=frequency, batch_size=6, negatives=4)
        return retrieval.embed_queries(tower, examples()), built.candidate_embeddings.numpy()

    queries, candidates = model("linear")
    assert queries.shape == (64, 8)
    assert candidates.shape == (12, 8)
    assert (queries[:, -1] == 1.0).all()
    assert candidates[[2, 3, 0], -1] - candidates[1, -1] == pytest.approx(np.log([91, 31, 6]), rel=1e-5)
    assert (queries[:, :-1] < 0).any()
    relu, _ = model("relu")
    assert (relu.min() >= 0) == (depth > 0)


def test_shown_videos_drop_out_in_training_alone_and_only_where_asked():
    features = (HISTORY, FeatureSpec("shown_unwatched", "multivalent", "video", 5))
    bags = tf.constant(np.tile(np.arange(1, 6, dtype=np.int32), (200, 1)))
    empty = tf.zeros_like(bags)

    def kinds(dropout, training):
        tf.keras.utils.set_random_seed(5)
        tower = retrieval.QueryTower(
            features, vocabulary_sizes=SIZES, embedding_dim=4, depth=0, longest_example_age_s=1.0,
            watch_dropout=0.5, shown_dropout=dropout,
        )  # fmt: skip
        embedded = tower({"history": empty, "shown_unwatched": bags}, training=training).numpy()
        return len(np.unique(np.round(embedded, 5), axis=0))

    assert 10 < kinds(0.5, True) <= 32
    assert kinds(0.0, True) == kinds(0.5, False) == 1


def test_a_vocabulary_of_one_video_trains():
    model = train(examples(videos=1), sizes=SIZES | {"video": 1})
    assert model.candidate_embeddings.shape == (1, 4)
    assert np.isfinite(model.candidate_embeddings.numpy()).all()


@pytest.mark.parametrize("unique_negatives", [False, True])
@pytest.mark.parametrize("videos", [1, 12])
def test_more_negatives_than_videos_train(videos, unique_negatives):
    """500 draws from 12 classes, and from one: every candidate comes many times, or all come once."""
    model = train(
        examples(videos=videos),
        sizes=SIZES | {"video": videos},
        negatives=500,
        unique_negatives=unique_negatives,
    )
    assert model.candidate_embeddings.shape == (videos, 4)
    assert np.isfinite(model.candidate_embeddings.numpy()).all()


def test_examples_without_history_and_of_unknown_videos_train():
    """Bags of zeros alone: what a user without history, and one who watched unknown videos alone, look like."""
    arrays = examples()
    for name in ("history", "search_tokens"):
        arrays[name][:] = 0
    assert training.all_finite(train(arrays).weights)


def test_no_examples_is_an_error_that_says_so():
    with pytest.raises(InputError, match="there are no training examples"):
        train({name: array[:0] for name, array in examples().items()})


def test_labels_outside_the_vocabulary_are_named():
    arrays = examples()
    arrays["label"][7] = 13
    with pytest.raises(InputError, match=r"1\.\.12") as caught:
        train(arrays)
    assert "13" in str(caught.value)


def test_a_training_that_diverges_stops_with_an_error():
    with pytest.raises(InputError, match=r"the training loss became (nan|inf)"):
        train(examples(), learning_rate=1e38, epochs=5, patience=5)


def test_a_tower_needs_inputs_and_no_continuous_ones_but_the_age():
    for features in ((), (HISTORY, FeatureSpec("duration_s", "continuous"))):
        with pytest.raises(ValueError, match="inputs"):
            train(examples(), features)
