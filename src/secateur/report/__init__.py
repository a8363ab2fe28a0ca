"""What is kept of a run, and how it is shown while it lasts."""

from secateur.report.find import find_records
from secateur.report.grouping import compare
from secateur.report.page import Form, write_report
from secateur.report.progress import JsonLines, Progress, Quiet, TerminalBars
from secateur.report.record import BlockRecord, MatrixRecord, RunRecord
from secateur.report.recovered import as_measured
from secateur.report.table import tabulate

__all__ = [
    "BlockRecord",
    "Form",
    "JsonLines",
    "MatrixRecord",
    "Progress",
    "Quiet",
    "RunRecord",
    "TerminalBars",
    "as_measured",
    "compare",
    "find_records",
    "tabulate",
    "write_report",
]
