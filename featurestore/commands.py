"""The command line: parse, call one library function, print."""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

from featurestore.errors import FeatureStoreError, ParameterError
from featurestore.layers import Layers
from featurestore.schema import NORMALIZATIONS, __version__
from featurestore.strategies import list_strategies

if TYPE_CHECKING:
    from types import TracebackType

    from featurestore.inspection import StoreInfo

logger = logging.getLogger("featurestore")


def plain(text: str) -> str:
    """Make text safe for a terminal: control characters, which could drive it, become visible escapes."""
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)


class Boundary(click.Group):
    """The one place where errors become a line on stderr and an exit code. Bugs keep their traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except ParameterError as error:
            raise click.UsageError(plain(str(error))) from error
        except FeatureStoreError as error:
            raise click.ClickException(plain(str(error))) from error
        except BrokenPipeError:
            raise  # click ends quietly
        except OSError as error:
            partial = str(error.filename or ".partial").endswith(".partial")
            where, what = ctx.obj if partial else error.filename, error.strerror or error
            message = f"{where}: cannot be written or read ({what}); {_remedy(error)}; what was there before is intact"
            raise click.ClickException(plain(message)) from error
        except KeyboardInterrupt:
            click.echo(
                "\nInterrupted: nothing is half-written. Run the same command again: an ingest goes on", err=True
            )
            click.echo("after the last batch that it committed.", err=True)
            ctx.exit(130)


def _remedy(error: OSError) -> str:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return "free some space, then run the same command again"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return "check its permissions"
        case errno.EEXIST | errno.ENOTDIR:
            return "expected a folder, found a file: choose another path"
        case _:
            return "run the same command again"


class Progress(AbstractContextManager["Progress"]):
    """A bar with rate and time left for each stage of a long work; silent where stderr is no terminal."""

    def __init__(self) -> None:
        self._hidden = not sys.stderr.isatty() or logger.getEffectiveLevel() > logging.INFO
        self._bar: Any = None
        self._what = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` is done."""
        if what != self._what:
            self.__exit__(None, None, None)
            self._what = what
            self._bar = click.progressbar(
                length=total,
                label=what,
                show_pos=True,
                update_min_steps=max(1, total // 500),
                item_show_func=lambda rate: rate,
                file=sys.stderr,
                hidden=self._hidden,
            )
        seconds = self._bar.time_per_iteration
        self._bar.update(done - self._bar.pos, f"{1 / seconds:.0f} files/s" if seconds else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.render_finish()
            self._bar = None


class _Echo(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        prefix = "Warning: " if record.levelno == logging.WARNING else ""
        click.echo(plain(f"{prefix}{record.getMessage()}"), err=True)


def _set_verbosity(_ctx: click.Context, _param: click.Parameter, value: int | None) -> None:
    if value is not None:
        logger.setLevel(value)


def verbosity(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``-v`` and ``-q``."""
    for flags, level, text in (
        (("-q", "--quiet"), logging.WARNING, "No progress and no notes; results, warnings and errors are printed."),
        (("-v", "--verbose"), logging.DEBUG, "Say more of what is done, such as each commit."),
    ):
        command = click.option(
            *flags, flag_value=level, type=int, default=None, expose_value=False, callback=_set_verbosity, help=text
        )(command)
    return command


def strategy_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add every option that some strategy takes."""
    takers: dict[str, list[str]] = {}
    options = {}
    for strategy in list_strategies().values():
        for option in strategy.options:
            takers.setdefault(option.name, []).append(strategy.name)
            options[option.name] = option
    for name, option in reversed(options.items()):
        kind = str if option.type is Layers else option.type
        text = f"{option.help} [{', '.join(takers[name])}]"
        command = click.option(option.flag, name, type=kind, help=text, metavar="SPEC" if kind is str else None)(
            command
        )
    return command


@click.group(cls=Boundary, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="featurestore")
def main() -> None:
    """Store language-model activations, and build training datasets from them."""
    logger.handlers = [_Echo()]
    logger.setLevel(logging.INFO)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--store", type=click.Path(path_type=Path), help="The store.  [default: stores/<folder name>.zarr]")
@click.option("--skip-bad", is_flag=True, help="Leave bad files out, and record them in the store.")
@click.option("--wait", is_flag=True, help="Wait while another process writes the store.")
@verbosity
def ingest(folder: Path, store: Path | None, skip_bad: bool, wait: bool) -> None:
    """Bring a store up to date with a FOLDER of sentence NPZs.

    Sentences that are there already are skipped, so the same command also goes on after an interruption and appends
    new sentences.
    """
    from featurestore import ingestion

    _target(store or ingestion.store_path(folder))
    with Progress() as progress:
        done = ingestion.ingest(folder, store, skip_bad=skip_bad, wait=wait, progress=progress)
    click.echo(
        plain(
            f"{done.store}: {done.n_sentences} sentences ({done.added} added, {done.present} there already, "
            f"{len(done.skipped)} left out)"
        )
    )


@main.command(
    epilog="Strategies: " + " ".join(f"{s.name}: {s.summary}" for s in list_strategies().values()),
)
@click.option("--strategy", required=True, type=click.Choice(list(list_strategies())), help="What X and y are.")
@click.option(
    "--input",
    "source",
    required=True,
    type=click.Path(path_type=Path),
    help="A store, or a folder of sentence NPZs: its store is stores/<folder name>.zarr, brought up to date first.",
)
@strategy_options
@click.option("--normalize", type=click.Choice(NORMALIZATIONS), default=NORMALIZATIONS[0], show_default=True)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="The dataset.  [default: generated_datasets/<store>/<strategy and its parameters>.npz]",
)
@click.option("--overwrite", is_flag=True, help="Replace an output that has other content.")
@click.option("--drop-nonfinite", is_flag=True, help="Leave out sentences with NaN or infinity, and record them.")
@click.option("--wait", is_flag=True, help="Wait while another process writes the store.")
@verbosity
def build(
    strategy: str,
    source: Path,
    normalize: str,
    output: Path | None,
    overwrite: bool,
    drop_nonfinite: bool,
    wait: bool,
    **parameters: Any,
) -> None:
    """Build a dataset NPZ from the final tokens of a store."""
    from featurestore import building, ingestion
    from featurestore.datasets import check_output

    list_strategies()[strategy].parameters(parameters)
    if output:
        check_output(output)
    _target(ingestion.store_path(source))
    with Progress() as progress:
        store = ingestion.find_store(source, wait=wait, progress=progress)
    given = {name: value for name, value in parameters.items() if value is not None}
    output = _target(output or building.default_output(store, strategy, normalize, given))
    dataset = building.build(
        store,
        strategy,
        normalize=normalize,
        output=output,
        overwrite=overwrite,
        drop_nonfinite=drop_nonfinite,
        **given,
    )
    n, d = dataset.data.shape
    click.echo(plain(f"{output}: X {n} x {d}, y {dataset.y.dtype}, {normalize}"))


@main.command()
@click.argument("store", type=click.Path(path_type=Path))
@verbosity
def info(store: Path) -> None:
    """Summarize a STORE, and compare its SAEs' nominal average L0 with the L0 measured at the final tokens."""
    from featurestore import inspection

    click.echo(plain(_describe(inspection.info(store))))


@main.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--source", type=click.Path(path_type=Path), help="Compare every value with these sentence NPZs, too.")
@verbosity
def verify(store: Path, source: Path | None) -> None:
    """Read everything in a STORE, print what is wrong and where, and exit with 1 if anything is."""
    from featurestore import verification

    with Progress() as progress:
        problems = verification.verify(store, source, progress=progress)
    for problem in problems:
        click.echo(plain(f"{problem.where}: {problem.what}"))
    click.echo(plain(f"{store}: {len(problems)} problems" if problems else f"{store}: sound"))
    click.get_current_context().exit(1 if problems else 0)


def _target(path: Path) -> Path:
    """Say what is about to be written, for the case that this fails."""
    click.get_current_context().find_root().obj = path
    return path


def _describe(info: StoreInfo) -> str:
    tokens = "{} to {}, median {}".format(*(info.tokens[i] for i in (0, 2, 1))) if info.tokens else "none"
    rows = {
        "sentences": f"{info.sentences:,}",
        "labels": ", ".join(f"{label}: {count:,}" for label, count in info.labels.items()) or "none",
        "tokens a sentence": tokens,
        "hidden": f"{info.hidden:,}",
        "features": f"{info.features:,}",
        "dtypes": ", ".join(f"{name} {dtype}" for name, dtype in info.dtypes.items()),
        "non-finite values": f"{info.nonfinite_values:,} in {info.nonfinite_sentences:,} sentences",
        "on disk": f"{info.bytes_on_disk / 1e6:,.1f} MB",
        "left out": f"{len(info.skipped):,} files",
    }
    lines = [f"{info.path}", *(f"  {name:18} {value}" for name, value in rows.items())]
    lines += [f"    {file}: {reason}" for file, reason in info.skipped]
    lines += ["", "  layer  average L0  measured at final tokens"]
    for sae in info.saes:
        mark = "  MISMATCH: check the extraction" if sae.mismatch else ""
        lines.append(f"  {sae.layer:5}  {sae.average_l0:10}  {sae.measured_l0:24.1f}{mark}")
    return "\n".join(lines)
