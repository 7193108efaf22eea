"""Stage `choose_start`: the weights that candidate generation begins its training with, none or those of a bundle.

Who is champion is not DVC's to know, so this stage runs every time. It chooses once per logs: were the next champion, whom
this very start may lead to, a new start for the same logs, no `dvc repro` would ever find nothing to do.
"""

from pathlib import Path

from watchnext.config import Section


class Params(Section):
    """Section `choose_start` of params.yaml: nothing to set, `train_retrieval.warm_start` says what is chosen."""


def choose_start(
    params: Params,
    warm_start: str,
    model_name: str,
    features: Path,
    out_start: Path,
    out_report: Path,
    earlier_start: Path | None = None,
) -> dict[str, float | int | str] | None:
    """Store the weights as `models/warm_start.py` reads them; None where those of last time stand.

    `warm_start` and `model_name` are the settings of these names of train_retrieval and promote.

    Raises:
        InputError: there is no such bundle, it is damaged, of another source, or has seen days that are judged on.
    """
    import datetime
    import json
    import shutil

    from watchnext.bundle import Bundle
    from watchnext.console import say
    from watchnext.errors import InputError
    from watchnext.registry import Registry
    from watchnext.registry import model_name as name_of

    logs = json.loads((features / "manifest.json").read_text(encoding="utf-8"))
    chosen_for = {"warm_start": warm_start, "logs": "any" if warm_start == "none" else logs["data_digest"]}
    if earlier_start is not None:
        earlier = json.loads((earlier_start / "manifest.json").read_text(encoding="utf-8"))
        if earlier["chosen_for"] == chosen_for:
            return None

    bundle, origin = None, None
    if warm_start == "champion":
        name = name_of(model_name, logs["source"])
        registry = Registry.open(Path.cwd())
        champion = None if registry.is_empty else registry.role(name, "champion")
        if champion is None:
            say(f"choose_start: {name} has no champion yet; training begins with random weights")
        else:
            bundle, origin = registry.bundle(champion), f"the champion, version {champion.number} of {name}"
    elif warm_start != "none":
        bundle, origin = Bundle.open(Path(warm_start)), f"the bundle in {warm_start}"
    manifest: dict[str, object] = {"origin": origin, "chosen_for": chosen_for}
    out_start.mkdir(parents=True)
    if bundle is not None:
        until = datetime.datetime.fromisoformat(logs["trained_until_at"])
        remedy = "set train_retrieval.warm_start to none, or to the folder of another bundle"
        if bundle.source != logs["source"]:
            raise InputError(
                f"{origin} was trained on {bundle.source}, and these logs are of {logs['source']}",
                where="params.yaml, train_retrieval.warm_start",
                remedy=remedy,
            )
        if bundle.trained_until_at > until:
            raise InputError(
                f"{origin} was trained until {bundle.trained_until_at}, and training on these logs ends at {until}: "
                "it has seen what models are judged on",
                where="params.yaml, train_retrieval.warm_start",
                remedy=remedy,
            )
        shutil.copytree(bundle.query_tower, out_start / "query_tower")
        shutil.copytree(bundle.features / "vocabularies", out_start / "vocabularies")
        shutil.copyfile(bundle.index / "candidate_embeddings.npy", out_start / "candidate_embeddings.npy")
        manifest |= {"bundle_digest": bundle.digest, "inputs": list(bundle.manifest["inputs"]["retrieval"])}
        say(f"choose_start: training begins with the weights of {origin}")
    (out_start / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    chosen: dict[str, float | int | str] = {
        "warm_start": origin or "none",
        "bundle_digest": bundle.digest if bundle is not None else "none",
    }
    out_report.mkdir(parents=True, exist_ok=True)
    (out_report / "start.json").write_text(json.dumps(chosen, indent=1) + "\n", encoding="utf-8")
    return chosen
