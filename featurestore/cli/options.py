"""Options of the command line that depend on the strategies that there are, those of plugins too."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import click

from featurestore.cli.terminal import StorePath, UserPath
from featurestore.questions.options import OPTIONS, Option
from featurestore.ranges import Numbers, format_numbers
from featurestore.schema import NORMALIZATIONS
from featurestore.strategies import NUMBER, Strategy, list_strategies, load_plugin, registry

_ALL, _CHOSEN = "featurestore.strategies", "featurestore.chosen"
"""Strategies, in the context of an invocation."""

_FLAG: dict[str, Any] = {"is_flag": True, "flag_value": True}  # the second for click 8.2

_CLICK_TYPES: dict[Any, Any] = {Numbers: str, NUMBER: float}


class StrategyName(click.Choice[str]):
    """A strategy that there is when the option is used."""

    def __init__(self) -> None:
        super().__init__([])

    @property
    def choices(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(list_strategies())

    @choices.setter
    def choices(self, _: Sequence[str]) -> None:
        """Ignore what there was when the command was defined."""


def _load(ctx: click.Context, _param: click.Parameter, plugins: Sequence[str]) -> None:
    if not ctx.resilient_parsing:
        for path in plugins:
            load_plugin(path)


def _parsed(_ctx: click.Context, param: click.Parameter, text: str | None) -> dict[str, Any] | None:
    """Read JSON; what it says may be secret, so that no message shows it."""
    try:
        if text is None or isinstance(options := json.loads(text), dict):
            return None if text is None else options
    except (ValueError, RecursionError):
        pass
    raise click.UsageError(
        f"{param.opts[0]}: expected a JSON object, such as '{{\"anon\": true}}', found something else"
    )


plugin = click.option(
    "--plugin",
    multiple=True,
    is_eager=True,
    expose_value=False,
    callback=_load,
    metavar="FILE|MODULE",
    help="Python with strategies of your own, such as my_strategies.py; may be repeated.",
)

strategy = click.option(
    "--strategy", required=True, type=StrategyName(), metavar="NAME", help="What X and y are: one of those below."
)

source = click.option(
    "--input",
    "source",
    required=True,
    multiple=True,
    type=StorePath(),
    help="A store, its zip or its URL; or a folder of sentence NPZs: its store is stores/<folder name>.zarr, brought"
    " up to date first. Of several, all sentences.",
)


class Asked(click.Option):
    """An option of `build` that answers one of the questions that a dataset answers."""

    def __init__(self, *args: Any, question: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.question = question


_QUESTIONS = {"rows": "Which rows", "X": "What is X", "y": "What is y", "side": "Which side"}
"""The questions, as ``--help`` heads their options."""

_FURTHER = (
    ("--drop-nonfinite", "rows", {"is_flag": True}, "Leave out sentences with NaN or infinity, and record them."),
    (
        "--normalize",
        "X",
        {"type": click.Choice(NORMALIZATIONS)},
        f"How X is normalized.  [default: {NORMALIZATIONS[0]}, or as --stats-from]",
    ),
    (
        "--stats-from",
        "X",
        {"type": UserPath()},
        "Normalize by the parameters of this dataset, of the same strategy and input.",
    ),
    (
        "--test-size",
        "side",
        {"type": float},
        "Share of the sentences that are test rows, stratified by label, without leakage.",
    ),
    (
        "--test-store",
        "side",
        {"metavar": "NAME|PATH"},
        "Of several stores, that whose sentences are test rows, without near-duplicates of the others.",
    ),
    (
        "--folds",
        "side",
        {"type": int},
        "Number of folds, stratified by label, without leakage; alone, fold 0 is the test part.",
    ),
    ("--seed", "side", {"type": int}, "Of the split, and of a control.  [default: 0]"),
    (
        "--group-by",
        "side",
        {"type": str},
        "Never divide sentences of one group: a coordinate of the store, or FILE.csv:COLUMN.",
    ),
)


def questions(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that compose with every strategy; what was not given is None."""
    asked = {name: _asked(name, option) for name, option in OPTIONS.items()}
    for flag, of, kind, text in _FURTHER:
        asked[flag.lstrip("-").replace("-", "_")] = click.option(flag, cls=Asked, question=of, help=text, **kind)
    for name in sorted(asked, key=registry.OWN.index, reverse=True):
        command = asked[name](command)
    return command


