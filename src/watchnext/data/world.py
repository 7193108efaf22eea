"""The simulated world: its people and videos, and the laws they live by. docs/simulator.md specifies it.

Nothing happens here: `simulate` lets the days pass. What this module knows is the truth; policies and logs see
what `video_table`, `user_table` and the catalogue show.
"""

import datetime
import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from watchnext.config import Section
from watchnext.data.slates import Catalogue, uniform
from watchnext.errors import InputError

DAY_S = 86_400.0
DAY_US = 86_400_000_000
DIMENSIONS = 6
INTERESTS = 3
MEMBERS = 3
MAX_EVENTS_PER_USER_DAY = 40
COMPLETED_SHARE = 0.9
"""A watch that reaches this share of the video is completed."""

MEAN_TASTE = 0.08
"""The taste of everybody for everything when its dial is at 0: about the mean over all pairs of the default."""

MAX_SEEN_BYTES = 4 << 30
# What a user has seen of a video, in one byte: impressions so far, and two marks.
COUNT = np.uint8(0x3F)
STARTED = np.uint8(0x40)
COMPLETED = np.uint8(0x80)

SURFACES = ("home", "feed")
DEVICES = ("mobile", "desktop", "tv")
ORIGINS = ("home", "feed", "search", "external", "up_next")
REGIONS = ("US", "GB", "DE", "FR", "ES", "MX", "JP", "IN")
LANGUAGES = ("en", "de", "fr", "es", "ja", "hi")
_REGION_SHARE = np.array([0.30, 0.12, 0.12, 0.10, 0.08, 0.10, 0.08, 0.10])
_REGION_LANGUAGE = np.array([0, 0, 1, 2, 3, 3, 4, 5])
GENDERS = ("female", "male", "unknown")
TOPIC_NAMES = tuple(
    name
    for line in (
        "football music cooking chess travel gaming comedy news science fitness fashion history cars animals art",
        "photography gardening space movies dance education finance crafts fishing cycling hiking baking robots",
        "politics nature anime basketball tennis programming books parenting yoga skating sailing magic",
    )
    for name in line.split()
)
_SYLLABLES = tuple(first + second for first in "bdfgklmnprstvz" for second in "aeiou")
WORDS_PER_TOPIC = 12


class Stream(enum.IntEnum):
    """One number per cause of chance, so that no two causes share their luck."""

    LOOK = 11
    CLICK = 12
    COMMIT = 13
    LENGTH = 14
    PATIENCE = 15
    LOOP = 16
    REQUEST = 17
    CONTINUE = 18
    MEMBER = 21
    MOOD = 22
    ENERGY = 23
    SURFACE = 24
    DEVICE = 25
    LOGGED_IN = 26
    TOPIC = 27
    WORDS = 28
    RESULT = 29
    OUTSIDE = 30
    PICK = 31
    FOLLOW = 32


class Dials(Section):
    """Section `simulate.dials`: strength of each mechanism; 0 switches it off, 1 is the default world."""

    taste: float = Field(default=1.0, ge=0)
    popularity: float = Field(default=1.0, ge=0)
    freshness: float = Field(default=1.0, ge=0)
    series: float = Field(default=1.0, ge=0)
    order: float = Field(default=1.0, ge=0)
    search: float = Field(default=1.0, ge=0)
    external: float = Field(default=1.0, ge=0)
    clickbait: float = Field(default=1.0, ge=0)
    fatigue: float = Field(default=1.0, ge=0)
    position_bias: float = Field(default=1.0, ge=0)
    hidden_causes: float = Field(default=1.0, ge=0)


Preset = Literal["default", "linear_taste", "order_driven", "click_optimal"]

PRESET_DIALS: dict[str, dict[str, float]] = {
    "default": {},
    "linear_taste": {"order": 0.0, "series": 0.0, "hidden_causes": 0.0},
    "order_driven": {"taste": 0.0, "order": 12.0, "series": 3.0, "popularity": 0.3},
    "click_optimal": {"clickbait": 0.0},
}
"""Dials that a preset sets, whatever the settings say."""


class WorldSettings(Section):
    """What a world is made of; the section `simulate` of params.yaml."""

    preset: Preset = "default"
    start: str = "2026-03-01"
    days: int = Field(default=21, ge=1, le=365)
    burn_in_days: int = Field(default=3, ge=0, le=60)
    further_days: int = Field(default=14, ge=0, le=365)
    users: int = Field(default=20_000, ge=1)
    videos: int = Field(default=10_000, ge=100)
    topics: int = Field(default=40, ge=2)
    pages_per_user_day: float = Field(default=0.375, gt=0)
    page_size: int = Field(default=10, ge=1)
    candidates: int = Field(default=24, ge=2)
    uniform_share: float = Field(default=0.1, ge=0, le=1)
    dials: Dials = Dials()

    @field_validator("start")
    @classmethod
    def _is_date(cls, value: str) -> str:
        datetime.date.fromisoformat(value)
        return value


