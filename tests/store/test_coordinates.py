"""Coordinates and attributes of an open store, and what xarray can do with them; all warnings are errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from click.testing import Result

import featurestore
from featurestore.schema import SentenceFile
from featurestore.sources import sentences
from featurestore.store.outline import outline
from tests.refusals import accepted, complaint
from tests.sentences import sentence_arrays, write_folder, write_sentence

Cli = Callable[..., Result]

TEXTS = ("text", "source", "source_digest", "fragment", "token_text")
GIVEN = {"model": "gemma-2-2b", "model_revision": "c5ebcd4", "tokenizer": "gemma-2", "sae_ids": "layer_0, layer_1"}


@pytest.fixture
def opened(folder: Path, tmp_path: Path) -> xr.Dataset:
    """A store of five sentences of 2 to 7 tokens."""
    featurestore.ingest(folder, tmp_path / "s.zarr")
    return featurestore.open_store(tmp_path / "s.zarr")


def test_texts_are_objects_and_flags_are_bool(opened: xr.Dataset) -> None:
    for name in TEXTS:
        assert opened[name].dtype == object
        assert opened[name].compute().dtype == object
        assert all(type(text) is str for text in opened[name].values.ravel())
    for name in ("is_token", "is_special", "has_label"):
        assert opened[name].dtype == bool
    assert all(one.attrs["long_name"] for one in opened.variables.values())


def test_is_token_and_token_text(opened: xr.Dataset) -> None:
    assert opened["is_token"].dims == opened["token_text"].dims == ("sentence", "token")
    for index in range(5):
        tokens = 2 + (index * 5) % 6
        words = [f"w{index}.0", *(f" w{index}.{position}" for position in range(1, tokens))]
        one = opened.sel(sentence=index)
        assert one["is_token"].values.tolist() == [False] * (7 - tokens) + [True] * tokens
        assert one["token_text"].values.tolist() == [""] * (7 - tokens) + words
        assert "".join(one["token_text"].values) == str(one["text"].values)


def test_is_token_is_known_before_ingest(cli: Cli, folder: Path) -> None:
    """A dry run can plan means over tokens."""
    planned = outline(folder)
    assert planned is not None
    accepted(cli("ingest", folder))
    np.testing.assert_array_equal(planned["is_token"], featurestore.open_store("stores/trait.zarr")["is_token"])


def test_token_text_of_fragments_that_do_not_continue_each_other(tmp_path: Path) -> None:
    """A tokenizer may change what came before: then it is the whole fragment."""
    fragments = np.array(["a", "a b", "á b", "á b c"])
    write_sentence(tmp_path / "in", 0, changes={"fragments": fragments})
    featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr")
    assert featurestore.open_store(tmp_path / "s.zarr")["token_text"].values[0].tolist() == ["a", " b", "á b", " c"]


def test_xarray_can_work_with_them(opened: xr.Dataset, tmp_path: Path) -> None:
    write_folder(tmp_path / "more", 7)
    for index in range(5):
        (tmp_path / "more" / f"sentence_{index + 1:06d}.npz").unlink()
    featurestore.ingest(tmp_path / "more", tmp_path / "more.zarr")
    more = featurestore.open_store(tmp_path / "more.zarr")

    both = xr.concat([opened, more], "sentence", join="outer")
    assert both["text"].values.tolist() == [
        sentence_arrays(i, tokens=2 + 5 * i % 6)["sentence"].item() for i in range(7)
    ]
    assert both["hidden_states"].sel(sentence=[6, 0], layer=[1, 5], token=-1).values.shape == (2, 2, 6)

    some = opened.reindex(sentence=[3, 9])
    assert some["text"].values[0] == opened["text"].values[3]
    assert np.isnan(some["embeddings"].sel(sentence=9).values).all()

    kept = opened.where((opened["is_token"] & (opened["label"] > 0)).compute(), drop=True)
    assert kept["sentence"].values.tolist() == [1, 2, 3]
    labels = opened["label"].values
    mean = opened["embeddings"].astype("f4").where(opened["is_token"]).mean("token").values
    expected = [sentence_arrays(i, tokens=2 + 5 * i % 6)["embeddings"].astype("f4").mean(axis=0) for i in range(5)]
    np.testing.assert_allclose(mean, expected, rtol=1e-5)
    assert opened.sel(sentence=opened["has_label"])["label"].values.tolist() == labels.tolist()
    np.testing.assert_array_equal(opened["hidden_states"].sel(layer=[1, 5]), opened["hidden_states"].values[:, :, 1:])


# Special tokens ------------------------------------------------------------------------------------------------------


def special(store: Path) -> list[list[bool]]:
    """Flags of each sentence, in reading order, without padding."""
    ds = featurestore.open_store(store)
    flags = ds["is_special"].where(ds["is_token"], False).values
    np.testing.assert_array_equal(flags, ds["is_special"].values)  # padding is none
    n_tokens = ds["n_tokens"].values
    return [row[len(row) - n :].tolist() for row, n in zip(ds["is_special"].values, n_tokens, strict=True)]


def test_special_tokens_of_files_and_by_count(cli: Cli, tmp_path: Path) -> None:
    """Each by itself, and both; also of sentences that are added later, without the option."""
    marks = [False, False, True, False]
    write_sentence(tmp_path / "in", 0, changes={"is_special": np.array(marks)})
    write_sentence(tmp_path / "in", 1, tokens=2)
    accepted(cli("ingest", tmp_path / "in", "--store", "files.zarr"))
    accepted(cli("ingest", tmp_path / "in", "--store", "both.zarr", "--special-first", 1))
    assert special(Path("files.zarr")) == [marks, [False, False]]
    assert special(Path("both.zarr")) == [[True, False, True, False], [True, False]]
    accepted(cli("ingest", tmp_path / "in", "--store", "both.zarr"))
    write_sentence(tmp_path / "in", 2, tokens=1)
    write_sentence(tmp_path / "in", 3, tokens=40)
    accepted(cli("ingest", tmp_path / "in", "--store", "both.zarr"))
    assert special(Path("both.zarr"))[2:] == [[True], [True] + [False] * 39]
    assert featurestore.verify("both.zarr", tmp_path / "in") == []


def test_another_number_of_special_tokens_is_refused(cli: Cli, folder: Path) -> None:
    accepted(cli("ingest", folder, "--special-first", 2))
    before = special(Path("stores/trait.zarr"))
    assert [sum(flags) for flags in before] == [2] * 5
    accepted(cli("ingest", folder, "--special-first", 2))
    for more in range(2):
        (line,) = complaint(cli("ingest", folder, "--special-first", 1), "--special-first 1: stores/trait.zarr marks")
        assert "the first 2 tokens" in line
        assert "new store" in line
        write_sentence(folder, 5 + more)
    assert special(Path("stores/trait.zarr")) == before


@pytest.mark.parametrize("number", [-1, 10**6 + 1])
def test_no_number_of_special_tokens(cli: Cli, folder: Path, number: int) -> None:
    complaint(cli("ingest", folder, "--special-first", number), "--special-first: expected 0 to 1,000,000", code=2)
    assert not Path("stores").exists()


def test_is_special_has_to_be_bool_and_one_a_token(tmp_path: Path) -> None:
    for flags in (np.array([1, 0, 0, 0]), np.array([True])):
        write_sentence(tmp_path / "in", 0, changes={"is_special": flags})
        with pytest.raises(featurestore.SourceError, match="is_special"):
            featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr")


def write_norms(folder: Path, index: int, first: float, **more: Any) -> None:
    """Write a sentence of four tokens whose hidden states are all 1, but of the first token `first`."""
    hidden_states = np.ones((3, 4, 6), np.float32)
    hidden_states[:, 0] = first
    write_sentence(folder, index, changes={"hidden_states": hidden_states} | more)


@pytest.mark.parametrize(
    ("firsts", "options", "warned"),
    [
        ((11, 11, 1), (), True),
        ((9, 9, 9), (), False),
        ((11, 1, 1), (), False),
        ((11, 11, 11), ("--special-first", 1), False),
        ((np.inf, np.inf, 1), (), True),
    ],
)
def test_a_first_token_that_stands_out_is_warned_of(
    cli: Cli, tmp_path: Path, firsts: tuple[float, ...], options: tuple[object, ...], warned: bool
) -> None:
    for index, first in enumerate(firsts):
        write_norms(tmp_path / "in", index, first)
    output = accepted(cli("ingest", tmp_path / "in", *options))
    assert ("the first token has hidden states of more than 10 times the median norm" in output) == warned
    assert ("--special-first 1" in output) == warned


def test_a_first_token_that_the_file_marks_is_not_warned_of(cli: Cli, tmp_path: Path) -> None:
    write_norms(tmp_path / "in", 0, 100, is_special=np.array([True, False, False, False]))
    assert "median norm" not in accepted(cli("ingest", tmp_path / "in"))


# Attributes ----------------------------------------------------------------------------------------------------------


def described(store: Path) -> dict[str, str]:
    """What a store says besides its versions."""
    attrs = featurestore.open_store(store).attrs
    return {name: text for name, text in attrs.items() if not name.startswith("featurestore_")}


def test_attributes_at_first_and_later(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "s.zarr"
    featurestore.ingest(folder, store, **GIVEN)  # type: ignore[arg-type]
    assert described(store) == GIVEN
    featurestore.ingest(folder, store)
    assert described(store) == GIVEN
    with monkeypatch.context() as patch:
        patch.setattr(sentences, "read", None)
        assert featurestore.ingest(folder, store, model="gemma-2-9b", sae_release=None, tokenizer=None).added == 0
    assert described(store) == GIVEN | {"model": "gemma-2-9b"}
    write_sentence(folder, 5)
    featurestore.ingest(folder, store, sae_release="gemma-scope")
    assert described(store) == GIVEN | {"model": "gemma-2-9b", "sae_release": "gemma-scope"}
    assert featurestore.verify(store, folder) == []


def test_attributes_of_an_interrupted_ingest(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are recorded with the end of the ingest that was told them."""
    monkeypatch.setattr("featurestore.store.layout.ROWS", 2)
    monkeypatch.setattr("featurestore.store.layout.BATCH_ROWS", 2)
    read = sentences.read

    def interrupted(file: SentenceFile) -> Any:
        if file.sentence_index == 3:
            raise KeyboardInterrupt
        return read(file)

    with monkeypatch.context() as patch:
        patch.setattr(sentences, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            featurestore.ingest(folder, tmp_path / "s.zarr", model="x")
    featurestore.ingest(folder, tmp_path / "s.zarr", model="x")
    assert described(tmp_path / "s.zarr") == {"model": "x"}


def test_attributes_by_options(cli: Cli, folder: Path) -> None:
    options = [word for name, text in GIVEN.items() for word in (f"--{name.replace('_', '-')}", text)]
    accepted(cli("ingest", folder, *options))
    assert described(Path("stores/trait.zarr")) == GIVEN
    output = accepted(cli("info", "stores/trait.zarr"))
    assert all(text in output for text in GIVEN.values())
    complaint(cli("ingest", folder, "--author", "me"), "--author", code=2)
    complaint(cli("ingest", folder, "--model", "two\nlines"), "--model: expected printable text", code=2)


@pytest.mark.parametrize("given", [{"author": "me"}, {"model": 3}, {"sae_ids": ["a", "b"]}, {"model": "two\nlines"}])
def test_attributes_that_are_none(folder: Path, tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(featurestore.ParameterError, match=next(iter(given))):
        featurestore.ingest(folder, tmp_path / "s.zarr", **given)
    assert not (tmp_path / "s.zarr").exists()


def test_netcdf_of_a_part_keeps_them(folder: Path, tmp_path: Path) -> None:
    featurestore.ingest(folder, tmp_path / "s.zarr", **GIVEN)  # type: ignore[arg-type]
    ds = featurestore.open_store(tmp_path / "s.zarr")
    part = ds[["activations"]].sel(token=-1, layer=[0, 5]).compute()  # xarray warns of text that is lazy
    part.to_netcdf(tmp_path / "part.nc", engine="scipy")
    again = xr.load_dataset(tmp_path / "part.nc")
    assert again.attrs == ds.attrs
    assert again["activations"].attrs == ds["activations"].attrs
    np.testing.assert_array_equal(again["activations"], part["activations"])
    assert again["text"].values.tolist() == part["text"].values.tolist()
