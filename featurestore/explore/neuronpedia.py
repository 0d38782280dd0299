"""The page of a feature on Neuronpedia, where a store says for certain which it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_NAME = "[a-z0-9][a-z0-9._-]*?"
_SOURCE = re.compile(rf"(?:(?P<model>{_NAME})/)?(?P<layer>[0-9]+)-{_NAME}(?:__l0-(?P<l0>[0-9]+))?")


def link(attributes: Mapping[str, Any], layer: int, feature: int, average_l0: float, *, alone: bool) -> str | None:
    """Form the address of a feature's page, ``https://www.neuronpedia.org/<model>/<layer>-<SAEs>/<feature>`` [1]_.

    Parameters
    ----------
    attributes : mapping
        Of the store. `sae_ids` names SAEs as Neuronpedia does, such as ``12-gemmascope-res-16k``, several of a layer
        with their average L0, ``12-gemmascope-res-16k__l0-22``; separated by commas or blanks. `model` is Neuronpedia's
        name of the model, unless the ids start with it: ``gemma-2-2b/12-gemmascope-res-16k``.
    layer, feature, average_l0
        The feature, and its SAE.
    alone : bool
        Whether each layer of the store has one SAE, so that an id without an average L0 tells which it is.

    Returns
    -------
    str or None
        None unless exactly one of the ids is of this SAE.

    References
    ----------
    .. [1] https://docs.neuronpedia.org/api-and-data/api; the ids are also those in the field `neuronpedia` of SAELens.
    """
    ids = (_SOURCE.fullmatch(name) for name in re.split(r"[,\s]+", str(attributes.get("sae_ids", ""))))
    fitting = [
        found
        for found in ids
        if found and int(found["layer"]) == layer and (float(found["l0"]) == average_l0 if found["l0"] else alone)
    ]
    model = str(attributes.get("model", ""))
    if len(fitting) != 1 or not (fitting[0]["model"] or re.fullmatch(_NAME, model)):
        return None
    source = fitting[0][0] if fitting[0]["model"] else f"{model}/{fitting[0][0]}"
    return f"https://www.neuronpedia.org/{source}/{feature}"