def check_settings(settings: WorldSettings) -> Dials:
    """The dials as the preset has them.

    Raises:
        InputError: sizes that do not fit together, or that do not fit into memory.
    """
    if settings.page_size > settings.candidates:
        raise InputError(
            f"a page of {settings.page_size} cannot be drawn from {settings.candidates} candidates",
            where="params.yaml, simulate.candidates",
            remedy="more candidates, or a smaller simulate.page_size",
        )
    if settings.candidates > settings.videos // 4:
        raise InputError(
            f"{settings.candidates} candidates are too many for {settings.videos} videos",
            where="params.yaml, simulate.candidates",
            remedy="at most a quarter of simulate.videos",
        )
    if settings.users * settings.videos > MAX_SEEN_BYTES:
        raise InputError(
            f"{settings.users} users and {settings.videos} videos take more than "
            f"{MAX_SEEN_BYTES >> 30} GB for what each has seen",
            where="params.yaml, simulate.users and simulate.videos",
            remedy="a smaller world; for larger logs use several, with other seeds",
        )
    return settings.dials.model_copy(update=PRESET_DIALS[settings.preset])


@dataclass(frozen=True)
class VideoTruth:
    """Every video by index; all arrays have [num_videos] as first axis.

    Attributes:
        video_id: int64.
        channel: int32.
        topic: int32, what it is mainly about.
        listed_topics: int32 [num_videos, 2], what the logs say, -1 for none; one in twenty is tagged wrongly.
        place: float64 [num_videos, DIMENSIONS] in the space of tastes.
        duration_s: float64.
        uploaded_us: int64, microseconds since 1970 UTC.
        language: int32.
        quality: float64 in (0, 1), hidden: how well it holds who likes its place.
        appeal: float64 > 0, hidden: what title and thumbnail promise.
        clickbait: bool, hidden.
        reach: float64 > 0, hidden: how far it spreads outside.
        rise_days, decay_days: float64, hidden; decay is infinite for what never gets old.
        series: int32, -1 for none.
        episode: int32 from 0.
        next_episode, previous_episode: int32 video index, -1 for none.
    """

    video_id: np.ndarray
    channel: np.ndarray
    topic: np.ndarray
    listed_topics: np.ndarray
    place: np.ndarray
    duration_s: np.ndarray
    uploaded_us: np.ndarray
    language: np.ndarray
    quality: np.ndarray
    appeal: np.ndarray
    clickbait: np.ndarray
    reach: np.ndarray
    rise_days: np.ndarray
    decay_days: np.ndarray
    series: np.ndarray
    episode: np.ndarray
    next_episode: np.ndarray
    previous_episode: np.ndarray


@dataclass(frozen=True)
class UserTruth:
    """Every user by index; all arrays have [num_users] as first axis.

    Attributes:
        user_id: int64.
        region, gender, language: int32.
        age_years: float64.
        signed_up_us: int64.
        pages_per_day: float64, mean.
        members: int32, hidden: how many people share the account.
        interest_place: float64 [num_users, MEMBERS, INTERESTS, DIMENSIONS], hidden.
        interest_topic: int32 [num_users, MEMBERS, INTERESTS], hidden.
        interest_strength: float64 [num_users, MEMBERS, INTERESTS] in (0, 1], hidden.
        interest_breadth: float64 [num_users, MEMBERS, INTERESTS], hidden.
        pickiness: float64, hidden.
    """

    user_id: np.ndarray
    region: np.ndarray
    gender: np.ndarray
    language: np.ndarray
    age_years: np.ndarray
    signed_up_us: np.ndarray
    pages_per_day: np.ndarray
    members: np.ndarray
    interest_place: np.ndarray
    interest_topic: np.ndarray
    interest_strength: np.ndarray
    interest_breadth: np.ndarray
    pickiness: np.ndarray


@dataclass(frozen=True)
class Sessions:
    """Who sits there and how they feel, for n events; all arrays are [n].

    Attributes:
        user: int32.
        member: int64, who of the account's members, hidden.
        salient: int64, the interest that the mood lifts, hidden.
        patience_s: float64, mean of the exponential time after which a watch is broken off, hidden.
        surface, device: int64, indices into SURFACES and DEVICES.
        logged_in: bool.
    """

    user: np.ndarray
    member: np.ndarray
    salient: np.ndarray
    patience_s: np.ndarray
    surface: np.ndarray
    device: np.ndarray
    logged_in: np.ndarray

    def take(self, rows: np.ndarray) -> "Sessions":
        """Those of the events `rows`."""
        return Sessions(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})


