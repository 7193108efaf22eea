"""The holdout ledger: how sure the gate has to be that has judged others on the same day before.

A day that judges many challengers is bound to flatter one of them. The registry counts the challengers of each day
(`Registry.take_place`), and the n-th of them is judged at the error rate

    error_rate / (n (n + 1)),    which is a half, a sixth, a twelfth, a twentieth ... of it

Since 1 / (n (n + 1)) = 1 / n - 1 / (n + 1), the sum over all n is 1: by the union bound, the chance that any of a day's
challengers passes by mistake is at most `error_rate`, however many there are, however alike they are, and
whatever the outcome of one makes its owner try next. Nobody has to say beforehand how many will come.

Source: alpha spending, as in D. Foster and R. Stine, Alpha-investing, JRSS B 70 (2008), without the gains.
"""


def spent_on(place: int, error_rate: float) -> float:
    """The part of a day's error rate that its `place`-th challenger is judged at.

    Args:
        place: from 1, in the order in which the day judged them.
        error_rate: of the whole day.

    >>> [round(spent_on(place, 0.05), 4) for place in (1, 2, 3, 50)]
    [0.025, 0.0083, 0.0042, 0.0]
    """
    if place < 1:
        raise ValueError(f"places begin at 1, this is {place}")
    return error_rate / (place * (place + 1))
