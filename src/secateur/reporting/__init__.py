"""Finished runs side by side: tables, and one HTML file that needs nothing else."""

from secateur.reporting.grouping import side_by_side
from secateur.reporting.page import Form, write_report
from secateur.reporting.recovered import as_measured
from secateur.reporting.table import tabulate

__all__ = ["Form", "as_measured", "side_by_side", "tabulate", "write_report"]
