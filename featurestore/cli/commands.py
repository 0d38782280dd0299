"""The command line: parse, call one library function, print."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from featurestore.cli import extracting, looking, options
from featurestore.cli.terminal import Boundary, Echo, Progress, StorePath, UserPath, logger, say, verbosity
from featurestore.errors import ParameterError
from featurestore.schema import ATTRIBUTES, CONTROLS, DATASETS, STORES, __version__
from featurestore.strategies import registry


def attributes(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what a store may say of where its values come from."""
    for name in reversed(ATTRIBUTES):
        words = name.replace("_", " ").replace("sae", "SAE").replace("ids", "ids, as one text")
        command = click.option(f"--{name.replace('_', '-')}", metavar="TEXT", help=f"Recorded as the {words}.")(command)
    return command


@click.group(cls=Boundary, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="featurestore")
def main() -> None:
    """Store language-model activations, and build training datasets from them."""
    logger.handlers = [Echo()]
    logger.setLevel(logging.INFO)
    # Plugins are those of this command alone, also where another follows in the same process.
    click.get_current_context().call_on_close(partial(registry.replace_all, registry.registered()))


@main.command()
@click.argument("folder", type=UserPath())
@click.option("--store", type=UserPath(), help="The store.  [default: stores/<folder name>.zarr]")
@click.option("--special-first", type=int, metavar="N", help="Mark the first N tokens as special ones, such as a BOS.")
@attributes
@click.option("--skip-bad", is_flag=True, help="Leave bad files out, and record them in the store.")
@click.option("--jobs", type=int, default=1, metavar="N", help="Read and encode by N processes.  [default: 1]")
@click.option("--wait", is_flag=True, help="Wait while another process writes the store.")
@verbosity
def ingest(folder: Path, store: Path | None, **options: Any) -> None:
    """Bring a store up to date with a FOLDER of sentence NPZs.

    Sentences that are there already are skipped, so the same command also goes on after an interruption and appends
    new sentences.
    """
    from featurestore.store import ingest as ingestion

    with Progress() as progress:
        done = ingestion.ingest(folder, store, **options, progress=progress)
    say(
        f"{done.store}: {done.n_sentences} sentences ({done.added} added, {done.present} there already, "
        f"{len(done.skipped)} left out)"
    )


@main.command(cls=options.StrategyCommand)
@options.strategy
@options.source
@options.plugin
@options.questions
@click.option(
    "--output",
    type=UserPath(),
    help="The dataset.  [default: generated_datasets/<store>/<strategy and its parameters>.npz]",
)
@click.option("--overwrite", is_flag=True, help="Replace an output that has other content.")
@click.option("--wait", is_flag=True, help="Wait while another process writes the store.")
@options.storage_options
@verbosity
def build(
    strategy: str,
    source: tuple[Path | str, ...],
    output: Path | None,
    overwrite: bool,
    wait: bool,
    storage_options: dict[str, Any] | None,
    **given: Any,
) -> None:
    """Build a dataset NPZ from a store: at the final token of each sentence, unless other tokens are asked for."""
    from featurestore.datasets import build as building

    with Progress() as progress:
        path, dataset = building.build_file(
            source if len(source) > 1 else source[0], strategy, given, output=output, overwrite=overwrite, wait=wait,
            storage_options=storage_options, progress=progress,
        )  # fmt: skip
    sizes, steps = " x ".join(map(str, dataset.data.shape)), [dataset.normalization.method]
    if dataset.reduction:
        steps.append(str(dataset.reduction.asked))
    say(f"{path}: X {sizes}, y {dataset.y.dtype}, {', '.join(steps)}")


@main.command()
@click.argument("recipe", required=False, type=UserPath())
@click.option("--dry-run", is_flag=True, help="Check everything and list the datasets, but write nothing.")
@click.option("--force", is_flag=True, help="Build again what is up to date, and replace files of other content.")
@click.option("--schema", is_flag=True, help="Print the JSON schema of recipes, for editors, and exit.")
@click.option("--wait", is_flag=True, help="Wait while another process writes a store.")
@options.storage_options
@options.plugin
@verbosity
def sweep(
    recipe: Path | None, dry_run: bool, force: bool, schema: bool, wait: bool, storage_options: dict[str, Any] | None
) -> None:
    """Build all datasets of a RECIPE, a YAML file; folders of sentence NPZs that it names are ingested first.

    Each piece of a store is read once for all of them. What is up to date is skipped, so the same command also goes on
    after an interruption.
    """
    if schema:
        from featurestore.recipes.json_schema import recipe_schema

        say(json.dumps(recipe_schema(), indent=2))
        return
    if recipe is None:
        raise ParameterError("RECIPE: expected a YAML file, found none; see examples/*.yaml")
    from featurestore.cli import reports
    from featurestore.recipes import sweep as sweeping

    with Progress() as progress:
        done = sweeping.sweep(
            recipe, dry_run=dry_run, force=force, wait=wait, storage_options=storage_options, progress=progress
        )
    say(reports.sweep(done, dry_run))


@main.command("datasets")
@click.argument("folder", default=DATASETS, type=UserPath())
@click.option("--stores", default=STORES, type=StorePath(), help="Folder of their stores, or its URL.")
@options.storage_options
@click.option("--strategy", type=options.StrategyName(), help="Only of this strategy.")
@options.plugin
@click.option("--layer", type=int, help="Only with this layer, in X or y.")
@click.option("--feature", type=int, help="Only with this SAE feature as y.")
@click.option("--control", type=click.Choice([*CONTROLS, "none"]), help="Only this control, or only what is none.")
@click.option(
    "--stale/--current", "stale", default=None, help="Only those made of what has changed since, or is gone, or not."
)
@click.option("--json", "form", flag_value="json", help="Print JSON.")
@click.option("--csv", "form", flag_value="csv", help="Print CSV.")
@verbosity
def datasets_command(
    folder: Path,
    stores: Path | str,
    storage_options: dict[str, Any] | None,
    strategy: str | None,
    layer: int | None,
    feature: int | None,
    control: str | None,
    stale: bool | None,
    form: str | None,
) -> None:
    """List the datasets in FOLDER  [default: generated_datasets], from what the files say themselves."""
    from featurestore.cli import reports
    from featurestore.datasets import library

    entries = library.list_datasets(
        folder, stores, strategy=strategy, layer=layer, feature=feature, control=control, stale=stale,
        storage_options=storage_options,
    )  # fmt: skip
    say(reports.datasets(entries, form))


@main.command()
@click.argument("store", type=StorePath())
@options.storage_options
@verbosity
def info(store: Path | str, storage_options: dict[str, Any] | None) -> None:
    """Summarize a STORE, and compare its SAEs' nominal average L0 with the L0 measured at the final tokens."""
    from featurestore.cli import reports
    from featurestore.store import info as inspection

    say(reports.info(inspection.info(store, storage_options=storage_options)))


@main.command()
@click.argument("store", type=UserPath())
@click.option("--source", type=UserPath(), help="Compare every value with these sentence NPZs, too.")
@verbosity
def verify(store: Path, source: Path | None) -> None:
    """Read everything in a STORE, print what is wrong and where, and exit with 1 if anything is."""
    from featurestore.store import verify as verification

    with Progress() as progress:
        problems = verification.verify(store, source, progress=progress)
    for problem in problems:
        say(f"{problem.where}: {problem.what}")
    say(f"{store}: {len(problems)} problems" if problems else f"{store}: sound")
    click.get_current_context().exit(1 if problems else 0)


for command in (extracting.extract, looking.features, looking.show, looking.plot, looking.report):
    main.add_command(command)
