"""Turns the SVG of `plots` into PNG, for places that show no SVG: only what those pictures hold."""

from __future__ import annotations

import io
from xml.etree import ElementTree

from PIL import Image, ImageColor, ImageDraw, ImageFont

_SCALE = 2
"""Pixels for each unit of the picture."""
_FINER = 2
"""Drawn so much larger and made smaller again, for smooth edges."""
_ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}


def png(svg: str) -> bytes:
    """A picture as PNG.

    Args:
        svg: Of rectangles, circles, straight lines and text in one font, as `plots` draws them.
    """
    root = ElementTree.fromstring(svg)
    width, height = (round(float(side)) for side in root.attrib["viewBox"].split()[2:])
    zoom = _SCALE * _FINER
    image = Image.new("RGB", (width * zoom, height * zoom), "white")
    draw = ImageDraw.Draw(image, "RGBA")
    for element in root:
        _draw(draw, element.tag.rpartition("}")[2], element, zoom)
    buffer = io.BytesIO()
    smooth = image.resize((width * _SCALE, height * _SCALE), Image.Resampling.LANCZOS)
    smooth.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _draw(draw: ImageDraw.ImageDraw, kind: str, element: ElementTree.Element, zoom: int) -> None:
    def at(*names: str) -> list[float]:
        return [float(element.get(name, 0)) * zoom for name in names]

    colour = ImageColor.getrgb(element.get("fill") or element.get("stroke", "#000"))
    ink = (*colour[:3], round(255 * float(element.get("fill-opacity", 1))))
    if kind == "rect":
        x, y, width, height, radius = at("x", "y", "width", "height", "rx")
        draw.rounded_rectangle((x, y, x + max(width - 1, 0), y + height - 1), radius, ink)
    elif kind == "circle":
        x, y, radius = at("cx", "cy", "r")
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), ink)
    elif kind == "line":
        draw.line(at("x1", "y1", "x2", "y2"), ink, round(at("stroke-width")[0]))
    elif kind == "text":
        x, y, size = at("x", "y", "font-size")
        font = ImageFont.load_default(size)
        # The font that comes with Pillow has one weight.
        heavier = size / 45 if element.get("font-weight") == "600" else 0
        anchor = _ANCHORS[element.get("text-anchor", "start")]
        draw.text((x, y), element.text or "", ink, font, anchor, stroke_width=heavier)
