import itertools
import math

import numpy as np
import pytest
import tensorflow as tf

from watchnext.models.losses import expected_watch_time_s, sampled_softmax_loss, weighted_logistic_loss
from watchnext.models.samplers import expected_candidate_count, make_sampler


def loss_of(logits, clicked, watch_time_s, unit_s=1.0, cap_s=1e9, odds="unclicked"):
    return float(
        weighted_logistic_loss(
            tf.constant(logits, tf.float32),
            tf.constant(clicked, tf.float32),
            tf.constant(watch_time_s, tf.float32),
            unit_s=unit_s,
            cap_s=cap_s,
            odds=odds,
        )
    )


def test_clicks_weigh_their_watch_time_in_units_and_the_sum_is_divided_by_the_count_of_impressions():
    expected = ((30 / 10) * math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(2.0))) / 2
    assert loss_of([0.5, 2.0], [1.0, 0.0], [30.0, 0.0], unit_s=10.0) == pytest.approx(expected, rel=1e-6)


def test_watch_time_counts_up_to_the_cap():
    assert loss_of([0.5], [1.0], [500.0], cap_s=100.0) == loss_of([0.5], [1.0], [100.0], cap_s=100.0)
    assert loss_of([0.5], [1.0], [99.0], cap_s=100.0) < loss_of([0.5], [1.0], [100.0], cap_s=100.0)


def test_watch_time_without_a_click_is_ignored_and_a_click_without_watch_time_weighs_nothing():
    assert loss_of([0.7], [0.0], [50.0]) == loss_of([0.7], [0.0], [0.0])
    assert loss_of([0.7, -1.0], [0.0, 1.0], [0.0, 0.0]) == pytest.approx(loss_of([0.7], [0.0], [0.0]) / 2)


def test_the_minimum_lies_where_the_odds_are_watch_time_over_unclicked_impressions():
    """sum(T) / (N - k) = (20 + 40) / (5 - 2), in units of 10 s: the gradient vanishes there and nowhere near."""
    clicked, time = [1.0, 1.0, 0.0, 0.0, 0.0], [20.0, 40.0, 0.0, 0.0, 0.0]
    at = math.log((20 + 40) / 10 / (5 - 2))
    least = loss_of([at] * 5, clicked, time, unit_s=10.0)
    assert loss_of([at + 0.05] * 5, clicked, time, unit_s=10.0) > least
    assert loss_of([at - 0.05] * 5, clicked, time, unit_s=10.0) > least
    assert float(expected_watch_time_s(tf.constant(at), unit_s=10.0)) == pytest.approx(60 / 3, rel=1e-5)


def test_with_every_impression_a_unit_negative_the_minimum_is_the_mean_watch_time():
    """(20 + 40) / 5 s, where three of five were clicked, one of them without watch time."""
    clicked, time = [1.0, 1.0, 1.0, 0.0, 0.0], [20.0, 40.0, 0.0, 0.0, 0.0]
    at = math.log((20 + 40) / 10 / 5)
    least = loss_of([at] * 5, clicked, time, unit_s=10.0, odds="impressions")
    for away in (0.05, -0.05):
        assert loss_of([at + away] * 5, clicked, time, unit_s=10.0, odds="impressions") > least
    expected = (
        3.0 * math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(0.5)) + math.log(1 + math.exp(2))
    ) / 2
    assert loss_of([0.5, 2.0], [1.0, 0.0], [30.0, 0.0], unit_s=10.0, odds="impressions") == pytest.approx(
        expected, rel=1e-6
    )


def test_the_gradient_of_a_logit_is_bounded_by_its_weight():
    logits = tf.constant([80.0, -80.0, 0.0])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = weighted_logistic_loss(
            logits,
            tf.constant([0.0, 1.0, 1.0]),
            tf.constant([0.0, 500.0, 3.0]),
            unit_s=10.0,
            cap_s=100.0,
            odds="impressions",
        )
    assert tape.gradient(loss, logits).numpy() == pytest.approx(
        np.array([1.0, -10.0, 0.5 - 0.15]) / 3, rel=1e-5
    )


def test_huge_logits_stay_finite():
    assert math.isfinite(loss_of([1e4, -1e4], [0.0, 1.0], [0.0, 100.0]))


