"""What the arrays of a dataset file have to be, whoever wrote it: checked here, so that nothing else needs to."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.datasets.normalize import PARAMETERS, Normalization
from featurestore.datasets.reduce import PARAMETERS as REDUCED
from featurestore.datasets.reduce import Reduction
from featurestore.errors import NpzError, shown, some
from featurestore.npz import Archive, Header
from featurestore.questions.components import Components

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

_REMEDY = "build it again"

_NUMBERS, _INTEGERS, _TEXT, _DIGEST = "real numbers", "64-bit integers", "text", "a SHA-256 as hex digits"
_TRUTH = "true and false"
_KINDS = {_NUMBERS: "biuf", _INTEGERS: "iu", _TRUTH: "b", _TEXT: "U", _DIGEST: "U"}

_REASONS = ("dropped", "left_out", "short", "near_duplicate")
"""Why sentences are no rows."""

_FORMS: dict[str, tuple[str, list[str]]] = {
    "X": (_NUMBERS, ["nd", "ntd"]),  # with a mask
    "mask": (_TRUTH, ["nt"]),
    "y": (_NUMBERS, ["n", "nk"]),
    **{f"norm_{name}": (_NUMBERS, ["r"]) for names in PARAMETERS.values() for name in names},
    "reduce_mean": (_NUMBERS, ["r"]),
    "reduce_components": (_NUMBERS, ["dr"]),
    "reduce_explained_variance_ratio": (_NUMBERS, ["d"]),
    **{f"meta_{name}": (_TEXT, [""]) for name in ("strategy", "store", "input_source", "parameters")},
    **{f"meta_{name}": (_TEXT, [""]) for name in ("input_tokens", "target_tokens", "combine")},
    **{f"meta_{name}": (_TEXT, [""]) for name in ("y", "labels_from", "classes", "control")},
    **{f"meta_{name}": (_TEXT, ["k"]) for name in ("stores", "where", "label_names")},
    **{
        f"meta_{name}": (_DIGEST, [""]) for name in ("fingerprint", "store_digest", "sentences_digest", "labels_digest")
    },
    **{f"meta_{name}": (_INTEGERS, [""]) for name in ("n_samples", "near_duplicates_across")},
    "meta_input_dims": (_INTEGERS, ["", "k"]),
    "meta_special": (_TRUTH, [""]),
    **{f"meta_{name}_sentence_indices": (_INTEGERS, ["k"]) for name in _REASONS},
    **{f"meta_{name}_store": (_TEXT, ["k"]) for name in _REASONS},
    "meta_input_layers": (_INTEGERS, ["k"]),
    **{f"meta_{name}": (_INTEGERS, ["", "k"]) for name in ("input_features", "target_layer", "target_feature")},
    **{f"meta_{name}": (_NUMBERS, ["", "k"]) for name in ("input_average_l0", "average_l0")},
    **{f"meta_{name}": (_INTEGERS, ["n"]) for name in ("sentence_indices", "token", "fold")},
    **{f"meta_{name}": (_TEXT, ["n"]) for name in ("split", "row_store")},
    **{f"meta_{name}": (_TEXT, [""]) for name in ("groups_digest", "strategy_code", "split_version")},
}
"""What an array holds, and its shapes: n rows, t tokens and d columns of X, reduced from r, any number of k."""

_SIZES = {"meta_n_samples": slice(1), "meta_input_dims": slice(1, None)}
"""Which sizes of X are repeated."""


class Contents:
    """The arrays of a dataset file, each checked as it is read.

    Parameters
    ----------
    archive : Archive
        The open file.

    Attributes
    ----------
    method : str
        Of the normalization.
    shape : tuple of int
        Of X.

    Raises
    ------
    NpzError
        From any method, if the file is damaged or no such dataset, naming the file and the array.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self.method = self._method()
        self._reduced = self._reduction_method()
        self.shape: tuple[int, ...] = ()
        self._sizes: dict[str, int] = {}
        for name in self._needed():
            header = archive.header(name)
            if name == "X":
                self.shape = header.shape
                self._sizes = dict(zip("ntd" if len(self.shape) > 2 else "nd", self.shape, strict=False))
            elif name.startswith("reduce_") and "r" not in self._sizes:  # all have as many as the first of them
                self._sizes |= zip("r", header.shape[-1:], strict=False)
            self._check_form(name, header)
            if 0 in header.shape:
                raise self._error(name, f"has shape {header.shape}, expected rows and columns")

    def __contains__(self, name: str) -> bool:
        return name in self._archive

    def read(self, name: str) -> NDArray[Any]:
        """Read an array: X and components as float32, statistics as float64, all else as it is."""
        array = self._archive.array(name)
        self._check_form(name, array)
        if fault := self._fault(name, array):
            raise self._error(name, fault)
        if name in ("X", "reduce_components"):
            return self._exactly(name, array, np.float32)
        return self._exactly(name, array, np.float64) if name.startswith(("norm_", "reduce_")) else array

    def mask(self, X: NDArray[Any]) -> NDArray[np.bool_] | None:
        """Read where sequences X have a token; None where it is of rows."""
        if X.ndim == 2:
            return None
        mask = self.read("mask")
        if X[~mask].any():
            raise self._error("X", "has values other than 0 where mask says that there is padding")
        return mask

    def metadata(self) -> dict[str, NDArray[Any]]:
        """Read all metadata."""
        names = [name for name in self._archive.names if name.startswith("meta_")]
        return {name.removeprefix("meta_"): self.read(name) for name in names}

    def normalization(self) -> Normalization:
        """Read the statistics."""
        parameters = {name: self.read(f"norm_{name}") for name in PARAMETERS[self.method]}
        if self.method == "standardize" and not (parameters["std"] > 0).all():
            raise self._error("norm_std", "must be above 0 throughout")
        if self.method == "minmax" and not (parameters["max"] >= parameters["min"]).all():
            raise self._error("norm_max", "must be norm_min or more throughout")
        return Normalization(self.method, parameters)

    def reduction(self) -> Reduction | None:
        """Read the reduction, if there is one."""
        if not self._reduced:
            return None
        parameters = {name: self.read(f"reduce_{name}") for name in REDUCED[self._reduced]}
        return Reduction(Components(self._reduced, self.shape[-1]), parameters)

    def _method(self) -> str:
        """Return the method of the normalization, if the file has the arrays of a dataset."""
        archive, where = self._archive, shown(self._archive.path)
        if "norm_method" not in archive:
            found = f"no norm_method among {some(map(shown, archive.names)) or 'none'}"
            raise NpzError(f"{where}: is no dataset of featurestore: {found}; read it with numpy.load, or {_REMEDY}")
        method = str(archive.array("norm_method", max_bytes=4096))
        if method not in PARAMETERS:
            raise NpzError(f"{where}: norm_method {method!r} is none of {', '.join(PARAMETERS)}; {_REMEDY}")
        return method

    def _reduction_method(self) -> str:
        """Return the method of the reduction; nothing if there is none."""
        if "reduce_method" not in self._archive:
            return ""
        method = str(self._archive.array("reduce_method", max_bytes=4096))
        if method not in REDUCED:
            raise self._error("reduce_method", f"is {method!r}, none of {', '.join(REDUCED)}")
        return method

    def _needed(self) -> list[str]:
        """Name the arrays that have to be there."""
        reduced = [f"reduce_{name}" for name in REDUCED[self._reduced]] if self._reduced else []
        needed = ["X", "y", *reduced, *(f"norm_{name}" for name in PARAMETERS[self.method])]
        if missing := [name for name in needed if name not in self._archive]:
            found = f"is no dataset of featurestore: missing {', '.join(missing)}"
            raise NpzError(f"{shown(self._archive.path)}: {found}; {_REMEDY}")
        return needed

    def _check_form(self, name: str, found: Header | NDArray[Any]) -> None:
        kind, shapes = _FORMS.get(name, ("", []))
        if not kind:
            return
        if found.dtype.kind not in _KINDS[kind] or (kind == _INTEGERS and not np.can_cast(found.dtype, np.int64)):
            raise self._error(name, f"must hold {kind}, found {found.dtype}")
        if name == "X":
            shapes = ["ntd"] if "mask" in self else ["nd"]
        if not self._reduced:
            shapes = [shape.replace("r", "d") for shape in shapes]
        if not any(
            len(shape) == len(found.shape)
            and all(size == self._sizes.get(dim, size) for dim, size in zip(shape, found.shape, strict=True))
            for shape in shapes
        ):
            expected = " or ".join(f"({', '.join(shape)}{',' * (len(shape) == 1)})" for shape in shapes)
            expected += f", where X is {self.shape}" if name != "X" else ", as there is a mask" * ("mask" in self)
            raise self._error(name, f"has shape {found.shape}, expected {expected}")

    def _fault(self, name: str, array: NDArray[Any]) -> str:
        """Say what is wrong with the values of an array of the right form, or nothing."""
        kind, _ = _FORMS.get(name, ("", []))
        if kind == _NUMBERS and not np.isfinite(array).all():
            return "has NaN or infinite values, which no dataset may hold"
        if kind == _DIGEST and not re.fullmatch("[0-9a-f]{64}", str(array)):
            return f"must be {_DIGEST}, found something else"
        if name == "mask" and not (array[:, -1].all() and (array[:, :-1] <= array[:, 1:]).all()):
            return "must be true at the last token, and false in front of the first, found something else"
        if name == "meta_split" and not np.isin(array, ["train", "test"]).all():
            return "must be train or test throughout, found something else"
        if name in _SIZES and np.ravel(array).tolist() != [*(sizes := self.shape[_SIZES[name]])]:
            return f"is {array}, but X has {' x '.join(map(str, sizes))}"
        return ""

    def _exactly(self, name: str, array: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
        """Return an array in another dtype, if that holds all its values."""
        with np.errstate(all="ignore"):
            converted = array.astype(dtype, copy=False)
            same = converted is array or np.array_equal(converted.astype(array.dtype), array)
        if not same:
            found = f"{array.dtype} values that {np.dtype(dtype)} cannot hold exactly"
            raise self._error(name, f"has {found}", "convert it, or ")
        return converted

    def _error(self, name: str, problem: str, remedy: str = "") -> NpzError:
        """Make the error that says what is wrong with an array, and what to do."""
        return self._archive.error(name, f"{problem}; {remedy}{_REMEDY}")
