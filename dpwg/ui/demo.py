"""The whole app: its tabs in one frame, and how they look."""

from __future__ import annotations

import contextlib
from pathlib import Path

import gradio as gr

from dpwg.modules import checkpoint_root
from dpwg.release.folder import checkpoint_names, find_checkpoint, load_card
from dpwg.ui.about import build_about
from dpwg.ui.attack import build_attack
from dpwg.ui.bands import build_bands
from dpwg.ui.compare import build_compare
from dpwg.ui.families import ordered
from dpwg.ui.generate import build_generate
from dpwg.ui.limits import KEPT_SECONDS
from dpwg.ui.own import offer_after
from dpwg.ui.privacy import build_privacy
from dpwg.ui.runs import Run
from dpwg.ui.train import build_train, train_tab_is_on

HEADING = """# DP-Wavelet
Pictures from a caption, from coarse to fine. Only the **coarse picture** comes from a model that
was trained on sensitive pictures, under its checkpoint's privacy guarantee. Every finer detail is
invented by a **public model**, and the guarantee does not cover what that one already knew."""
NO_CHECKPOINT = """### There is no checkpoint yet

None was found in `{root}`. Make a public one with `python -m dpwg data`, `python -m dpwg tokenizer`
and `python -m dpwg pretrain`, then a private one with `python -m dpwg finetune`; or set
`DPWG_CHECKPOINTS` to a folder that holds some. Then start this page again."""

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


def build_demo() -> gr.Blocks:
    """The app, not yet served. Reads the checkpoints' names and loads no model."""
    with gr.Blocks(
        title="DP-Wavelet",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(KEPT_SECONDS, KEPT_SECONDS),
    ) as demo:
        gr.Markdown(HEADING, elem_classes="heading")
        names = ordered(checkpoint_names())
        if not names:
            gr.Markdown(NO_CHECKPOINT.format(root=checkpoint_root()))
            return demo
        own = gr.State(time_to_live=KEPT_SECONDS, delete_callback=_forget)
        with gr.Tabs(overflow_behavior="wrap"):
            with gr.Tab("Generate", id="generate"):
                shown, generating = build_generate(demo, names, own)
            with gr.Tab("Compare", id="compare"):
                comparing, rows = build_compare(demo, names, own)
            with gr.Tab("Bands", id="bands"):
                build_bands(names, shown)
            with gr.Tab("Privacy", id="privacy"):
                build_privacy(names)
            with gr.Tab("Attack", id="attack") as attack:
                build_attack(names, shown, own, attack)
            if train_tab_is_on():
                with gr.Tab("Train", id="train"):
                    events = build_train(names, own)
                offer_after(events, own, [generating, comparing], rows)
            with gr.Tab("About", id="about") as about:
                build_about(names, about)
    return demo


def _forget(own: Run | None) -> None:
    if own:
        own.remove()


def read_cards() -> None:
    """Have the accountant loaded and every epsilon recomputed while the browser gets the page."""
    for name in checkpoint_names():
        with contextlib.suppress(ValueError, OSError):  # who picks a broken card is told
            load_card(find_checkpoint(name))