def test_a_wrong_shape_is_refused_where_it_enters():
    with pytest.raises(ValueError, match=r"shape|rank"):
        loss_of([[0.0], [1.0]], [0.0, 1.0], [0.0, 1.0])


# ---- the sampled softmax ---------------------------------------------------------------------------------------


def sampled_loss(logits, labels, drawn, count, users=None, **settings):
    """Losses where query i scores candidate j with logits[i][j]: candidate embeddings are unit vectors."""
    logits, count = np.asarray(logits, np.float32), np.asarray(count, np.float64)
    unit = np.eye(logits.shape[1], dtype=np.float32)
    labels, drawn = np.asarray(labels, np.int32), np.asarray(drawn, np.int32)
    return sampled_softmax_loss(
        tf.constant(logits),
        tf.constant(unit[labels]),
        tf.constant(unit[drawn].reshape(-1, logits.shape[1])),
        positive_ids=tf.constant(labels),
        negative_ids=tf.constant(drawn),
        log_expected_count_of_positives=tf.constant(np.log(count[labels]), tf.float32),
        log_expected_count_of_negatives=tf.constant(np.log(count[drawn]), tf.float32),
        user_ids=None if users is None else tf.constant(users),
        **settings,
    ).numpy()


SCORES = [[0.5, 1.0, -1.0, 0.2], [2.0, 0.1, 0.3, -0.4]]
COUNT = [0.5, 2.0, 0.25, 4.0]


def test_consistent_estimator_by_hand():
    """Labels 1 and 0, draws 2, 2 and 1; the draw of 1 is an accidental hit of the first example alone."""
    first = math.exp(1.0) + math.exp(0.5) / 0.5 + 2 * math.exp(-1.0) / 0.25
    second = math.exp(2.0) + math.exp(0.1) / 2.0 + 2 * math.exp(0.3) / 0.25 + math.exp(0.1) / 2.0
    expected = [math.log(first) - 1.0, math.log(second) - 2.0]
    assert sampled_loss(SCORES, [1, 0], [2, 2, 1], COUNT) == pytest.approx(expected, rel=1e-5)


def test_tfrs_estimator_by_hand():
    first = math.exp(1.0) / 2.0 + math.exp(0.5) / 0.5 + math.exp(-1.0) / 0.25
    second = math.exp(2.0) / 0.5 + math.exp(0.1) / 2.0 + math.exp(0.3) / 0.25
    expected = [
        math.log(first) - math.log(math.exp(1.0) / 2.0),
        math.log(second) - math.log(math.exp(2.0) / 0.5),
    ]
    actual = sampled_loss(SCORES, [1, 0], [2], COUNT, estimator="tfrs")
    assert actual == pytest.approx(expected, rel=1e-5)


def test_without_the_batch_its_labels_are_no_negatives():
    expected = [
        math.log(math.exp(1.0) + math.exp(0.2) / 4.0) - 1.0,
        math.log(math.exp(2.0) + math.exp(-0.4) / 4.0) - 2.0,
    ]
    assert sampled_loss(SCORES, [1, 0], [3], COUNT, in_batch=False) == pytest.approx(expected, rel=1e-5)


def test_a_watch_of_a_user_is_no_negative_of_another_watch_of_the_same_user():
    """Fails where only equal ids are left out."""
    apart = sampled_loss(SCORES, [1, 0], [3], COUNT, users=[7, 8])
    together = sampled_loss(SCORES, [1, 0], [3], COUNT, users=[7, 7])
    assert apart == pytest.approx(sampled_loss(SCORES, [1, 0], [3], COUNT), rel=1e-6)
    assert together == pytest.approx(sampled_loss(SCORES, [1, 0], [3], COUNT, in_batch=False), rel=1e-6)


