"""run.json: everything needed to repeat a run and to check what it did."""

from secateur.record.find import find_records
from secateur.record.matrices import BlockRecord, MatrixRecord
from secateur.record.narrowed import LostWidth
from secateur.record.record import (
    RunRecord,
    Sample,
    read_record,
    read_record_file,
    write_record,
)
from secateur.record.recovery import RecoveryPoint, RecoveryRecord
from secateur.record.removed import Removed
from secateur.record.scored import add_to_record, record_to_add_to
from secateur.record.stages import StageRecord

__all__ = [
    "BlockRecord",
    "LostWidth",
    "MatrixRecord",
    "RecoveryPoint",
    "RecoveryRecord",
    "Removed",
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
