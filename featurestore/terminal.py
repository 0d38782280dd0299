"""The terminal: errors become one line, work shows its progress, text cannot drive it."""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Self

import click

from featurestore.errors import FeatureStoreError, ParameterError

if TYPE_CHECKING:
    from types import TracebackType

logger = logging.getLogger("featurestore")

UNITS = {"sweep": "MB"}
"""What the stages of long work count, where it is not files."""


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
            found = f"{error.filename}: cannot be written or read ({error.strerror or error})"
            message = f"{found}; {_remedy(error)}; what was there before is intact"
            raise click.ClickException(plain(message)) from error
        except KeyboardInterrupt:
            click.echo(
                "\nInterrupted: nothing is half-written. Run the same command again: an ingest goes on", err=True
            )
            click.echo("after the last batch that it committed, a sweep after the last dataset.", err=True)
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
        unit = UNITS.get(what, "files")
        self._bar.update(done - self._bar.pos, f"{1 / seconds:.0f} {unit}/s" if seconds else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.render_finish()
            self._bar = None


class Echo(logging.Handler):
    """Prints what the library logs, on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
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
