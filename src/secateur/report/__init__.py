"""What is kept of a run, and how it is shown while it lasts."""

from secateur.report.find import find_records
from secateur.report.page import write_report
from secateur.report.progress import JsonLines, Progress, Quiet, TerminalBars
from secateur.report.record import BlockRecord, MatrixRecord, RunRecord

__all__ = [
    "BlockRecord",
    "JsonLines",
    "MatrixRecord",
    "Progress",
    "Quiet",
    "RunRecord",
    "TerminalBars",
    "find_records",
    "write_report",
]
