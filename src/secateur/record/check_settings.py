"""What `secateur check` looks for, in one frozen record that is checked as a whole."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from secateur.errors import RecipeError
from secateur.recipe.setting import CONTENT, LISTED, RESULT, RUN, WRITTEN, Setting, Settings
from secateur.record.record import RunRecord
from secateur.sparsity import (
    SELECTION_KEYS,
    Selection,
    Structures,
    parse_pattern,
    read_selection,
)


class CheckSettings(Settings):
    """One proof. Where it names no pattern, that of the record is looked for.

    Where it says which matrices are to have one, the record is not asked, and every other matrix
    may be dense; where it says nothing, those that the record leaves dense are listed.
    """

    command = "check"

    model: Annotated[str, Setting(CONTENT)]
    """The model to read: its folder, its name on the hub, or builtin (it comes with the
    package)."""
    revision: Annotated[str | None, Setting(CONTENT, unset="its main branch")] = None
    """Read this branch, tag or commit of a model on the hub."""
    pattern: Annotated[str | None, Setting(RESULT, unset="the one in run.json"), WRITTEN] = None
    """Demand this pattern of every matrix, such as 50% or 2:4."""
    patterns: Annotated[dict[str, str], Setting(RESULT, metavar="REGEX=PATTERN"), WRITTEN] = Field(
        default={}
    )
    """Demand a pattern of their own of the matrices whose name matches REGEX; the first match
    decides. May be repeated."""
    include: Annotated[list[str], Setting(RESULT, metavar="REGEX"), LISTED] = Field(default=[])
    """Demand the pattern only of the matrices whose name matches. May be repeated."""
    exclude: Annotated[list[str], Setting(RESULT, metavar="REGEX"), LISTED] = Field(default=[])
    """Let the matrices whose name matches be dense. May be repeated."""
    blocks: Annotated[str | None, Setting(RESULT, unset="all"), WRITTEN] = None
    """Demand the pattern only in these blocks, counted from 0, such as 4-27 or 0,3,8-."""
    dense_first: Annotated[int, Setting(RESULT)] = Field(default=0, ge=0)
    """Let this many blocks be dense, from the first one on."""
    source: Annotated[
        str | None, Setting(CONTENT, metavar="MODEL", unset="not looked at", location=True)
    ] = None
    """Compare every byte of this model's weights with what the run has read: a folder, or a name
    on the hub, also as owner/name@revision."""
    trust_remote_code: Annotated[bool, Setting(RUN)] = False
    """Run the code that comes with the model, with all your rights. The families of transformers
    never need it."""

    def contradictions(self) -> list[str]:
        """What is wrong with settings that are each right by themselves, a phrase each."""
        if self.pattern == "dense":
            return ["every model has the pattern dense, wanted one such as 50% or 2:4"]
        return []

    @property
    def structures(self) -> Structures | None:
        """What is to have been removed; None if nothing is asked of that.

        Raises:
            RecipeError: matrices are chosen beside it.
        """
        asked = None if self.pattern is None else parse_pattern(self.pattern)
        if not isinstance(asked, Structures):
            return None
        if any(getattr(self, key) for key in SELECTION_KEYS):
            raise RecipeError(f"{asked} is of whole blocks: no matrices can be chosen beside it")
        return asked

    @property
    def asks(self) -> bool:
        """Whether it says itself what is to be looked for, and where."""
        chosen = any(getattr(self, key) for key in SELECTION_KEYS)
        return self.pattern is not None or chosen

    def selection(self, record: RunRecord | None) -> Selection | None:
        """What is looked for; None if neither it nor the record says so.

        Args:
            record: that of the folder, which is asked only for what is not said here.

        Raises:
            PatternError: a pattern, an expression or a range of blocks cannot be read.
            RecipeError: matrices are chosen, and there is no pattern, or more than one.
        """
        if self.structures is not None:
            return None
        if not self.asks:
            return None if record is None else record.selection
        pattern = self.pattern
        if pattern is None:
            recorded = {stage.pattern for stage in record.pruning} if record is not None else set()
            if len(recorded) != 1 or None in recorded:
                raise RecipeError("no pattern to look for", hint="--pattern")
            (pattern,) = recorded
        return read_selection({**self.model_dump(include={*SELECTION_KEYS}), "pattern": pattern})
