"""The options that compose with every strategy, as one value, in the order of the questions that they answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import Any, Self

from featurestore.errors import ParameterError, brief, spelled
from featurestore.questions.components import Components
from featurestore.questions.labels import Classes, read_classes
from featurestore.questions.rows import Condition, read_where, where_json
from featurestore.questions.tokens import FINAL, Tokens
from featurestore.schema import COMBINATIONS, CONTROLS, OUTCOMES


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ParameterError(f"{spelled(name)}: expected true or false, found {brief(value)}")
    return value


def _table(name: str, value: object) -> str:
    path, _, column = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not path.strip() or not column.strip():
        raise ParameterError(f"{spelled(name)}: expected FILE.csv:COLUMN, found {brief(value)}")
    return str(value)


def _tokens(name: str, value: object) -> Tokens:
    return Tokens.read(spelled(name), value)


def _word(words: Sequence[str], name: str, value: object) -> str:
    if not isinstance(value, str) or value not in words:
        raise ParameterError(f"{spelled(name)}: expected one of {', '.join(words)}, found {brief(value)}")
    return value


@dataclass(frozen=True)
class _Form:
    """How an option is read, of its name and a value that a user gives, and written as JSON can hold it."""

    read: Callable[[str, Any], Any]
    plain: Callable[[Any], Any] = str


_FORMS = {
    "where": _Form(lambda _, value: read_where(value), where_json),
    "drop_short": _Form(_flag, bool),
    "tokens": _Form(_tokens),
    "special": _Form(_flag, bool),
    "combine": _Form(partial(_word, COMBINATIONS)),
    "reduce": _Form(lambda name, value: Components.read(spelled(name), value)),
    "target_tokens": _Form(_tokens),
    "y": _Form(partial(_word, OUTCOMES)),
    "labels_from": _Form(_table, lambda text: text.rpartition(":")[2].strip()),
    "classes": _Form(lambda _, value: read_classes(value)),
    "control": _Form(partial(_word, CONTROLS)),
}


def read_choice(name: str, value: object) -> Any:
    """Read one of the options; ParameterError if it is unreadable."""
    return _FORMS[name].read(name, value)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the rows, X and y of a dataset are, besides what its strategy selects; see `featurestore.build`.

    Attributes
    ----------
    where : tuple of Condition
        The population: sentences that meet all of them.
    drop_short : bool
        Whether sentences with too few tokens are left out.
    tokens : Tokens
        Of X.
    special : bool
        Whether special tokens count.
    combine : str
        What becomes of several layers, one of `featurestore.schema.COMBINATIONS`.
    reduce : Components or None
        What X is reduced to.
    target_tokens : Tokens
        Of y; by default the final one, or with a row for each token its own.
    y : str
        What a concept strategy predicts: ``"label"``, or of several stores ``"store"``.
    labels_from : str or None
        ``FILE.csv:COLUMN``.
    classes : Classes or None
        What labels are mapped to.
    control : str or None
        What is built in place of the real dataset, one of `featurestore.schema.CONTROLS`.
    """

    where: tuple[Condition, ...] = ()
    drop_short: bool = False
    tokens: Tokens = FINAL
    special: bool = False
    combine: str = COMBINATIONS[0]
    reduce: Components | None = None
    target_tokens: Tokens = FINAL
    y: str = OUTCOMES[0]
    labels_from: str | None = None
    classes: Classes | None = None
    control: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, object]) -> Self:
        """Read what users give, by name; None counts as not given.

        Raises
        ------
        ParameterError
            If something is unreadable, or cannot be together.
        """
        read = {name: read_choice(name, value) for name, value in given.items() if value is not None}
        tokens = read.get("tokens", FINAL)
        own = tokens.how == "all"
        target_tokens = read.setdefault("target_tokens", tokens if own else FINAL)
        if target_tokens.how == "all" and not own:
            expected = f"expected {spelled('tokens', 'all')} with it, found {spelled('tokens', str(tokens))}"
            raise ParameterError(f"{spelled('target_tokens', 'all')}: {expected}; choose a row for each token, or one")
        if read.get("y") == "store" and "labels_from" in read:
            raise ParameterError(f"{spelled('y', 'store')} and {spelled('labels_from')}: expected one y; leave one out")
        return cls(**read)

    def fitting(self, strategy: str, *, sequences: bool) -> Self:
        """Return what has an effect with a strategy, so that the rest makes no other dataset.

        Special tokens have none where only the final one counts, nor short sentences, as none can be.

        Raises
        ------
        ParameterError
            If it makes sequences, which have all tokens, and others are asked for.
        """
        if sequences and self.tokens != FINAL:
            found = f"found {spelled('tokens', str(self.tokens))}"
            raise ParameterError(
                f"{strategy}: expected no tokens, as its X has a dim of all of them, {found}; leave it out"
            )
        if sequences or max(self.tokens.needed, self.target_tokens.needed):
            return self
        return replace(self, special=False, drop_short=False)

    @cached_property
    def given(self) -> dict[str, Any]:
        """What is not as usual, as JSON can hold it: the column of labels alone, as their content has a digest."""
        usual = {field.name: field.default for field in fields(self)}
        if self.tokens.how == "all":
            usual["target_tokens"] = self.tokens
        chosen = {name: getattr(self, name) for name, default in usual.items() if getattr(self, name) != default}
        return {name: _FORMS[name].plain(value) for name, value in chosen.items()}

    def width(self, columns: int) -> int:
        """Return how many columns X has at last, of so many that are normalized."""
        return self.reduce.count if self.reduce else columns


NONE = Choices()
"""Nothing but what the strategy selects."""
