"""What a dataset is made of: each strategy selects X and y from a store, lazily.

A strategy is one decorated function. It takes the labelled dataset and keyword-only options, annotated with their type
and help text, and returns a `Selection`. Registering it gives it its place in `build`, in ``--help`` and in the
conformance tests; nothing else has to change.
"""

from __future__ import annotations

import inspect
import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, SimpleNamespace, UnionType
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

from featurestore.errors import ParameterError, SelectionError
from featurestore.schema import ACTIVATIONS, EMBEDDINGS, FINAL_TOKEN, HIDDEN_STATES

if TYPE_CHECKING:
    import xarray as xr

Layers = tuple[int, ...]

TargetLayer = Annotated[int, "Layer of the SAE feature that is y."]
TargetFeature = Annotated[int, "SAE feature that is y."]
AverageL0 = Annotated[int | None, "Which SAE of the target layer, by its average L0, where it has several."]


@dataclass(frozen=True)
class Selection:
    """The two sides of a dataset, lazy and labelled; what they are is read off their names and coordinates.

    Attributes
    ----------
    X : xarray.DataArray
        Dims `sentence` first, then any; flattened to 2-D in that order.
    y : xarray.DataArray
        Dim `sentence`.
    """

    X: xr.DataArray
    y: xr.DataArray


@dataclass(frozen=True)
class Option:
    """A keyword-only parameter of a strategy."""

    name: str
    type: Any
    help: str
    required: bool

    @property
    def flag(self) -> str:
        """Its spelling on the command line."""
        return f"--{self.name.replace('_', '-')}"

    def convert(self, value: object) -> object:
        """Validate a value, from Python or from the command line.

        Raises
        ------
        ParameterError
            If it is not of the option's type.
        """
        if self.type is Layers:
            return parse_layers(value) if isinstance(value, str) else _layers(value)
        if self.type is int:
            return _integer(self.flag, value)
        if not isinstance(value, self.type):
            raise ParameterError(f"{self.flag}: expected {self.type.__name__}, found {value!r}")
        return value


@dataclass(frozen=True)
class Strategy:
    """A registered strategy."""

    name: str
    select: Callable[..., Selection]
    options: tuple[Option, ...]

    @property
    def summary(self) -> str:
        """First line of its docstring."""
        return (inspect.getdoc(self.select) or "").partition("\n")[0]

    def parameters(self, given: Mapping[str, object]) -> dict[str, Any]:
        """Validate options by name; those that are None count as not given.

        Raises
        ------
        ParameterError
            If one is unknown, missing or of the wrong type.
        """
        given = {name: value for name, value in given.items() if value is not None}
        options = {option.name: option for option in self.options}
        takes = ", ".join(option.flag for option in self.options) or "none"
        for name in given:
            if name not in options:
                raise ParameterError(f"--{name.replace('_', '-')}: {self.name} takes no such option; it takes {takes}")
        missing = [option.flag for option in self.options if option.required and option.name not in given]
        if missing:
            raise ParameterError(f"{self.name} needs {' and '.join(missing)}; it takes {takes}")
        return {name: options[name].convert(value) for name, value in given.items()}


_REGISTRY: dict[str, Strategy] = {}


def strategy(name: str) -> Callable[[Callable[..., Selection]], Callable[..., Selection]]:
    """Register a strategy: a function of a dataset and annotated, keyword-only options.

    Parameters
    ----------
    name : str
        As in ``--strategy``.

    Raises
    ------
    ValueError
        If the name is taken, the function has no docstring, or an option lacks its type or help text.
    """

    def register(select: Callable[..., Selection]) -> Callable[..., Selection]:
        if name in _REGISTRY:
            raise ValueError(f"strategy {name!r} is registered already")
        if not inspect.getdoc(select):
            raise ValueError(f"strategy {name!r} needs a docstring")
        _, *parameters = inspect.signature(select).parameters.values()
        _REGISTRY[name] = Strategy(name, select, _options(name, parameters, select.__globals__))
        return select

    return register


