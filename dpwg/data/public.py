"""The public mix: captioned avatars of many other styles, on which every public part is trained.

Styles, framing, palettes and wording are drawn here from the record's index alone. No style of the
sensitive sets is among them, and colours are jittered, so that no exact palette is shared.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dpwg.data import palette
from dpwg.data.avatars import render, variants
from dpwg.data.captions import article, compose
from dpwg.data.dataset import DataSet
from dpwg.data.records import Record

JITTER = 20
_PLAIN = ("shirt", "top", "sweater", "pullover")


@dataclass(frozen=True, kw_only=True)
class StyleSpec:
    """How one style is drawn and described.

    `skin`, `hair`, `clothes` name the style's colour options. `hair_words` maps a hair variant, or
    the letters that begin it, to words with {} for the colour; likewise `mouth_words`, in the
    component `mouth`, for the expression. `clothes` are all options that colour the garment;
    `garments` maps its variants, or is under "" what a plain one may be called. `hats` maps the
    variants of `hat_component` to words, and `hat` names their colour option.
    """

    subject: str
    weight: float
    skin: str = "skinColor"
    body_colour: bool = False
    hair: str | None = "hairColor"
    clothes: Sequence[str] = ()
    garment_component: str = "clothes"
    garments: Mapping[str, Sequence[str]] = field(default_factory=lambda: {"": _PLAIN})
    hat: str | None = None
    hat_component: str = "hat"
    hats: Mapping[str, Sequence[str]] = field(default_factory=dict)
    hair_component: str = "hair"
    hair_words: Mapping[str, str] = field(default_factory=dict)
    mouth_component: str = "mouth"
    mouth_words: Mapping[str, str] = field(default_factory=dict)
    glasses: str | None = None


STYLES, TUNING_STYLES = (
    {name: StyleSpec(**values) for name, values in table.items()}
    for table in json.loads(Path(__file__).with_name("styles.json").read_bytes()).values()
)
"""The mix, and what is outside of it: public data treated as if private, to choose settings on."""


def _words(words: Mapping[str, str], variant: str) -> str | None:
    """The words of the longest key that begins `variant`."""
    keys = [key for key in words if variant.startswith(key)]
    return words[max(keys, key=len)] if keys else None


def _hat(rng: random.Random, spec: StyleSpec, top: str) -> str:
    """What is on the head in words, or nothing."""
    if not spec.hat:
        return ""
    if spec.hat_component == spec.hair_component:
        return rng.choice(spec.hats[top]) if top in spec.hats else ""
    return rng.choice(spec.hats[""]) if rng.random() < 0.4 else ""


def public_image(split: str, index: int) -> Record:
    """Record number `index` of `split` ("train", "more" or "test") of the mix, always the same."""
    return _draw(random.Random(f"dpwg/public/{split}/{index}"), f"{split}-{index}", STYLES)


def tuning_image(split: str, index: int) -> Record:
    """Record number `index` of `split` ("train" or "test") of the tuning set, always the same."""
    return _draw(random.Random(f"dpwg/tuning/{split}/{index}"), f"{split}-{index}", TUNING_STYLES)


def public_caption(index: int) -> str:
    """Caption number `index` in the mix's wording, always the same, and of no record of it."""
    return _drawn(random.Random(f"dpwg/public/captions/{index}"), "", STYLES)[3]


def _draw(rng: random.Random, seed: str, styles: Mapping[str, StyleSpec]) -> Record:
    style, options, background, caption, told = _drawn(rng, seed, styles)
    image = render(style, options, background=background)
    return Record(image_bytes=image, captions=(caption,), attributes=told)


