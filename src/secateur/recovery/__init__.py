"""Takes back what pruning cost: adapters that leave the zeros alone, trained, merged, proved."""

from secateur.recovery.pipeline import recover
from secateur.recovery.resume import StateFile
from secateur.recovery.settings import Recovery

__all__ = ["Recovery", "StateFile", "recover"]
