"""Stage `package`: models, index and features become the one servable bundle."""

from pathlib import Path

from watchnext.config import RecommendParams, Section


class Params(Section):
    """Section `package` of params.yaml: nothing to set, what goes into a bundle is fixed by its format."""


def package(
    params: Params,
    recommend: RecommendParams,
    features: Path,
    retrieval: Path,
    index: Path,
    sources: Path,
    ranking: Path,
    out_bundle: Path,
    out_report: Path,
) -> dict[str, float | int | str]:
    """Assemble and verify the bundle.

    Raises:
        InputError: the parts come from different trainings, or one of them is incomplete.
    """
    import json

    from watchnext.bundle import write_bundle

    del params
    bundle = write_bundle(
        out_bundle,
        features=features,
        retrieval=retrieval,
        index=index,
        sources=sources,
        ranking=ranking,
        recommend=recommend.model_dump(),
    )
    files = bundle.manifest["files"]
    metrics: dict[str, float | int | str] = {
        "bundle_digest": bundle.digest,
        "bundle_files": len(files),
        "bundle_mb": sum(entry["bytes"] for entry in files.values()) / 1e6,
        "trained_until_at": bundle.manifest["trained_until_at"],
    }
    out_report.mkdir(parents=True, exist_ok=True)
    (out_report / "bundle.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    return metrics
