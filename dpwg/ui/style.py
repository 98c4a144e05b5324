"""How the pages look."""

from __future__ import annotations

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
CSS = """
.gradio-container { width: 100%; max-width: 1600px !important; margin: auto; }
.heading h1 { margin-bottom: 4px; }
.heading p { margin: 0; color: var(--body-text-color-subdued); }
.heading strong { color: var(--body-text-color); }
.prompt > button { align-self: stretch; }
#examples .gallery { flex-wrap: nowrap; overflow-x: auto; padding-bottom: 6px; }
#examples .gallery-item { flex: none; max-width: 260px; }
#examples .gallery-item div { white-space: nowrap !important; overflow: hidden;
  text-overflow: ellipsis; }
.page { display: grid !important; grid-template: "settings results" auto "settings extras" 1fr
  / minmax(280px, 3fr) 10fr; }
.settings { grid-area: settings; }
.results { grid-area: results; }
.extras { grid-area: extras; }
.block.promise { padding: 10px 12px !important; background: var(--block-background-fill); }
.title .md { display: flex; flex-wrap: wrap; gap: 0 12px; align-items: baseline;
  justify-content: space-between; }
.title h3, .title p { margin: 0; }
.title em { font-style: normal; color: var(--primary-700); }
.dark .title em { color: var(--primary-400); }
.pictures, .pictures .gallery-container, .pictures .grid-wrap { height: auto !important;
  max-height: none !important; }
.pictures { aspect-ratio: 1; }
.pictures .grid-wrap { padding: 0; }
.dark input[type="range"] { --neutral-200: var(--neutral-600); }
.block.status { overflow: visible !important; }
.status p { color: var(--body-text-color-subdued); }
#bands img { min-height: 12rem; width: 100%; }
#rebuilt img, #swipe img { image-rendering: pixelated; }
.framed > label.float { position: static; width: max-content; max-width: 100%; white-space: normal;
  border: none; background: none; }
.label-wrap > span:first-child { text-align: left; }
.compared, .compared .gallery-container { height: auto !important; }
.compared .grid-wrap { max-height: none !important; min-height: 0 !important; overflow-x: auto; }
.compared .grid-container { min-width: 760px; }
.compared:not(:has(img)) { min-height: 160px; }
.told img { max-height: 320px; }
.token.string { color: var(--primary-800) !important; }
.dark .token.string { color: var(--primary-300) !important; }
.answer p { font-size: var(--text-lg); }
@media print {
  body.printing-card * { visibility: hidden; }
  body.printing-card #printed-card, body.printing-card #printed-card * { visibility: visible; }
  body.printing-card #printed-card { position: absolute; inset: 0; }
}
.card h1 { display: none; }
.card h2 { font-size: var(--text-lg); }
footer .divider:last-child { display: none; }
@media (max-width: 767px) {
  .page { grid-template: "results" "settings" "extras" / minmax(0, 1fr); }
  .page.form { grid-template: "settings" "results" "extras" / minmax(0, 1fr); }
}
"""

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
