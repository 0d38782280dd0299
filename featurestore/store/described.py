"""What a store is to say of where its values come from."""

from __future__ import annotations

from collections.abc import Mapping

from featurestore.errors import ParameterError, brief, shortened, spelled
from featurestore.schema import ATTRIBUTES


def described(attributes: Mapping[str, str | None], command: str) -> dict[str, str]:
    """Check what a command has been given, and return what is not None; ParameterError for all but printable text."""
    for name, value in attributes.items():
        if name not in ATTRIBUTES:
            found = f"{spelled(shortened(name))}: {command} takes no such option"
            raise ParameterError(f"{found}; it takes {', '.join(map(spelled, ATTRIBUTES))}")
        if value is not None and not (isinstance(value, str) and value.isprintable()):
            raise ParameterError(f"{spelled(name)}: expected printable text, found {brief(value)}")
    return {name: value for name in ATTRIBUTES if (value := attributes.get(name)) is not None}