def _asked(name: str, option: Option) -> Callable[..., Any]:
    kind: dict[str, Any] = {"metavar": option.form}
    if option.words:
        kind = {"type": click.Choice(option.words)}
    elif option.is_flag:
        kind = {"is_flag": True, "default": None}
    elif name == "where":
        kind |= {"multiple": True, "callback": lambda _ctx, _param, values: [*values] or None}
    flag = f"--{name.replace('_', '-')}"
    return click.option(flag, cls=Asked, question=option.question, help=option.help, **kind)


storage_options = click.option(
    "--storage-options",
    metavar="JSON",
    callback=_parsed,
    help="What fsspec needs to open a URL; credentials rather in its configuration or the environment.",
)


class StrategyCommand(click.Command):
    """A command that takes the options of the strategy that is chosen.

    Those of others are known too, so that they can be listed, and refused by name. Where two strategies have options of
    one name, that of the chosen one counts.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Look for plugins and the strategy first, as the options follow from them."""
        ctx.ignore_unknown_options = True
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        ctx.ignore_unknown_options = False
        for path in () if ctx.resilient_parsing else given.get("plugin") or ():
            load_plugin(path)
        strategies = list_strategies()
        chosen = {name: strategies[name] for name in [given.get("strategy")] if name in strategies}
        ctx.meta[_CHOSEN], ctx.meta[_ALL] = chosen, chosen | strategies
        return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return its own options, and once they are known those of strategies."""
        options: dict[str, click.Parameter] = {}
        for strategy in ctx.meta.get(_ALL, {}).values():
            for option in _click_options(strategy):
                if options.keys().isdisjoint(flags := [*option.opts, *option.secondary_opts]):
                    options |= dict.fromkeys(flags, option)
        return [*super().get_params(ctx), *dict.fromkeys(options.values())]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write its own options, then those of the chosen strategy or of each."""
        params = super().get_params(ctx)
        with formatter.section("Options"):
            formatter.write_dl(_records(ctx, [param for param in params if not isinstance(param, Asked)]))
        for question, heading in _QUESTIONS.items():
            with formatter.section(heading):
                asked = [param for param in params if isinstance(param, Asked) and param.question == question]
                formatter.write_dl(_records(ctx, asked))
        for strategy in (ctx.meta[_CHOSEN] or ctx.meta[_ALL]).values():
            with formatter.section(strategy.name):
                if strategy.summary:  # which python -OO leaves out
                    formatter.write_text(strategy.summary)
                if records := _records(ctx, _click_options(strategy)):
                    formatter.write_dl(records)


def _click_options(strategy: Strategy) -> list[click.Option]:
    return [
        click.Option(
            ["/".join(option.flags), option.name],
            type=_CLICK_TYPES.get(option.type, option.type),
            **(_FLAG if option.type is bool else {}),
            default=None,
            metavar="SPEC" if option.type == Numbers else None,
            help=option.help + _remark(strategy, option),
        )
        for option in strategy.options
    ]


def _remark(strategy: Strategy, option: registry.Option) -> str:
    if option.required:
        return "  [required]"
    if option.name in strategy.one_of:
        others = [other.flag for other in strategy.options if other.name in strategy.one_of and other != option]
        return f"  [or {', '.join(others)}]"
    if option.default is None or option.default is False:
        return ""
    default = format_numbers(option.default) if isinstance(option.default, tuple) else option.default
    return f"  [default: {default}]"


def _records(ctx: click.Context, params: Sequence[click.Parameter]) -> list[tuple[str, str]]:
    return [record for param in params if (record := param.get_help_record(ctx))]