@dataclass(frozen=True)
class Arrivals:
    """All that will make users come on one day; no policy changes it. n events, by user, then time.

    Attributes:
        user: int32.
        at_us: int64, microseconds since 1970 UTC.
        until_us: int64, the user's next event or the end of the day.
        kind: int8: PAGE, SEARCH or OUTSIDE (a link from elsewhere).
        number: int64 from 0 among the user's events of this kind on this day.
        rank: int64 from 0 among the user's events of this day.
        sessions: who sits there.
    """

    user: np.ndarray
    at_us: np.ndarray
    until_us: np.ndarray
    kind: np.ndarray
    number: np.ndarray
    rank: np.ndarray
    sessions: Sessions


PAGE, SEARCH, OUTSIDE = range(3)


class World:
    """People and videos, made from a seed, and the laws they live by."""

    def __init__(self, settings: WorldSettings, seed: int) -> None:
        """Make the world.

        Args:
            settings: sizes and dials.
            seed: other seeds give other worlds of the same kind.

        Raises:
            InputError: the settings do not fit together.
        """
        self.settings = settings
        self.dials = check_settings(settings)
        self.seed = seed
        start = datetime.date.fromisoformat(settings.start)
        self.start_us = (start - datetime.date(1970, 1, 1)).days * DAY_US
        self._make_topics()
        self.videos = self._make_videos()
        self.users = self._make_users()
        self.catalogue = Catalogue(
            self.videos.video_id,
            self.videos.channel,
            self.videos.listed_topics[:, 0],
            self.videos.uploaded_us,
            self.videos.duration_s,
        )
        by_topic = np.argsort(self.videos.topic, kind="stable")
        self.by_topic = by_topic.astype(np.int32)
        self.topic_begin = np.searchsorted(self.videos.topic[by_topic], np.arange(settings.topics + 1))

    # ---- what there is ---------------------------------------------------------------------------------------

    def _generator(self, stream: int, *parts: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream, *parts])

    def _make_topics(self) -> None:
        rng = self._generator(1)
        topics = self.settings.topics
        self.topic_names = [
            TOPIC_NAMES[topic] if topic < len(TOPIC_NAMES) else f"topic{topic}" for topic in range(topics)
        ]
        self.topic_place = rng.normal(size=(topics, DIMENSIONS))
        popularity = (1.0 + rng.permutation(topics)) ** -0.6
        self.topic_popularity = popularity / popularity.sum()
        self.topic_gender_tilt = rng.normal(scale=0.5, size=topics)
        self.topic_age = rng.uniform(15, 60, size=topics)
        # What people turn to after a topic: a cycle through all topics, so that no topic follows itself.
        cycle = rng.permutation(topics)
        self.topic_successor = np.empty(topics, dtype=np.int32)
        self.topic_successor[cycle] = np.roll(cycle, -1)
        words: list[str] = []
        for topic in range(topics):
            made = ["".join(rng.choice(_SYLLABLES, size=3)) for _ in range(WORDS_PER_TOPIC - 2)]
            # The topic's own name, and one word that it shares with its successor: tokens are not labels.
            words += [self.topic_names[topic], *made, self.topic_names[self.topic_successor[topic]]]
        self.words = np.array(words).reshape(topics, WORDS_PER_TOPIC)

    def _make_videos(self) -> VideoTruth:
        settings, dials = self.settings, self.dials
        rng = self._generator(2)
        window = settings.days
        in_window = 0.35
        further = int(settings.videos * in_window * settings.further_days / max(window, 7))
        count = settings.videos + further

        channels = max(4, settings.videos // 20)
        channel_topic = rng.choice(settings.topics, size=channels, p=self.topic_popularity)
        channel_language = _REGION_LANGUAGE[rng.choice(len(REGIONS), size=channels, p=_REGION_SHARE)]
        channel_size = (1.0 + rng.permutation(channels)) ** -0.7
        channel_pull = rng.normal(scale=0.5, size=channels)
        channel_length = rng.normal(scale=0.5, size=channels)
        channel = rng.choice(channels, size=count, p=channel_size / channel_size.sum()).astype(np.int32)

        # Before the window the shelf is older the further one looks back; in the window and after it uploads are even.
        new = np.arange(count) >= settings.videos
        recent = ~new & (rng.random(count) < in_window)
        age_days = np.where(
            new,
            window + rng.random(count) * max(settings.further_days, 1),
            np.where(recent, rng.random(count) * window, -180.0 * rng.random(count) ** 1.5 - 0.02),
        )
        age_days[~recent & ~new] -= settings.burn_in_days * 1.0

        topic = np.where(
            rng.random(count) < 0.8,
            channel_topic[channel],
            rng.choice(settings.topics, size=count, p=self.topic_popularity),
        ).astype(np.int32)
        place = self.topic_place[topic] + rng.normal(scale=0.3, size=(count, DIMENSIONS))
        length = np.log(80.0) + channel_length[channel] + rng.normal(scale=0.85, size=count)
        quality = rng.beta(4.0, 1.6, size=count)

        # Series: neighbours of one channel, topic and place, uploaded one after the other, a day or so apart.
        series = np.full(count, -1, dtype=np.int32)
        episode = np.zeros(count, dtype=np.int32)
        following = np.full(count, -1, dtype=np.int32)
        preceding = np.full(count, -1, dtype=np.int32)
        loose = rng.permutation(count)
        used, number = 0, 0
        while used < 0.25 * count:
            size = int(rng.integers(4, 11))
            mine = loose[used : used + size]
            used += size
            if len(mine) < 2:
                break
            mine = mine[np.argsort(age_days[mine], kind="stable")]
            first = mine[0]
            series[mine], episode[mine] = number, np.arange(len(mine))
            following[mine[:-1]], preceding[mine[1:]] = mine[1:], mine[:-1]
            channel[mine], topic[mine] = channel[first], channel_topic[channel[first]]
            centre = self.topic_place[topic[first]] + rng.normal(scale=0.3, size=DIMENSIONS)
            place[mine] = centre + rng.normal(scale=0.08, size=(len(mine), DIMENSIONS))
            length[mine] = length[first] + rng.normal(scale=0.1, size=len(mine))
            quality[mine] = np.clip(quality[first] + rng.normal(scale=0.05, size=len(mine)), 0.02, 0.98)
            # The last episode has the date of any of them, the ones before come a day or two apart.
            gaps = np.concatenate([rng.uniform(0.7, 2.5, size=len(mine) - 1), [0.0]])
            age_days[mine] = age_days[rng.choice(mine)] - np.cumsum(gaps[::-1])[::-1]
            number += 1

        clickbait = rng.random(count) < 0.08
        quality = np.where(clickbait, quality * (1.0 - 0.8 * min(dials.clickbait, 1.2)), quality)
        reach = np.exp(dials.popularity * (1.5 * rng.normal(size=count) + channel_pull[channel]))
        appeal = np.exp(0.3 * dials.popularity * rng.normal(size=count)) * reach**0.12
        appeal *= np.where(clickbait, 1.0 + 0.9 * dials.clickbait, 1.0)
        evergreen = rng.random(count) < 0.15
        decay_days = np.where(evergreen, np.inf, np.exp(np.log(4.0) + 0.5 * rng.normal(size=count)))

        listed = np.full((count, 2), -1, dtype=np.int32)
        listed[:, 0] = topic
        wrong = rng.random(count) < 0.05
        listed[wrong, 0] = rng.integers(0, settings.topics, size=int(wrong.sum()))
        second = rng.integers(0, settings.topics, size=count)
        with_second = (rng.random(count) < 0.35) & (second != listed[:, 0])
        listed[with_second, 1] = second[with_second]

        duration_s = np.round(np.clip(np.exp(length), 6.0, 3600.0), 1)
        if settings.preset == "click_optimal":
            duration_s = np.full(count, 80.0)
        return VideoTruth(
            video_id=100_000 + rng.permutation(count).astype(np.int64),
            channel=channel,
            topic=topic,
            listed_topics=listed,
            place=place,
            duration_s=duration_s,
            uploaded_us=self.start_us + (age_days * DAY_US).astype(np.int64),
            language=channel_language[channel].astype(np.int32),
            quality=quality,
            appeal=appeal,
            clickbait=clickbait,
            reach=reach,
            rise_days=np.exp(np.log(0.25) + 0.4 * rng.normal(size=count)),
            decay_days=decay_days,
            series=series,
            episode=episode,
            next_episode=following,
            previous_episode=preceding,
        )

    def _make_users(self) -> UserTruth:
        settings = self.settings
        rng = self._generator(3)
        count = settings.users
        region = rng.choice(len(REGIONS), size=count, p=_REGION_SHARE).astype(np.int32)
        language = np.where(
            rng.random(count) < 0.85, _REGION_LANGUAGE[region], rng.choice(len(LANGUAGES), size=count)
        ).astype(np.int32)
        gender = rng.choice(3, size=count, p=[0.46, 0.46, 0.08]).astype(np.int32)
        age_years = np.round(np.clip(rng.gamma(6.0, 5.5, size=count), 13, 90))
        members = rng.choice([1, 2, 3], size=count, p=[0.6, 0.28, 0.12]).astype(np.int32)
        if self.dials.hidden_causes == 0:
            members[:] = 1
        # The recorded age and gender are the first member's.
        lean = np.array([-1.0, 1.0, 0.0])[gender]
        log_weight = (
            np.log(self.topic_popularity)
            + lean[:, None] * self.topic_gender_tilt
            - 0.5 * ((age_years[:, None] - self.topic_age) / 25.0) ** 2
        )
        topic = np.empty((count, MEMBERS, INTERESTS), dtype=np.int32)
        for member in range(MEMBERS):
            weight = log_weight if member == 0 else np.log(self.topic_popularity)
            gumbel = weight - np.log(-np.log(rng.random((count, settings.topics))))
            topic[:, member] = np.argsort(-gumbel, axis=1)[
                :, np.minimum(range(INTERESTS), settings.topics - 1)
            ]
        shape = (count, MEMBERS, INTERESTS)
        strength = np.array([1.0, 0.85, 0.65]) * rng.uniform(0.8, 1.0, size=shape)
        signed_up_days = np.where(
            rng.random(count) < 0.1, rng.random(count) * settings.days, -1.0 - 900 * rng.random(count)
        )
        signed_up_days[signed_up_days < 0] -= settings.burn_in_days
        activity = np.exp(1.0 * rng.normal(size=count) - 0.5)
        return UserTruth(
            user_id=1 + rng.permutation(count).astype(np.int64),
            region=region,
            gender=gender,
            language=language,
            age_years=age_years,
            signed_up_us=self.start_us + (signed_up_days * DAY_US).astype(np.int64),
            pages_per_day=settings.pages_per_user_day * np.minimum(activity, 25.0),
            members=members,
            interest_place=self.topic_place[topic] + rng.normal(scale=0.3, size=(*shape, DIMENSIONS)),
            interest_topic=topic,
            interest_strength=strength,
            interest_breadth=rng.uniform(0.8, 1.5, size=shape),
            pickiness=np.exp(0.4 * rng.normal(size=count)),
        )

    # ---- the laws --------------------------------------------------------------------------------------------

    def taste(self, sessions: Sessions, video: np.ndarray) -> np.ndarray:
        """How near each video is to what the person at the screen is after, in [0, 1].

        The best of three interests, each a heavy-tailed bump around a point of the space of tastes; the mood lifts
        one interest and lowers the others. The preset `linear_taste` has a plain dot product instead, of any sign.

        Args:
            sessions: n of them.
            video: int [n, m], video indices.

        Returns:
            float64 [n, m]
        """
        users, dials = self.users, self.dials
        place = self.videos.place[video]
        centre = users.interest_place[sessions.user, sessions.member]
        if self.settings.preset == "linear_taste":
            return dials.taste * np.einsum("nmd,nd->nm", place, centre[:, 0]) / 2.5
        breadth = users.interest_breadth[sessions.user, sessions.member]
        strength = users.interest_strength[sessions.user, sessions.member]
        mood = np.where(np.arange(INTERESTS) == sessions.salient[:, None], 1.25, 0.6)
        strength = strength * np.clip(1.0 + dials.hidden_causes * (mood - 1.0), 0.0, None)
        best = np.zeros(video.shape)
        for interest in range(INTERESTS):
            away = place - centre[:, None, interest]
            distance = np.einsum("nmd,nmd->nm", away, away) / breadth[:, None, interest] ** 2
            np.maximum(best, strength[:, None, interest] / (1.0 + distance) ** 1.5, out=best)
        return np.clip(MEAN_TASTE + dials.taste * (np.minimum(best, 1.0) - MEAN_TASTE), 0.0, 1.0)

    def buzz(self, video: np.ndarray, at_us: np.ndarray | int) -> np.ndarray:
        """How much a video is talked about: rises after upload, decays over days; 1 when freshness is off."""
        videos = self.videos
        age = np.maximum(at_us - videos.uploaded_us[video], 0) / DAY_US
        rise, decay = videos.rise_days[video], videos.decay_days[video]
        talk = (1.0 - np.exp(-age / rise)) * np.exp(-age / decay)
        level = np.where(np.isinf(decay), 1.0, 0.5 + 1.8 * talk)
        return np.maximum(1.0 + self.dials.freshness * (level - 1.0), 0.02)

    def examination(self, surface: np.ndarray) -> np.ndarray:
        """Probability that a page is looked at as far down as each position.

        Args:
            surface: int [n], index into SURFACES.

        Returns:
            float64 [n, page_size]; falls faster on `home` than on `feed`.
        """
        depth = (1.0 + np.arange(self.settings.page_size)) ** -np.where(surface == 0, 0.35, 0.2)[:, None]
        return np.clip(1.0 - self.dials.position_bias * (1.0 - depth), 0.02, 1.0)

    def pull(
        self,
        sessions: Sessions,
        video: np.ndarray,
        at_us: np.ndarray,
        seen: np.ndarray,
        last_topic: np.ndarray,
        episodes: np.ndarray,
    ) -> np.ndarray:
        """All that draws a person to a video except taste, as one factor. Arguments as in `click_probability`."""
        videos, dials = self.videos, self.dials
        factor = videos.appeal[video] / self.users.pickiness[sessions.user, None]
        factor *= self.buzz(video, at_us[:, None])
        factor *= np.where(videos.language[video] == self.users.language[sessions.user, None], 1.0, 0.2)
        factor *= np.where(sessions.surface == 1, 1.2, 1.0)[:, None]
        factor *= np.exp(-0.3 * dials.fatigue * (seen & COUNT))
        factor *= np.where(seen & COMPLETED, 0.06, np.where(seen & STARTED, 0.3, 1.0))
        factor *= np.where(episodes > 0, 1.0 + 2.0 * dials.series, 1.0)
        factor *= np.where(episodes < 0, 1.0 / (1.0 + dials.series), 1.0)
        after = self.topic_successor[np.maximum(last_topic, 0)]
        is_next = (last_topic >= 0)[:, None] & (videos.topic[video] == after[:, None])
        return factor * np.where(is_next, 1.0 + 0.4 * dials.order, 1.0)

    def click_probability(
        self,
        sessions: Sessions,
        video: np.ndarray,
        at_us: np.ndarray,
        taste: np.ndarray,
        seen: np.ndarray,
        last_topic: np.ndarray,
        episodes: np.ndarray,
    ) -> np.ndarray:
        """Probability of a click on a video that is looked at.

        Args:
            sessions: n of them.
            video: int [n, m].
            at_us: int64 [n], microseconds since 1970 UTC.
            taste: float [n, m], see `taste`.
            seen: uint8 [n, m], see `simulate.State`.
            last_topic: int [n], of the user's last completed watch, -1 for none.
            episodes: int [n, m]; +1 where the user completed the episode before, -1 where there is one that they
                did not complete, 0 for what has none.

        Returns:
            float64 [n, m]
        """
        factor = self.pull(sessions, video, at_us, seen, last_topic, episodes)
        if self.settings.preset == "linear_taste":
            return 1.0 / (1.0 + np.exp(1.3 - taste) / factor)
        drive = 3.5 * (0.03 + 2.0 * taste) * factor
        return np.minimum(1.0 - np.exp(-(drive**1.4)), 0.97)

    def commit_probability(self, video: np.ndarray, taste: np.ndarray, episodes: np.ndarray) -> np.ndarray:
        """Probability that who clicked means to see it through: taste or quality, whichever is less, decides."""
        quality = self.videos.quality[video]
        if self.settings.preset == "click_optimal":
            return np.full(video.shape, 0.55)
        if self.settings.preset == "linear_taste":
            commit = 1.0 / (1.0 + np.exp(-taste) * (1.0 - quality) / quality)
        else:
            held = np.minimum(quality, 0.45 + 1.5 * taste)
            commit = 0.06 + 0.94 * np.clip(held, 0.0, 1.0)
        return np.where(episodes > 0, commit + 0.4 * min(self.dials.series, 2.0) * (1.0 - commit), commit)

    def loop_probability(self, duration_s: np.ndarray) -> np.ndarray:
        """Short videos are sometimes seen twice."""
        return 0.35 * np.exp(-duration_s / 20.0)

    def leave_s(self, quality: np.ndarray) -> np.ndarray:
        """Mean time after which somebody leaves who does not mean to see it through."""
        if self.settings.preset == "click_optimal":
            return np.full(quality.shape, 9.0)
        return 4.0 + 10.0 * quality

    def expected_watch_time_s(
        self, video: np.ndarray, commit: np.ndarray, patience_s: np.ndarray
    ) -> np.ndarray:
        """Exact mean of `watch_time_s` given a click; arguments broadcast against each other."""
        duration = self.videos.duration_s[video]

        def cut(low: float, high: float) -> np.ndarray:
            """Mean of min(duration * U(low, high), Exponential(patience))."""
            fall = np.exp(-low * duration / patience_s) - np.exp(-high * duration / patience_s)
            return patience_s - patience_s**2 / (duration * (high - low)) * fall

        loop = self.loop_probability(duration)
        leave = self.leave_s(self.videos.quality[video])
        through = (1.0 - loop) * cut(0.93, 1.05) + loop * cut(1.93, 2.05)
        # Nobody leaves in the first half second.
        left = 0.5 + leave * (1.0 - np.exp(-np.maximum(duration - 0.5, 0.0) / leave))
        return commit * through + (1.0 - commit) * left

    def watch(
        self,
        noise: int,
        key: tuple[np.ndarray, ...],
        video: np.ndarray,
        commit: np.ndarray,
        patience_s: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """One watch each: watch time [n] in whole milliseconds, and whether it was completed."""
        duration = self.videos.duration_s[video]
        length = uniform(noise, Stream.LENGTH, *key)
        share = 0.93 + 0.12 * length + (uniform(noise, Stream.LOOP, *key) < self.loop_probability(duration))
        patience = -np.log(uniform(noise, Stream.PATIENCE, *key)) * patience_s
        through = np.minimum(duration * share, patience)
        leave = self.leave_s(self.videos.quality[video])
        left = np.minimum(0.5 - np.log(length) * leave, np.maximum(duration, 0.5))
        committed = uniform(noise, Stream.COMMIT, *key) < commit
        watch_time = np.maximum(np.round(np.where(committed, through, left), 3), 0.001)
        return watch_time, watch_time >= COMPLETED_SHARE * duration

    # ---- a day -----------------------------------------------------------------------------------------------

    def arrivals(self, day: int, noise: int) -> Arrivals:
        """Who comes when and for what; a function of the day and the noise alone."""
        users, dials = self.users, self.dials
        rng = np.random.default_rng([noise, 4, day + self.settings.burn_in_days])
        begin_us = self.start_us + day * DAY_US
        weekday = (begin_us // DAY_US + 3) % 7
        rate = users.pages_per_day * (1.12 if weekday >= 5 else 0.95)
        rate = rate * rng.gamma(2.0, 0.5, size=len(rate)) * (users.signed_up_us < begin_us)
        counts = np.stack(
            [
                rng.poisson(rate),
                rng.poisson(0.22 * dials.search * rate),
                rng.poisson(0.35 * dials.external * rate),
            ]
        )
        kind, user = np.divmod(np.repeat(np.arange(counts.size), counts.ravel()), len(rate))
        order = np.lexsort((rng.random(len(user)), user))
        kind, user = kind[order].astype(np.int8), user[order].astype(np.int32)
        rank = rank_in_group(user)
        kept = rank < MAX_EVENTS_PER_USER_DAY
        kind, user, rank = kind[kept], user[kept], rank[kept]

        first = rank == 0
        new_session = first | (rng.random(len(user)) < 0.3)
        gap_s = np.clip(np.exp(np.log(240.0) + 0.7 * rng.normal(size=len(user))), 40.0, 2400.0)
        gap_s = np.where(new_session, rng.uniform(1.0, 5.0, size=len(user)) * 3600.0, gap_s)
        gap_s[first] = 0.0
        group = np.cumsum(first) - 1
        clock = np.cumsum(gap_s)
        since_first = clock - clock[first][group]
        span = np.zeros(int(first.sum()))
        np.maximum.at(span, group, since_first)
        at_home = rng.choice(3, size=len(span), p=[0.55, 0.3, 0.15])
        hour = rng.normal(np.array([20.0, 12.5, 7.5])[at_home], np.array([2.2, 2.2, 1.2])[at_home])
        latest = DAY_S - 300.0
        shrink = np.minimum(1.0, (latest - 60.0) / np.maximum(span, 1.0))
        # A day that is too full for its hour begins somewhere in what room it has.
        room_s = latest - span * shrink
        begin_s = np.where(
            hour * 3600.0 < room_s, np.maximum(hour, 0.0) * 3600.0, room_s * rng.random(len(span))
        )
        at_us = begin_us + ((begin_s[group] + since_first * shrink[group]) * 1e6).astype(np.int64)
        until_us = np.full(len(at_us), begin_us + DAY_US, dtype=np.int64)
        same = user[1:] == user[:-1]
        until_us[:-1][same] = at_us[1:][same]

        number = np.zeros(len(user), dtype=np.int64)
        for one in (PAGE, SEARCH, OUTSIDE):
            mine = kind == one
            number[mine] = rank_in_group(user[mine])
        session_number = np.cumsum(new_session) - 1
        session_number = session_number - session_number[first][group]
        return Arrivals(
            user, at_us, until_us, kind, number, rank, self._sessions(user, day, session_number, noise)
        )

    def _sessions(self, user: np.ndarray, day: int, number: np.ndarray, noise: int) -> Sessions:
        hidden = self.dials.hidden_causes
        key = (user, day + self.settings.burn_in_days, number)
        member = (uniform(noise, Stream.MEMBER, *key) ** 1.4 * self.users.members[user]).astype(np.int64)
        salient = np.digitize(uniform(noise, Stream.MOOD, *key), [0.5, 0.8])
        device = np.digitize(uniform(noise, Stream.DEVICE, *key), [0.62, 0.86])
        # A logistic variate: near enough to a normal one, and it takes one draw.
        energy = uniform(noise, Stream.ENERGY, *key)
        restless = 0.5 * np.log(energy / (1.0 - energy))
        return Sessions(
            user=user,
            member=member,
            salient=salient,
            patience_s=600.0 * np.exp(hidden * restless) * np.array([0.8, 1.0, 2.5])[device],
            surface=(uniform(noise, Stream.SURFACE, *key) < 0.25).astype(np.int64),
            device=device,
            logged_in=uniform(noise, Stream.LOGGED_IN, *key) < 0.93,
        )

    def spread_weights(self, begin_us: int) -> np.ndarray:
        """How often each video is met outside on a day: [num_videos], 0 for what is not there yet."""
        everything = np.arange(len(self.videos.video_id))
        weight = self.videos.reach * self.buzz(everything, begin_us + DAY_US // 2) ** 1.5
        return np.where(self.videos.uploaded_us < begin_us, weight, 0.0)

    def video_table(self, rows: np.ndarray) -> pa.Table:
        videos = self.videos
        rows = rows[np.argsort(videos.video_id[rows])]
        listed = videos.listed_topics[rows]
        offsets = np.concatenate([[0], np.cumsum((listed >= 0).sum(axis=1))]).astype(np.int32)
        return pa.table(
            {
                "video_id": videos.video_id[rows],
                "channel_id": 10_000 + videos.channel[rows].astype(np.int64),
                "topics": pa.ListArray.from_arrays(offsets, named(listed[listed >= 0], self.topic_names)),
                "duration_s": videos.duration_s[rows],
                "uploaded_at": instants(videos.uploaded_us[rows]),
                "language": named(videos.language[rows], LANGUAGES),
            }
        )

    def user_table(self, rows: np.ndarray) -> pa.Table:
        users = self.users
        rows = rows[np.argsort(users.user_id[rows])]
        return pa.table(
            {
                "user_id": users.user_id[rows],
                "region": named(users.region[rows], REGIONS),
                "gender": named(users.gender[rows], GENDERS),
                "age_years": users.age_years[rows],
                "signed_up_at": instants(users.signed_up_us[rows]),
            }
        )

    def queries(self, topic: np.ndarray, words: np.ndarray, length: np.ndarray) -> pa.Array:
        """What is typed: the first `length` [n] of `words` [n, 3], indices into the words of `topic` [n]."""
        chosen = self.words[topic[:, None], words]
        query = chosen[:, 0]
        for place in range(1, chosen.shape[1]):
            longer = np.char.add(np.char.add(query, " "), chosen[:, place])
            query = np.where(length > place, longer, query)
        return pa.array(query.astype(object), pa.string())

    def truth_tables(self) -> dict[str, pa.Table]:
        """What no log shows, by name."""
        return {
            "videos": self._video_truth_table(),
            "users": self._user_truth_table(),
            "positions": self._position_table(),
            "topics": pa.table(
                {
                    "topic": self.topic_names,
                    "successor": [self.topic_names[topic] for topic in self.topic_successor],
                    "words": self.words.tolist(),
                    "place": self.topic_place.tolist(),
                }
            ),
        }

    def _video_truth_table(self) -> pa.Table:
        videos = self.videos
        return pa.table(
            {
                "video_id": videos.video_id,
                "topic": named(videos.topic, self.topic_names),
                "place": pa.FixedSizeListArray.from_arrays(videos.place.ravel(), DIMENSIONS),
                "quality": videos.quality,
                "appeal": videos.appeal,
                "clickbait": videos.clickbait,
                "reach": videos.reach,
                "rise_days": videos.rise_days,
                "decay_days": videos.decay_days,
                "series": videos.series,
                "episode": videos.episode,
            }
        )

    def _user_truth_table(self) -> pa.Table:
        users = self.users
        width = MEMBERS * INTERESTS
        places = pa.FixedSizeListArray.from_arrays(users.interest_place.ravel(), width * DIMENSIONS)

        def listed(values: np.ndarray) -> pa.Array:
            return pa.FixedSizeListArray.from_arrays(values.ravel(), width)

        return pa.table(
            {
                "user_id": users.user_id,
                "members": users.members,
                "language": named(users.language, LANGUAGES),
                "pages_per_day": users.pages_per_day,
                "pickiness": users.pickiness,
                "interest_place": places,
                "interest_topic": listed(users.interest_topic),
                "interest_strength": listed(users.interest_strength),
                "interest_breadth": listed(users.interest_breadth),
            }
        )

    def true_position_effect(self) -> dict[str, np.ndarray]:
        """Surface -> float64 [page_size], see `examination`."""
        return dict(zip(SURFACES, self.examination(np.arange(len(SURFACES))), strict=True))

    def _position_table(self) -> pa.Table:
        looked = np.concatenate(list(self.true_position_effect().values()))
        surface, position = np.divmod(np.arange(len(looked)), self.settings.page_size)
        return pa.table(
            {
                "surface": named(surface, SURFACES),
                "position": position,
                "examination_probability": looked,
            }
        )


def rank_in_group(group: np.ndarray) -> np.ndarray:
    """0, 1, 2... within each run of equal values of a sorted array."""
    return np.arange(len(group)) - np.searchsorted(group, group)


def instants(microseconds: np.ndarray) -> pa.Array:
    return pa.array(microseconds.astype(np.int64), pa.int64()).cast(pa.timestamp("us", tz="UTC"))


def named(index: np.ndarray, names: Iterable[str]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(
        pa.array(np.asarray(index).astype(np.int32)), pa.array(list(names), pa.string())
    ).cast(pa.string())