def list_strategies() -> dict[str, Strategy]:
    """All registered strategies by name."""
    return dict(_REGISTRY)


def get_strategy(name: str) -> Strategy:
    """Look a strategy up.

    Raises
    ------
    ParameterError
        If there is none of that name.
    """
    if name not in _REGISTRY:
        raise ParameterError(f"strategy: expected one of {', '.join(_REGISTRY)}, found {name!r}")
    return _REGISTRY[name]


def _options(name: str, parameters: Sequence[inspect.Parameter], namespace: dict[str, Any]) -> tuple[Option, ...]:
    annotated = SimpleNamespace(__annotations__={parameter.name: parameter.annotation for parameter in parameters})
    hints = get_type_hints(annotated, namespace, include_extras=True)
    options = []
    for parameter in parameters:
        hint = hints.get(parameter.name)
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY or get_origin(hint) is not Annotated:
            raise ValueError(f"strategy {name!r}: {parameter.name} must be keyword-only and Annotated[type, help]")
        base, text = get_args(hint)
        if isinstance(base, UnionType):
            (base,) = (kind for kind in get_args(base) if kind is not NoneType)
        options.append(Option(parameter.name, base, text, parameter.default is inspect.Parameter.empty))
    return tuple(options)


@strategy("embedding-to-feature")
def embedding_to_feature(
    ds: xr.Dataset,
    *,
    target_layer: TargetLayer,
    target_feature: TargetFeature,
    average_l0: AverageL0 = None,
) -> Selection:
    """Predict the activation of an SAE feature from the embedding."""
    return Selection(X=final(ds[EMBEDDINGS]), y=final_activation(ds, target_layer, target_feature, average_l0))


@strategy("hidden-to-feature")
def hidden_to_feature(
    ds: xr.Dataset,
    *,
    target_layer: TargetLayer,
    target_feature: TargetFeature,
    average_l0: AverageL0 = None,
    input_layer: Annotated[int | None, "Layer of the hidden states that are X; by default the target layer."] = None,
) -> Selection:
    """Predict the activation of an SAE feature from the hidden states of one layer."""
    layer = target_layer if input_layer is None else input_layer
    return Selection(
        X=final_hidden_states(ds, [layer]), y=final_activation(ds, target_layer, target_feature, average_l0)
    )


@strategy("hidden-to-concept")
def hidden_to_concept(
    ds: xr.Dataset,
    *,
    layer: Annotated[int | None, "The one layer of the hidden states that are X."] = None,
    layers: Annotated[Layers | None, "Layers whose hidden states are concatenated as X, such as 0-2,10,15-17."] = None,
) -> Selection:
    """Predict the concept label from the hidden states of one layer, or of several concatenated."""
    if (layer is None) == (layers is None):
        raise ParameterError("hidden-to-concept needs either --layer or --layers, and not both")
    return Selection(X=final_hidden_states(ds, [layer] if layers is None else layers), y=ds["label"])


def final(array: xr.DataArray, **positions: int | slice) -> xr.DataArray:
    """Select the final token of every sentence, and positions along other dims. Lazy.

    All in one step, because dask merges one selection with the reading of a chunk, but not always two.
    """
    return array.isel({"token": array.get_index("token").get_loc(FINAL_TOKEN), **positions})


def final_hidden_states(ds: xr.Dataset, layers: Sequence[int | None]) -> xr.DataArray:
    """Select hidden states at the final token. Lazy.

    Parameters
    ----------
    ds : xarray.Dataset
        An open store.
    layers : sequence of int
        In the order in which they are to be concatenated. The residual stream after a layer does not depend on the
        SAE, so where a layer has several, the first one's copy is taken.

    Returns
    -------
    xarray.DataArray, (sentence, layer, hidden)

    Raises
    ------
    SelectionError
        If a layer is not in the store.
    """
    import xarray as xr

    positions = [sae_positions(ds, layer)[0] for layer in layers]
    # Runs of neighbours, because dask reads a slice of a shard, but for a list of layers all of it.
    runs = [slice(run[0], run[-1] + 1) for run in _runs(positions)]
    states = [final(ds[HIDDEN_STATES], layer=run) for run in runs]
    return xr.concat(states, dim="layer", coords="minimal", compat="override", join="override")


