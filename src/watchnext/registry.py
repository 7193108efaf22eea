"""The only door to the MLflow model registry: versions, the aliases that say what they are for, and why.

A version is one bundle, found again by the bundle's digest. Three aliases give versions a role: `champion` is
served, `challenger` passed the gate and waits for the comparison, `previous` was champion before. MLflow's
aliases are last-write-wins and remember nothing, so roles change under a lock, and every change is first
written down as an event on the registered model: who was champion at any past instant, and why, can be read there.

Writes are ordered so that whoever is killed between two of them leaves a registry with exactly the champion of
before or of after: tags first, then the event, then the alias.
"""

import contextlib
import json
import logging
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from watchnext.addresses import (
    check_answers,
    connect,
    is_lost,
    is_postgresql,
    unanswered,
    without_passwords,
)
from watchnext.bundle import Bundle
from watchnext.config import project_folder
from watchnext.console import say
from watchnext.errors import InputError

Role = Literal["champion", "challenger", "previous"]
ROLES: tuple[Role, ...] = ("champion", "challenger", "previous")

AUTO = "auto"
DATABASE = Path("mlruns/mlflow.db")
LOCK = Path("mlruns/registry.lock")
DOWNLOADS = Path("mlruns/bundles")
BUNDLE_ARTIFACT = "bundle"
LOCK_VARIABLE = "WATCHNEXT_LOCK_URI"
"""A PostgreSQL database whose lock promotions take. It needs no table: a user who may connect and nothing else will do."""
ROLLBACK = "rollback"
"""The evidence of an event by which somebody took a crowning back."""

_DECISIONS = "decisions"
_DECISION_TAG = "decision."
_EVENT_TAG = "event."
_METRIC_TAG = "metric."
_VETO_TAG = "rolled_back_because"
_JUDGED_TAG = "judged."
_CARRIED_OUT_TAG = "carried_out."
_INSTANT = "%Y-%m-%dT%H:%M:%S.%fZ"  # sorts as text; MLflow allows no plus sign in a tag's name
_MADE_OF = ("source", "bundle_digest", "data_digest", "params_digest", "git_commit", "trained_until_at")
_LOCK_WAIT_S = 60.0
_ADVISORY_LOCK = int.from_bytes(b"watchnxt")
_BUSY_TIMEOUT_S = 10.0
_TAG_CHARACTERS = 4000


@dataclass(frozen=True)
class Version:
    """One registered bundle.

    Attributes:
        name: registered model.
        number: version number, from 1.
        tags: what is recorded of it: `bundle_digest`, `source`, `data_digest`, `params_digest`, `git_commit`,
            `trained_until_at`, `verdict`, `reason`, ...
        run_id: run of the pipeline execution that registered it.
        registered_at_ms: when, milliseconds since 1970 UTC.
    """

    name: str
    number: int
    tags: Mapping[str, str]
    run_id: str
    registered_at_ms: int

    @property
    def bundle_digest(self) -> str:
        return self.tags.get("bundle_digest", "")

    @property
    def source(self) -> str:
        return self.tags.get("source", "")

    @property
    def rolled_back_because(self) -> str:
        """Why somebody took the role of champion away from it; empty if nobody did, or gave it back since."""
        return self.tags.get(_VETO_TAG, "")

    @property
    def decisions(self) -> list["Decided"]:
        """Every decision about it that was kept, oldest first."""
        return [
            Decided(**json.loads(value))
            for name, value in sorted(self.tags.items())
            if name.startswith(_DECISION_TAG)
        ]

    def decided(self, kind: str) -> str | None:
        """The key of the last decision of a kind (`gate`, `shadow`); None without one."""
        keys = [one.key for one in self.decisions if one.kind == kind]
        return keys[-1] if keys else None

    @property
    def metrics(self) -> dict[str, float]:
        return {
            name.removeprefix(_METRIC_TAG): float(value)
            for name, value in self.tags.items()
            if name.startswith(_METRIC_TAG)
        }


@dataclass(frozen=True)
class Decided:
    """That something was decided about a version; the decision itself is a file among the artifacts of its run.

    Attributes:
        number: from 1, of this version.
        kind: `gate` or `shadow`.
        key: digest of what was judged, against whom, on what data and by which rules.
        at: ISO instant, UTC.
    """

    number: int
    kind: str
    key: str
    at: str


@dataclass(frozen=True)
class Event:
    """A role was given to a version, or taken away.

    Attributes:
        at: ISO instant, UTC.
        role: which role.
        version: who has it from then on; None for nobody.
        before: who had it until then; None for nobody.
        reason: one sentence.
        evidence: what the decision rests on (`gate`, `offline`, `causal`, `rollback`).
        run_id: run of the pipeline execution that decided; empty for a rollback, which no pipeline decides.
    """

    at: str
    role: Role
    version: int | None
    before: int | None
    reason: str
    evidence: str
    run_id: str


@dataclass(frozen=True)
class Download:
    """A bundle in `mlruns/bundles`, fetched from the server that holds its version.

    Attributes:
        bundle_digest: which one.
        size_bytes: on disk.
        kept_because: why it stays; empty where it may go.
    """

    bundle_digest: str
    size_bytes: int
    kept_because: str


