"""The public mix: captioned avatars of many other styles, on which every public part is trained.

Styles, framing, palettes and wording are drawn here from the record's index alone. No style of the
sensitive sets is among them, and colours are jittered, so that no exact palette is shared.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from dpwg.data import palette
from dpwg.data.avatars import render, variants
from dpwg.data.captions import article, compose
from dpwg.data.records import Record

PUBLIC_RECORDS = 100_000
PUBLIC_MORE_RECORDS = 200_000
"""Further records, for the reranker, and for pretraining, which soon knows fewer by heart."""
PUBLIC_TEST_RECORDS = 2_000
TUNING_RECORDS = 10_000
TUNING_TEST_RECORDS = 500
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
    clothes: tuple[str, ...] = ()
    garment_component: str = "clothes"
    garments: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"": _PLAIN})
    hat: str | None = None
    hat_component: str = "hat"
    hats: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    hair_component: str = "hair"
    hair_words: Mapping[str, str] = field(default_factory=dict)
    mouth_component: str = "mouth"
    mouth_words: Mapping[str, str] = field(default_factory=dict)
    glasses: str | None = None


_LENGTHS = {"long": "long {} hair", "short": "short {} hair"}

STYLES: dict[str, StyleSpec] = {
    "personas": StyleSpec(
        subject="flat cartoon person",
        weight=2.0,
        clothes=("clothingColor",),
        garments={
            "checkered": ("striped shirt",),
            "rounded": ("shirt", "sweater"),
            "small": ("tank top",),
            "squared": ("t-shirt", "pullover"),
        },
        hair_words={
            "bald": "a bald head",
            "balding": "a bald top and {} hair on the sides",
            "beanie": "{} hair under a beanie",
            "bobBangs": "a {} bob with bangs",
            "bobCut": "a {} bob",
            "bunUndercut": "{} hair in a bun",
            "buzzcut": "a {} buzz cut",
            "cap": "{} hair under a cap",
            "curlyBun": "curly {} hair in a bun",
            "curlyHighTop": "a curly {} high top",
            "curly": "short curly {} hair",
            "extraLong": "very long {} hair",
            "fade": "a {} fade",
            "long": "long {} hair",
            "mohawk": "a {} mohawk",
            "pigtails": "{} pigtails",
            "shortCombover": "short {} hair",
            "sideShave": "{} hair with a shaved side",
            "straightBun": "{} hair in a bun",
        },
        mouth_words={
            "bigSmile": "smiling",
            "smile": "smiling",
            "frown": "looking sad",
            "smirk": "with a smirk",
            "surprise": "surprised",
        },
    ),
    "toon-head": StyleSpec(
        subject="cartoon person",
        weight=2.5,
        clothes=("clothesColor",),
        garments={
            "dress": ("dress", "sleeveless dress"),
            "openJacket": ("jacket", "open jacket"),
            "shirt": ("sweater over a shirt",),
            "tShirt": ("t-shirt", "shirt"),
            "turtleNeck": ("turtleneck", "turtleneck sweater"),
        },
        hair_words={
            "bun": "{} hair in a bun",
            "sideComed": "combed {} hair",
            "spiky": "spiky {} hair",
            "undercut": "a {} undercut",
        },
        mouth_words={
            "agape": "with an open mouth",
            "angry": "looking angry",
            "laugh": "laughing",
            "sad": "looking sad",
            "smile": "smiling",
        },
    ),
    "big-ears": StyleSpec(subject="cartoon face with big ears", weight=1.0, hair_words=_LENGTHS),
    "micah": StyleSpec(
        subject="hand-drawn person",
        weight=1.5,
        skin="baseColor",
        clothes=("shirtColor",),
        garments={
            "collared": ("collared shirt",),
            "crew": ("crew neck shirt", "sweater"),
            "open": ("open shirt", "v-neck top"),
        },
        hair_words={
            "dannyPhantom": "messy {} hair",
            "dougFunny": "a few {} hairs",
            "fonze": "slick {} hair",
            "full": "full {} hair",
            "mrClean": "a bald head",
            "mrT": "a {} mohawk",
            "pixie": "a {} pixie cut",
            "turban": "a {} turban",
        },
        mouth_words={
            "frown": "frowning",
            "laughing": "laughing",
            "nervous": "looking nervous",
            "sad": "looking sad",
            "smile": "smiling",
            "smirk": "with a smirk",
            "surprised": "surprised",
        },
        glasses="glassesProbability",
    ),
    "open-peeps": StyleSpec(
        subject="sketched person",
        weight=1.0,
        hair="headContrastColor",
        clothes=("clothingColor",),
        hair_component="head",
        hair_words={
            "afro": "a {} afro",
            "longAfro": "a big {} afro",
            "bangs": "{} hair with bangs",
            "bantuKnots": "{} bantu knots",
            "bear": "a bear hat",
            "bun": "{} hair in a bun",
            "cornrows": "{} cornrows",
            "dreads": "{} dreadlocks",
            "flatTop": "a {} flat top",
            "hatBeanie": "a beanie",
            "hatHip": "a hat",
            "hijab": "a hijab",
            "long": "long {} hair",
            "medium": "medium {} hair",
            "mohawk": "a {} mohawk",
            "noHair": "a bald head",
            "pomp": "a {} pompadour",
            "shaved": "a {} buzz cut",
            "short": "short {} hair",
            "turban": "a turban",
            "twists": "{} twists",
        },
        mouth_component="expression",
        mouth_words={"smile": "smiling", "serious": "looking serious", "calm": "looking calm"},
    ),
    "adventurer": StyleSpec(
        subject="storybook face",
        weight=1.0,
        hair_words=_LENGTHS,
        glasses="glassesProbability",
    ),
    "miniavs": StyleSpec(
        subject="minimal cartoon person",
        weight=1.5,
        clothes=("bodyColor",),
        garment_component="body",
        garments={"golf": ("turtleneck",), "tShirt": ("t-shirt",)},
        hair_words={
            "balndess": "a bald top and {} hair on the sides",
            "classic": "short {} hair",
            "curly": "curly {} hair",
            "elvis": "a {} quiff",
            "long": "long straight {} hair",
            "ponyTail": "{} hair in a ponytail",
            "slaughter": "long {} hair",
            "stylish": "stylish {} hair",
        },
        glasses="glassesProbability",
    ),
    "big-smile": StyleSpec(
        subject="cartoon head",
        weight=0.8,
        hair_words={
            "bangs": "{} hair with bangs",
            "bowlCutHair": "a {} bowl cut",
            "braids": "{} braids",
            "bunHair": "{} hair in a bun",
            "curlyBob": "a curly {} bob",
            "curlyShortHair": "short curly {} hair",
            "froBun": "a {} afro bun",
            "halfShavedHead": "half shaved {} hair",
            "mohawk": "a {} mohawk",
            "shavedHead": "a {} buzz cut",
            "shortHair": "short {} hair",
            "straightHair": "long straight {} hair",
            "wavyBob": "a wavy {} bob",
        },
        mouth_words={
            "openedSmile": "laughing",
            "kawaii": "smiling",
            "openSad": "looking sad",
            "unimpressed": "looking serious",
        },
    ),
    "pixel-art": StyleSpec(
        subject="pixel art person",
        weight=0.8,
        clothes=("clothingColor",),
        hat="hatColor",
        hats={"": ("hat", "cap", "beanie")},
        hair_words=_LENGTHS,
        mouth_words={"happy": "smiling", "sad": "looking sad"},
    ),
    "voxel-art": StyleSpec(
        subject="voxel person",
        weight=0.8,
        clothes=("shirtColor", "jacketColor", "pantsColor"),
        garment_component="outfit",
        garments={
            "plain": ("shirt",),
            "stripes": ("striped shirt",),
            "overalls": ("overalls",),
            "hoodie": ("hoodie",),
            "coat": ("coat",),
            "dress": ("dress",),
        },
        hat="hatColor",
        hat_component="top",
        hats={"cap": ("cap",), "beanie": ("beanie", "hat")},
        hair_component="top",
        hair_words={
            "short": "short {} hair",
            "spiky": "spiky {} hair",
            "curly": "curly {} hair",
            "mohawk": "a {} mohawk",
            "bob": "a {} bob",
            "longStraight": "long straight {} hair",
            "longWavy": "long wavy {} hair",
            "afro": "a {} afro",
        },
        mouth_words={"smile": "smiling", "laugh": "laughing", "frown": "frowning"},
    ),
    "dylan": StyleSpec(
        subject="simple cartoon face",
        weight=0.8,
        hair_words={
            "bangs": "{} hair with bangs",
            "buns": "{} hair in buns",
            "flatTop": "a {} flat top",
            "fluffy": "fluffy {} hair",
            "longCurls": "long curly {} hair",
            "roundBob": "a round {} bob",
            "shaggy": "shaggy {} hair",
            "shortCurls": "short curly {} hair",
            "spiky": "spiky {} hair",
            "wavy": "wavy {} hair",
        },
        mouth_component="mood",
        mouth_words={"happy": "smiling", "superHappy": "laughing", "sad": "looking sad"},
    ),
    "bottts": StyleSpec(subject="robot", weight=0.5, skin="baseColor", body_colour=True, hair=None),
    "thumbs": StyleSpec(
        subject="thumb creature", weight=0.3, skin="shapeColor", body_colour=True, hair=None
    ),
    "fun-emoji": StyleSpec(
        subject="square emoji",
        weight=0.3,
        skin="",
        hair=None,
        mouth_words={"lilSmile": "smiling", "wideSmile": "smiling", "sad": "looking sad"},
    ),
    "clay": StyleSpec(
        subject="clay monster", weight=0.5, skin="bodyColor", body_colour=True, hair=None
    ),
}

TUNING_STYLES: dict[str, StyleSpec] = {
    "cameo": StyleSpec(
        subject="cameo face",
        weight=1.0,
        skin="bodyColor",
        body_colour=True,
        hair="bodyColor",
        hair_words={
            "cap": "hair like a cap",
            "bangs": "hair with bangs",
            "part": "parted hair",
            "side": "hair to the side",
            "wave": "wavy hair",
            "curls": "curly hair",
            "frame": "hair that frames the face",
            "bowl": "a bowl cut",
        },
        mouth_words={"smile": "smiling", "grin": "grinning", "beam": "beaming", "calm": "calm"},
    ),
}
"""Outside the mix: public data treated as if private, to choose settings of private training on."""


def _words(words: Mapping[str, str], variant: str) -> str | None:
    """The words of the longest key that begins `variant`."""
    keys = [key for key in words if variant.startswith(key)]
    return words[max(keys, key=len)] if keys else None


def _of(words: Mapping[str, tuple[str, ...]], variant: str) -> tuple[str, ...]:
    return words[variant] if variant in words else words[""]


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
    style, options, background, caption, attributes = _drawn(rng, seed, styles)
    png = render(style, options, background=background)
    return Record(image_bytes=png, captions=(caption,), attributes=attributes)


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
    colour_words = [f"{skin} body" if spec.body_colour else f"{skin} skin"] if spec.skin else []
    features = [
        *([hair_words.format(hair)] if hair_words else []),
        *([article(colour_words[0]) if spec.body_colour else colour_words[0]] if spec.skin else []),
        *(["glasses"] if glasses else []),
        *([article(f"{hat} {hat_words}")] if hat_words else []),
    ]
    worn = f"{clothes} {rng.choice(_of(spec.garments, garment))}" if spec.clothes else ""
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
        features=features or ["eyes and a mouth"],
        clothes=(worn if worn.endswith("overalls") else article(worn)) if worn else None,
        expression=attributes["expression"] or None,
        background=background,
    )
    return style, options, background_hex, caption, attributes