def _drawn(
    rng: random.Random, seed: str, styles: Mapping[str, StyleSpec]
) -> tuple[str, dict[str, object], str, str, dict[str, str]]:
    """Style, options, background, caption and attributes of a record that is yet to be rendered."""
    style = rng.choices(list(styles), [spec.weight for spec in styles.values()])[0]
    spec = styles[style]
    skin_palettes = (palette.CLOTHES,) if spec.body_colour else (palette.SKIN,)
    skin, skin_hex = palette.pick(rng, *skin_palettes, jitter=JITTER)
    hair, hair_hex = palette.pick(rng, palette.HAIR, palette.DYED_HAIR, jitter=JITTER)
    clothes, clothes_hex = palette.pick(rng, palette.CLOTHES, jitter=JITTER)
    background, background_hex = palette.pick(rng, palette.BACKGROUND, jitter=JITTER)
    top = rng.choice(variants(style, spec.hair_component)) if spec.hair else ""
    mouth_variants = variants(style, spec.mouth_component)
    mouth = rng.choice(mouth_variants) if mouth_variants else ""
    glasses = spec.glasses is not None and rng.random() < 0.2
    garments = variants(style, spec.garment_component) if spec.clothes else ()
    if "" not in spec.garments:
        garments = tuple(name for name in garments if name in spec.garments)
    garment = rng.choice(garments) if garments else ""
    hat_words = _hat(rng, spec, top)
    hat, hat_hex = palette.pick(rng, palette.CLOTHES, jitter=JITTER) if hat_words else ("", "")
    options: dict[str, object] = {
        "seed": seed,
        "backgroundColor": [background_hex],
        "scale": round(rng.uniform(0.9, 1.12), 3),
        "translateX": round(rng.uniform(-6, 6), 2),
        "translateY": round(rng.uniform(-6, 6), 2),
        "flip": rng.choice(["none", "horizontal"]),
    }
    if spec.skin:
        options[spec.skin] = [skin_hex]
    if spec.hair:
        options |= {f"{spec.hair_component}Variant": [top]}
        options.setdefault(spec.hair, [hair_hex])
        options[f"{spec.hair_component}Probability"] = 100
    options |= {option: [clothes_hex] for option in spec.clothes}
    if garment:
        options[f"{spec.garment_component}Variant"] = [garment]
    if spec.hat:
        options |= {spec.hat: [hat_hex]} if hat_words else {}
        if spec.hat_component != spec.hair_component:
            options[f"{spec.hat_component}Probability"] = 100 if hat_words else 0
    if mouth:
        options[f"{spec.mouth_component}Variant"] = [mouth]
    if spec.glasses:
        options[spec.glasses] = 100 if glasses else 0
    hair_words = _words(spec.hair_words, top) if spec.hair else None
    features = [
        hair_words.format(hair) if hair_words else "",
        (article(f"{skin} body") if spec.body_colour else f"{skin} skin") if spec.skin else "",
        "glasses" if glasses else "",
        article(f"{hat} {hat_words}") if hat_words else "",
    ]
    named = spec.garments.get(garment) or spec.garments.get("", ())
    worn = f"{clothes} {rng.choice(named)}" if spec.clothes else ""
    subject = spec.subject if rng.random() < 0.7 or not spec.hair else "person"
    attributes = {
        "style": style,
        "hair": hair_words.format(hair) if hair_words else "",
        "skin": skin if spec.skin else "",
        "hat": f"{hat} {hat_words}" if hat_words else "",
        "clothes": worn,
        "expression": _words(spec.mouth_words, mouth) or "",
        "background": background,
    }
    caption = compose(
        rng,
        subject=subject,
        features=[*filter(None, features)] or ["eyes and a mouth"],
        clothes=(worn if worn.endswith("overalls") else article(worn)) if worn else None,
        expression=attributes["expression"] or None,
        background=background,
    )
    return style, options, background_hex, caption, attributes


TERMS = "each style's own (CC0, CC BY 4.0 or free for any use): see NOTICE"
PUBLIC = DataSet(
    name="public",
    splits={"train": 100_000, "more": 200_000, "test": 2_000},
    make=public_image,
    public=True,
    hidden="",
    terms=TERMS,
)
"""Of its splits, "more" are further records for pretraining, which soon knows fewer by heart."""
TUNING = DataSet(
    name="tuning",
    splits={"train": 10_000, "test": 500},
    make=tuning_image,
    hidden="",
    measures=("attack",),
    terms=TERMS,
)
