"""The root ``zarr.json`` of a store: what it holds, how it is written, and what must be so in one that is read.

A store is one Zarr v3 group. Its root holds, as consolidated metadata, the shapes and codecs of all arrays: that one
file says what the store contains, and replacing it is what commits an ingest.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from featurestore.schema import ARRAYS, ATTRIBUTES, LIMITS, SCHEMA_VERSION, Extraction, __version__
from featurestore.store.layout import Layout, Metadata, brief, canonical, check_between

Root = dict[str, Any]
"""The parsed root ``zarr.json``."""

_CHECKSUM_KEY = "featurestore_checksum"


def new_root(extraction: Extraction, special_first: int) -> Root:
    """Return the root of an empty store, in whose sentences so many tokens at the beginning are special."""
    versions = {"featurestore_schema": SCHEMA_VERSION, "featurestore_version": __version__}
    return _root_of(Layout.fitting(extraction).arrays(), versions | {"special_first": special_first})


def encode(metadata: dict[str, Any]) -> bytes:
    """Write metadata as they are on disk."""
    return json.dumps(metadata, indent=2).encode()


def encode_root(root: Root) -> bytes:
    """Write the root metadata as they are on disk, with a checksum of themselves."""
    checksum = hashlib.sha256(encode(root)).hexdigest()
    return encode(root | {"attributes": root["attributes"] | {_CHECKSUM_KEY: checksum}})


def decode_root(data: bytes) -> tuple[Root, bool]:
    """Read the root metadata, without their checksum; tell whether that fits.

    Raises
    ------
    ValueError, KeyError, TypeError, AttributeError, RecursionError
        If they are not those of a store.
    """
    root: Root = json.loads(data)
    root["attributes"].pop(_CHECKSUM_KEY, None)
    return root, encode_root(root) == data


def _root_of(arrays: dict[str, Metadata], attributes: dict[str, Any]) -> Root:
    """Put a root together."""
    consolidated = {"kind": "inline", "must_understand": False, "metadata": arrays}
    added: dict[str, Any] = {
        "expected_sentences": None,
        "skipped": [],
        "coordinates": _coordinates(arrays),
    }
    return {
        "attributes": attributes | added,
        "zarr_format": 3,
        "consolidated_metadata": consolidated,
        "node_type": "group",
    }


def _coordinates(arrays: dict[str, Metadata]) -> str:
    """Name what plain xarray takes for coordinates besides those that are named like their dim."""
    dims = {dim for metadata in arrays.values() for dim in metadata["dimension_names"]}
    return " ".join(name for name in arrays if name not in dims and name not in ARRAYS)


def check_root(root: Root) -> None:
    """Raise ValueError, saying what is wrong, for a root that is not wholly one of layout 2.

    Nothing in it needs to be doubted afterwards: there are all arrays and no others, by our names, with our dims,
    dtypes, chunks and codecs, in sizes that agree.
    """
    _check_attributes(root["attributes"])
    try:
        found = root["consolidated_metadata"]["metadata"]
        layout = Layout.of(found)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise ValueError(f"expected the metadata of {', '.join(ARRAYS)}, found others") from error
    layout.check()
    expected = layout.arrays()
    if strange := sorted(found.keys() ^ expected.keys()):
        raise ValueError(f"expected the arrays {', '.join(expected)}; lacks or has besides: {brief(strange)}")
    for name, metadata in expected.items():
        _check_same(f"array '{name}'", found[name], metadata)
    _check_same("the group", root, _root_of(found, {}) | {"attributes": root["attributes"]})
    coordinates = root["attributes"].get("coordinates")
    if coordinates != _coordinates(expected):
        raise ValueError(f"expected the coordinates {_coordinates(expected)}, found {brief(coordinates)}")


def _check_attributes(attributes: dict[str, Any]) -> None:
    expected = attributes.get("expected_sentences", "none")
    if expected is not None:
        check_between("expected_sentences", expected, 1, LIMITS["sentence"])
    check_between("special_first", attributes.get("special_first"), 0, LIMITS["token"])
    skipped = attributes.get("skipped")
    if not isinstance(skipped, list) or not all(map(_is_skipped, skipped)):
        raise ValueError(f"expected a list of files with reasons as skipped, found {brief(skipped)}")
    for name in ("featurestore_version", *(name for name in ATTRIBUTES if name in attributes)):
        if not isinstance(text := attributes.get(name), str):
            raise ValueError(f"expected {name} to be text, found {brief(text)}")


def _is_skipped(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and entry.keys() == {"file", "reason"}
        and all(isinstance(text, str) for text in entry.values())
    )


def _check_same(what: str, found: object, expected: dict[str, Any]) -> None:
    """Compare as JSON, in which 1, 1.0 and true differ."""
    if not isinstance(found, dict) or found.keys() != expected.keys():
        raise ValueError(f"expected {what} to have {', '.join(expected)}, found {brief(found)}")
    for key, value in expected.items():
        if canonical(found[key]) != canonical(value):
            raise ValueError(f"expected {what} to have {key} {canonical(value)}, found {brief(found[key])}")
