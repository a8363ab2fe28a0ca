"""Disk to tensors and back: only this room opens or writes the files of a model.

Other safetensors files are read where they are used: token files in `data/`, block inputs on disk
in `blocks/full_gradients.py`.
"""

from secateur.checkpoint.block_model import BlockModel
from secateur.checkpoint.destination import Destination
from secateur.checkpoint.left_dense import LeftDense, find_left_dense
from secateur.checkpoint.locate import commit_of, locate
from secateur.checkpoint.matrices import Matrix, find_all_matrices, find_matrices
from secateur.checkpoint.open import load_whole, open_model
from secateur.checkpoint.output import OutputFolder
from secateur.checkpoint.read import Checkpoint
from secateur.checkpoint.resident import ResidentModel
from secateur.checkpoint.streamed import StreamedModel
from secateur.checkpoint.structure import Blocks, find_blocks
from secateur.checkpoint.unfinished import RunIdentity

__all__ = [
    "BlockModel",
    "Blocks",
    "Checkpoint",
    "Destination",
    "LeftDense",
    "Matrix",
    "OutputFolder",
    "ResidentModel",
    "RunIdentity",
    "StreamedModel",
    "commit_of",
    "find_all_matrices",
    "find_blocks",
    "find_left_dense",
    "find_matrices",
    "load_whole",
    "locate",
    "open_model",
]
