"""What a server tells Prometheus. Each server has a registry of its own, so that two in one process do not mix."""

import functools

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from watchnext.serving.deployment import Deployment
from watchnext.serving.mirror import Mirror
from watchnext.serving.monitoring import Monitor
from watchnext.serving.service import Answer, Service

_LATENCY_BUCKETS_S = (0.001, 0.002, 0.004, 0.006, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """The metrics of one server."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, service: Service, deployment: Deployment, mirror: Mirror, monitor: Monitor) -> None:
        self._service = service
        self._monitor = monitor
        self._deployment = deployment
        self._mirror = mirror
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "watchnext_requests",
            "HTTP requests",
            ("path", "method", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "watchnext_request_seconds",
            "from the first byte to the last of the answer",
            ("path",),
            buckets=_LATENCY_BUCKETS_S,
            registry=self._registry,
        )
        self._steps = Histogram(
            "watchnext_step_seconds",
            "steps of answering a request for a slate",
            ("step",),
            buckets=_LATENCY_BUCKETS_S,
            registry=self._registry,
        )
        self._slates = Counter(
            "watchnext_slates",
            "slates by version, and whether something had to be done without",
            ("version", "degraded"),
            registry=self._registry,
        )
        self._drawn = Counter(
            "watchnext_slates_drawn", "slates that were drawn, to explore", registry=self._registry
        )
        self._events = Counter(
            "watchnext_events", "events by what became of them", ("outcome",), registry=self._registry
        )
        # Looked up once each: `labels` takes longer than to count.
        self._requests_of = functools.cache(self._requests.labels)
        self._seconds_of = functools.cache(self._seconds.labels)
        self._seconds_of_step = functools.cache(self._steps.labels)
        self._slates_of = functools.cache(self._slates.labels)
        self._version = Gauge(
            "watchnext_champion_version",
            "number of the version that answers; 0: none",
            registry=self._registry,
        )
        self._trained_until = Gauge(
            "watchnext_champion_trained_until_seconds",
            "end of its training days, seconds since 1970",
            registry=self._registry,
        )
        self._stale = Gauge(
            "watchnext_champion_is_stale",
            "1: its training days ended longer ago than the server was told that they should",
            registry=self._registry,
        )
        self._watch_time = Gauge(
            "watchnext_settled_watch_time_seconds",
            "watch time of settled pages since the server started, as expected and as observed, by version",
            ("version", "which"),
            registry=self._registry,
        )
        self._drift = Gauge(
            "watchnext_input_drift",
            "largest difference of the distributions of a continuous input, shown lately and in training",
            ("version", "input"),
            registry=self._registry,
        )
        self._unknown = Gauge(
            "watchnext_input_unknown_share",
            "share of values of a categorical input, of videos shown lately, that the training did not know",
            ("version", "input"),
            registry=self._registry,
        )
        self._drift_slates = Gauge(
            "watchnext_input_drift_slates",
            "slates whose inputs were looked at since the server started",
            ("version",),
            registry=self._registry,
        )
        self._swaps = Gauge(
            "watchnext_champion_swaps", "how often another version was taken", registry=self._registry
        )
        self._refused = Gauge(
            "watchnext_champion_refused",
            "versions that have the role and cannot be served",
            registry=self._registry,
        )
        self._reachable = Gauge(
            "watchnext_registry_reachable",
            "whether the registry answered when asked last",
            registry=self._registry,
        )
        self._shadow = Gauge(
            "watchnext_shadow",
            "copies of requests for the challenger, by what became of them since the server started",
            ("outcome",),
            registry=self._registry,
        )
        self._challenger = Gauge(
            "watchnext_challenger_version",
            "number of the version that gets copies of requests; 0: none",
            registry=self._registry,
        )

        if service.experiment is not None:
            self._experiment_users = Gauge(
                "watchnext_experiment_users",
                "users of the live experiment since the server started, by whether they see the challenger",
                ("challenger",),
                registry=self._registry,
            )
            self._sample_ratio = Gauge(
                "watchnext_experiment_sample_ratio_is_off",
                "1: the sides have sizes that the assignment would hardly ever give",
                registry=self._registry,
            )
            self._failures = Gauge(
                "watchnext_experiment_challenger_failures",
                "requests that the champion answered because the challenger could not",
                registry=self._registry,
            )

    def request(self, path: str, method: str, status: int, took_s: float) -> None:
        """Count a request. `path` is a route, so that clients cannot make up labels."""
        known = method if method in ("GET", "POST", "HEAD", "OPTIONS") else "other"
        self._requests_of(path, known, str(status)).inc()
        self._seconds_of(path).observe(took_s)

    def answered(self, answer: Answer) -> None:
        """Count a slate."""
        self._slates_of(str(answer.served.version.number), str(bool(answer.degraded)).lower()).inc()
        self._drawn.inc(answer.is_drawn)
        for step, took_ms in answer.step_ms.items():
            self._seconds_of_step(step).observe(took_ms / 1000.0)

    def took_events(self, accepted: int, duplicates: int) -> None:
        """Count events."""
        self._events.labels("accepted").inc(accepted)
        self._events.labels("duplicate").inc(duplicates)

    def text(self) -> bytes:
        """All of them, as of now."""
        served = self._service.champion
        self._version.set(0 if served is None else served.version.number)
        if served is not None:
            self._trained_until.set(served.recommender.bundle.trained_until_at.timestamp())
            self._stale.set(self._monitor.is_stale(served))
        for version, (expected_s, observed_s) in self._monitor.calibration().items():
            self._watch_time.labels(str(version), "expected").set(expected_s)
            self._watch_time.labels(str(version), "observed").set(observed_s)
        for version, drift in self._monitor.drift().items():
            self._drift_slates.labels(str(version)).set(drift.slates)
            for name, distance in drift.distances().items():
                self._drift.labels(str(version), name).set(distance)
            for name, share in drift.unknown_shares().items():
                self._unknown.labels(str(version), name).set(share)
        self._swaps.set(self._deployment.swaps)
        self._refused.set(len(self._deployment.refusals))
        self._reachable.set(bool(self._deployment.reachable))
        if self._service.experiment is not None:
            live = self._service.experiment.told()
            self._experiment_users.labels("true").set(live["users_with_challenger"])
            self._experiment_users.labels("false").set(live["users_without"])
            self._sample_ratio.set(live["sample_ratio_is_off"])
            self._failures.set(live["challenger_failures"])
        told = self._mirror.told()
        self._challenger.set(told.pop("version") or 0)
        for outcome, count in told.items():
            self._shadow.labels(outcome).set(count)
        return generate_latest(self._registry)
