"""Groups of sentences, by a coordinate of the store or a CSV file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurestore.splits.sentence_table import sentence_cells, value_name

if TYPE_CHECKING:
    import xarray as xr


def group_names(ds: xr.Dataset, group_by: str) -> list[str]:
    """Return the name of each sentence's group; an empty one belongs to none.

    Parameters
    ----------
    ds : xarray.Dataset
        An open store.
    group_by : str
        See `featurestore.splits.options.SplitOptions`.

    Raises
    ------
    ParameterError
        If `group_by` names no coordinate, or a file that cannot be read or does not say the group of every sentence.
    """
    coordinates = [str(name) for name, values in ds.coords.items() if values.dims == ("sentence",)]
    if group_by in coordinates:
        return [value_name(value) for value in ds[group_by].values.tolist()]
    expected = f"FILE.csv:COLUMN or one of {', '.join(sorted(coordinates))}"
    return sentence_cells(ds, "group_by", group_by, what="group", twice="is in two groups", expected=expected)
