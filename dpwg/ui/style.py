"""How the pages look."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

THEME = gr.themes.Default(
    primary_hue="teal",
    secondary_hue="teal",
    neutral_hue="slate",
    font=("system-ui", "sans-serif"),
    font_mono=("ui-monospace", "monospace"),
).set(
    body_text_color_subdued="*neutral_600",
    block_info_text_color="*neutral_600",
    link_text_color="*primary_700",
    link_text_color_hover="*primary_800",
    link_text_color_visited="*primary_700",
    link_text_color_dark="*primary_400",
    link_text_color_hover_dark="*primary_300",
    link_text_color_visited_dark="*primary_400",
    block_radius="*radius_lg",
    checkbox_border_color_dark="*neutral_400",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_hover_dark="*primary_800",
)
CSS = Path(__file__).with_name("style.css").read_text()
SCRIPT = """
<script>
// What Gradio's own components lack for keyboards and screen readers, added as they appear.
(() => {
  const lacking = [
    [".empty[aria-label]:not([role])", (e) => e.setAttribute("role", "note")],
    ["pre:not([tabindex]), .virtual-table-viewport th:first-child:not([tabindex='0'])",
      (e) => { e.tabIndex = 0; }],
    [".image-container button:not([aria-label])", (e) => e.setAttribute("aria-label", "Picture")],
  ];
  const mend = () => lacking.forEach(([what, add]) => document.querySelectorAll(what).forEach(add));
  new MutationObserver(mend).observe(document, { childList: true, subtree: true });
})();
</script>
"""