class UnusableBundleError(InputError):
    """The files of a registered version are gone, or are not those that were registered."""


class Registry:
    """The registered models of one project (or of the server that MLFLOW_REGISTRY_URI names)."""

    def __init__(self, root: Path, tracking_uri: str, registry_uri: str, lock_uri: str | None = None) -> None:
        self.root = root
        self.tracking_uri = tracking_uri
        self.registry_uri = registry_uri
        self.lock_uri = lock_uri or (registry_uri if is_postgresql(registry_uri) else None)
        self._check_lock: Callable[[], None] | None = None
        self._mlflow_client: Any = None

    @classmethod
    def open(cls, root: Path) -> "Registry":
        """The registry that the project in `root` uses. Imports nothing heavy and writes nothing."""
        root = project_folder(root)
        tracking_uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / DATABASE}"
        registry_uri = os.environ.get("MLFLOW_REGISTRY_URI") or tracking_uri
        return cls(root, tracking_uri, registry_uri, os.environ.get(LOCK_VARIABLE))

    @property
    def where(self) -> str:
        """Its address as people may read it."""
        return without_passwords(self.registry_uri)

    @property
    def is_empty(self) -> bool:
        """Whether the registry is this folder's own and nothing was ever written there. Imports no MLflow."""
        return self._is_local and not (self.root / DATABASE).exists()

    # --- versions ---

    def find(self, name: str, bundle_digest: str) -> Version | None:
        """The version of model `name` that is this bundle, or None."""
        versions = [version for version in self._with_digest(bundle_digest) if version.name == name]
        return min(versions, key=lambda version: version.number, default=None)

    def version(self, name: str, number: int) -> Version:
        """Version `number` of model `name`."""
        if self._is_local:
            return self._read_version(name, number)
        with self._plainly():
            return _version(self._client().get_model_version(name, str(number)))

    def role(self, name: str, role: Role) -> Version | None:
        """The version that has `role` now, or None."""
        number = self._aliases(name).get(role)
        return None if number is None else self.version(name, number)

    def register(
        self,
        name: str,
        bundle: Bundle,
        *,
        script: Path,
        signature: Any,
        input_example: Any,
        run_id: str,
    ) -> Version:
        """Register `bundle` as a version of model `name`, once: a second call finds the first one's version.

        Args:
            name: registered model; made if it does not exist.
            bundle: what to register. It is copied whole.
            script: the models-from-code script that turns a bundle into an MLflow model.
            signature: its MLflow signature.
            input_example: an input that it answers.
            run_id: run of the pipeline execution that the version is to lead back to.
        """
        with self._locked(), self._plainly():
            found = self.find(name, bundle.digest)
            if found is not None:
                return found
            client = self._client()
            run = client.get_run(run_id)
            commit = run.data.tags.get("mlflow.source.git.commit", "")
            tags = {
                "bundle_digest": bundle.digest,
                "source": bundle.source,
                "data_digest": bundle.data_digest,
                "params_digest": bundle.params_digest,
                "trained_until_at": bundle.trained_until_at.isoformat(),
                "git_commit": commit,
                "pipeline_run_id": run_id,
            }
            model = client.create_logged_model(
                run.info.experiment_id, name=name, source_run_id=run_id, tags=tags, model_type="watchnext"
            )
            with tempfile.TemporaryDirectory(prefix="watchnext-") as scratch:
                folder = Path(scratch) / "model"
                self._save(folder, bundle, script, signature, input_example, run_id, model)
                client.log_model_artifacts(model.model_id, str(folder))
            client.finalize_logged_model(model.model_id, "READY")
            self._ensure_model(name)
            entry = client.create_model_version(
                name, model.artifact_location, run_id=run_id, tags=tags, model_id=model.model_id
            )
            return _version(entry)

    def record(
        self, version: Version, tags: Mapping[str, str], metrics: Mapping[str, float] | None = None
    ) -> Version:
        """Write tags (and metrics, for `status`) onto a version, in order, and return it as it is now."""
        texts = {
            **{f"{_METRIC_TAG}{name}": repr(float(value)) for name, value in (metrics or {}).items()},
            **tags,
        }
        with self._plainly():
            for key, value in texts.items():
                if version.tags.get(key) != value:
                    self._client().set_model_version_tag(
                        version.name, str(version.number), key, value[:_TAG_CHARACTERS]
                    )
        return self.version(version.name, version.number)

    def keep(self, version: Version, kind: str, key: str, content: Mapping[str, Any]) -> None:
        """Keep a decision about a version for good, with the run that registered it: `recall` gives it back.

        Decisions are only ever added. The tag is what makes one of them: of whoever is killed before it, the next
        decision takes the number.

        Args:
            version: what was decided about.
            kind: `gate` or `shadow`.
            key: what it was decided by.
            content: JSON.
        """
        with self._locked(), self._plainly():
            number = len(self.version(version.name, version.number).decisions) + 1
            decided = Decided(number, kind, key, datetime.now(UTC).strftime(_INSTANT))
            self._client().log_dict(version.run_id, dict(content), _decision_file(version, decided))
            self._client().set_model_version_tag(
                version.name,
                str(version.number),
                f"{_DECISION_TAG}{number:04d}",
                json.dumps(asdict(decided)),
            )

    def recall(self, version: Version, kind: str, key: str | None = None) -> dict[str, Any] | None:
        """The last decision of a kind that `keep` kept (by `key`, if one is given); None if there is none."""
        for decided in reversed(self.version(version.name, version.number).decisions):
            if decided.kind == kind and key in (None, decided.key):
                content = self._decision(version, decided)
                if content is not None:
                    return content
        return None

    def _decision(self, version: Version, decided: Decided) -> dict[str, Any] | None:
        """The file of a decision; None if somebody deleted it."""
        path = _decision_file(version, decided)
        with self._plainly():
            client = self._client()
            if path not in {entry.path for entry in client.list_artifacts(version.run_id, _DECISIONS)}:
                return None
            with tempfile.TemporaryDirectory(prefix="watchnext-") as scratch:
                text = Path(client.download_artifacts(version.run_id, path, scratch)).read_text("utf-8")
        return json.loads(text)

    def take_place(self, name: str, source: str, day: str, key: str) -> int:
        """Note that a challenger is about to be judged on a day, and say as the how many-th of that day.

        Every challenger of the day counts, of whichever registered model of this source and whatever became of it: the
        note is written before anything is measured. Whoever comes again with the same key has the place of before.

        Args:
            name: registered model, which has a champion.
            source: of the logs.
            day: that judges, ISO.
            key: digest of who is judged, against whom and by what evidence.

        Returns:
            The place, from 1.
        """
        prefix = f"{_JUDGED_TAG}{source}.{day}."
        with self._locked(), self._plainly():
            places: dict[str, int] = {}
            page_token = None
            while True:
                models = self._client().search_registered_models(page_token=page_token)
                for model in models:
                    places |= {
                        tag.removeprefix(prefix): int(place)
                        for tag, place in model.tags.items()
                        if tag.startswith(prefix)
                    }
                page_token = models.token
                if not page_token:
                    break
            if key not in places:
                places[key] = max(places.values(), default=0) + 1
                self._client().set_registered_model_tag(name, f"{prefix}{key}", str(places[key]))
        return places[key]

    def bundle(self, version: Version) -> Bundle:
        """The bundle of a version, verified; where artifacts are remote it is fetched, once unless the copy is damaged.

        Raises:
            UnusableBundleError: its files are gone or not those that were registered.
            InputError: the registry cannot be used.
        """
        location = self._location(version)
        local = Path(location.removeprefix("file://"))
        if local.is_absolute():  # else s3://..., or mlflow-artifacts:/... of a server that hands them out
            path = _only_folder(local / "artifacts")
            if path is None:
                raise UnusableBundleError(
                    f"the files of version {version.number} of {version.name} are gone",
                    where=str(local),
                    remedy="if the project was moved: watchnext registry relocate; else restore mlruns/artifacts,"
                    " or delete the version in the MLflow UI (`make ui`)",
                )
            return _verified(path, version)
        return self._fetched(location, version)

    def prune_downloads(self, *, dry_run: bool = False) -> list[Download]:
        """Delete the fetched bundles that can be fetched again and whose versions have no alias; say which stay, and why.

        Args:
            dry_run: delete nothing.

        Raises:
            InputError: the registry is this folder's own, from which nothing is fetched, or it cannot be used.
        """
        if self._is_local:
            raise InputError(
                "the registry is this folder's own, from which no bundle is fetched",
                where=self.where,
                remedy="set MLFLOW_TRACKING_URI as where the bundles were fetched: what stays is what that registry says",
            )
        found = []
        for path in sorted((self.root / DOWNLOADS).glob("*")):
            # Not locks, nor what a killed download left: the next one removes that.
            if not path.is_dir() or path.suffix:
                continue
            # Asked under the lock that a download takes: nobody is handed a bundle between the answer and its end.
            locked = FileLock(path.with_name(path.name + ".lock"))
            with contextlib.nullcontext() if dry_run else locked:
                if not path.is_dir():
                    continue  # somebody else was as quick
                size_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
                found.append(Download(path.name, size_bytes, self._why_kept(path.name)))
                if not found[-1].kept_because and not dry_run:
                    # Renamed first: whoever is killed in between leaves no half of a bundle under its name.
                    shutil.rmtree(path.rename(path.with_name(path.name + ".staging")))
        return found

    def _why_kept(self, bundle_digest: str) -> str:
        versions = self._with_digest(bundle_digest)
        for version in versions:
            roles = [
                alias for alias, number in self._aliases(version.name).items() if number == version.number
            ]
            if roles:
                return f"version {version.number} of {version.name} is {', '.join(sorted(roles))}"
        for version in versions:
            if not self._is_stored(self._location(version)):
                return f"the server has no files of version {version.number} of {version.name} any more"
        return ""

    def _is_stored(self, location: str) -> bool:
        """Whether there are files of a version where the registry says."""
        from mlflow.artifacts import list_artifacts

        with self._plainly():
            return bool(list_artifacts(artifact_uri=f"{location}/artifacts", tracking_uri=self.tracking_uri))

    def _location(self, version: Version) -> str:
        with self._plainly():
            return str(self._client().get_model_version_download_uri(version.name, str(version.number)))

    # --- roles ---

    def challenge(self, version: Version, *, over: Version, reason: str, evidence: str, run_id: str) -> None:
        """Give a version the role of challenger. `over` is the champion that it was judged against.

        Raises:
            InputError: somebody else changed the champion in the meantime: against that one nothing was judged.
        """
        with self._locked(), self._plainly():
            self._require_champion(version.name, over)
            self._assign(version.name, "challenger", version.number, reason, evidence, run_id)

    def crown(
        self, version: Version, *, over: Version | None, reason: str, evidence: str, run_id: str
    ) -> None:
        """Make a version champion; the champion until now becomes `previous`.

        Args:
            version: the next champion.
            over: the champion that it was judged against; None when there was none.
            reason: one sentence.
            evidence: what the decision rests on.
            run_id: run of the pipeline execution that decided.

        Raises:
            InputError: somebody else changed the champion in the meantime.
        """
        with self._locked(), self._plainly():
            champion = self._aliases(version.name).get("champion")
            if champion == version.number:
                self._mark_moved(version.name)
                self._tidy(version.name)
                return
            self._require_champion(version.name, over)
            self._note(version.name, "champion", version.number, champion, reason, evidence, run_id)
            if champion is not None:
                self._client().set_registered_model_alias(version.name, "previous", str(champion))
            self._client().set_registered_model_alias(version.name, "champion", str(version.number))
            self._mark_moved(version.name)
            self._tidy(version.name)

    def _require_champion(self, name: str, judged_against: Version | None) -> None:
        champion = self._aliases(name).get("champion")
        if champion != (judged_against.number if judged_against is not None else None):
            raise InputError(
                f"the champion of {name} changed while this decision was being made",
                where=self.where,
                offenders=[f"champion is version {champion}"],
                remedy="run `dvc repro` again: it compares with the present champion",
            )

    def dismiss(self, version: Version, *, reason: str, evidence: str, run_id: str) -> None:
        """Take the role of challenger away from a version, if it has it."""
        with self._locked(), self._plainly():
            if self._aliases(version.name).get("challenger") != version.number:
                return
            self._note(version.name, "challenger", None, version.number, reason, evidence, run_id)
            self._client().delete_registered_model_alias(version.name, "challenger")
            self._mark_moved(version.name)

    def roll_back(self, name: str, *, to: int | None = None, reason: str) -> tuple[int, Version]:
        """Make a version champion that was it before, and keep the one of now from being promoted again.

        The champion before the new one, if there was any, becomes `previous`. A version that a rollback goes to is
        free of whatever kept it from being promoted. After a `kill -9` the champion is either of the two, and the
        same call finishes what it began.

        Args:
            name: registered model.
            to: version number; None: `previous`.
            reason: one sentence.

        Returns:
            The number of the version that was champion until then, and the champion of now.

        Raises:
            InputError: there is nothing to go back to, the version was never champion, its files are gone or are not
                those that were registered, or another process is changing the registry.
        """
        if not reason.strip():
            raise InputError(
                "a rollback needs a reason", remedy='--reason "what went wrong", for who reads the history'
            )
        with self._locked(), self._plainly():
            begun = self._unmarked(name).get("champion")
            if begun is not None and begun.evidence == ROLLBACK and to in (None, begun.version):
                return self._finish_rollback(name, begun)
            aliases = self._aliases(name)
            champion = aliases.get("champion")
            if champion is None:
                raise InputError(f"{name} has no champion", where=self.where, remedy="see `watchnext status`")
            target = self._way_back(name, aliases, to)
            self.bundle(target)
            self.record(self.version(name, champion), {_VETO_TAG: reason})
            if target.rolled_back_because:
                self.record(target, {_VETO_TAG: ""})
            self._note(name, "champion", target.number, champion, reason, ROLLBACK, "")
            self._client().set_registered_model_alias(name, "champion", str(target.number))
            self._tidy(name)
            self._mark_moved(name)
        return champion, self.version(name, target.number)

    def _finish_rollback(self, name: str, begun: Event) -> tuple[int, Version]:
        assert begun.version is not None
        assert begun.before is not None
        self._tidy(name)
        self._mark_moved(name)
        return begun.before, self.version(name, begun.version)

    def _way_back(self, name: str, aliases: Mapping[str, int], to: int | None) -> Version:
        """The version that a rollback goes to."""
        champion = aliases["champion"]
        once = sorted(
            {event.version for event in self._crownings(name) if event.version is not None} - {champion}
        )
        number = to if to is not None else aliases.get("previous")
        offenders = [f"champions before: {', '.join(f'version {one}' for one in once) or 'none'}"]
        if number is None:
            raise InputError(
                f"{name} has no previous champion to go back to",
                where=self.where,
                offenders=offenders,
                remedy="name one by --to, if there is any",
            )
        if number == champion:
            raise InputError(f"version {number} of {name} is the champion already", where=self.where)
        if number not in once:
            raise InputError(
                f"version {number} of {name} was never champion: it cannot be gone back to",
                where=self.where,
                offenders=offenders,
                remedy="a version becomes champion by the gate and the shadow comparison: `dvc repro`",
            )
        return self.version(name, number)

    def tidy(self, name: str) -> None:
        """Finish a change of roles that was killed before its last write: a champion is nobody's challenger."""
        if self.is_empty:
            return
        aliases = self._aliases(name)
        both = aliases.get("challenger") is not None and aliases.get("challenger") == aliases.get("champion")
        if both or self._unmarked(name):
            with self._locked(), self._plainly():
                self._tidy(name)
                self._mark_moved(name)

    def history(self, name: str) -> list[Event]:
        """Every change of roles of model `name` that came about, oldest first."""
        return [] if self.is_empty else _carried_out(self._model_tags(name), self._aliases(name))

    def champion_at(self, name: str, instant: datetime) -> Event | None:
        """The event by which the champion of that instant became champion; None before the first one."""
        until = instant.astimezone(UTC).strftime(_INSTANT)
        past = [event for event in self._crownings(name) if event.at <= until]
        return past[-1] if past else None

    def moved_by_hand(self, name: str) -> int | None:
        """The champion, if it is another than the history says: somebody set the alias past watchnext."""
        crownings = self._crownings(name)
        champion = self._aliases(name).get("champion")
        return champion if champion != (crownings[-1].version if crownings else None) else None

    def _crownings(self, name: str) -> list[Event]:
        """Every event that made somebody champion, oldest first."""
        return [event for event in self.history(name) if event.role == "champion"]

    def models(self) -> list[str]:
        """Names of the registered models that hold bundles."""
        return [model["name"] for model in self.status()]

    def explain(self, name: str, number: int) -> dict[str, Any]:
        """All that is known of a version: roles, events, what it was made of, what was decided about it and why.

        Raises:
            InputError: there is no such version.
        """
        if self.is_empty or self._model(name) is None:
            raise InputError(f"there is no model {name}", where=self.where, remedy="see `watchnext status`")
        if not self._is_local:
            with self._plainly():
                numbers = [int(entry.version) for entry in self._search(f"name = '{name}'")]
            if number not in numbers:
                raise InputError(f"there is no version {number} of {name}", where=self.where)
        version = self.version(name, number)
        registered = datetime.fromtimestamp(version.registered_at_ms / 1000, UTC)
        return {
            "name": name,
            "version": number,
            "roles": [role for role, holder in self._aliases(name).items() if holder == number],
            "registered_at": registered.isoformat(timespec="seconds"),
            "run_id": version.run_id,
            **{key: version.tags.get(key, "") for key in _MADE_OF},
            "rolled_back_because": version.rolled_back_because,
            "metrics": version.metrics,
            "decisions": [
                {
                    **asdict(decided),
                    **(self._decision(version, decided) or {"verdict": "", "reason": "its file is gone"}),
                }
                for decided in version.decisions
            ],
            "events": [
                asdict(event) for event in self.history(name) if number in (event.version, event.before)
            ],
        }

    def status(self) -> list[dict[str, Any]]:
        """Every registered model that holds bundles: who has which role, since when, why, and its past."""
        if self.is_empty:
            return []
        with self._plainly():
            models = list(self._client().search_registered_models(max_results=1000))
        described = []
        for model in sorted(models, key=lambda model: str(model.name)):
            aliases = {role: int(number) for role, number in dict(model.aliases).items() if role in ROLES}
            events = _carried_out(model.tags, aliases)
            roles = {}
            for role in ROLES:
                if role in aliases:
                    roles[role] = _describe(self.version(model.name, aliases[role]), role, events)
            with self._plainly():
                versions = self._search(f"name = '{model.name}'")
            latest = max(
                (_version(entry) for entry in versions), key=lambda entry: entry.number, default=None
            )
            if latest is None or not latest.bundle_digest:
                continue
            described.append(
                {
                    "name": model.name,
                    "source": latest.source,
                    "roles": roles,
                    "latest": {
                        "version": latest.number,
                        "verdict": latest.tags.get("verdict", ""),
                        "reason": latest.tags.get("reason", ""),
                    },
                    "history": [asdict(event) for event in events],
                }
            )
        return described

    # --- how it is done ---

    def _assign(self, name: str, role: Role, number: int, reason: str, evidence: str, run_id: str) -> None:
        before = self._aliases(name).get(role)
        if before == number:
            return
        self._note(name, role, number, before, reason, evidence, run_id)
        self._client().set_registered_model_alias(name, role, str(number))
        self._mark_moved(name)

    def _note(
        self,
        name: str,
        role: Role,
        number: int | None,
        before: int | None,
        reason: str,
        evidence: str,
        run_id: str,
    ) -> None:
        """Write the event, unless whoever was killed here, before the alias was moved, wrote it already.

        An event whose alias was moved is marked by `_mark_moved`: if the alias stands elsewhere now, then because
        it was set outside of watchnext, and the same change again is another event.

        Raises:
            InputError: by this machine's clock, the last event is yet to come.
        """
        self._mark_moved(name)
        tags = self._model_tags(name)
        events = _events(tags)
        now = datetime.now(UTC).strftime(_INSTANT)
        if events and now <= events[-1].at:
            raise InputError(
                "the clock of this machine is behind the last change of roles, which the history is ordered by",
                where=self.where,
                offenders=[f"it is {now} here, and the last change was at {events[-1].at}"],
                remedy="set the clock, then run again: nobody's role has changed",
            )
        past = [event for event in events if event.role == role]
        begun = past and f"{_CARRIED_OUT_TAG}{past[-1].at}" not in tags
        if begun and (past[-1].version, past[-1].before) == (number, before):
            return
        event = Event(now, role, number, before, reason[: _TAG_CHARACTERS // 2], evidence, run_id)
        content = {key: value for key, value in asdict(event).items() if key != "at"}
        self._client().set_registered_model_tag(name, f"{_EVENT_TAG}{now}", json.dumps(content))

    def _unmarked(self, name: str) -> dict[Role, Event]:
        """By role, its last event if the alias stands where that put it and it is not marked as carried out yet."""
        tags = self._model_tags(name)
        last = {event.role: event for event in _events(tags)}
        aliases = self._aliases(name)
        return {
            role: event
            for role, event in last.items()
            if aliases.get(role) == event.version and f"{_CARRIED_OUT_TAG}{event.at}" not in tags
        }

    def _mark_moved(self, name: str) -> None:
        for role, event in self._unmarked(name).items():
            self._client().set_registered_model_tag(name, f"{_CARRIED_OUT_TAG}{event.at}", role)

    def _model_tags(self, name: str) -> dict[str, str]:
        if self._is_local:
            return {
                str(key): str(value)
                for key, value in self._read(
                    "SELECT key, value FROM registered_model_tags WHERE name = ?", name
                )
            }
        model = self._model(name)
        return {} if model is None else dict(model.tags)

    def _tidy(self, name: str) -> None:
        aliases = self._aliases(name)
        champion = aliases.get("champion")
        if champion is None:
            return
        if aliases.get("challenger") == champion:
            self._client().delete_registered_model_alias(name, "challenger")
        crownings = self._crownings(name)
        if crownings and (crownings[-1].version, crownings[-1].evidence) == (champion, ROLLBACK):
            # The way back from it is whom it was crowned over, not who was rolled back.
            judged = [
                event for event in crownings if event.version == champion and event.evidence != ROLLBACK
            ]
            earlier = judged[-1].before if judged else None
            if earlier is not None and aliases.get("previous") != earlier:
                self._client().set_registered_model_alias(name, "previous", str(earlier))
            if earlier is None and "previous" in aliases:
                self._client().delete_registered_model_alias(name, "previous")

    def _aliases(self, name: str) -> dict[str, int]:
        if self._is_local:
            rows = self._read("SELECT alias, version FROM registered_model_aliases WHERE name = ?", name)
            return {str(alias): int(number) for alias, number in rows}
        model = self._model(name)
        return {} if model is None else {role: int(number) for role, number in dict(model.aliases).items()}

    def _with_digest(self, bundle_digest: str) -> list[Version]:
        if self._is_local:
            rows = self._read(
                "SELECT name, version FROM model_version_tags WHERE key = 'bundle_digest' AND value = ?",
                bundle_digest,
            )
            found = [self._read_version(name, number) for name, number in rows if self._is_kept(name, number)]
            return found
        with self._plainly():
            entries = self._search(f"tags.bundle_digest = '{bundle_digest}'")
        return [_version(entry) for entry in entries]

    def _search(self, wanted: str) -> list[Any]:
        """Every version that the filter `wanted` lets through: servers answer in pages."""
        entries: list[Any] = []
        page_token = None
        while True:
            page = self._client().search_model_versions(wanted, page_token=page_token)
            entries.extend(page)
            page_token = page.token
            if not page_token:
                return entries

    # What a stage with nothing to do asks is read from the project's own database past MLflow, whose import takes
    # longer than all the rest of such a stage. A test holds these answers to MLflow's.

    @property
    def _is_local(self) -> bool:
        return self.registry_uri == f"sqlite:///{self.root / DATABASE}"

    def _read(self, query: str, *values: object) -> list[Any]:
        database = self.root / DATABASE
        if not database.exists():
            return []
        with (
            self._plainly(),
            contextlib.closing(
                sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=_BUSY_TIMEOUT_S)
            ) as connection,
        ):
            try:
                return connection.execute(query, values).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" in str(error):  # killed while MLflow was making it
                    return []
                raise

    def _is_kept(self, name: str, number: int) -> bool:
        """MLflow keeps deleted versions as rows of a stage of their own."""
        rows = self._read(
            "SELECT 1 FROM model_versions WHERE name = ? AND version = ? AND current_stage <> 'Deleted_Internal'",
            name,
            number,
        )
        return bool(rows)

    def _read_version(self, name: str, number: int) -> Version:
        rows = self._read(
            "SELECT run_id, creation_time FROM model_versions WHERE name = ? AND version = ?", name, number
        )
        if not rows:
            raise InputError(f"there is no version {number} of {name}", where=self.where)
        run_id, created = rows[0]
        tags = self._read(
            "SELECT key, value FROM model_version_tags WHERE name = ? AND version = ?", name, number
        )
        return Version(name, int(number), {str(k): str(v) for k, v in tags}, str(run_id or ""), int(created))

    def _model(self, name: str) -> Any:
        """The registered model, or None."""
        with self._plainly():
            found = self._client().search_registered_models(f"name = '{name}'")
        return found[0] if found else None

    def _ensure_model(self, name: str) -> None:
        if self._model(name) is None:
            self._client().create_registered_model(
                name,
                description="watchnext bundles; champion is served, challenger waits, previous is the way back",
            )

    def _save(
        self,
        folder: Path,
        bundle: Bundle,
        script: Path,
        signature: Any,
        input_example: Any,
        run_id: str,
        logged_model: Any,
    ) -> None:
        from mlflow.models import Model
        from mlflow.pyfunc import save_model

        versions = bundle.manifest["libraries"]
        # The project itself is not on a package index: it has to be installed where the version is loaded.
        requirements = [f"{name}=={version}" for name, version in versions.items() if name != "watchnext"]
        save_model(
            folder,
            python_model=str(script),
            artifacts={BUNDLE_ARTIFACT: str(bundle.path)},
            signature=signature,
            input_example=input_example,
            pip_requirements=requirements,
            metadata={"bundle_digest": bundle.digest},
            model_config={"bundle_digest": bundle.digest},  # of the two the one that the script is handed
            mlflow_model=Model(
                artifact_path=logged_model.artifact_location,
                model_uuid=logged_model.model_id,
                model_id=logged_model.model_id,
                run_id=run_id,
            ),
        )
        for cache in list(folder.rglob("__pycache__")):
            for path in cache.iterdir():
                path.unlink()
            cache.rmdir()
        copied = _only_folder(folder / "artifacts")
        assert copied is not None
        Bundle.open(copied, expected_digest=bundle.digest)

    def _fetched(self, location: str, version: Version) -> Bundle:
        """The bundle of a version that a server holds: fetched once, and anew where the copy in this folder is damaged."""
        from mlflow.artifacts import download_artifacts

        final = self.root / DOWNLOADS / version.bundle_digest
        final.parent.mkdir(parents=True, exist_ok=True)
        # A server, its challenger and a stage may want the same one at once.
        with FileLock(final.with_name(final.name + ".lock")):
            if final.is_dir():
                try:
                    return _verified(final, version)
                except UnusableBundleError as error:
                    say(f"{final} is not what was fetched any more ({error.what}): it is fetched anew")
            if not self._is_stored(location):
                raise UnusableBundleError(
                    f"the files of version {version.number} of {version.name} are gone",
                    where=location,
                    remedy="restore what the tracking server keeps artifacts in, or delete the version in the MLflow UI",
                )
            staged = final.with_name(final.name + ".staging")
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir()
            with self._plainly():
                artifacts = download_artifacts(
                    artifact_uri=f"{location}/artifacts", dst_path=str(staged), tracking_uri=self.tracking_uri
                )
            downloaded = _only_folder(Path(artifacts))
            if downloaded is None:
                raise UnusableBundleError("this version holds no bundle", where=location)
            # Before it takes its place: what the server holds may be damaged, and mended later.
            bundle = _verified(downloaded, version)
            shutil.rmtree(final, ignore_errors=True)
            downloaded.rename(final)
            shutil.rmtree(staged)
            return replace(bundle, path=final)

    def _client(self) -> Any:
        if self._check_lock is not None:
            self._check_lock()
        if self._mlflow_client is None:
            if self._is_local:
                (self.root / DATABASE).parent.mkdir(parents=True, exist_ok=True)
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
            os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
            os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
            os.environ.setdefault(
                "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3"
            )  # 14 s; MLflow's own 7 are four minutes
            for address in {self.tracking_uri, self.registry_uri}:
                check_answers(address)
            from mlflow import MlflowClient

            # It prints a stack of a database that went away, which is told in plain words here.
            logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
            self._mlflow_client = MlflowClient(self.tracking_uri, self.registry_uri)
        return self._mlflow_client

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of this registry, which whoever changes roles or counts challengers holds.

        It is PostgreSQL's, and holds between machines, where `WATCHNEXT_LOCK_URI` names a database or the registry is in
        one; else a file, beside a registry in SQLite or in the project's folder. A tracking server has no lock of its
        own: without the variable it is said that the lock holds in this folder alone. The lock of a process that dies is
        free again, and who loses the connection by which it is held writes no more.

        Raises:
            InputError: another process holds it for longer than a minute, or its database does not answer.
        """
        try:
            if self.lock_uri is not None:
                with self._locked_in_postgresql(self.lock_uri):
                    yield
            else:
                if self.registry_uri.startswith(("http://", "https://")):
                    say(
                        "the lock of promotions holds in this folder alone; where several machines promote, set"
                        f" {LOCK_VARIABLE} to a PostgreSQL database that all of them reach"
                    )
                path = self._lock_file()
                path.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(path, timeout=_LOCK_WAIT_S, is_singleton=True):
                    yield
        except Timeout as error:
            raise InputError(
                "another process is changing the registry",
                where=error.lock_file,
                remedy="wait for it, or end it, then run again",
            ) from None

    def _lock_file(self) -> Path:
        if self.registry_uri.startswith("sqlite:///"):
            return Path(self.registry_uri.removeprefix("sqlite:///")).resolve().parent / LOCK.name
        return self.root / LOCK

    @contextlib.contextmanager
    def _locked_in_postgresql(self, address: str) -> Iterator[None]:
        if not is_postgresql(address):
            raise InputError(
                "this is no address of a PostgreSQL database",
                where=LOCK_VARIABLE,
                offenders=[without_passwords(address)],
                remedy="postgresql://user@host:5432/database",
            )
        from sqlalchemy import text
        from sqlalchemy.exc import OperationalError, SQLAlchemyError

        with contextlib.closing(connect(address)) as connection:
            try:
                connection.execute(text(f"SET lock_timeout = {max(1, round(1000 * _LOCK_WAIT_S))}"))
                connection.execute(text(f"SELECT pg_advisory_lock({_ADVISORY_LOCK})"))
            except OperationalError as error:
                if "lock timeout" in str(error):
                    raise Timeout(f"advisory lock {_ADVISORY_LOCK} of {without_passwords(address)}") from None
                raise unanswered(error, address) from error

            def check() -> None:
                try:
                    connection.execute(text("SELECT 1"))
                except SQLAlchemyError as error:
                    raise unanswered(error, address) from error

            self._check_lock = check
            try:
                yield  # closing the connection lets go of the lock, however this ends
            finally:
                self._check_lock = None

    @contextlib.contextmanager
    def _plainly(self) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            text = str(error)
            signs = (
                "database is locked",
                "is not a database",
                "unable to open database",
                "readonly database",
            )
            if any(sign in text for sign in signs):
                raise InputError(
                    "the model registry cannot be used: " + text.splitlines()[0],
                    where=self.where,
                    remedy="end or wait for what writes to it (another pipeline, a hanging MLflow UI) and run again;"
                    " nothing half done needs mending, the next run finishes it",
                ) from error
            if is_lost(error):
                raise unanswered(error, self.registry_uri) from error
            raise


def model_name(setting: str, source: str) -> str:
    """Name of the registered model: `setting`, or for `auto` one per data source.

    >>> model_name("auto", "simulated"), model_name("auto", "kuairand"), model_name("mine", "kuairand")
    ('watchnext', 'watchnext-kuairand', 'mine')
    """
    if setting != AUTO:
        return setting
    return "watchnext" if source == "simulated" else f"watchnext-{source}"


def _decision_file(version: Version, decided: Decided) -> str:
    return f"{_DECISIONS}/{version.name}-{version.number}-{decided.number:04d}-{decided.kind}.json"


def _only_folder(artifacts: Path) -> Path | None:
    """MLflow keeps a model's artifact under the name that its folder had: the one folder in there."""
    folders = [path for path in artifacts.glob("*") if path.is_dir()]
    return folders[0] if len(folders) == 1 else None


def _verified(path: Path, version: Version) -> Bundle:
    try:
        return Bundle.open(path, expected_digest=version.bundle_digest)
    except InputError as error:
        raise UnusableBundleError(
            error.what, where=error.where, offenders=error.offenders, remedy=error.remedy
        ) from error


def _version(entry: Any) -> Version:
    return Version(
        str(entry.name),
        int(entry.version),
        dict(entry.tags),
        str(entry.run_id or ""),
        int(entry.creation_timestamp),
    )


def _events(tags: Mapping[str, str]) -> list[Event]:
    return [
        Event(at=key.removeprefix(_EVENT_TAG), **json.loads(value))
        for key, value in sorted(tags.items())
        if key.startswith(_EVENT_TAG)
    ]


def _carried_out(tags: Mapping[str, str], aliases: Mapping[str, int]) -> list[Event]:
    """The events whose alias was moved, oldest first.

    Whoever was killed between an event and its alias leaves one that made nobody anything, until the next run carries
    it out. One that is not marked was carried out all the same if its alias stands where it put it.
    """
    events = _events(tags)
    last = {event.role: event for event in events}
    return [
        event
        for event in events
        if f"{_CARRIED_OUT_TAG}{event.at}" in tags
        or (event is last[event.role] and aliases.get(event.role) == event.version)
    ]


def _describe(version: Version, role: Role, events: list[Event]) -> dict[str, Any]:
    """What `watchnext status` says of a version in a role."""
    matches: Callable[[Event], bool] = (
        (lambda event: event.role == "champion" and event.before == version.number)
        if role == "previous"
        else (lambda event: event.role == role and event.version == version.number)
    )
    event = next((event for event in reversed(events) if matches(event)), None)
    reason = event.reason if event is not None else "the alias was set outside of watchnext"
    if role == "previous" and event is not None:
        reason = f"replaced by version {event.version}: {reason}"
    return {
        "version": version.number,
        "metrics": version.metrics,
        "since_at": event.at if event is not None else "",
        "reason": reason,
        "evidence": event.evidence if event is not None else "",
        "run_id": version.run_id,
        "bundle_digest": version.bundle_digest,
        "source": version.source,
        "data_digest": version.tags.get("data_digest", ""),
        "params_digest": version.tags.get("params_digest", ""),
        "git_commit": version.tags.get("git_commit", ""),
        "trained_until_at": version.tags.get("trained_until_at", ""),
    }
