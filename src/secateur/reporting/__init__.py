"""Finished runs side by side: tables, and one HTML file that needs nothing else."""

from secateur.reporting.grouping import side_by_side
from secateur.reporting.page import (
    ComparisonResult,
    Report,
    ReportFormat,
    comparing_alone,
    write_comparison,
    write_report,
)
from secateur.reporting.recovered import as_measured
from secateur.reporting.table import table_of

__all__ = [
    "ComparisonResult",
    "Report",
    "ReportFormat",
    "as_measured",
    "comparing_alone",
    "side_by_side",
    "table_of",
    "write_comparison",
    "write_report",
]
