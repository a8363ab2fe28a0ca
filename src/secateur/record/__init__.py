"""run.json: everything needed to repeat a run and to check what it did."""

from secateur.record.find import find_records
from secateur.record.record import (
    BlockRecord,
    MatrixRecord,
    RunRecord,
    Sample,
    StageRecord,
    read_record,
    read_record_file,
    write_record,
)
from secateur.record.recovery import RecoveryPoint, RecoveryRecord
from secateur.record.scored import add_to_record, record_to_add_to

__all__ = [
    "BlockRecord",
    "MatrixRecord",
    "RecoveryPoint",
    "RecoveryRecord",
    "RunRecord",
    "Sample",
    "StageRecord",
    "add_to_record",
    "find_records",
    "read_record",
    "read_record_file",
    "record_to_add_to",
    "write_record",
]
