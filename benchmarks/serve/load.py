"""Load on a server in open loop: requests come when a Poisson process says, whether those before were answered or not.

python -m benchmarks.serve.load --url URL [URL ...] --rate R --seconds S --bodies FILE --out FILE

Generators on the package index wait for answers before they ask again, or ask at a constant pace (locust's users, boom,
molotov, and clones of them): the first hides every stall from itself, the second never sees two requests at once. The
arrivals are therefore drawn here, and aiohttp sends. A request's latency counts from the instant at which it was to be sent
to the last byte of its answer, so that a generator which is late itself makes figures worse, never better.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import numpy.typing as npt

TIMEOUT_S = 10.0


def poisson_arrivals(rate: float, seconds: float, seed: int) -> npt.NDArray[np.float64]:
    """Instants of a Poisson process in seconds from its beginning, ascending, in [0, seconds).

    Args:
        rate: arrivals per second in the mean.
        seconds: how long.
        seed: equal seeds give equal arrivals.
    """
    draw = np.random.default_rng(seed)
    # Given how many there are, the arrivals of a Poisson process are independent and uniform.
    return np.sort(draw.random(draw.poisson(rate * seconds)) * seconds)


async def send(urls: Sequence[str], arrivals: Sequence[float], bodies: Sequence[bytes]) -> dict[str, Any]:
    """Send a body per arrival, from the first one again where there are fewer, to the servers in turn.

    Returns:
        latency_ms of every request, NaN where it failed; late_ms, how far behind its schedule the generator was; statuses.
    """
    latency_ms = np.full(len(arrivals), np.nan)
    late_ms = np.zeros(len(arrivals))
    statuses = [0] * len(arrivals)
    headers = {"Content-Type": "application/json"}
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=timeout, headers=headers
    ) as session:

        async def one(number: int, due: float) -> None:
            late_ms[number] = 1000.0 * (time.perf_counter() - due)
            try:
                url, body = urls[number % len(urls)], bodies[number % len(bodies)]
                async with session.post(url, data=body) as response:
                    await response.read()
                    statuses[number] = response.status
                    if response.status == 200:
                        latency_ms[number] = 1000.0 * (time.perf_counter() - due)
            except (aiohttp.ClientError, TimeoutError):
                pass

        began = time.perf_counter() + 0.1
        tasks = []
        for number, arrival in enumerate(arrivals):
            due = began + arrival
            while (ahead := due - time.perf_counter()) > 0.0:
                await asyncio.sleep(ahead)
            tasks.append(asyncio.create_task(one(number, due)))
        await asyncio.gather(*tasks)
    return {"latency_ms": latency_ms.tolist(), "late_ms": late_ms.tolist(), "statuses": statuses}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", nargs="+", required=True, help="of each server; they are asked in turn")
    parser.add_argument("--rate", type=float, required=True, help="requests per second")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--bodies", type=Path, required=True, help="a JSON body per line")
    parser.add_argument("--seed", type=int, default=1, help="of the arrivals and of the order of the bodies")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arrivals = poisson_arrivals(arguments.rate, arguments.seconds, arguments.seed)
    # Each run asks others first: whoever is asked for in run after run has more and more impressions behind him.
    bodies = arguments.bodies.read_bytes().splitlines()
    np.random.default_rng([arguments.seed, len(bodies)]).shuffle(bodies)
    answered = asyncio.run(send(arguments.url, arrivals.tolist(), bodies))
    arguments.out.write_text(json.dumps(answered), encoding="utf-8")


if __name__ == "__main__":
    main()
