"""Figure 4: example age lets the model follow a video's popularity over time.

Section 3.3 of the paper: a model of past watches predicts "approximately the average likelihood over the training
window"; fed with the age of each example, and with age 0 when serving, it "is able to accurately represent the upload
time and time-dependant popularity". Section 5: this "improved offline holdout precision results and increased the watch
time dramatically on recently uploaded videos in A/B testing".

For the videos uploaded inside the window, the predicted daily watch probability is the softmax over all videos, averaged
over real histories of that day, each with its own age. It is held against what the world would do without the luck of
these logs: the mean share of the day's completed watches in other runs of the same days, same people and videos, with
other luck, which no model has seen, and by which the videos are chosen, too. "Slope" is that of the predicted curve over
days since upload on the true one: 1 follows it, 0 knows nothing of time. The watch bag dates an example as well, since
it holds what came out lately; so both models are also trained without any watch or search.

The dial turns `freshness`: how much interest rises after upload and decays again. At 0 every video still begins its
life inside the window, has no watches before, is pushed by the policy of the logs while it is new and wears out as the
same people meet it again: no dial turns the calendar off. That is why the next day is also ranked among the videos that
are older than the logs alone: at 0 these have no date left that an age could tell.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from watchnext.data import simulate
from watchnext.data.world import DAY_US
from watchnext.evaluation.intervals import PerUser, per_user
from watchnext.studies._lab import DIALS, Ground, Lab, Trained
from watchnext.studies._measures import Measures
from watchnext.studies._report import FULL, SIMULATED, Claim, Result, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WITH, WITHOUT = "with example age", "without example age"
WITH_ALONE, NEITHER = "with example age, no bags", "without example age, no bags"
LOGS = "these logs' own shares (noise ceiling)"

INPUTS = {
    WITH: ("history", "search_tokens", "region", "example_age_s"),
    WITHOUT: ("history", "search_tokens", "region"),
    WITH_ALONE: ("region", "example_age_s"),
    NEITHER: ("region",),
}
AGAINST = ((WITH, WITHOUT), (WITH_ALONE, NEITHER))

DAYS = 21
PEOPLE = 1.5
"""So many times the users that other studies have: a day of a video needs watches to have a share."""
VIDEOS = 0.5
MOST_DAYS = 12
BEFORE_UPLOAD = 4
FEWEST_WATCHES = 30
TRUTH_RUNS = 4
FRESH_DAYS = 3
HISTORIES_PER_DAY = 600
TRAINING: Mapping[str, Any] = {"embedding_dim": 64, "depth": 3, "epochs": 10, "patience": 3}

CLAIMS = (
    Claim(
        "with it, the predicted curve follows the true one (slope 0.8 to 1.2)",
        WITH,
        "",
        "slope",
        "same",
        within=(0.8, 1.2),
        vanishes=False,
    ),
    Claim(
        "with it and nothing else, too",
        WITH_ALONE,
        "",
        "slope",
        "same",
        within=(0.8, 1.2),
        vanishes=False,
    ),
    Claim("without it the slope is lower", WITH, WITHOUT, "slope", "more", vanishes=False),
    Claim("and lower still without the bags", WITH_ALONE, NEITHER, "slope", "more", vanishes=False),
    Claim("the daily shares come out closer to the truth", WITH, WITHOUT, "share_error", "less"),
    Claim("the next day is predicted more precisely", WITH, WITHOUT, "precision_at_10", "more"),
    Claim(
        "so it is among videos that are older than the logs", WITH, WITHOUT, "map_among_older_videos", "more"
    ),
    Claim(
        "recently uploaded videos are watched longer in the A/B test",
        WITH,
        WITHOUT,
        "online_watch_time_s_of_fresh_videos",
        "more",
    ),
    Claim("so are all videos together", WITH, WITHOUT, "online_watch_time_s", "more"),
)


@dataclass(frozen=True)
class Cohort:
    """Videos of the vocabulary that were uploaded inside the window and watched often enough, with their true days.

    Attributes:
        rows: int [num_chosen], rows of the candidate embeddings.
        upload_day: int [num_chosen], day of the window.
        truth: float64 [num_candidates, num_days], share of the day's completed watches, mean of the other runs.
    """

    rows: np.ndarray
    upload_day: np.ndarray
    truth: np.ndarray

    def aligned(self, shares: np.ndarray) -> np.ndarray:
        """Shares of the chosen videos by days since upload; see `by_days_since_upload`."""
        return by_days_since_upload(shares[self.rows], self.upload_day)


def run(lab: Lab) -> Result:
    """Train with and without example age, in worlds of all strengths and on logs."""
    own = lab.settings
    lab = replace(
        lab,
        settings=replace(
            own,
            users=int(PEOPLE * own.users),
            videos=max(200, int(VIDEOS * own.videos)),
            days=max(DAYS, own.days),
        ),
    )
    measures = Measures(AGAINST)
    aligned: dict[float, list[dict[str, np.ndarray]]] = {}
    notes = []
    for ground in lab.grounds(lambda strength: {"freshness": strength}):
        # Without bags only where it takes them to see the effect, at full strength.
        variants = [WITH, WITHOUT] if ground.dial != FULL else list(INPUTS)
        predicted: dict[str, np.ndarray] = {}
        for variant in variants:
            trained = lab.train(ground, variant, inputs=INPUTS[variant], **TRAINING)
            measures.add(ground.source, ground.dial, variant, _next_day(ground, trained))
            if ground.moment is not None:
                predicted[variant] = predicted_shares(ground, trained)
                if variant in (WITH, WITHOUT):
                    measures.add(ground.source, ground.dial, variant, _online(lab, ground, trained))
        if ground.moment is not None and ground.dial is not None:
            cohort = find_cohort(ground)
            shares = {"truth": cohort.truth, LOGS: logged_shares(ground), **predicted}
            aligned.setdefault(ground.dial, []).append(
                {name: cohort.aligned(values) for name, values in shares.items()}
            )
            notes.append(f"{ground.place}, seed {ground.seed}: {len(cohort.rows)} videos in the cohort.")
    rows = measures.rows()
    for dial, worlds in aligned.items():
        rows += curve_rows(dial, worlds)
    curves = {dial: mean_curves(worlds) for dial, worlds in aligned.items()}
    if own.data is not None:
        notes.append(
            "KuaiRand: all videos were uploaded within three days before these logs, so that days since upload and"
            " calendar days are the same and no curve of a cohort can be told from the calendar; only the next day is"
            " compared, whose drift example age can follow."
        )
    notes.append(
        f"Settings of this study: {lab.settings.users} users, {lab.settings.videos} videos, {lab.settings.days} days, "
        + ", ".join(f"{key} {value}" for key, value in TRAINING.items())
        + f"; the truth is the mean of {TRUTH_RUNS} other runs; fresh videos were uploaded in the last {FRESH_DAYS}"
        f" days of training; videos of the cohort have at least {FEWEST_WATCHES} watches in the other runs' mean."
        " `share_error` is the root mean square over the cohort's videos and days of predicted minus true share,"
        " divided by the mean true share."
    )
    return Result(
        rows,
        notes=notes,
        draw=functools.partial(draw, curves=curves) if curves else None,
        dial="`freshness`, the rise of interest after upload and its decay",
        extra={
            "curves": {
                f"dial {dial:g}": {
                    name: [round(float(value), 7) for value in curve] for name, curve in own.items()
                }
                for dial, own in curves.items()
            },
            "first_day_since_upload": -BEFORE_UPLOAD,
        },
    )


def daily_shares(video: np.ndarray, day: np.ndarray, num_videos: int, num_days: int) -> np.ndarray:
    """Each video's share of each day's watches: float64 [num_videos, num_days], columns sum to 1 (0 without watches).

    Args:
        video: int [num_watches] from 0.
        day: int [num_watches] from 0.
        num_videos, num_days: sizes.
    """
    counts = np.zeros((num_videos, num_days))
    np.add.at(counts, (video, day), 1.0)
    return counts / np.maximum(counts.sum(axis=0), 1.0)


def by_days_since_upload(shares: np.ndarray, upload_day: np.ndarray) -> np.ndarray:
    """Shift each video's days so that they count from its upload.

    Args:
        shares: [num_videos, num_days].
        upload_day: int [num_videos], day of the window.

    Returns:
        [num_videos, BEFORE_UPLOAD + MOST_DAYS]: column k is day k - BEFORE_UPLOAD since upload; NaN outside the window.
    """
    day = upload_day[:, None] + np.arange(-BEFORE_UPLOAD, MOST_DAYS)
    inside = (day >= 0) & (day < shares.shape[1])
    values = np.take_along_axis(shares, np.clip(day, 0, shares.shape[1] - 1), axis=1)
    return np.where(inside, values, np.nan)


def mean_curve(aligned: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean over videos of each day since upload, of those that are inside the window on it.

    Args:
        aligned: [num_videos, num_days_since_upload], see `by_days_since_upload`.
        weights: [num_videos], how often each counts; None: once.
    """
    weights = np.ones(len(aligned)) if weights is None else weights
    inside = np.isfinite(aligned) * weights[:, None]
    total = (np.nan_to_num(aligned) * weights[:, None]).sum(axis=0)
    return np.divide(total, inside.sum(axis=0), out=np.full(len(total), np.nan), where=inside.sum(axis=0) > 0)


