"""Stage `validate`: Great Expectations judges the ingested logs; bad rows are set aside, bad logs refused."""

from pathlib import Path

from watchnext.data.validation_rules import Thresholds
from watchnext.engine import EngineParams, connect


class Params(Thresholds):
    """Section `validate` of params.yaml."""


def validate(
    params: Params,
    engine: EngineParams,
    tables: Path,
    out_tables: Path,
    out_quarantine: Path,
    out_report: Path,
    earlier_report: Path | None = None,
) -> dict[str, float | int | str]:
    """Judge `tables`; write clean rows, quarantined rows and the report.

    On days that are as they were when `earlier_report` was written, rows are not judged again; what comes of it is what
    comes of judging them.

    Raises:
        InputError: an expectation failed; the report says which, and is written all the same.
    """
    from watchnext.data.validate import validate_tables
    from watchnext.data.validation_report import tell, write_report

    with connect(engine) as opened:
        report, judge, judged_days = validate_tables(
            opened, tables, out_tables, out_quarantine, params, earlier_report=earlier_report
        )
    write_report(report, judge, out_report)
    judged_days.write(out_report)
    tell(report, tables, out_report)
    return report.metrics()
