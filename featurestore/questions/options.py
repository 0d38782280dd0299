"""The options that compose with every strategy, as command lines and recipes describe them."""

from __future__ import annotations

from dataclasses import dataclass

from featurestore.schema import COMBINATIONS, CONTROLS, OUTCOMES, REDUCTIONS


@dataclass(frozen=True, kw_only=True)
class Option:
    """One of the options.

    Attributes
    ----------
    question : str
        That it answers: ``"rows"``, ``"X"`` or ``"y"``.
    help : str
        What it does.
    form : str
        How it is written, if that is to be said.
    words : tuple of str
        All values that there are, if they are few.
    """

    question: str
    help: str
    form: str = ""
    words: tuple[str, ...] = ()

    @property
    def is_flag(self) -> bool:
        """Whether it is true or false."""
        return not (self.form or self.words)


_TOKENS = "final|mean|max|last-K|first-K|all"

OPTIONS = {
    "where": Option(
        question="rows",
        form="COORDINATE=VALUES",
        help="Only sentences such as label=0,3 or n_tokens=5-12; of several, those that meet all.",
    ),
    "drop_short": Option(
        question="rows",
        help="Leave out sentences with fewer tokens than are asked for, and record them.",
    ),
    "tokens": Option(
        question="X",
        form=_TOKENS,
        help="Tokens of X: pooled, concatenated in reading order, or a row each.  [default: final]",
    ),
    "special": Option(question="X", help="Let special tokens, such as a BOS, count among the tokens."),
    "combine": Option(
        question="X",
        words=COMBINATIONS,
        help="What becomes of several layers; the difference is that of two, the second less the first."
        f"  [default: {COMBINATIONS[0]}]",
    ),
    "reduce": Option(
        question="X",
        form="|".join(f"{method}-K" for method in REDUCTIONS),
        help="Reduce X, once it is normalized, to K components of the training rows.",
    ),
    "target_tokens": Option(
        question="y",
        form=_TOKENS,
        help="Tokens of an activation that is y.  [default: final; with a row for each token, its own]",
    ),
    "y": Option(
        question="y",
        words=OUTCOMES,
        help=f"What is predicted as the concept: of several stores, also which it is.  [default: {OUTCOMES[0]}]",
    ),
    "labels_from": Option(
        question="y",
        form="FILE.csv:COLUMN",
        help="Labels in place of the store's, whole numbers or names, by sentence_index or by sentence.",
    ),
    "classes": Option(
        question="y",
        form="LABEL=CLASS,...",
        help="Which labels are which classes, such as 0=0,3=1; sentences of others are left out.",
    ),
    "control": Option(
        question="y",
        words=CONTROLS,
        help="What a probe finds without the model, in the same rows: y shuffled within each side, Gaussian columns, "
        "n-grams of the text, or its length.",
    ),
}
"""The options by name, in the order of the questions."""
