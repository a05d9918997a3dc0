"""A gallery within a page: pictures with a filter for each of their properties, and keys to page through them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup
from PIL import Image

from detframe.analysis.page import picture

STYLE = Markup("""<style>
.filters { display: flex; flex-wrap: wrap; gap: 0.4rem 1.2rem; align-items: baseline; margin: 0.6rem 0; }
.filters select { font: inherit; max-width: 16rem; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: 0.8rem; }
.gallery.large { grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); }
.gallery figure { margin: 0; cursor: zoom-in; }
.gallery figure:focus-visible { outline: 3px solid #0072b2; outline-offset: 2px; }
.gallery figcaption, dialog.viewer figcaption { font-size: 0.82rem; line-height: 1.35; overflow-wrap: anywhere; }
.gallery img { width: 100%; display: block; }
dialog.viewer { border: 0; padding: 0.8rem; background: #fafaf8; max-width: 96vw; max-height: 96vh; }
dialog.viewer::backdrop { background: rgb(0 0 0 / 75%); }
dialog.viewer figure { margin: 0; }
dialog.viewer img { display: block; width: auto; height: auto; min-width: min(60vw, 40rem); max-width: 92vw;
                    max-height: 78vh; object-fit: contain; }
dialog.viewer p { margin: 0.3rem 0 0; font-size: 0.82rem; color: #555; }
</style>""")

SCRIPT = Markup("""<script>
"use strict";
(() => {
  const viewer = document.createElement("dialog");
  viewer.className = "viewer";
  viewer.innerHTML = "<figure><img alt=''><figcaption></figcaption></figure>" +
    "<p>&larr; &rarr; or j, k: page; Esc: close</p>";
  document.body.append(viewer);
  let shown = null;
  const open = (figure) => {
    shown = figure;
    viewer.querySelector("img").src = figure.querySelector("img").src;
    viewer.querySelector("img").alt = figure.querySelector("img").alt;
    viewer.querySelector("figcaption").innerHTML = figure.querySelector("figcaption").innerHTML;
    if (!viewer.open) viewer.showModal();
  };
  const page = (step) => {
    const all = [...shown.parentElement.querySelectorAll("figure:not([hidden])")];
    open(all[(all.indexOf(shown) + step + all.length) % all.length]);
  };
  viewer.addEventListener("click", () => viewer.close());
  viewer.addEventListener("close", () => shown && shown.focus());
  document.addEventListener("keydown", (event) => {
    if (!viewer.open) return;
    if (["ArrowRight", "j", " "].includes(event.key)) { event.preventDefault(); page(1); }
    if (["ArrowLeft", "k"].includes(event.key)) { event.preventDefault(); page(-1); }
  });
  for (const gallery of document.querySelectorAll(".gallery")) {
    const figures = [...gallery.querySelectorAll("figure")];
    const selects = [...document.querySelectorAll(`[data-gallery="${gallery.id}"] select`)];
    const count = document.querySelector(`[data-gallery="${gallery.id}"] output`);
    const apply = () => {
      let visible = 0;
      for (const figure of figures) {
        figure.hidden = selects.some((s) => s.value && figure.dataset[s.name] !== s.value);
        visible += !figure.hidden;
      }
      if (count) count.textContent = `${visible} of ${figures.length} shown`;
    };
    for (const select of selects) select.addEventListener("change", apply);
    for (const figure of figures) {
      figure.addEventListener("click", () => open(figure));
      figure.addEventListener("keydown", (event) => { if (event.key === "Enter") open(figure); });
    }
    for (const link of document.querySelectorAll(`a[href="#${gallery.id}"][data-filter]`)) {
      link.addEventListener("click", () => {
        const wanted = JSON.parse(link.dataset.filter);
        for (const select of selects) select.value = wanted[select.name] || "";
        apply();
      });
    }
    apply();
  }
})();
</script>""")


class Example(NamedTuple):
    """One picture."""

    picture: Image.Image
    title: str
    detail: str
    properties: Mapping[str, str]  # what it can be filtered by; names are single words


def gallery(name: str, examples: Sequence[Example], filters: Mapping[str, str], large: bool = False) -> Markup:
    """The gallery, without style and script, which a page has once.

    Args:
        name: Of the element, to link to: ``<a href="#name" data-filter='{"property": "value"}'>``.
        examples: In order.
        filters: Labels of the filters by property.
        large: Fewer pictures in a row.
    """
    parts = [Markup('<div class="filters" data-gallery="{}">').format(name)]
    for key, label in filters.items():
        values = sorted({example.properties[key] for example in examples})
        options = Markup("").join(Markup("<option>{}</option>").format(value) for value in values)
        parts.append(
            Markup('<label>{} <select name="{}"><option value="">all</option>{}</select></label>').format(
                label, key, options
            )
        )
    parts.append(
        Markup('<output></output></div><div class="gallery{}" id="{}">').format(" large" if large else "", name)
    )
    for example in examples:
        data = Markup("").join(Markup(' data-{}="{}"').format(key, value) for key, value in example.properties.items())
        parts.append(
            Markup('<figure tabindex="0"{}>{}<figcaption><b>{}</b><br>{}</figcaption></figure>').format(
                data, picture(example.picture, f"{example.title}, {example.detail}"), example.title, example.detail
            )
        )
    parts.append(Markup("</div>"))
    return Markup("").join(parts)