def slope(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Least-squares slope of `predicted` on `truth`, both [n]; pairs with a NaN are left out.

    >>> slope(np.array([1.0, 2.0, 3.0]), np.array([5.0, 5.5, 6.0]))
    0.5
    """
    known = np.isfinite(truth) & np.isfinite(predicted)
    x, y = truth[known] - truth[known].mean(), predicted[known] - predicted[known].mean()
    return float((x @ y) / (x @ x)) if x @ x > 0 else float("nan")


def share_error(truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Root mean square of predicted minus true share over videos and days from upload on, over the mean true share.

    Args:
        truth, predicted: [num_videos, num_days_since_upload], see `by_days_since_upload`.
        weights: [num_videos], how often each counts.
    """
    truth, predicted = truth[:, BEFORE_UPLOAD:], predicted[:, BEFORE_UPLOAD:]
    weight = np.isfinite(truth) * (np.ones(len(truth)) if weights is None else weights)[:, None]
    squared = (np.nan_to_num(predicted - truth) ** 2 * weight).sum() / weight.sum()
    return float(np.sqrt(squared) / ((np.nan_to_num(truth) * weight).sum() / weight.sum()))


def find_cohort(ground: Ground, runs: int = TRUTH_RUNS) -> Cohort:
    """Live the training days of the ground's world again with other luck, and choose videos by what happens there.

    Nothing of the logs that models are trained on enters, save which videos have a row.
    """
    if ground.moment is None:
        raise ValueError("real logs have no truth")
    world, num_days = ground.moment.world, ground.moment.state.day
    tokens = ground.encoder.vocabularies["video"].tokens.to_numpy(zero_copy_only=False)
    order = np.argsort(tokens)
    truth = np.zeros((len(tokens), num_days))
    watches = np.zeros(len(tokens))
    for number in range(runs):
        luck = 10_000 + 100 * ground.seed + number
        policy = simulate.logging_policy(world)
        state = simulate.run(world, policy, world.settings.burn_in_days, common_random_numbers=luck).state
        table = simulate.run(world, policy, num_days, state, common_random_numbers=luck).tables["watches"]
        table = table.filter(table["completed"])
        video, day = table["video_id"].to_numpy(), _days(table["watched_at"], world.start_us)
        place = np.minimum(np.searchsorted(tokens[order], video), len(tokens) - 1)
        kept = (tokens[order][place] == video) & (day < num_days)
        row = order[place[kept]]
        truth += daily_shares(row, day[kept], len(tokens), num_days) / runs
        watches += np.bincount(row, minlength=len(tokens)) / runs
    upload_day = (world.videos.uploaded_us[_in_world(ground)] - world.start_us) // DAY_US
    # Of a video of the last days there would be no decay to see.
    chosen = (upload_day >= 0) & (upload_day < num_days - 5) & (watches >= FEWEST_WATCHES)
    return Cohort(np.flatnonzero(chosen), upload_day[chosen], truth)


def logged_shares(ground: Ground) -> np.ndarray:
    """Daily shares of the labels in the training examples, [num_candidates, num_days]."""
    assert ground.moment is not None
    day = _days(ground.examples["watched_at"], ground.moment.world.start_us)
    size = ground.encoder.sizes["video"]
    return daily_shares(ground.arrays["label"] - 1, day, size, ground.moment.state.day)


def predicted_shares(ground: Ground, trained: Trained) -> np.ndarray:
    """What a model predicts for each day: the softmax over all videos, mean over histories of that day.

    The histories are those of training examples of that day with their own age, which is newest label - (upload + d)
    for a video d days after its upload.

    Returns:
        float64 [num_candidates, num_days]
    """
    assert ground.moment is not None
    day = _days(ground.examples["watched_at"], ground.moment.world.start_us)
    rng = np.random.default_rng(ground.seed)
    shares = np.zeros((len(trained.candidate_embeddings), ground.moment.state.day))
    for number in range(shares.shape[1]):
        rows = np.flatnonzero(day == number)
        if not len(rows):
            continue
        rows = rng.choice(rows, size=min(len(rows), HISTORIES_PER_DAY), replace=False)
        logits = trained.embed({name: array[rows] for name, array in ground.arrays.items()})
        logits = (logits @ trained.candidate_embeddings.T).astype(np.float64)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares[:, number] = (odds / odds.sum(axis=1, keepdims=True)).mean(axis=0)
    return shares


def mean_curves(worlds: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Name -> curve over days since upload, of all worlds' videos together."""
    return {name: mean_curve(np.concatenate([one[name] for one in worlds])) for name in worlds[0]}


def curve_rows(dial: float, worlds: Sequence[Mapping[str, np.ndarray]], resamples: int = 500) -> list[Row]:
    """Slopes and errors of all variants at one dial, with intervals from resampling worlds and videos.

    Args:
        dial: strength of the mechanism.
        worlds: for each, name -> aligned shares; `truth` and LOGS among the names.
        resamples: draws of the bootstrap.
    """
    rng = np.random.default_rng(0)
    names = [name for name in worlds[0] if name != "truth"]
    together = {name: np.concatenate([one[name] for one in worlds]) for name in worlds[0]}
    of_world = np.repeat(np.arange(len(worlds)), [len(one["truth"]) for one in worlds])

    def figures(weights: np.ndarray) -> dict[tuple[str, str], float]:
        truth = mean_curve(together["truth"], weights)[BEFORE_UPLOAD:]
        found = {}
        for name in names:
            found["slope", name] = slope(truth, mean_curve(together[name], weights)[BEFORE_UPLOAD:])
            found["share_error", name] = share_error(together["truth"], together[name], weights)
        return found

    value = figures(np.ones(len(of_world)))
    drawn = []
    for _ in range(resamples):
        times = rng.multinomial(len(worlds), np.full(len(worlds), 1.0 / len(worlds)))[of_world]
        drawn.append(figures(times * rng.poisson(1.0, size=len(of_world))))

    def row(metric: str, name: str, against: str = "") -> Row:
        def of(found: Mapping[tuple[str, str], float]) -> float:
            return found[metric, name] - (found[metric, against] if against else 0.0)

        low, high = np.nanquantile([of(found) for found in drawn], [0.025, 0.975])
        return Row(SIMULATED, dial, name, metric, of(value), float(low), float(high), against)

    rows = []
    for metric in ("slope", "share_error"):
        rows += [row(metric, name) for name in names]
        rows += [row(metric, *pair) for pair in AGAINST if set(pair) <= set(names)]
    return rows


def _next_day(ground: Ground, trained: Trained) -> dict[str, PerUser]:
    """Metrics of the gate day, without what was watched; in a world also of fresh labels, and among older videos alone."""
    from watchnext.evaluation.metrics import average_precisions, label_ranks

    table = ground.held_out("gate")
    arrays = ground.encoder.encode_retrieval(table)
    users, labels = table["user_id"].combine_chunks(), arrays["label"]
    scores = trained.embed(arrays) @ trained.candidate_embeddings.T

    def ranked(among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ranks = label_ranks(np.where(among, scores, -np.inf), labels, arrays.get("history"))
        return ranks, average_precisions(ranks)

    ranks, reciprocal = ranked(np.ones(scores.shape[1], dtype=bool))
    measured = {
        "precision_at_10": per_user((ranks <= 10) / 10.0, users),
        "map": per_user(reciprocal, users),
    }
    if ground.moment is not None:
        world = ground.moment.world
        in_world = _in_world(ground)
        fresh = np.append(fresh_videos(ground)[in_world], False)
        rows = np.flatnonzero(fresh[labels - 1])
        measured["map_of_fresh_videos"] = per_user(reciprocal[rows], users.take(rows))
        older = world.videos.uploaded_us[in_world] < world.start_us
        rows = np.flatnonzero(np.append(older, False)[labels - 1])
        measured["map_among_older_videos"] = per_user(ranked(older)[1][rows], users.take(rows))
    return measured


def _online(lab: Lab, ground: Ground, trained: Trained) -> dict[str, PerUser]:
    return lab.online(ground, trained, videos={"fresh_videos": fresh_videos(ground)})


def fresh_videos(ground: Ground) -> np.ndarray:
    """bool [num_videos] of the world: uploaded in the last days of training."""
    assert ground.moment is not None
    end_us = ground.moment.world.start_us + ground.moment.state.day * DAY_US
    uploaded_us = ground.moment.world.videos.uploaded_us
    return (uploaded_us < end_us) & (uploaded_us >= end_us - FRESH_DAYS * DAY_US)


def _in_world(ground: Ground) -> np.ndarray:
    """int [num_candidates]: the video of each row of the candidate embeddings, as its number in the world."""
    assert ground.moment is not None
    video_id = ground.moment.world.videos.video_id
    by_id = np.argsort(video_id)
    tokens = ground.encoder.vocabularies["video"].tokens.to_numpy(zero_copy_only=False)
    return by_id[np.searchsorted(video_id[by_id], tokens)]


def _days(instants: Any, start_us: int) -> np.ndarray:
    """int64 [n]: the day of the window of each instant, a column of timestamps in microseconds."""
    return (instants.combine_chunks().cast("int64").to_numpy(zero_copy_only=False) - start_us) // DAY_US


def draw(rows: Sequence[Row], *, curves: Mapping[float, Mapping[str, np.ndarray]]) -> "Figure":
    """The paper's figure, one panel per dial: mean daily watch share over days since upload."""
    from matplotlib.figure import Figure

    styles: dict[str, dict[str, Any]] = {
        "truth": {"color": "black", "linewidth": 2.5, "label": "truth: other runs of the same days"},
        LOGS: {"color": "black", "linestyle": ":", "linewidth": 1.0},
        WITH: {"color": "C0", "marker": "o"},
        WITHOUT: {"color": "C1", "marker": "s"},
        WITH_ALONE: {"color": "C0", "linestyle": "--"},
        NEITHER: {"color": "C1", "linestyle": "--"},
    }
    slopes = {
        (row.dial, row.variant): row.estimate for row in rows if row.metric == "slope" and not row.against
    }
    dials = [dial for dial in DIALS[::-1] if dial in curves]
    figure = Figure(figsize=(1.0 + 4.6 * len(dials), 4.6), layout="constrained")
    day = np.arange(-BEFORE_UPLOAD, MOST_DAYS)
    highest = 100.0 * max(np.nanmax(curve) for own in curves.values() for curve in own.values())
    for axes, dial in zip(figure.subplots(1, len(dials), squeeze=False, sharey=True)[0], dials, strict=True):
        for name, curve in curves[dial].items():
            label = name if name == "truth" else f"{name}, slope {slopes[dial, name]:.2f}"
            axes.plot(day, 100.0 * curve, **{"label": label, "markersize": 3, **styles[name]})
        axes.axvline(-0.5, color="grey", linewidth=0.8)
        axes.set(
            title=f"freshness dial {dial:g}",
            xlabel="days since upload",
            ylabel="share of the day's watches, %",
        )
        # Room for the legend above the curves.
        axes.set_ylim(-0.03 * highest, 1.5 * highest)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small", loc="upper right")
    return figure
