"""A bundle as an MLflow model, by the models-from-code way: this file is what MLflow stores and runs again.

    mlflow models serve --env-manager local -m models:/watchnext@champion
    curl 127.0.0.1:5000/invocations -H 'Content-Type: application/json' \\
        -d '{"dataframe_records": [{"user_id": "7", "how_many": 10, "surface": "home"}]}'

gives the slate that `POST /v1/recommend` gives, from the same user state: the one that the variable WATCHNEXT_STORE
names, or else `state/users.db` in the working directory. It only reads: nothing is shown, taken or followed here.

`watchnext` itself has to be installed where the model is loaded; nothing of it is copied into the model, because
MLflow would use the first version's copy for every later one in the same process.
"""

import logging
import os
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from watchnext.bundle import Bundle
from watchnext.errors import InputError
from watchnext.features.history import Id, UserHistory
from watchnext.recommend.recommender import Recommender
from watchnext.recommend.signature import FACTS
from watchnext.recommend.state import UserFacts
from watchnext.serving.events import Event, history_of
from watchnext.serving.service import HOW_MANY, STATE_UNAVAILABLE, facts_among, request_context
from watchnext.serving.stores import STORE_VARIABLE, is_redis, open_store
from watchnext.serving.user_store import StoreUnavailableError, UserStore

log = logging.getLogger("watchnext.serving")

_SECOND = 1_000_000  # microseconds
_STORE = "state/users.db"


class BundleModel(PythonModel):
    """Answers a table of requests, one slate per row.

    Columns: `user_id`; and, where they are given, `how_many`, `exclude`, and the facts of `recommend.signature.FACTS`,
    which come before what is known of the user. With `watched_video_ids`, oldest first, somebody of that past is
    answered, and nothing else is taken to be known of them. The answer has `user_id`, `video_ids` in the slate's order,
    `expected_watch_time_s`, `personal` and `degraded` as the server has them.
    """

    def load_context(self, context: Any) -> None:
        """Open the bundle that was logged with the model, verify that it is the one registered, and open the user state.

        Raises:
            InputError: it is another one, or was changed; or there is a user state that cannot be opened.
        """
        digest = (context.model_config or {}).get("bundle_digest")
        self.recommender = Recommender.open(Bundle.open(Path(context.artifacts["bundle"]), digest))
        place = os.environ.get(STORE_VARIABLE) or _STORE
        self.users: UserStore | None = None
        if is_redis(place) or Path(place).exists():
            self.users = open_store(place)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One slate per row of `model_input`.

        Raises:
            InputError: a column is missing, or an id is not of the type that the model was trained with.
        """
        del context, params
        if "user_id" not in model_input:
            raise InputError("the request has no column `user_id`", offenders=list(model_input.columns))
        return pd.DataFrame([self._answer(row) for row in model_input.to_dict(orient="records")])

    def _answer(self, row: dict[Any, Any]) -> dict[str, Any]:
        user_id = str(row["user_id"])
        now = time.time_ns() // 1000
        watched = _given(row.get("watched_video_ids"))
        events, facts, degraded = self._known(user_id) if watched is None else ([], UserFacts(), "")
        history = (
            history_of(events, facts_among(events, self.recommender.videos))
            if watched is None
            else self._history(self._video_ids(watched, "watched_video_ids"), now)
        )
        request = request_context(user_id, now, facts, {fact: _given(row.get(fact)) for fact in FACTS})
        how_many = _given(row.get("how_many"))
        slate = self.recommender.recommend(
            history,
            request,
            HOW_MANY if how_many is None else int(how_many),
            self._video_ids(_given(row.get("exclude")), "exclude"),
        )
        return {
            "user_id": user_id,
            "video_ids": list(slate.video_ids),
            "expected_watch_time_s": [video.expected_watch_time_s for video in slate.videos],
            "personal": slate.personal,
            "degraded": degraded,
        }

    def _known(self, user_id: str) -> tuple[list[Event], UserFacts, str]:
        """Events and facts of a user, and what had to be done without."""
        if self.users is None:
            return [], UserFacts(), ""
        try:
            return self.users.events(user_id), self.users.facts(user_id), ""
        except StoreUnavailableError as error:
            log.error("the user state cannot be read", extra={"error": str(error)})
            return [], UserFacts(), STATE_UNAVAILABLE

    def _video_ids(self, given: Any, column: str) -> list[Id]:
        """Ids in the type that the logs of this model have."""
        if given is None:
            return []
        tokens = self.recommender.encoder.vocabularies["video"].tokens
        kind = int if pa.types.is_integer(tokens.type) else str
        try:
            return [kind(one) for one in given]
        except (TypeError, ValueError):
            raise InputError(
                "video ids of this model are integers", where=column, offenders=list(given)
            ) from None

    def _history(self, watched: list[Id], now: int) -> UserHistory:
        """A history of completed watches in this order, a second apart: their instants are not given."""
        history = UserHistory()
        for place, video_id in enumerate(watched):
            facts = self.recommender.videos.facts(video_id)
            history.add_watch(
                video_id,
                now - (len(watched) - place) * _SECOND,
                completed=True,
                channel_id=facts.channel_id,
                topics=facts.topics,
            )
        return history


def _given(value: Any) -> Any:
    """The value, or None for what pandas and JSON use for "not given"."""
    return None if value is None or (isinstance(value, float) and value != value) else value


set_model(BundleModel())
