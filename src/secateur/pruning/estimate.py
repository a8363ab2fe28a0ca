"""What a run will take, from shapes alone: for `--dry-run` and for the arithmetic floor.

    forward pass of one block   2 * weights * tokens + 4 * tokens * length * width    FLOP
                                weights of an expert count as often as tokens are sent to it
    observe and propagate       a forward pass each; one for both with the schedule "matrix"
    regional gradient           twice a forward pass more (inputs' and weights' gradients)
    full-model gradient         forward, forward again, and twice a forward pass backward
    regional optimiser          3 forward passes over the sequences that it draws
    removal of blocks           a forward pass, or of few tokens as many as there are blocks above
                                each that may go, once or for each that goes

Peak memory is one block, its statistics and the activations: the hidden states of all sequences
and the dense block's outputs beside them. With the schedule "matrix" it is what the block's code
holds when it pauses: its inputs, the residual and the widest input of a matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig

from secateur.blocks.judge import judging
from secateur.checkpoint import BlockModel, Matrix, find_all_matrices
from secateur.methods import Refine
from secateur.methods.parameters import AbsenceParams
from secateur.pruning.experts import how_many_go
from secateur.pruning.inputs import TOKENS
from secateur.recipe import Plan
from secateur.statistics import Need


@dataclass(frozen=True)
class Estimate:
    """Shapes of a run.

    Attributes:
        blocks: decoder blocks.
        prunable_weights: of the matrices that the selection gives a pattern; of structures what
            goes with them, if all are of one size.
        other_weights: all others, which are left as they are: embeddings, heads, norms, and the
            matrices that the selection leaves out.
        block_bytes: the largest block in the computing precision, with its statistics.
        activation_bytes: of all sequences, kept at one time.
        flops: of the whole run, in matrix products.
    """

    blocks: int
    prunable_weights: int
    other_weights: int
    block_bytes: int
    activation_bytes: int
    flops: float


def estimate(source: BlockModel, plan: Plan, sequences: int, length: int) -> Estimate:
    """The shapes of a run; nothing is loaded and nothing is computed.

    Args:
        source: the model, all pieces closed.
        plan: what is to be done with every block.
        sequences, length: of the calibration; 0 sequences for none.

    Raises:
        PatternError, ModelError: the pattern does not fit, or a block cannot be pruned.
    """
    config = source.model.config.get_text_config(decoder=True)
    width = config.hidden_size
    tokens = sequences * length
    prunable = every_weight = block_bytes = widest = 0
    flops = 0.0
    for index, matrices in enumerate(find_all_matrices(source.blocks)):
        for matrix in matrices:
            name = source.blocks.prefix(index) + matrix.name
            if (pattern := plan.selection.pattern_of(index, name)) is not None:
                pattern.check_fits(matrix.shape[1], name)
                prunable += matrix.shape[0] * matrix.shape[1]
        weights = sum(rows * columns for rows, columns in (m.shape for m in matrices))
        every_weight += weights
        statistics = 4 * weights * (1 + (Need.REGIONAL_GRADIENT in plan.method.needs))
        if plan.method.refine is Refine.REGIONAL:
            statistics += 4 * weights * 4  # master weights, gradients, two moments
        if Need.HESSIAN in plan.method.needs or plan.observes_pruned:
            statistics += sum(4 * m.shape[1] ** 2 for m in matrices)
        widest = max([widest, *(m.shape[1] for m in matrices)])
        block_bytes = max(block_bytes, weights * source.dtype.itemsize + statistics)
        forward = 2.0 * _at_work(matrices, config) * tokens + 4.0 * tokens * length * width
        passes = 1.0 if plan.schedule == "matrix" else 2.0
        if plan.structures is not None:
            passes = 2.0 * (plan.method.refine is Refine.REGIONAL)
            passes += _choosing(plan, len(source.blocks), tokens, length)
        passes += plan.observes_pruned + 2.0 * (Need.REGIONAL_GRADIENT in plan.method.needs)
        passes += 4.0 * (Need.FULL_GRADIENT in plan.method.needs)
        if (tried := len(plan.params.candidates)) > 1 and sequences:
            passes += tried * judging(sequences) / sequences
        if plan.method.refine is Refine.REGIONAL and sequences:
            drawn = plan.regional.rounds * min(plan.regional.samples, sequences)
            passes += 3.0 * drawn / sequences + (plan.regional.target == "model")
            passes += 3.0 * (plan.regional.weigh == "loss")
        flops += passes * forward
    if plan.structures is not None:
        prunable = _removed(source, plan)
    aims = plan.method.refine is Refine.REGIONAL and plan.regional.target == "model"
    states = (3 if aims else 2) * width + (widest if plan.schedule == "matrix" else 0)
    return Estimate(
        blocks=len(source.blocks),
        prunable_weights=prunable,
        other_weights=source.count_weights() - prunable,
        block_bytes=block_bytes,
        activation_bytes=width * source.dtype.itemsize * looked_up(source, plan, sequences, length)
        + max(states * tokens, searching(plan, len(source.blocks), tokens) * width)
        * source.dtype.itemsize,
        flops=flops,
    )


def _removed(source: BlockModel, plan: Plan) -> int:
    """Weights of the matrices that go with the structures, if all are of one size."""
    assert plan.structures is not None
    unit, every = plan.structures.unit, find_all_matrices(source.blocks)
    if unit == "blocks":
        total, cut = len(source.blocks), None
    else:
        widths = source.widths(unit)[0]
        total, cut = widths.total, {one.parameter for one in widths.cuts}
    shapes = (one.shape for some in every for one in some if cut is None or one.parameter in cut)
    held = sum(rows * columns for rows, columns in shapes)
    return held * how_many_go(source, plan.structures, plan.multiple) // total


def searching(plan: Plan, blocks: int, tokens: int) -> int:
    """Tokens whose hidden states are held at one time to choose among blocks.

    Args:
        plan: what is to be done.
        blocks: how many the model has.
        tokens: of the calibration.
    """
    if not _among_blocks(plan) or not tokens:
        return 0
    assert plan.removal is not None
    assert plan.structures is not None
    together = getattr(plan.choosing, "contiguous", False)
    if plan.removal.of_states is not None:
        return tokens * (1 + (plan.structures.removed_of(blocks) if together else 1))
    return min(tokens, TOKENS) * (blocks + 2)


def looked_up(source: BlockModel, plan: Plan, sequences: int, length: int) -> int:
    """Outputs of experts, of one token each, that are held at one time to choose by absence.

    Args:
        source: the model.
        plan: what is to be done.
        sequences, length: of the calibration.
    """
    if plan.removal is None or plan.removal.of_absence is None or not sequences:
        return 0
    assert isinstance(plan.choosing, AbsenceParams)
    asked = min(sequences, max(1, plan.choosing.tokens // length))
    return source.how_many("experts") * asked * length


def _among_blocks(plan: Plan) -> bool:
    """Whether a method chooses blocks by what they do."""
    of_blocks = plan.structures is not None and plan.structures.unit == "blocks"
    return of_blocks and plan.removal is not None


def _choosing(plan: Plan, blocks: int, tokens: int, length: int) -> float:
    """Forward passes of all calibration tokens that a choice among blocks takes."""
    if plan.structures is None or not tokens:
        return 0.0
    if not _among_blocks(plan):
        return 2.0 * (plan.structures.unit != "blocks")  # what every block shows, and passes on
    assert plan.removal is not None
    if plan.removal.of_states is not None:
        return 1.0
    turns = plan.structures.removed_of(blocks) if plan.removal.again else 1
    return (1 + turns * (blocks + 1) / 2) * min(tokens, max(TOKENS, length)) / tokens


def _at_work(matrices: Sequence[Matrix], config: PreTrainedConfig) -> float:
    """Weights that one token meets, if the router spreads tokens evenly over the experts."""
    met = 0.0
    for matrix in matrices:
        rows, columns = matrix.shape
        experts = 1 if matrix.expert is None else len(matrix.whole)
        sent = getattr(config, "num_experts_per_tok", experts) if experts > 1 else 1
        met += rows * columns * sent / experts
    return met
