"""One self-contained HTML page: headings, tables, plots and pictures, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import Environment
from markupsafe import Markup
from PIL import Image

from detframe.unfinished import unfinished

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fafaf8; margin: 2rem auto; max-width: 72rem;
         padding: 0 1rem; }
  h1 { font-size: 1.6rem; margin-bottom: 0.2rem; }
  h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; padding-bottom: 0.2rem; }
  p.note { color: #555; margin: 0.4rem 0 0.8rem; max-width: 52rem; }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 0.6rem 0; }
  th, td { padding: 0.25rem 0.8rem 0.25rem 0; text-align: left; border-bottom: 1px solid #e2e2dc; vertical-align: top; }
  td.number, th.number { text-align: right; white-space: nowrap; }
  figure { margin: 0.8rem 0; }
  img, svg { max-width: 100%; height: auto; }
  .wide { overflow-x: auto; }
  .plots { display: flex; flex-wrap: wrap; gap: 1rem; }
  .plots figure { flex: 1 1 min(26rem, 100%); }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="note">{{ subtitle }}</p>
{% for section in sections %}
<h2>{{ section.title }}</h2>
{% if section.note %}<p class="note">{{ section.note }}</p>{% endif %}
{% if section.table %}
<div class="wide"><table>
<tr>{% for name in section.table.columns %}
<th{% if not loop.first and section.table.numbers %} class="number"{% endif %}>{{ name }}</th>{% endfor %}</tr>
{% for row in section.table.rows %}<tr>{% for cell in row %}
<td{% if not loop.first and section.table.numbers %} class="number"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% endif %}
{% if section.plots %}<div class="plots">{% for plot in section.plots %}<figure>{{ plot }}</figure>{% endfor %}</div>
{% endif %}
{% for picture in section.pictures %}<figure>{{ picture }}</figure>{% endfor %}
{{ section.markup }}
{% endfor %}
</body>
</html>
"""


class Rows(NamedTuple):
    """A table; its columns hold numbers but for the first, or text throughout."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: bool = True


class Section(NamedTuple):
    """A heading and what stands under it."""

    title: str
    note: str = ""
    table: Rows | None = None
    plots: Sequence[Markup] = ()
    pictures: Sequence[Markup] = ()
    markup: Markup = Markup("")  # further elements


def write_page(path: Path, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    """Write the page, whole or not at all.

    Args:
        path: HTML file; its folder is made where needed.
        title: Heading, as text.
        subtitle: What was looked at, as text.
        sections: In order.
    """
    template = Environment(autoescape=True).from_string(_TEMPLATE)
    with unfinished(path) as beside:
        beside.write_text(template.render(title=title, subtitle=subtitle, sections=sections), encoding="utf-8")


def plot(figure: Figure) -> Markup:
    """A matplotlib figure as SVG within the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight")
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])


def picture(image: Image.Image, description: str) -> Markup:
    """A picture as JPEG within the page."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Markup('<img src="data:image/jpeg;base64,{}" alt="{}">').format(data, description)