def final_activation(ds: xr.Dataset, layer: int, feature: int, average_l0: int | None) -> xr.DataArray:
    """Select one SAE feature's activation at the final token. Lazy.

    Parameters
    ----------
    ds : xarray.Dataset
        An open store.
    layer, feature : int
        The feature, and the layer of its SAE.
    average_l0 : int or None
        Which SAE, where the layer has several.

    Returns
    -------
    xarray.DataArray, (sentence,)
        Scalar coordinates `layer`, `feature` and `average_l0` say what it is.

    Raises
    ------
    SelectionError
        If the layer, the feature or the SAE is not in the store, or the layer has several SAEs and none was chosen.
    """
    positions = sae_positions(ds, layer)
    choices = [int(ds["average_l0"].values[position]) for position in positions]
    if average_l0 is not None and average_l0 not in choices:
        raise SelectionError(f"layer {layer} has no SAE of average L0 {average_l0}: choose from {choices}")
    if average_l0 is None and len(choices) > 1:
        raise SelectionError(f"layer {layer} has {len(choices)} SAEs: choose one with --average-l0, from {choices}")
    if not 0 <= feature < ds.sizes["feature"]:
        raise SelectionError(f"has no feature {feature}: choose from 0-{ds.sizes['feature'] - 1}")
    position = positions[0] if average_l0 is None else positions[choices.index(average_l0)]
    return final(ds[ACTIVATIONS], layer=position, feature=feature)


def sae_positions(ds: xr.Dataset, layer: int | None) -> list[int]:
    """Return the positions along `layer` that a layer has, one for each of its SAEs.

    Raises
    ------
    SelectionError
        If it has none.
    """
    layers = ds["layer"].values.tolist()
    positions = [position for position, value in enumerate(layers) if value == layer]
    if not positions:
        available = format_layers(tuple(dict.fromkeys(layers)))
        raise SelectionError(f"has no layer {layer}: choose from {available}")
    return positions


def parse_layers(text: str) -> Layers:
    """Read a layer specification: numbers and inclusive ranges, separated by commas, none twice.

    Raises
    ------
    ParameterError
        If `text` is something else.

    Examples
    --------
    >>> parse_layers("0-2,10,15-17")
    (0, 1, 2, 10, 15, 16, 17)
    """
    layers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,4})(?:-([0-9]{1,4}))?\s*", part)
        if not match:
            raise ParameterError(f"layers {text!r}: expected numbers and ranges such as 0-2,10,15-17, found {part!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ParameterError(f"layers {text!r}: the range {part.strip()} runs backwards; write {last}-{first}")
        layers.extend(range(first, last + 1))
    return _layers(layers)


def format_layers(layers: Layers) -> str:
    """Write layers as `parse_layers` reads them, in the same order."""
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in _runs(layers))


def _layers(value: object) -> Layers:
    values = [value] if isinstance(value, int) else value
    if not isinstance(values, Sequence) or not values:
        raise ParameterError(f"layers {value!r}: expected text such as 0-2,10,15-17, or a sequence of integers")
    layers = tuple(_integer("layers", layer) for layer in values)
    if repeated := [layer for layer, count in Counter(layers).items() if count > 1]:
        raise ParameterError(f"layers: {', '.join(map(str, repeated))} named twice; name each layer once")
    return layers


def _integer(name: str, value: object) -> int:
    if isinstance(value, bool):
        raise ParameterError(f"{name}: expected an integer, found {value!r}")
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise ParameterError(f"{name}: expected an integer, found {value!r}") from error


def _runs(numbers: Sequence[int]) -> list[list[int]]:
    """Split into runs of consecutive, ascending numbers."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs
