import math

import numpy as np
import pytest
import tensorflow as tf

from watchnext.models.samplers import Sampler, expected_candidate_count, make_sampler

FREQUENCY = np.array([8, 4, 1, 0])


def sampler(kind, alpha=0.5):
    return make_sampler(kind, num_candidates=4, label_frequency=FREQUENCY, alpha=alpha)


def test_distributions_by_hand():
    assert sampler("uniform").probability == pytest.approx([0.25] * 4)
    log_uniform = [math.log(2 / 1), math.log(3 / 2), math.log(4 / 3), math.log(5 / 4)]
    assert sampler("log_uniform").probability == pytest.approx(np.array(log_uniform) / math.log(5))
    roots = np.array([math.sqrt(8), 2.0, 1.0, 1.0])
    assert sampler("frequency").probability == pytest.approx(roots / roots.sum())


def test_exponents_0_and_1_are_uniform_and_as_often_as_labels():
    assert sampler("frequency", 0.0).probability == pytest.approx(sampler("uniform").probability)
    assert sampler("frequency", 1.0).probability == pytest.approx(np.array([8, 4, 1, 1]) / 14)


@pytest.mark.parametrize("kind", ["uniform", "log_uniform", "frequency"])
@pytest.mark.parametrize("unique", [False, True])
def test_draws_come_as_often_as_expected(kind, unique):
    """Two-sided: five standard deviations of 3,000 repetitions. Fails if distinct draws are counted as S q."""
    tf.keras.utils.set_random_seed(1)
    one = sampler(kind)
    draw = tf.function(
        lambda: one.draw(6, unique)
    )  # in a graph, as training draws, which is many times quicker
    counts = sum(np.bincount(draw().numpy(), minlength=4) for _ in range(3000)) / 3000
    assert counts == pytest.approx(one.expected_count(6, unique), abs=5 * math.sqrt(6 / 3000))


def test_distinct_draws_are_distinct():
    drawn = sampler("uniform").draw(50, True).numpy()
    assert sorted(drawn) == sorted(set(drawn))
    assert len(drawn) <= 4


def test_what_has_no_probability_is_never_drawn_even_at_the_ends():
    drawn = Sampler(np.array([0.0, 1.0, 0.0, 3.0, 0.0])).draw(2000, False).numpy()
    assert set(drawn.tolist()) == {1, 3}


def test_rare_candidates_of_a_large_corpus_keep_their_share():
    """Fails with sums in single precision, in which a share of 1e-8 of the upper half is rounded away."""
    probability = np.full(1_000_001, 1e-9)
    probability[0] = 1.0
    tf.keras.utils.set_random_seed(2)
    drawn = Sampler(probability).draw(1_000_000, False).numpy()
    upper = (drawn > 500_000).sum()
    assert 400 <= upper <= 600


def test_expected_count_by_hand():
    """S = 10 draws and 4 other labels: 10 q + 4 p; distinct draws are counted by their probability to be included."""
    settings = {"num_negatives": 10, "batch_size": 5, "in_batch": True}
    mixed = expected_candidate_count(sampler("uniform"), FREQUENCY, unique=False, **settings)
    assert mixed == pytest.approx([2.5 + 4 * 8 / 13, 2.5 + 4 * 4 / 13, 2.5 + 4 * 1 / 13, 2.5])
    distinct = expected_candidate_count(sampler("uniform"), FREQUENCY, unique=True, **settings)
    assert distinct[3] == pytest.approx(1 - 0.75**10)
    alone = expected_candidate_count(
        sampler("uniform"), FREQUENCY, unique=False, num_negatives=10, batch_size=5, in_batch=False
    )
    assert alone == pytest.approx([2.5] * 4)


def test_senseless_distributions_are_refused():
    for bad in ([], [0.0, 0.0], [1.0, -0.1], [float("nan")], [[1.0]]):
        with pytest.raises(ValueError, match="number per candidate"):
            Sampler(np.array(bad))
    with pytest.raises(ValueError, match="no labels"):
        expected_candidate_count(
            sampler("uniform"), np.zeros(4), unique=False, num_negatives=1, batch_size=2, in_batch=True
        )
