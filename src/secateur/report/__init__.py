"""What is kept of a run, and how it is shown while it lasts."""

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
]
