"""What identifies a dataset, and the sentences that it is made of."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from featurestore.schema import DATASET_VERSION

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def fingerprint(
    plan: str, store_digest: str, groups_digest: str, code: str = "", split_version: str = "", labels_digest: str = ""
) -> str:
    """Identify a dataset by what it is made of, as hex digits of a SHA-256.

    Parameters
    ----------
    plan : str
        `Plan.json`.
    store_digest : str
        `sentences_digest` of all sentences of the store.
    groups_digest : str
        Of the groups of ``group_by``, or nothing.
    code : str
        `Strategy.code`: nothing for built-in strategies whose values have never changed.
    split_version : str
        `Split.version`: nothing where sides have never changed, or without a split.
    labels_digest : str
        Of the labels of ``labels_from``, or nothing.
    """
    further = [
        text
        for text in (code, split_version and f"split {split_version}", labels_digest and f"labels {labels_digest}")
        if text
    ]
    content = json.dumps([DATASET_VERSION, plan, store_digest, groups_digest, *further])
    return hashlib.sha256(content.encode()).hexdigest()


def sentences_digest(indices: NDArray[np.int64], digests: NDArray[Any]) -> str:
    """Identify sentences by their sentence_index and content digest, in any order; hex digits of a SHA-256."""
    content = sorted(zip(indices.tolist(), digests.tolist(), strict=True))
    return hashlib.sha256(repr(content).encode()).hexdigest()