def test_tfrs_estimator_is_what_the_task_of_tfrs_computes():
    rng = np.random.default_rng(4)
    queries, candidates = rng.normal(size=(5, 3)), rng.normal(size=(9, 3))
    labels, drawn = np.array([0, 3, 3, 8, 1]), np.array([2, 3, 7, 7, 0, 5])
    count = rng.uniform(0.01, 1.0, 9)
    pool = np.r_[labels, drawn]
    import tensorflow_recommenders as tfrs  # After watchnext, which asks for Keras 2.

    expected = tfrs.tasks.Retrieval(remove_accidental_hits=True)(
        tf.constant(queries, tf.float32),
        tf.constant(candidates[pool], tf.float32),
        candidate_sampling_probability=tf.constant(count[pool], tf.float32),
        candidate_ids=tf.constant(pool),
        compute_metrics=False,
    )
    actual = sampled_loss(queries @ candidates.T, labels, drawn, count, estimator="tfrs")
    assert actual.sum() == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("estimator", ["consistent", "tfrs"])
def test_expected_counts_below_a_millionth_are_taken_as_they_are(estimator):
    """Fails with Q clipped to [1e-6, 1]: the draw would weigh e^0 / 1e-6, and not a thousand times that."""
    count = [0.5, 1e-9, 1.0]
    own = 1.0 if estimator == "consistent" else 1.0 / 0.5
    expected = math.log(own + 1.0 / 1e-9) - math.log(own)
    actual = sampled_loss([[0.0, 0.0, 0.0]], [0], [1], count, estimator=estimator)
    assert actual == pytest.approx([expected], rel=1e-5)


def full_gradient(scores, label):
    share = np.exp(scores) / np.exp(scores).sum()
    return share - np.eye(len(scores))[label]


def expected_gradient(scores, label, q, num, estimator):
    """The exact expectation of the gradient over `num` draws from q, by enumeration of how often each is drawn."""
    total = np.zeros(len(scores))
    for parts in itertools.product(range(num + 1), repeat=len(scores) - 1):
        if sum(parts) > num:
            continue
        counts = [*parts, num - sum(parts)]
        log_weight = math.lgamma(num + 1) + sum(
            times * math.log(share) - math.lgamma(times + 1) for times, share in zip(counts, q, strict=True)
        )
        drawn = np.repeat(np.arange(len(scores)), counts)
        logits = tf.constant([scores], tf.float32)
        unit = np.eye(len(scores), dtype=np.float32)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = sampled_softmax_loss(
                logits,
                tf.constant(unit[[label]]),
                tf.constant(unit[drawn]),
                positive_ids=tf.constant([label], tf.int32),
                negative_ids=tf.constant(drawn, tf.int32),
                log_expected_count_of_positives=tf.constant([math.log(num * q[label])], tf.float32),
                log_expected_count_of_negatives=tf.constant(np.log(num * np.asarray(q))[drawn], tf.float32),
                estimator=estimator,
                in_batch=False,
            )
        total += math.exp(log_weight) * tape.gradient(loss, logits).numpy()[0]
    return total


def test_the_bias_of_the_consistent_estimator_falls_as_one_over_the_draws_and_that_of_tfrs_stays():
    """Against the full softmax's gradient, in exact expectation. Fails if the positive is corrected, too."""
    scores, label, q = np.array([1.5, 0.0, -0.5]), 0, [0.2, 0.3, 0.5]
    exact = full_gradient(scores, label)

    def bias(num, estimator):
        return np.abs(expected_gradient(scores, label, q, num, estimator) - exact).sum()

    consistent = [bias(num, "consistent") for num in (8, 16, 32)]
    assert consistent[0] / consistent[1] == pytest.approx(2.0, abs=0.25)
    assert consistent[1] / consistent[2] == pytest.approx(2.0, abs=0.15)
    corrected_too = [bias(num, "tfrs") for num in (8, 32)]
    assert corrected_too[1] > 0.9 * corrected_too[0]
    assert corrected_too[1] > 10 * consistent[2]


CROWDED = {"corpus": 5, "batch": 48, "num": 24, "groups": 2}
"""Every candidate is drawn several times a step: expected counts are above 1."""

SPARSE = {"corpus": 40, "batch": 6, "num": 3, "groups": 24}
"""A candidate is seldom drawn, as in a real corpus."""


