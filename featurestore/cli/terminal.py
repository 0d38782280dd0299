"""The terminal: errors become one line, work shows its progress, text cannot drive it, and it may fail."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

import click

from featurestore.errors import FeatureStoreError, ParameterError, shown, speaking
from featurestore.paths import as_path, is_url

if TYPE_CHECKING:
    from types import TracebackType

logger = logging.getLogger("featurestore")

UNITS = {
    "sweep": "MB",
    "extracting": "sentences",
    "features": "sentences",
    "reading sentences": "sentences",
    "probing": "layers",
    "comparing": "layers",
    "counting features": "SAEs",
    "measuring norms": "layers",
}
"""What the stages of long work count, where it is not files."""


def plain(text: str) -> str:
    """Make text safe for a terminal: control characters, which could drive it, become visible escapes."""
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)


class Boundary(click.Group):
    """The one place where errors become a line on stderr and an exit code. Bugs keep their traceback."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line."""
        with speaking("command line"), _standard_streams():
            return super().main(*args, **extra)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Read the options that come before the command."""
        with _boundary():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        with _boundary():
            return super().invoke(ctx)


@contextmanager
def _boundary() -> Iterator[None]:
    try:
        yield
    except ParameterError as error:
        raise click.UsageError(plain(str(error))) from error
    except FeatureStoreError as error:
        raise click.ClickException(plain(str(error))) from error
    except BrokenPipeError:
        raise  # click ends quietly
    except OSError as error:
        raise click.ClickException(plain(_described(error))) from error
    except MemoryError as error:
        found = f"not enough memory ({error})" if str(error) else "not enough memory"
        raise click.ClickException(plain(f"{found}; free some, or ask for less at once")) from error
    except KeyboardInterrupt as error:
        click.echo("\nInterrupted: nothing is half-written. Run the same command again: ingest and", err=True)
        click.echo("extract go on after the last batch that is committed, a sweep after the last dataset.", err=True)
        raise click.exceptions.Exit(130) from error


_REMEDIES = {
    errno.ENOSPC: "free some space, then run the same command again; what was there before is intact",
    errno.EDQUOT: "free some space, then run the same command again; what was there before is intact",
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.EROFS: "choose another path",
    errno.ENOENT: "check that the path still exists",
    errno.EEXIST: "something else is in its place: move that, or choose another path",
    errno.ENOTDIR: "what should be a folder is none: check the path, or choose another",
    errno.EISDIR: "expected a file, found a folder: choose another path",
    errno.ELOOP: "its symlinks lead in a circle: check the path, or choose another",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), or choose another file system",
    errno.EIO: "check the disk",
}


def _described(error: OSError) -> str:
    """Say what a system error is about, and what to do; the system names all but the working folder."""
    unnamed = "the working folder" if error.errno == errno.ENOENT else "a file"
    name = unnamed if error.filename is None else shown(error.filename)
    remedy = _REMEDIES.get(error.errno or 0, "run the same command again")
    return f"{name}: cannot be written or read ({error.strerror or error}); {remedy}"


class Stream(io.TextIOBase):
    """Standard output or error, which may lack a character, be closed, or be on a full disk.

    What its encoding lacks is escaped. After it has failed, what is written is dropped. Only standard output raises
    then: a warning that cannot be shown must not stop the work.
    """

    def __init__(self, stream: TextIO | None, name: str, *, strict: bool) -> None:
        self._stream, self._name, self._strict = stream, name, strict
        self.fault: OSError | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """As the stream's own."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        """How what the encoding lacks is written."""
        return "backslashreplace"

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def write(self, text: str) -> int:
        """Write and flush."""
        escaped = text.encode(self.encoding, self.errors).decode(self.encoding)
        try:
            if escaped and self._stream is not None and not self.fault:
                self._stream.write(escaped)
                self._stream.flush()
        except OSError as error:
            self.fault = error
            if self._strict and error.errno == errno.EPIPE:
                raise  # click ends quietly
            if self._strict:
                raise click.ClickException(self.failure) from error
        return len(text)

    @property
    def failure(self) -> str:
        """Why it cannot be written; nothing where it can, or its reader just left."""
        if self.fault is None or self.fault.errno == errno.EPIPE:
            return ""
        return f"{self._name}: cannot be written ({self.fault.strerror or self.fault})"


@contextmanager
def _standard_streams() -> Iterator[None]:
    """Guard standard output and error; those that fail stay guarded, as Python flushes them when it ends."""
    while (unused := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a closed stream's number must not become that of a file of ours, which C libraries then print into
    os.close(unused)
    before = sys.stdout, sys.stderr
    sys.stdout = out = Stream(sys.stdout, "standard output", strict=True)
    sys.stderr = err = Stream(sys.stderr, "standard error", strict=False)
    try:
        yield
    except SystemExit as end:
        if not err.failure:
            raise
        with suppress(click.ClickException, BrokenPipeError):
            click.echo(f"Error: {err.failure}; notes and warnings are lost")
        raise SystemExit(end.code or 1) from end
    finally:
        if not out.fault and not err.fault:
            sys.stdout, sys.stderr = before


def in_colour() -> bool:
    """Tell whether standard output shows colours: it is a terminal, and its user wants them (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def say(text: str, *, safe: bool = False) -> None:
    """Print what a command has done or found, which stays done if this cannot be printed.

    Text is made safe for the terminal unless it is already, and has colours.
    """
    try:
        click.echo(text if safe else plain(text))
    except click.ClickException as error:
        lost = "all that the command was to write is written, only its report is lost"
        raise click.ClickException(f"{error.message}; {lost}") from error


class UserPath(click.Path):
    """A path on the command line; one that starts with ``~`` is below a home folder, also where no shell expands it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Read a path."""
        try:
            return as_path(value)
        except ParameterError as error:
            self.fail(str(error), param, ctx)


class StorePath(UserPath):
    """The path of a store, or its URL, which stays text."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read a path, or leave a URL as it is."""
        return value if is_url(value) else super().convert(value, param, ctx)


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
