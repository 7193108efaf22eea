"""Who trains together: `TF_CONFIG`, TensorFlow's own variable, as a value. Nothing here imports TensorFlow.

TF_CONFIG={"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]}, "task": {"type": "worker", "index": 0}}
"""

import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

from watchnext.console import say
from watchnext.errors import InputError

VARIABLE = "TF_CONFIG"
JOIN_LIMIT_S = 600.0
_SAY_EVERY_S = 30.0
_POLL_S = 0.5
_TASKS = ("chief", "worker")


class WorkerLost(InputError):
    """Another worker is gone, or cannot be reached."""


@dataclass(frozen=True)
class Cluster:
    """The processes that train one model, and which of them this one is.

    Attributes:
        addresses: host:port of each, the chief first.
        index: of this process, from 0; 0 is the chief, who alone writes what comes of a training.
    """

    addresses: tuple[str, ...]
    index: int

    @property
    def is_chief(self) -> bool:
        return self.index == 0

    def wait_for_all(self, limit_s: float = JOIN_LIMIT_S) -> None:
        """Wait until every worker listens at its address, and say every now and then for whom.

        TensorFlow waits too, but says nothing, and cannot be interrupted while it does.

        Args:
            limit_s: after so long it is an error.

        Raises:
            InputError: this worker's own port is taken.
            WorkerLost: somebody did not come.
        """
        own = self.addresses[self.index]
        missing = [address for address in self.addresses if address != own]
        began = said = time.monotonic()
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(_host_and_port(own))
            except OSError as error:
                raise InputError(
                    f"worker {self.index} cannot listen at its address",
                    where=f"{VARIABLE}, {own}",
                    offenders=[error],
                    remedy="end whoever has the port, or give this worker an address of this machine",
                ) from None
            listener.listen(len(self.addresses))
            while missing := [address for address in missing if not _answers(address)]:
                now = time.monotonic()
                if now - began > limit_s:
                    raise WorkerLost(
                        f"worker {self.index} of {len(self.addresses)} waited {limit_s:.0f} s for the others",
                        where=VARIABLE,
                        offenders=[f"nobody listens at {address}" for address in missing],
                        remedy="start every worker of the cluster, and let each reach the ports of all others",
                    )
                if now - said > _SAY_EVERY_S:
                    said = now
                    say(f"worker {self.index}: nobody listens yet at {', '.join(missing)}")
                time.sleep(_POLL_S)

    @classmethod
    def from_environment(cls) -> "Cluster | None":
        """The cluster that `TF_CONFIG` describes; None without it, and where this process is the only one in it.

        Raises:
            InputError: it is not what TensorFlow documents, or has tasks that train in another way.
        """
        text = os.environ.get(VARIABLE, "")
        if not text.strip():
            return None
        remedy = f"for example {tf_config(('host-0:2222', 'host-1:2222'), 0)}"
        try:
            content = json.loads(text)
            tasks = {str(name): _listed(addresses) for name, addresses in content["cluster"].items()}
            kind, index = str(content["task"]["type"]), int(content["task"]["index"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{VARIABLE} cannot be read", where=VARIABLE, remedy=remedy) from None
        strange = sorted({kind, *tasks} - set(_TASKS))
        if strange:
            raise InputError(
                f"{VARIABLE} has tasks that nothing here is trained by",
                where=VARIABLE,
                offenders=strange,
                remedy="only `worker`, and one `chief` if you like: every worker holds the whole model (docs/scale.md)",
            )
        if not 0 <= index < len(tasks.get(kind, ())):
            raise InputError(f"{VARIABLE} has no task {kind} {index}", where=VARIABLE, remedy=remedy)
        chiefs = tasks.get("chief", [])
        addresses = (*chiefs, *tasks.get("worker", []))
        if len(addresses) == 1:
            return None
        for address in addresses:
            _host_and_port(address)
        if twice := sorted({address for address in addresses if addresses.count(address) > 1}):
            raise InputError(
                f"{VARIABLE} gives two workers one address",
                where=VARIABLE,
                offenders=twice,
                remedy="a host and port of its own for each",
            )
        return cls(addresses, index + (len(chiefs) if kind == "worker" else 0))


def _listed(addresses: object) -> list[str]:
    """A text is no list of addresses, though Python would make one of its characters."""
    if not isinstance(addresses, list) or not all(isinstance(address, str) for address in addresses):
        raise TypeError(f"{addresses!r} is no list of addresses")
    return addresses


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise InputError(
            "an address is no host:port",
            where=VARIABLE,
            offenders=[address],
            remedy="for example 10.0.0.1:2222",
        )
    return host.strip("[]"), int(port)


def _answers(address: str) -> bool:
    try:
        socket.create_connection(_host_and_port(address), timeout=_POLL_S).close()
    except OSError:
        return False
    return True


def tf_config(addresses: Sequence[str], index: int) -> str:
    """The value of `TF_CONFIG` of the worker `index` of those at `addresses`."""
    return json.dumps(
        {"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": index}}, sort_keys=True
    )