def learned_error(estimator, size, distort=lambda log_count, shared: log_count):
    """Train a table of scores on labels drawn from a known P(i|u); the largest |log softmax - log P|, users and videos.

    `distort` sees log Q and the expected count of the shared draws alone, and gives what the loss gets as log Q.
    """
    rng = np.random.default_rng(0)
    corpus, batch, num, groups = size["corpus"], size["batch"], size["num"], size["groups"]
    true = np.exp(rng.uniform(-1.3, 1.3, (2, corpus)))
    true /= true.sum(axis=1, keepdims=True)
    frequency = 1000 * true.mean(axis=0)
    sampler = make_sampler("frequency", num_candidates=corpus, label_frequency=frequency, alpha=0.5)
    count = expected_candidate_count(
        sampler, frequency, num_negatives=num, unique=False, batch_size=batch, in_batch=True
    )
    log_count = tf.constant(distort(np.log(count), sampler.expected_count(num, False)), tf.float32)
    scores = tf.Variable(tf.zeros([2, corpus]))
    log_true = tf.constant(np.log(np.tile(true, (groups * batch // 2, 1))), tf.float32)
    users = tf.constant(np.tile([0, 1], groups * batch // 2), tf.int32)

    @tf.function
    def step(rate):
        labels = tf.random.categorical(log_true, 1, dtype=tf.int32)[:, 0]
        losses = []
        with tf.GradientTape() as tape:
            for part in range(groups):
                own = labels[part * batch : (part + 1) * batch]
                drawn = sampler.draw(num, False)
                losses.append(
                    sampled_softmax_loss(
                        tf.gather(scores, users[part * batch : (part + 1) * batch]),
                        tf.one_hot(own, corpus),
                        tf.one_hot(drawn, corpus),
                        positive_ids=own,
                        negative_ids=drawn,
                        log_expected_count_of_positives=tf.gather(log_count, own),
                        log_expected_count_of_negatives=tf.gather(log_count, drawn),
                        estimator=estimator,
                    )
                )
            loss = tf.reduce_mean(losses)
        gradient = tf.convert_to_tensor(tape.gradient(loss, scores))
        scores.assign_sub(rate * gradient)

    tf.keras.utils.set_random_seed(7)
    total, kept = np.zeros((2, corpus)), 0
    for number in range(1600):
        step(tf.constant(0.4 * corpus if number < 400 else 0.1 * corpus))
        if number >= 600:
            total += tf.nn.log_softmax(scores).numpy()
            kept += 1
    return np.abs(total / kept - np.log(true)).max()


@pytest.mark.parametrize(
    ("estimator", "size", "most"), [("consistent", CROWDED, 0.06), ("tfrs", SPARSE, 0.2)]
)
def test_a_known_distribution_of_labels_is_recovered(estimator, size, most):
    """In log probability. Each where it is at home: the form of TFRS is 0.7 off where everything is drawn often,
    the consistent one 0.24 where a handful of draws stands for the corpus."""
    assert 0.0 <= learned_error(estimator, size) < most


@pytest.mark.parametrize(
    ("estimator", "size", "least", "distort"),
    [
        pytest.param("tfrs", SPARSE, 0.35, lambda log_count, shared: -log_count, id="sign reversed"),
        pytest.param(
            "tfrs", SPARSE, 0.35, lambda log_count, shared: np.log(shared), id="tfrs: no term of the batch"
        ),
        pytest.param(
            "consistent", CROWDED, 0.12, lambda log_count, shared: np.log(shared), id="no term of the batch"
        ),
        pytest.param(
            "consistent",
            CROWDED,
            0.4,
            lambda log_count, shared: np.minimum(log_count, 0.0),
            id="clipped at 1",
        ),
    ],
)
def test_a_wrong_correction_recovers_something_else(estimator, size, least, distort):
    """The mutants of the test above."""
    assert least < learned_error(estimator, size, distort) < 10.0


def plain_loss(queries, positives, negatives, labels, drawn, log_count, users, estimator, in_batch):
    """The equations of `sampled_softmax_loss` word by word, every pair of ids compared; gradients by TensorFlow."""
    own = tf.reduce_sum(queries * positives, axis=1)
    if estimator == "tfrs":
        own -= tf.gather(log_count, labels)
    parts = [
        tf.where(
            labels[:, tf.newaxis] == drawn,
            -np.inf,
            tf.matmul(queries, negatives, transpose_b=True) - tf.gather(log_count, drawn),
        )
    ]
    if in_batch:
        left_out = labels[:, tf.newaxis] == labels
        if users is not None:
            left_out |= users[:, tf.newaxis] == users
        others = tf.matmul(queries, positives, transpose_b=True) - tf.gather(log_count, labels)
        parts.append(tf.where(left_out, -np.inf, others))
    return tf.reduce_logsumexp(tf.concat([own[:, tf.newaxis], *parts], axis=1), axis=1) - own


def loss_and_gradients(matmul_dtype, *, estimator, in_batch, with_users, corpus=30, dim=6):
    """Of 40 examples and 25 draws: labels repeat, draws repeat and hit labels, users come several times.

    Returns:
        [losses, gradients of queries, positives, negatives]; of `plain_loss` with matmul_dtype None.
    """
    rng = np.random.default_rng(11)
    labels = tf.constant(rng.integers(0, corpus, 40), tf.int32)
    drawn = tf.constant(rng.integers(0, corpus, 25), tf.int32)
    users = tf.constant(rng.integers(0, 15, 40), tf.int64) if with_users else None
    log_count = tf.constant(rng.normal(-2.0, 2.0, corpus), tf.float32)
    queries, positives, negatives = (
        tf.constant(rng.normal(size=(rows, dim)), tf.float32) for rows in (40, 40, 25)
    )
    weights = tf.constant(rng.uniform(0.2, 2.0, 40), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch([queries, positives, negatives])
        if matmul_dtype is None:
            losses = plain_loss(
                queries, positives, negatives, labels, drawn, log_count, users, estimator, in_batch
            )
        else:
            losses = sampled_softmax_loss(
                queries,
                positives,
                negatives,
                positive_ids=labels,
                negative_ids=drawn,
                log_expected_count_of_positives=tf.gather(log_count, labels),
                log_expected_count_of_negatives=tf.gather(log_count, drawn),
                user_ids=users,
                estimator=estimator,
                in_batch=in_batch,
                matmul_dtype=matmul_dtype,
            )
        total = tf.reduce_sum(weights * losses)
    gradients = tape.gradient(total, [queries, positives, negatives])
    return [losses.numpy(), *(gradient.numpy() for gradient in gradients)]


CASES = [
    {"estimator": estimator, "in_batch": in_batch, "with_users": with_users}
    for estimator in ("consistent", "tfrs")
    for in_batch, with_users in ((True, False), (True, True), (False, False))
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_losses_and_gradients_are_those_of_the_plain_equations(case):
    """Fails where the positive's share is left out of the gradient, a label's draws by others are, or users are."""
    for actual, expected in zip(
        loss_and_gradients(tf.float32, **case), loss_and_gradients(None, **case), strict=True
    ):
        assert np.abs(expected).max() > 0.1
        assert actual == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_bfloat16_rounds_losses_and_gradients_by_less_than_two_percent(case):
    """Fails where the positive's logit is rounded beside large ones, and where all stays float32."""
    for actual, expected in zip(
        loss_and_gradients(tf.bfloat16, **case), loss_and_gradients(None, **case), strict=True
    ):
        error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
        assert 1e-5 < error < 0.02


@pytest.mark.parametrize(("positive", "log_count"), [([0.0, 0.0], 100.25), ([100.0, 1.0], 0.0)])
def test_what_bfloat16_cannot_hold_still_cancels_in_full(positive, log_count):
    """A draw of logit 100.25 beside log Q = 100.25, or beside the positive's 100.25: a share of one half. Bfloat16 knows 100
    and 100.5. Fails where either is rounded before it is subtracted."""
    actual = sampled_softmax_loss(
        tf.constant([[1.0, 0.25]]),
        tf.constant([positive]),
        tf.constant([[100.0, 1.0]]),
        positive_ids=tf.constant([0]),
        negative_ids=tf.constant([1]),
        log_expected_count_of_positives=tf.constant([0.0]),
        log_expected_count_of_negatives=tf.constant([log_count]),
        in_batch=False,
        matmul_dtype=tf.bfloat16,
    )
    assert actual.numpy() == pytest.approx([math.log(2.0)], abs=1e-3)


def test_a_loss_beyond_float32_is_large_and_no_infinity():
    """The gradient still points the right way: training may recover."""
    assert sampled_loss([[0.0, 200.0]], [0], [1], [1.0, 1.0])[0] == pytest.approx(87.3, abs=0.1)
