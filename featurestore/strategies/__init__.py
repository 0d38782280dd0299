"""What X and y are: the strategies of this package, those of others, and what they are made from."""

from featurestore.strategies import builtin as _builtin  # noqa: F401  registers them
from featurestore.strategies.plugins import get_strategy, list_strategies, load_plugin
from featurestore.strategies.registry import NUMBER, SAE_LAYER, Option, Selection, Strategy, strategy
from featurestore.strategies.selecting import (
    activation,
    activations,
    activations_at,
    check_feature,
    embeddings,
    final,
    final_activation,
    final_activations,
    final_embeddings,
    final_hidden_states,
    hidden_states,
    labelled,
    sae_activations,
    sae_dim,
    sae_layers,
    sae_position,
    sae_positions,
)

__all__ = [
    "NUMBER",
    "SAE_LAYER",
    "Option",
    "Selection",
    "Strategy",
    "activation",
    "activations",
    "activations_at",
    "check_feature",
    "embeddings",
    "final",
    "final_activation",
    "final_activations",
    "final_embeddings",
    "final_hidden_states",
    "get_strategy",
    "hidden_states",
    "labelled",
    "list_strategies",
    "load_plugin",
    "sae_activations",
    "sae_dim",
    "sae_layers",
    "sae_position",
    "sae_positions",
    "strategy",
]
