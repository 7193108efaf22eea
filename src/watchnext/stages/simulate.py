"""Stage `simulate`: a world with a known truth writes logs in the form of a user's own."""

import json
from pathlib import Path

from watchnext.console import say, track
from watchnext.data.simulate import logging_policy, run, write_tables
from watchnext.data.simulation_report import marginals, plot_marginals
from watchnext.data.world import World, WorldSettings


class Params(WorldSettings):
    """Section `simulate` of params.yaml."""


def simulate(
    params: Params, seed: int, source: str, out_logs: Path, out_truth: Path, out_report: Path
) -> dict[str, float | int | str]:
    """Make the world and let the logging policy run in it.

    Where the logs come from elsewhere (`source` is not `simulated`), the outputs hold a line that says so.

    Raises:
        InputError: the settings do not fit together.
    """
    if source != "simulated":
        for directory in (out_logs, out_truth, out_report):
            directory.mkdir(parents=True)
            (directory / "README").write_text(
                f"Nothing was simulated: ingest.source is `{source}`.\n", encoding="utf-8"
            )
        say(f"simulate: nothing to do, the logs come from the source {source}")
        return {"rows": 0}

    world = World(params, seed)
    policy = logging_policy(world)
    state = run(world, policy, params.burn_in_days).state
    outcome = run(world, policy, params.days, state, progress=lambda days: track(days, "simulate: days"))
    write_tables(outcome.tables, out_logs)
    write_tables(outcome.truth, out_truth)
    made_of = {"seed": seed, "settings": params.model_dump(), "dials": world.dials.model_dump()}
    (out_truth / "world.json").write_text(json.dumps(made_of, indent=2) + "\n", encoding="utf-8")

    out_report.mkdir(parents=True)
    plot_marginals(outcome.tables, world.true_position_effect(), out_report)
    return {
        "rows": sum(table.num_rows for table in outcome.tables.values()),
        **{f"{name}_rows": table.num_rows for name, table in outcome.tables.items()},
        **marginals(outcome.tables),
    }
