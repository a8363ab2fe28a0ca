"""Takes back what pruning cost: adapters or weights are trained, and every zero is kept."""

from secateur.recovery.further import measure_further
from secateur.recovery.pipeline import run_recovery
from secateur.recovery.resume import InterruptedRecovery
from secateur.recovery.settings import Recovery

__all__ = ["InterruptedRecovery", "Recovery", "measure_further", "run_recovery"]
