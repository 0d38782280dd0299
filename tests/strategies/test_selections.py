"""What own strategies may return: rows are joined by sentence, everything else is one clear line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import featurestore
from featurestore import StrategyError
from featurestore.strategies import registry
from featurestore.strategies.registry import Selection, strategy
from tests.sentences import write_sentence

ORDER = [5, 2, 9, 0, 7, 1, 3, 8, 4, 6, 11, 10]
"""sentence_index in the order of the files, and so of the store."""

Select = Callable[[xr.Dataset], Any]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("selections") / "trait"
    for number, index in enumerate(ORDER):
        path = write_sentence(folder, index)
        path.replace(path.with_name(f"sentence_{number:03d}.npz.new"))
    for path in folder.glob("*.new"):
        path.replace(path.with_suffix(""))
    featurestore.ingest(folder, folder.parent / "trait.zarr")
    return folder.parent / "trait.zarr"


@pytest.fixture(scope="module")
def arrays(store: Path) -> dict[int, dict[str, Any]]:
    """The sentence NPZs by sentence_index."""
    found = {}
    for path in (store.parent / "trait").glob("*.npz"):
        with np.load(path) as sentence:
            found[int(sentence["sentence_index"])] = dict(sentence)
    return found


@pytest.fixture(scope="module", autouse=True)
def forget() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
        yield


def build(store: Path, select: Select, **options: Any) -> featurestore.Dataset:
    def own(ds: xr.Dataset) -> Any:
        """Predict something."""
        return select(ds)

    strategy("own")(own)
    return featurestore.build(store, "own", **{"normalize": "none"} | options)


def hidden(ds: xr.Dataset) -> xr.DataArray:
    return ds["hidden_states"].sel(token=-1, layer=1)


def some(ds: xr.Dataset, indices: list[int]) -> xr.Dataset:
    return ds.sel(sentence=indices)


def expected_rows(arrays: dict[int, dict[str, Any]], indices: list[int]) -> np.ndarray[Any, Any]:
    return np.stack([arrays[index]["hidden_states"][1, -1] for index in indices]).astype(np.float32)


def mixed(ds: xr.Dataset, order_of_x: list[int], order_of_y: list[int]) -> Selection:
    return Selection(X=hidden(some(ds, order_of_x)), y=some(ds, order_of_y)["label"])


@given(data=st.data())
def test_rows_are_joined_by_sentence(store: Path, arrays: Any, data: st.DataObject) -> None:
    """Any order of X and of y, of any sentences: a row is one sentence, in the order of sentence_index."""
    order_of_x = data.draw(st.lists(st.sampled_from(ORDER), min_size=1, unique=True))
    order_of_y = data.draw(st.permutations(order_of_x))
    dataset = build(store, lambda ds: mixed(ds, order_of_x, order_of_y))
    indices = sorted(order_of_x)
    assert dataset.metadata["sentence_indices"].tolist() == indices
    np.testing.assert_array_equal(dataset.X, expected_rows(arrays, indices))
    assert dataset.y.tolist() == [int(arrays[index]["concept_strength_label"]) for index in indices]
    left_out = [index for index in range(len(ORDER)) if index not in indices]
    assert dataset.metadata.get("left_out_sentence_indices", np.array([])).tolist() == left_out
    assert len(dataset.metadata["dropped_sentence_indices"]) == 0


def test_dims_are_found_by_name(store: Path, arrays: Any) -> None:
    """As many hidden units as sentences: a transposed X could not be told by its shape."""
    some_rows = ORDER[:6]
    dataset = build(
        store,
        lambda ds: Selection(
            X=hidden(some(ds, some_rows)).transpose("hidden", "sentence"), y=some(ds, some_rows)["label"]
        ),
    )
    np.testing.assert_array_equal(dataset.X, expected_rows(arrays, sorted(some_rows)))


def test_one_block_twice(store: Path, arrays: Any) -> None:
    dataset = build(store, lambda ds: Selection(X=[hidden(ds), hidden(ds)], y=ds["label"]), normalize="standardize")
    raw = expected_rows(arrays, sorted(ORDER)).astype(np.float64)
    scaled = ((raw - raw.mean(0)) / raw.std(0)).astype(np.float32)
    np.testing.assert_allclose(dataset.X, np.hstack([scaled, scaled]), rtol=1e-5, atol=1e-6)
    assert dataset.metadata["input_layers"].tolist() == [1, 1]


@pytest.mark.parametrize("scheduler", ["processes", "synchronous"])
def test_the_scheduler_of_the_user_does_not_matter(store: Path, arrays: Any, scheduler: str) -> None:
    with dask.config.set(scheduler=scheduler):
        dataset = build(store, lambda ds: Selection(X=hidden(ds), y=ds["label"]))
        assert dask.config.get("scheduler") == scheduler
    np.testing.assert_array_equal(dataset.X, expected_rows(arrays, sorted(ORDER)))


Y_CASES: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "bool": (lambda y: y > 1, np.int64),
    "uint8": (lambda y: y.astype("u1"), np.int64),
    "int64": (lambda y: y, np.int64),
    "float64": (lambda y: y / 3, np.float32),
}


@pytest.mark.parametrize("case", Y_CASES)
def test_the_dtype_of_y(store: Path, arrays: Any, case: str) -> None:
    change, dtype = Y_CASES[case]
    dataset = build(store, lambda ds: Selection(X=hidden(ds), y=change(ds["label"])))
    labels = np.array([int(arrays[index]["concept_strength_label"]) for index in sorted(ORDER)])
    assert dataset.y.dtype == dtype
    np.testing.assert_array_equal(dataset.y, change(labels).astype(dtype))


@pytest.mark.parametrize("dtype", ["bool", "i1", "i8", "f8"])
def test_numbers_of_any_kind_are_x(store: Path, arrays: Any, dtype: str) -> None:
    dataset = build(store, lambda ds: Selection(X=ds["label"].astype(dtype), y=ds["label"]))
    labels = [int(arrays[index]["concept_strength_label"]) for index in sorted(ORDER)]
    np.testing.assert_array_equal(dataset.X, np.array(labels, dtype).astype(np.float32)[:, None])


def longer(array: xr.DataArray) -> xr.DataArray:
    return xr.concat([array, array], "sentence")


REFUSED: dict[str, tuple[Select, str]] = {
    "nothing": (lambda _: None, "expected a Selection of X and y, found NoneType"),
    "a pair": (lambda ds: (hidden(ds), ds["label"]), "expected a Selection of X and y, found tuple"),
    "X None": (lambda ds: Selection(X=None, y=ds["label"]), "X: expected an xarray.DataArray, found NoneType"),  # type: ignore[arg-type]
    "X numpy": (
        lambda ds: Selection(X=hidden(ds).values, y=ds["label"]),  # type: ignore[arg-type]
        "X: .* found ndarray, which cannot show whose",
    ),
    "y numpy": (
        lambda ds: Selection(X=hidden(ds), y=ds["label"].values),  # type: ignore[arg-type]
        "y: .* found ndarray, which cannot show whose",
    ),
    "no coordinate": (
        lambda ds: Selection(X=hidden(ds).drop_vars("sentence"), y=ds["label"]),
        "X: expected the coordinate sentence",
    ),
    "no dim": (lambda ds: Selection(X=hidden(ds), y=ds["label"][0]), "y: expected the dim sentence"),
    "X lacks some": (
        lambda ds: Selection(X=hidden(some(ds, ORDER[2:])), y=ds["label"]),
        r"X and y name different sentences: 2 are only in one of them \(sentence_index 5, 2\)",
    ),
    "a block lacks some": (
        lambda ds: Selection(X=[hidden(ds), hidden(some(ds, ORDER[1:]))], y=ds["label"]),
        r"X\[1\] and y name different sentences: 1 are",
    ),
    "X longer": (lambda ds: Selection(X=longer(hidden(ds)), y=ds["label"]), "X: names sentence 0 twice"),
    "y longer": (lambda ds: Selection(X=hidden(ds), y=longer(ds["label"])), "y: names sentence 0 twice"),
    "foreign sentences": (
        lambda ds: Selection(X=hidden(ds).assign_coords(sentence=np.arange(100, 112)), y=ds["label"]),
        "X: expected sentences of the store, found sentence_index 100",
    ),
    "y of three dims": (
        lambda ds: Selection(X=hidden(ds), y=ds["hidden_states"].sel(token=-1)),
        "y: expected the dim sentence and at most one more",
    ),
    "a sentence coordinate of objects": (
        lambda ds: Selection(X=hidden(ds).assign_coords(sentence=[None] * 12), y=ds["label"]),
        "X: expected integers as coordinate sentence, found object",
    ),
    "a sentence coordinate of several levels": (
        lambda ds: Selection(X=hidden(ds).set_index(sentence=["label", "n_tokens"]), y=ds["label"]),
        "X: expected integers as coordinate sentence, found object",
    ),
    "X text": (lambda ds: Selection(X=ds["text"], y=ds["label"]), "X: expected numbers"),
    "y text": (lambda ds: Selection(X=hidden(ds), y=ds["text"]), "y: expected numbers"),
    "X complex": (lambda ds: Selection(X=hidden(ds) * 1j, y=ds["label"]), "X: expected numbers, found complex"),
    "X without columns": (
        lambda ds: Selection(X=hidden(ds)[:, :0], y=ds["label"]),
        r"X: expected rows and columns, found shape \(12, 0\)",
    ),
    "no rows": (
        lambda ds: Selection(X=hidden(ds)[:0], y=ds["label"][:0]),
        r"X: expected rows and columns, found shape \(0, 6\)",
    ),
    "no blocks": (lambda ds: Selection(X=[], y=ds["label"]), "X: expected at least one block"),
    "densest of hidden": (lambda ds: Selection(X=hidden(ds), y=ds["label"], densest=2), "densest: expected X as one"),
    **{
        f"densest {densest!r}": (
            lambda ds, densest=densest: Selection(  # type: ignore[misc]
                X=ds["activations"].sel(token=-1, layer=1), y=ds["label"], densest=densest
            ),
            "densest: expected 1 to 10 features, found",
        )
        for densest in (0, -1, 11, 2.5, True)
    },
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_dataset_is_refused(store: Path, case: str) -> None:
    select, message = REFUSED[case]
    with pytest.raises(StrategyError, match=f"^own: {message}") as caught:
        build(store, select)
    assert "\n" not in str(caught.value)


def test_a_bug_in_a_strategy_keeps_its_traceback(store: Path) -> None:
    with pytest.raises(KeyError, match="nothing") as caught:
        build(store, lambda ds: ds["nothing"])
    assert any(entry.name == "own" for entry in caught.traceback)


def test_a_layer_that_the_store_lacks_is_no_bug(store: Path) -> None:
    @strategy("last-layer")
    def last_layer(ds: xr.Dataset, *, from_layer: Annotated[int, "Layer."]) -> Selection:
        """Predict the label."""
        return Selection(X=ds["hidden_states"].sel(token=-1, layer=from_layer), y=ds["label"])

    with pytest.raises(featurestore.SelectionError, match="has no layer 3: choose from 0-1,5"):
        featurestore.build(store, "last-layer", from_layer=3)


@pytest.mark.parametrize("value", [1e39, -1e300, np.inf, np.nan])
@pytest.mark.parametrize("side", ["X", "y"])
@pytest.mark.parametrize("method", ["none", "standardize"])
def test_what_float32_cannot_hold_is_refused_or_dropped(
    store: Path, arrays: Any, value: float, side: str, method: str
) -> None:
    def select(ds: xr.Dataset) -> Selection:
        bad = ds["sentence"] == 7
        X, y = hidden(ds).astype("f8"), ds["label"].astype("f8")
        return Selection(X=X.where(~bad, value), y=y) if side == "X" else Selection(X=X, y=y.where(~bad, value))

    with pytest.raises(featurestore.NonFiniteError, match=r"1 of 12 sentences .* \(sentence_index 7\)"):
        build(store, select, normalize=method)
    dataset = build(store, select, normalize=method, drop_nonfinite=True)
    assert dataset.metadata["dropped_sentence_indices"].tolist() == [7]
    assert dataset.metadata["sentence_indices"].tolist() == [index for index in range(12) if index != 7]
    assert np.isfinite(dataset.X).all()


def test_integers_beyond_int64_are_no_labels(store: Path) -> None:
    with pytest.raises(featurestore.NonFiniteError, match="6 of 12 sentences"):
        build(
            store,
            lambda ds: Selection(
                X=hidden(ds), y=ds["label"].astype("u8") + np.uint64(2**63 - 3) + (ds["label"] > 1).astype("u8")
            ),
        )


def tiny_spread(ds: xr.Dataset, train: list[int], spread: float) -> Selection:
    """One column that is `spread` times the position among the training sentences, and 1e30 elsewhere."""
    rows = {index: spread * at for at, index in enumerate(train)}
    values = [rows.get(index, 1e30) for index in ds["sentence"].values.tolist()]
    return Selection(X=xr.DataArray(values, {"sentence": ds["sentence"]}, name="column"), y=ds["label"])


@pytest.mark.parametrize("method", ["standardize", "minmax"])
def test_x_is_finite_as_it_is_written(store: Path, tmp_path: Path, method: str) -> None:
    split = {"test_size": 0.25, "seed": 1}
    divided = build(store, lambda ds: Selection(X=hidden(ds), y=ds["label"]), **split).metadata
    train = divided["sentence_indices"][divided["split"] == "train"].tolist()
    output = tmp_path / "x.npz"
    with pytest.raises(featurestore.NonFiniteError, match="1 of 1 columns of X, such as column 0, vary so little"):
        build(store, lambda ds: tiny_spread(ds, train, 1e-20), normalize=method, output=output, **split)
    assert not output.exists()
    # Below what float32 tells from 0 the training rows are constant, and the divisor is 1.
    dataset = build(store, lambda ds: tiny_spread(ds, train, 1e-42), normalize=method, output=output, **split)
    expected = [0.0 if index in train else 1e30 for index in range(12)]
    np.testing.assert_allclose(dataset.X[:, 0], expected, rtol=1e-6, atol=1e-41)
    assert list(dataset.normalization.parameters) == (["mean", "std"] if method == "standardize" else ["min", "max"])


def test_coordinates_of_any_kind(store: Path, tmp_path: Path) -> None:
    """What names no layer of the store is not recorded as one, and the file can be read again."""

    def select(ds: xr.Dataset) -> Selection:
        return Selection(X=hidden(ds).assign_coords(layer="the second", feature=0.5), y=ds["label"])

    build(store, select, output=tmp_path / "x.npz")
    assert featurestore.load_dataset(tmp_path / "x.npz").metadata["input_layers"].tolist() == []


def test_sides_are_those_of_the_whole_store(store: Path) -> None:
    split = {"test_size": 0.25, "folds": 3, "seed": 2}
    whole = build(store, lambda ds: Selection(X=hidden(ds), y=ds["label"]), **split).metadata
    sides = {
        index: (side, fold)
        for index, side, fold in zip(whole["sentence_indices"], whole["split"], whole["fold"], strict=True)
    }
    kept = [0, 3, 4, 7, 8, 11]
    part = build(store, lambda ds: mixed(ds, kept, kept[::-1]), **split).metadata
    found = dict(zip(part["sentence_indices"], zip(part["split"], part["fold"], strict=True), strict=True))
    assert found == {index: sides[index] for index in kept}


def test_statistics_are_of_the_kept_training_rows(store: Path, arrays: Any) -> None:
    kept = [0, 1, 3, 4, 5, 7, 8, 9, 11]
    dataset = build(store, lambda ds: mixed(ds, kept, kept), normalize="standardize", test_size=0.25)
    train = dataset.metadata["sentence_indices"][dataset.metadata["split"] == "train"].tolist()
    assert 0 < len(train) < len(kept)
    raw = expected_rows(arrays, train).astype(np.float64)
    np.testing.assert_allclose(dataset.normalization.parameters["mean"], raw.mean(0), rtol=1e-9)
    np.testing.assert_allclose(dataset.normalization.parameters["std"], raw.std(0), rtol=1e-9)


def test_rankings_see_the_kept_rows_only(store: Path, arrays: Any) -> None:
    @strategy("low-to-feature")
    def low(
        ds: xr.Dataset,
        *,
        target_layer: Annotated[int, "Layer."],
        target_feature: Annotated[int, "Feature."],
        below: Annotated[int, "Labels."],
    ) -> Selection:
        """Predict a feature in sentences of low labels."""
        ds = ds.isel(sentence=ds["label"].values < below)
        y = ds["activations"].sel(token=-1, layer=target_layer, feature=target_feature)
        return Selection(X=hidden(ds), y=y)

    def ranked(below: int) -> list[int]:
        targets = {"rank_by": "density", "top": 3, "layers": 5}
        entry = {"strategy": "low-to-feature", "below": below, "targets": targets}
        done = featurestore.sweep({"stores": str(store), "min_active": 1, "datasets": [entry]}, dry_run=True)
        return [int(planned.plan.arguments["target_feature"]) for planned in done.datasets]

    def densest(below: int) -> list[int]:
        rows = [one["activations"][2, -1] for one in arrays.values() if one["concept_strength_label"] < below]
        counts = np.count_nonzero(rows, axis=0).tolist()
        return sorted(range(10), key=lambda feature: (-counts[feature], feature))[:3]

    assert densest(2) != densest(4)  # else this would show nothing
    assert ranked(2) == densest(2)
    assert ranked(4) == densest(4)


def test_features_cannot_be_ranked_where_they_choose_the_rows(store: Path) -> None:
    @strategy("active-to-feature")
    def active(
        ds: xr.Dataset, *, target_layer: Annotated[int, "Layer."], target_feature: Annotated[int, "Feature."]
    ) -> Selection:
        """Predict a feature where it is active."""
        y = ds["activations"].sel(token=-1, layer=target_layer, feature=target_feature).compute()
        return Selection(X=hidden(ds).isel(sentence=y.values > 0), y=y.isel(sentence=y.values > 0))

    entry = {"strategy": "active-to-feature", "targets": {"rank_by": "density", "top": 3}}
    with pytest.raises(featurestore.RecipeError, match="selects other sentences for other features"):
        featurestore.sweep({"stores": str(store), "min_active": 1, "datasets": [entry]}, dry_run=True)


def test_rankings_leave_out_what_is_dropped(store: Path, arrays: Any) -> None:
    """The same sentences, left out by the strategy or as NaN in y or X: the same features rank first."""
    low = [index for index, one in arrays.items() if one["concept_strength_label"] < 2]

    def ranked(change: Callable[[xr.DataArray, xr.DataArray], tuple[Any, Any]]) -> list[int]:
        def some_to_feature(
            ds: xr.Dataset, *, target_layer: Annotated[int, "Layer."], target_feature: Annotated[int, "Feature."]
        ) -> Selection:
            """Predict a feature in some sentences."""
            X, y = change(
                hidden(ds).astype("f4"), ds["activations"].sel(token=-1, layer=target_layer, feature=target_feature)
            )
            return Selection(X=X, y=y)

        strategy("some-to-feature")(some_to_feature)
        entry = {"strategy": "some-to-feature", "targets": {"rank_by": "density", "top": 4}}
        recipe = {"stores": str(store), "min_active": 1, "drop_nonfinite": True, "datasets": [entry]}
        done = featurestore.sweep(recipe, dry_run=True)
        return [tuple(planned.plan.arguments.values()) for planned in done.datasets]  # type: ignore[misc]

    expected = ranked(lambda X, y: (X.sel(sentence=low), y.sel(sentence=low)))
    assert ranked(lambda X, y: (X, y.where(y["sentence"].isin(low)))) == expected
    assert ranked(lambda X, y: (X.where(y["sentence"].isin(low)), y)) == expected
    assert ranked(lambda X, y: (X, y)) != expected


@pytest.mark.parametrize("value", [None, 1, "yes", np.array([True, False])])
def test_flags_that_are_none(store: Path, value: Any) -> None:
    with pytest.raises(featurestore.ParameterError, match="drop_nonfinite=: expected true or false, found"):
        featurestore.build(store, "hidden-to-concept", layer=1, drop_nonfinite=value)


def test_coordinates_cannot_be_changed_in_place(store: Path) -> None:
    def select(ds: xr.Dataset) -> Selection:
        ds["label"][ds["label"] > 0] = 1
        return Selection(X=hidden(ds), y=ds["label"])

    with pytest.raises(ValueError, match=r"read-only|is a view") as caught:
        build(store, select)
    assert caught.value.__notes__ == ["in the strategy own"]


def test_a_strategy_that_ends_the_program_is_refused(store: Path) -> None:
    def select(_: xr.Dataset) -> Selection:
        raise SystemExit(0)

    with pytest.raises(StrategyError, match=r"^own: ends in sys.exit\(0\)"):
        build(store, select)


def test_outputs_and_stores_inside_a_store_are_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(featurestore.DatasetError, match="is inside the store"):
        featurestore.build(store, "hidden-to-concept", layer=1, output=store / "hidden_states" / "x.npz")
    with pytest.raises(featurestore.StoreError, match="is inside the store"):
        featurestore.ingest(store.parent / "trait", store / "inner.zarr")
    assert featurestore.verify(store) == []


def test_columns_with_a_layer_of_two_dims(store: Path) -> None:
    def select(ds: xr.Dataset) -> Selection:
        X = ds["hidden_states"].isel(token=[-2, -1]).sel(layer=1, drop=True).rename(token="position")
        return Selection(X=X.assign_coords(layer=(("position", "hidden"), np.ones((2, 6), int))), y=ds["label"])

    assert build(store, select, drop_nonfinite=True).metadata["input_layers"].tolist() == []


def test_labels_side_by_side(store: Path) -> None:
    def select(ds: xr.Dataset) -> Selection:
        y = xr.concat([ds["label"], 3 - ds["label"]], "column").rename("label")
        return Selection(X=hidden(ds), y=y)

    dataset = build(store, select, test_size=0.25)
    assert dataset.y.shape == (12, 2)
    assert (dataset.y.sum(axis=1) == 3).all()


def test_a_strategy_cannot_change_what_others_get(store: Path, arrays: Any) -> None:
    def select(ds: xr.Dataset) -> Selection:
        ds["label"] = ds["label"] * 0 + 1
        return Selection(X=hidden(ds), y=ds["label"])

    @strategy("careless")
    def careless(ds: xr.Dataset) -> Selection:
        """Predict nothing."""
        return select(ds)

    entries = [{"strategy": "careless"}, {"strategy": "hidden-to-concept", "layer": 1}]
    done = featurestore.sweep({"stores": str(store), "datasets": entries}, dry_run=True)
    assert [planned.state for planned in done.datasets] == ["unfit", "new"]
