"""What every model of the benchmark is given of the logs: one day to predict and all that came before it.

Users and videos are dense codes from 0. Arrays travel as npy files without pickles.
"""

import dataclasses
from pathlib import Path

import numpy as np

FILTERS = ("none", "watched", "shown")


@dataclasses.dataclass(frozen=True)
class Lists:
    """One list of video codes per event, stored back to back: list e is `items[offsets[e] : offsets[e + 1]]`.

    Attributes:
        offsets: int64 [num_events + 1].
        items: int32 [offsets[-1]].
    """

    offsets: np.ndarray
    items: np.ndarray

    @classmethod
    def of(cls, lists: list[np.ndarray]) -> "Lists":
        """Store `lists` of int32 codes."""
        offsets = np.zeros(len(lists) + 1, np.int64)
        np.cumsum([len(one) for one in lists], out=offsets[1:])
        items = np.concatenate(lists) if lists else np.empty(0)
        return cls(offsets, items.astype(np.int32))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, event: int) -> np.ndarray:
        return self.items[self.offsets[event] : self.offsets[event + 1]]

    def owners(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """(event - begin, code) of every entry of the lists of events begin to end, exclusive."""
        sizes = np.diff(self.offsets[begin : end + 1])
        return np.repeat(np.arange(end - begin), sizes), self.items[self.offsets[begin] : self.offsets[end]]

    def padded(self, length: int) -> np.ndarray:
        """int32 [num_events, length]: the last `length` codes of each list plus 1, right-aligned after zeros."""
        rows = np.zeros((len(self), length), np.int32)
        for event in range(len(self)):
            own = self[event][-length:]
            rows[event, length - len(own) :] = own + 1
        return rows


@dataclasses.dataclass(frozen=True)
class Fold:
    """One day and what came before it.

    Training rows are the completed watches before the day, user by user, oldest first; those from before the
    logs (table `history`) come first and have no instant. An event is a completed watch of the day; its lists hold
    what the user had done strictly before it was asked for, on that day too.

    Attributes:
        num_users: U.
        num_items: V, every video of the logs: all of them are ranked.
        train_user: int32 [num_rows].
        train_item: int32 [num_rows].
        train_age_days: float32 [num_rows], days from the watch to the beginning of the day; NaN before the logs.
        event_user: int32 [num_events].
        event_item: int32 [num_events], the label.
        event_at_us: int64 [num_events], microseconds since 1970 UTC at which the watch began.
        event_asked_at_us: int64 [num_events], when somebody had to decide what to recommend: when the page was shown
            that led to the watch, or when the watch began. The lists hold what lies strictly before it.
        context: completed watches that had ended before the event, oldest first, repeats included.
        watched: distinct videos whose watch had begun before, completed or not.
        shown: distinct videos that had been shown or watched before.
        user_features: int32 [num_users, num_features], codes of the categorical columns of `users`; 0 = null.
    """

    num_users: int
    num_items: int
    train_user: np.ndarray
    train_item: np.ndarray
    train_age_days: np.ndarray
    event_user: np.ndarray
    event_item: np.ndarray
    event_at_us: np.ndarray
    event_asked_at_us: np.ndarray
    context: Lists
    watched: Lists
    shown: Lists
    user_features: np.ndarray

    @property
    def num_events(self) -> int:
        return len(self.event_user)

    def filtered(self, name: str) -> Lists | None:
        """Videos that filter `name` takes out of each event's candidates; None for `none`."""
        return {"none": None, "watched": self.watched, "shown": self.shown}[name]

    def save(self, directory: Path) -> None:
        """Write every field as `<name>.npy` into `directory`."""
        directory.mkdir(parents=True, exist_ok=True)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Lists):
                np.save(directory / f"{field.name}.offsets.npy", value.offsets)
                np.save(directory / f"{field.name}.items.npy", value.items)
            else:
                np.save(directory / f"{field.name}.npy", np.asarray(value))

    @classmethod
    def load(cls, directory: Path) -> "Fold":
        """Read what `save` wrote."""

        def read(name: str) -> np.ndarray:
            return np.load(directory / f"{name}.npy", allow_pickle=False)

        values: dict[str, object] = {}
        for field in dataclasses.fields(cls):
            if field.name in ("context", "watched", "shown"):
                values[field.name] = Lists(read(f"{field.name}.offsets"), read(f"{field.name}.items"))
            elif field.name in ("num_users", "num_items"):
                values[field.name] = int(read(field.name))
            else:
                values[field.name] = read(field.name)
        return cls(**values)  # type: ignore[arg-type]
