"""Plots inside a page: SVG elements that screen readers can name."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

from featurestore.explore.plots.saving import rendered

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


def inline(kind: str, title: str, description: str, ds: Any, **options: Any) -> str:
    """Draw a plot as an SVG element with a title and a description, of ids that no other kind of plot has."""
    root = ElementTree.fromstring(rendered(kind, ".svg", ds, "none", **options))
    for name in ("metadata", "defs/{*}style"):  # the style would hold for the whole page
        parent = root.find(f"{{*}}{name.rpartition('/')[0]}") if "/" in name else root
        child = root.find(f"{{*}}{name}")
        if parent is not None and child is not None:
            parent.remove(child)
    for element in root.iter():
        for attribute, value in element.items():
            element.set(attribute, _scoped(kind, attribute, value))
    for name, text in (("desc", description), ("title", title)):
        child = ElementTree.Element(f"{{{_SVG}}}{name}", {"id": f"{kind}-{name}"})
        child.text = text
        root.insert(0, child)
    root.set("role", "img")
    root.set("aria-labelledby", f"{kind}-title {kind}-desc")
    del root.attrib["width"], root.attrib["height"]  # as wide as the page has room
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    return ElementTree.tostring(root, encoding="unicode")


def _scoped(kind: str, attribute: str, value: str) -> str:
    """Put the kind of plot before an id, or before one that is referred to."""
    if attribute == "id":
        return f"{kind}-{value}"
    return re.sub(r"(^|url\()#", rf"\g<1>#{kind}-", value)
