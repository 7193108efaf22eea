"""`watchnext serve`: from settings to a process that listens, says so, and drains when it is told to end."""

import ipaddress
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import uvicorn

from watchnext.errors import InputError
from watchnext.registry import Registry
from watchnext.serving.app import make_app
from watchnext.serving.connections import ConnectionLimits, bounded
from watchnext.serving.deployment import POLL_S, Deployment
from watchnext.serving.edge import Limits
from watchnext.serving.experiment import Experiment
from watchnext.serving.exploration import Exploration
from watchnext.serving.json_lines import log_as_json
from watchnext.serving.mirror import Command, Mirror, MirrorSettings
from watchnext.serving.monitoring import Monitor, MonitorSettings
from watchnext.serving.service import Served, Service
from watchnext.serving.stores import open_store
from watchnext.serving.webhook import SECRET_VARIABLE

API_KEY_VARIABLE = "WATCHNEXT_API_KEY"
_DRAIN_S = 20
_SWITCH_S = 0.0005
_REGISTRY_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""MLflow asks a registry that does not answer for minutes; it is asked again soon enough here."""
_LOGGED = logging.getLogger("watchnext.serving")


def ask_registry_briefly() -> None:
    """Let MLflow give up soon on a registry that does not answer, in this process from its first question on."""
    for setting, value in _REGISTRY_PATIENCE.items():
        os.environ.setdefault(setting, value)


def serve(
    root: Path,
    name: str,
    *,
    host: str,
    port: int,
    store: str,
    api_key: str | None = None,
    webhook_secret: str | None = None,
    poll_s: float = POLL_S,
    limits: Limits | None = None,
    connections: ConnectionLimits | None = None,
    mirror: MirrorSettings | None = None,
    explore: float = 0.0,
    experiment: str | None = None,
    experiment_share: float = 0.1,
    monitoring: MonitorSettings | None = None,
) -> None:
    """Answer requests until SIGTERM or SIGINT; requests that were taken are then answered still.

    Args:
        root: project whose registry is followed.
        name: registered model.
        host: address to listen on.
        port: 0 for any that is free; the log says which.
        store: place of the user state, see `stores.open_store`.
        api_key: what clients have to show; None: everybody who reaches the address may ask.
        webhook_secret: by which MLflow signs that the registry has changed; None: it is polled alone.
        poll_s: seconds between two looks at the registry.
        limits: what is taken on at once.
        connections: what a connection may take.
        mirror: how much of the traffic the challenger gets. Its log is the project's folder `state/shadow`.
        explore: share of the slates that are drawn, see `serving.exploration`.
        experiment: how users see the challenger, see `serving.experiment`; None: not at all.
        experiment_share: of users who see it.
        monitoring: what is noticed of models while they answer.

    Raises:
        InputError: the address is not loopback and there is no API key, is taken, or the user state cannot be opened.
    """
    if api_key is None and not is_loopback(host):
        raise InputError(
            f"{host} can be reached from other machines, and there is no API key",
            where="--host",
            remedy=f"set {API_KEY_VARIABLE}, or listen on 127.0.0.1",
        )
    for secret, variable in ((api_key, API_KEY_VARIABLE), (webhook_secret, SECRET_VARIABLE)):
        if secret is None or (len(secret) >= 16 and secret.isascii()):
            continue
        raise InputError(
            "the API key is too easy to guess" if secret is api_key else "the secret is too easy to guess",
            where=variable,
            remedy='16 ASCII characters at least: python -c "import secrets; print(secrets.token_urlsafe())"',
        )
    log_as_json(sys.stdout)
    # Whoever waits for the interpreter, like the loop that takes requests, waits no longer than this.
    sys.setswitchinterval(_SWITCH_S)
    for kind in ("INTRAOP", "INTEROP"):
        # Read when TensorFlow is loaded. A request is one small batch: further threads would wait for each other more than
        # they compute, and take the cores from the requests beside it.
        os.environ.setdefault(f"TF_NUM_{kind}_THREADS", "1")
    exploration = Exploration(explore)
    live = None if experiment is None else Experiment(name, experiment, experiment_share)
    ask_registry_briefly()
    listening = _listen(host, port)
    users = open_store(store)
    service = Service(users, exploration=exploration, experiment=live)

    def swap(served: Served | None) -> None:
        service.champion = served

    registry = Registry.open(root)
    deployments = [deployment := Deployment(registry, name, service.catalogue.following(swap))]
    if live is not None:

        def show(challenger: Served | None) -> None:
            live.challenger = challenger

        put = service.catalogue.following(show)
        challengers = Deployment(registry, name, put, role="challenger", withdraw=lambda: put(None))
        live.why_not = lambda: next(
            (refusal.reason for refusal in list(challengers.refusals.values())), challengers.trouble
        )
        deployments.append(challengers)
    command = Command(root, name, store, root / "state" / "shadow")
    shadow = Mirror(registry, name, command, mirror or MirrorSettings())

    def ask_registry() -> None:
        for wake in [shadow.wake, *(one.wake for one in deployments)]:
            wake()

    monitor = Monitor(service, monitoring)
    app = make_app(
        service,
        deployment,
        shadow,
        api_key=api_key,
        limits=limits,
        webhook_secret=webhook_secret,
        ask_registry=ask_registry,
        monitor=monitor,
    )
    config = uvicorn.Config(
        app,
        http=bounded(connections or ConnectionLimits()),
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=_DRAIN_S,
        server_header=False,
    )
    address, at = listening.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    _LOGGED.info("listening", extra={"url": f"http://{shown}:{at}", "model": name})
    for ending in (signal.SIGTERM, signal.SIGINT):
        # uvicorn drains, and raises the signal again afterwards: that must not end what is still to be closed here.
        signal.signal(ending, lambda *_: None)
    for one in deployments:
        one.start(poll_s)
    service.catalogue.start(poll_s)
    monitor.start()
    shadow.start(poll_s)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        shadow.stop()
        monitor.stop()
        service.catalogue.stop()
        for one in deployments:
            one.stop()
        users.close()
        _LOGGED.info("ended")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address. A name other than `localhost` may lead anywhere.

    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "example.org")]
    [True, True, True, False, False]
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(1024)  # who comes before the loop runs waits; nobody is refused
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}, port {port}",
            where="--host, --port",
            offenders=[error],
            remedy="choose another port (0: any that is free)",
        ) from error
    return listening
