"""The sensitive set `faces`: synthetic portraits, the stand-in for MM-CelebA-HQ.

DiceBear `avataaars` after Pablo Stanley's Avataaars. Nobody's face is in it. Every attribute is
drawn here, from the record's index alone, so that each caption is true of its image.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpwg.data import palette
from dpwg.data.avatars import render
from dpwg.data.captions import article, compose
from dpwg.data.dataset import DataSet
from dpwg.data.grammar import faces_captions
from dpwg.data.records import Record

STYLE = "avataaars"
TRAIN_RECORDS = 50_000
TEST_RECORDS = 5_000
_TABLE: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_bytes())
HAIR, HEADWEAR, CLOTHES, EYES, EYEBROWS, MOUTH, GLASSES, BEARDS = _TABLE.values()
"""Variants of the style's components, and most of them in words, with {} for the colour."""


def face(split: str, index: int) -> Record:
    """Record number `index` of `split` ("train" or "test"), always the same.

    Of its ten captions the first tells all parts, in one of `compose`'s wordings.
    """
    rng = random.Random(f"dpwg/faces/{split}/{index}")
    skin, skin_hex = palette.pick(rng, palette.SKIN)
    hair, hair_hex = palette.pick(rng, palette.HAIR)
    clothes, clothes_hex = palette.pick(rng, palette.CLOTHES)
    hat, hat_hex = palette.pick(rng, palette.CLOTHES)
    background, background_hex = palette.pick(rng, palette.BACKGROUND)
    covered = rng.random() < 0.15
    top = rng.choice(list(HEADWEAR if covered else HAIR))
    garment, mouth = rng.choice(list(CLOTHES)), rng.choice(list(MOUTH))
    glasses = rng.choice(list(GLASSES)) if rng.random() < 0.2 else None
    beard = rng.choice(list(BEARDS)) if rng.random() < 0.15 else None
    options: dict[str, object] = {
        "seed": f"{split}-{index}",
        "topVariant": [top],
        "topProbability": 100,
        "hairColor": [hair_hex],
        "hatColor": [hat_hex],
        "skinColor": [skin_hex],
        "clothesVariant": [garment],
        "clothesColor": [clothes_hex],
        "eyesVariant": [rng.choice(EYES)],
        "eyebrowsVariant": [rng.choice(EYEBROWS)],
        "mouthVariant": [mouth],
        "accessoriesProbability": 100 if glasses else 0,
        "accessoriesVariant": [glasses or "round"],
        "accessoriesColor": ["#262e33"],
        "facialHairProbability": 100 if beard else 0,
        "facialHairVariant": [beard or "beardLight"],
        "facialHairColor": [hair_hex],
    }
    attributes = {
        "hair": article(f"{hat} {HEADWEAR[top]}") if covered else HAIR[top].format(hair),
        "hair_colour": "" if covered else hair,
        "skin": skin,
        "clothes": f"{clothes} {CLOTHES[garment]}",
        "clothes_colour": clothes,
        "expression": MOUTH[mouth],
        "background": background,
        "glasses": GLASSES[glasses] if glasses else "",
        "beard": BEARDS[beard].format(hair) if beard else "",
    }
    features = (attributes["hair"], f"{skin} skin", attributes["glasses"], attributes["beard"])
    caption = compose(
        rng,
        subject=rng.choice(("person", "cartoon person", "face")),
        features=[*filter(None, features)],
        clothes=attributes["clothes"] if garment == "overall" else article(attributes["clothes"]),
        expression=attributes["expression"],
        background=background,
    )
    png = render(STYLE, options, background=background_hex)
    captions = (caption, *faces_captions(f"{split}/{index}", attributes))
    return Record(image_bytes=png, captions=captions, attributes=attributes)


def named_colours(attributes: Mapping[str, str]) -> dict[str, tuple[Mapping[str, str], str]]:
    """What a face's caption says of the colour of each part: its palette, and the name there.

    Parts are skin, clothes, background, and hair or hat. Raises KeyError for other records.
    """
    named: dict[str, tuple[Mapping[str, str], str]] = {
        "skin": (palette.SKIN, attributes["skin"]),
        "clothes": (palette.CLOTHES, attributes["clothes_colour"]),
        "background": (palette.BACKGROUND, attributes["background"]),
    }
    if hair := attributes["hair_colour"]:
        return {"hair": (palette.HAIR, hair), **named}
    worn = attributes["hair"]
    hats = {article(f"{hat} {kind}"): hat for hat in palette.CLOTHES for kind in HEADWEAR.values()}
    return {"hat": (palette.CLOTHES, hats[worn]), **named}


FACES = DataSet(
    name="faces",
    title="Faces: cartoon avatars",
    splits={"train": TRAIN_RECORDS, "test": TEST_RECORDS},
    make=face,
    hidden="",
    examples="captions.txt",
    variations=tuple(
        f"A person smiling, with {hair} and {skin} skin, wearing a {hoodie} hoodie, "
        f"{background} background"
        for hair, skin, hoodie, background in (
            ("long curly red hair", "pale", "green", "sky blue"),
            ("a black afro", "pale", "green", "sky blue"),
            ("long curly red hair", "dark brown", "green", "sky blue"),
            ("long curly red hair", "pale", "purple", "sky blue"),
            ("long curly red hair", "pale", "green", "orange"),
        )
    ),
    draw=lambda: face("surprise", random.getrandbits(31)).captions[0],
    measures=("attack",),
    terms="avataaars by Pablo Stanley: free for any use",
)
