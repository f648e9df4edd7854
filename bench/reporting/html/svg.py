"""TODO: purpose."""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree

from markupsafe import Markup

_REFERENCE = re.compile(r"(?<=url\(#)[^)]+")
_SURPLUS_DIGITS = re.compile(r"(?<=\.\d\d)\d+")  # of coordinates in points: nobody sees a thousandth
_HATCH = re.compile(r'<pattern id="([^"]+)".*?</pattern>', re.DOTALL)


def inline_svg(image: bytes, *, prefix: str, label: str) -> Markup:
    """A figure as a part of the page: its ids apart from those of others, its style and metadata left out.

    Hatches keep an id of their content, which matplotlib gives them, so that a page needs each but once.

    Args:    prefix: of every other id
    """
    root = ElementTree.fromstring(image)
    for parent in list(root.iter()):
        for child in [child for child in parent if _local(child.tag) in ("metadata", "style")]:
            parent.remove(child)
    names = {
        element.attrib["id"]: f"{'hatch' if _local(element.tag) == 'pattern' else prefix}-{element.attrib['id']}"
        for element in root.iter()
        if "id" in element.attrib
    }
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(name): _inlined(_local(name), value, names) for name, value in element.attrib.items()}
    # What matplotlib's style sheet says of every element; in a page it would say it of other figures too.
    root.attrib |= {"stroke-linejoin": "round", "stroke-linecap": "butt", "role": "img", "aria-label": label}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _local(name: str) -> str:
    """Without its namespace: HTML knows that of a figure, and `href` needs none."""
    return name.rpartition("}")[2]


def _inlined(name: str, value: str, names: Mapping[str, str]) -> str:
    """An attribute with the new names of what it defines or refers to."""
    if name == "id":
        return names[value]
    if name == "href" and value.startswith("#"):
        return f"#{names[value[1:]]}"
    if name == "d":
        return " ".join(_SURPLUS_DIGITS.sub("", value).split())
    return _REFERENCE.sub(lambda found: names[found[0]], value)


def each_hatch_once(page: str) -> str:
    seen: set[str] = set()

    def kept(found: re.Match[str]) -> str:
        first = found[1] not in seen
        seen.add(found[1])
        return found[0] if first else ""

    return _HATCH.sub(kept, page)
