"""Sparse autoencoders: those of SAELens, and plain NPZs of weights."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import NpzError, ParameterError, brief, extra, first_line, spelled
from featurestore.npz import Archive

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_HOOK = re.compile(r"blocks\.(\d+)\.hook_resid_(post|pre)")
_EXPECTED = "expected LAYER=FILE.npz of weights, a folder saved by SAELens, or RELEASE:ID as SAELens names them"


@dataclass(frozen=True)
class SAE:
    """A sparse autoencoder of the residual stream after one layer.

    Attributes
    ----------
    layer : int
        After whose block.
    release, name : str
        Where it comes from, and what it is called there.
    average_l0 : int or float
        Nominal number of active features a token; 0 where it is not known.
    hidden, features : int
        H and F.
    encode : callable
        From hidden states (T, H), float32 on the model's device, to activations (T, F).
    """

    layer: int
    release: str
    name: str
    average_l0: float
    hidden: int
    features: int
    encode: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Rows:
    """Sparse activations (T, F) in the form of a CSR array, on the CPU."""

    indptr: NDArray[np.int64]
    indices: NDArray[np.int64]
    data: NDArray[np.float32]
    shape: tuple[int, int]


def encoded(sae: SAE, hidden_states: torch.Tensor) -> Rows:
    """Return a sentence's activations of one SAE; only those that are not zero leave the device."""
    import torch

    with torch.inference_mode():
        dense = sae.encode(hidden_states.float()).float()
        token, feature = dense.nonzero(as_tuple=True)
        values = dense[token, feature].cpu().numpy()
    counts = np.bincount(token.cpu().numpy(), minlength=len(dense))
    return Rows(np.concatenate([[0], np.cumsum(counts)]), feature.cpu().numpy(), values, (len(dense), sae.features))


def load_saes(specs: Sequence[str], device: torch.device) -> list[SAE]:
    """Load SAEs, ordered by layer.

    Parameters
    ----------
    specs : sequence of str
        Each ``LAYER=FILE.npz``, a folder saved by SAELens, or ``RELEASE:ID``.
    device : torch.device
        Where they are put.

    Raises
    ------
    ParameterError
        If one cannot be loaded, is none of the residual stream, or has another width than the others.
    """
    saes = sorted((_load(spec, device) for spec in specs), key=lambda sae: sae.layer)
    if len(widths := {sae.features: sae.name for sae in saes}) > 1:
        found = ", ".join(f"{width} ({name})" for width, name in widths.items())
        raise ParameterError(f"{spelled('sae')}: expected SAEs of one width, found {found}; make a store of each width")
    return saes


def _load(spec: str, device: torch.device) -> SAE:
    layer, _, file = spec.partition("=")
    if file and layer.isdecimal():
        return _of_weights(int(layer), Path(file).expanduser(), device)
    if not Path(spec).expanduser().is_dir() and ":" not in spec:
        raise ParameterError(f"{spelled('sae')}: {_EXPECTED}, found {brief(spec)}")
    return _of_saelens(spec, device)


def _of_weights(layer: int, path: Path, device: torch.device) -> SAE:
    """Read `W_enc` (H, F), `b_enc` (F,), and `threshold` (F,), `k`, or neither, which make it JumpReLU, TopK or ReLU.

    `b_dec` (H,) is subtracted first, but for JumpReLU (as Gemma Scope, whose ``params.npz`` are such files: Lieberum et
    al. 2024), unless `apply_b_dec_to_input` says otherwise. TopK: Gao et al. 2024.
    """
    import torch

    def read(name: str) -> NDArray[Any] | None:
        return archive.array(name) if name in archive else None

    try:
        with Archive(path) as archive:
            weights, bias, before = archive.array("W_enc"), archive.array("b_enc"), read("b_dec")
            threshold, k, applies, l0 = map(read, ("threshold", "k", "apply_b_dec_to_input", "average_l0"))
    except NpzError as error:
        raise ParameterError(f"{spelled('sae')}: {error}") from error
    shapes = [weights.shape, bias.shape, *(array.shape for array in (before, threshold) if array is not None)]
    hidden, features = weights.shape if weights.ndim == 2 else (0, 0)
    expected = [(hidden, features), (features,), *[(hidden,)] * (before is not None)]
    if shapes != expected + [(features,)] * (threshold is not None) or not features:
        wanted = "W_enc (H, F), b_enc (F,), b_dec (H,), threshold (F,)"
        raise ParameterError(f"{spelled('sae')}: {path}: expected {wanted}, found {', '.join(map(str, shapes))}")
    if k is not None and not (k.shape == () and k >= 1):
        raise ParameterError(f"{spelled('sae')}: {path}: expected k to be a number from 1, found {brief(k.tolist())}")

    def put(array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(array.astype(np.float32)).to(device)

    matrix, shift = put(weights), put(bias)
    centre = put(before) if before is not None and (threshold is None if applies is None else applies) else None
    least = None if threshold is None else put(threshold)
    most = None if k is None else min(int(k), features)

    def encode(x: torch.Tensor) -> torch.Tensor:
        pre = (x if centre is None else x - centre) @ matrix + shift
        if least is not None:
            return torch.relu(pre) * (pre > least)
        if most is not None:
            top = pre.topk(most, dim=-1)
            return torch.zeros_like(pre).scatter(-1, top.indices, torch.relu(top.values))
        return torch.relu(pre)

    nominal = float(l0) if l0 is not None else float(most or 0)
    nominal = int(nominal) if nominal.is_integer() else nominal
    return SAE(layer, path.resolve().parent.name, path.name, nominal, hidden, features, encode)


def _of_saelens(spec: str, device: torch.device) -> SAE:
    with extra("sae-lens"):
        import sae_lens
    folder = Path(spec).expanduser()
    release, _, name = (folder.parent.name, "", folder.name) if folder.is_dir() else spec.partition(":")
    try:
        if folder.is_dir():
            sae = sae_lens.SAE.load_from_disk(str(folder), device=str(device))
        else:
            sae = sae_lens.SAE.from_pretrained(release, name, device=str(device))
    except Exception as error:  # of whatever it reads them with
        found = f"{brief(spec)} ({first_line(error)})"
        raise ParameterError(f"{spelled('sae')}: {_EXPECTED}, found {found}") from error
    hook = str(getattr(sae.cfg.metadata, "hook_name", ""))
    if not (found_hook := _HOOK.fullmatch(hook)) or hook == "blocks.0.hook_resid_pre":
        raise ParameterError(
            f"{spelled('sae')}: {spec}: expected one of the residual stream, found {hook or 'no hook'}"
        )
    if processed := getattr(sae.cfg.metadata, "model_from_pretrained_kwargs", None):
        logger.warning(
            "%s was trained on a model loaded with %s, which this is not; its activations differ", spec, processed
        )
    layer = int(found_hook[1]) - (found_hook[2] == "pre")
    l0 = re.search(r"average_l0_(\d+)", name)
    nominal = int(l0[1]) if l0 else int(getattr(sae.cfg, "k", 0) or 0)
    return SAE(layer, release, name, nominal, sae.cfg.d_in, sae.cfg.d_sae, sae.encode)
