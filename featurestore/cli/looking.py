"""The commands that look at a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featurestore.cli import options
from featurestore.cli.terminal import Progress, StorePath, UserPath, in_colour, say, verbosity
from featurestore.errors import lacking
from featurestore.schema import FEATURE_ORDERS, MIN_ACTIVE, PLOTS, TOKENS


@click.command()
@click.argument("store", type=StorePath())
@options.storage_options
@click.option("--layer", type=int, help="Only of this layer.  [default: all]")
@click.option(
    "--by",
    type=click.Choice(FEATURE_ORDERS),
    default=FEATURE_ORDERS[0],
    show_default=True,
    help="What comes first: the largest, of correlations by absolute value, of AUC by distance from 0.5. Equal ones "
    "by monotonic: by absolute Spearman correlation.",
)
@click.option("--top", type=click.IntRange(1), default=20, show_default=True, help="How many are listed.")
@click.option(
    "--tokens",
    type=click.Choice(TOKENS),
    default=TOKENS[0],
    show_default=True,
    help="Activations at the final token, or their maximum over all tokens.",
)
@click.option(
    "--min-active",
    type=click.IntRange(0),
    default=MIN_ACTIVE,
    show_default=True,
    help="Leave out features that are active in fewer sentences; q and chance count these, too.",
)
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, which a recipe takes as a ranking.")
@verbosity
def features(store: Path | str, as_csv: bool, **options: Any) -> None:
    """List the SAE features of a STORE that have most to do with the label, or are most active.

    By correlation, the first lines say how strong the best of so many features would be by chance.
    """
    from featurestore.cli import reports
    from featurestore.explore import strongest

    with Progress() as progress:
        best = strongest.strongest_of_store(store, **options, progress=progress)
    say(reports.features_csv(best) if as_csv else reports.features(best))


@click.command()
@click.argument("kind", type=click.Choice(PLOTS), metavar="KIND")
@click.argument("store", type=StorePath())
@options.storage_options
@click.option("--layer", type=int, help="Of pca, and of the feature of trajectory, heatmap and activation.")
@click.option("--feature", type=int, help="Of trajectory, heatmap and activation.")
@click.option("--average-l0", type=float, help="Which SAE, where the layer has several.")
@click.option("--output", required=True, type=UserPath(), help="The picture; ends in .svg or .png.")
@click.option("--overwrite", is_flag=True, help="Replace an output that has other content.")
@verbosity
def plot(
    kind: str, store: Path | str, output: Path, overwrite: bool, storage_options: dict[str, Any] | None, **options: Any
) -> None:
    """Draw a STORE, as wide as a column of a paper.

    \b
    separability  how well a probe tells the labels, by layer, beside three baselines
    fisher        how far the labels' means lie apart, by layer
    l0            measured L0 of each SAE, against the nominal one
    norms         norms of the hidden states, by layer and token
    pca           hidden states of a layer, by label
    trajectory    a feature along the sentences, and its mean by label
    heatmap       a feature at each token of each sentence
    activation    a feature at the final token, by label
    """
    from featurestore.explore.plots import save
    from featurestore.store.location import location

    with Progress() as progress:
        path = save(
            kind, store, output, overwrite=overwrite, storage_options=storage_options, progress=progress, **options
        )
    say(f"{path}: {kind} of {location(store, storage_options)}")


@click.command()
@click.argument("store", type=StorePath())
@options.storage_options
@click.option("--output", required=True, type=UserPath(), help="The page; ends in .html.")
@click.option("--overwrite", is_flag=True, help="Replace an output that has other content.")
@verbosity
def report(store: Path | str, output: Path, overwrite: bool, storage_options: dict[str, Any] | None) -> None:
    """Describe a STORE in one page, which needs no network: what is in it, plots, features, and what looks wrong."""
    from featurestore.explore import report as reporting
    from featurestore.store.location import location

    with Progress() as progress:
        path = reporting.report(store, output, overwrite=overwrite, storage_options=storage_options, progress=progress)
    say(f"{path}: report of {location(store, storage_options)}")


@click.command()
@click.argument("store", type=StorePath())
@options.storage_options
@click.option("--layer", type=int, required=True, help="Layer of its SAE.")
@click.option("--feature", type=int, required=True, help="The feature.")
@click.option("--average-l0", type=float, help="Which SAE, where the layer has several.")
@click.option("--top", type=int, default=10, show_default=True, help="Number of sentences.")
@verbosity
def show(
    store: Path | str,
    layer: int,
    feature: int,
    average_l0: float | None,
    top: int,
    storage_options: dict[str, Any] | None,
) -> None:
    """Show one SAE feature of a STORE: its strongest sentences, where it starts to fire, its distribution per label.

    Sentences count by the maximum over their tokens, which are coloured by activation.
    """
    from featurestore.explore import show as showing
    from featurestore.store.location import location
    from featurestore.store.reading import open_store

    path = location(store, storage_options)
    with Progress() as progress, lacking(path):
        view = showing.show(open_store(path), layer, feature, top, average_l0, progress=progress)
    say(view.coloured() if in_colour() else str(view), safe=True)
