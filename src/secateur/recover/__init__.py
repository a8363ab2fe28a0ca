"""Takes back what pruning cost: adapters that leave the zeros alone, trained, merged, proved."""

from secateur.recover.settings import Recovery
from secateur.recover.state import StateFile
from secateur.recover.story import recover

__all__ = ["Recovery", "StateFile", "recover"]
