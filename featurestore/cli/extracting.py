"""The command that runs a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featurestore.cli.terminal import Progress, UserPath, say, verbosity
from featurestore.schema import EMBEDDING_KINDS, MODEL_DTYPES


@click.command()
@click.argument("sentences", type=UserPath())
@click.option("--store", type=UserPath(), help="The store.  [default: stores/<name of the CSV>.zarr]")
@click.option("--model", required=True, metavar="NAME", help="On the hub of Hugging Face, a folder, or a GGUF file.")
@click.option("--model-revision", metavar="TEXT", help="Of the hub.")
@click.option("--layers", metavar="LAYERS", help="Whose hidden states are kept, such as 0-2,10.  [default: all]")
@click.option(
    "--sae",
    multiple=True,
    metavar="SAE",
    help="LAYER=FILE.npz of weights, a folder saved by SAELens, or RELEASE:ID of SAELens. Can be given several times.",
)
@click.option(
    "--embeddings",
    type=click.Choice(EMBEDDING_KINDS),
    default=EMBEDDING_KINDS[0],
    show_default=True,
    help="As the embedding matrix gives them, as the first block receives them, or none.",
)
@click.option("--keep-bos", is_flag=True, help="Keep special tokens at the beginning, marked as such.")
@click.option("--batch-size", type=int, default=16, show_default=True, help="Sentences that are run together.")
@click.option("--device", metavar="NAME", help="Such as cpu or cuda.  [default: a GPU, if there is one]")
@click.option(
    "--dtype",
    type=click.Choice(MODEL_DTYPES),
    default=MODEL_DTYPES[0],
    show_default=True,
    help="What the model computes in.",
)
@click.option(
    "--store-dtype",
    type=click.Choice(MODEL_DTYPES[:2]),
    help="Of embeddings and hidden states in the store.  [default: as computed, bfloat16 as float32]",
)
@click.option("--wait", is_flag=True, help="Wait while another process writes the store.")
@verbosity
def extract(sentences: Path, store: Path | None, **options: Any) -> None:
    """Run the SENTENCES of a CSV file through a model, straight into a store.

    The file has a column sentence, and optionally concept_strength_label or label, and sentence_index. What is there
    already is skipped, so the same command also goes on after an interruption. Needs the extra transformers, and SAEs
    of SAELens the extra sae-lens.
    """
    from featurestore.models import extract as extraction

    with Progress() as progress:
        done = extraction.extract(sentences, store, **options, progress=progress)
    say(f"{done.store}: {done.added} sentences added, {done.present} there already")
