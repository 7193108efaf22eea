"""The holdout ledger: how sure the gate has to be that has judged others on the same day before.

A day that judges many challengers is bound to flatter one of them. The registry counts the challengers of each day
(`Registry.take_place`), and the n-th of them is judged at the error rate

    (1 - KEPT_BACK) error_rate / (n (n + 1)),    of what is not kept back a half, a sixth, a twelfth, a twentieth ...

Since 1 / (n (n + 1)) = 1 / n - 1 / (n + 1), the sum over all n is 1 - KEPT_BACK: by the union bound, the chance that any of
a day's challengers passes by mistake is at most `error_rate`, however many there are, however alike they are, and
whatever the outcome of one makes its owner try next. Nobody has to say beforehand how many will come. A part is kept back
for what intervals are not exact by: of watch times their far ends are passed up to a fifth too often.

Source: alpha spending, as in D. Foster and R. Stine, Alpha-investing, JRSS B 70 (2008), without the gains.
"""

KEPT_BACK = 0.2
"""The share of a day's error rate that nobody is judged at."""


def spent_on(place: int, error_rate: float) -> float:
    """The part of a day's error rate that its `place`-th challenger is judged at.

    Args:
        place: from 1, in the order in which the day judged them.
        error_rate: of the whole day.

    >>> [round(spent_on(place, 0.05), 4) for place in (1, 2, 3, 50)]
    [0.02, 0.0067, 0.0033, 0.0]
    """
    if place < 1:
        raise ValueError(f"places begin at 1, this is {place}")
    return (1 - KEPT_BACK) * error_rate / (place * (place + 1))
