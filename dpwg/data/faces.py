"""The sensitive set `faces`: synthetic portraits, the stand-in for MM-CelebA-HQ.

DiceBear `avataaars` after Pablo Stanley's Avataaars. Nobody's face is in it. Every attribute is
drawn here, from the record's index alone, so that each caption is true of its image.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from dpwg.data import palette
from dpwg.data.avatars import render
from dpwg.data.captions import article, compose
from dpwg.data.grammar import faces_captions
from dpwg.data.records import Record

STYLE = "avataaars"
TRAIN_RECORDS = 50_000
TEST_RECORDS = 5_000

HAIR = {
    "bigHair": "big {} hair",
    "bob": "a {} bob",
    "bun": "{} hair in a bun",
    "curly": "long curly {} hair",
    "curvy": "long wavy {} hair",
    "dreads": "long {} dreadlocks",
    "dreads01": "short {} dreadlocks",
    "frizzle": "frizzy {} hair on top",
    "fro": "a {} afro",
    "longButNotTooLong": "shoulder-length {} hair",
    "miaWallace": "a {} bob with bangs",
    "shaggy": "shaggy {} hair",
    "shaggyMullet": "a {} mullet",
    "shavedSides": "{} hair with shaved sides",
    "shortCurly": "short curly {} hair",
    "shortFlat": "short {} hair",
    "shortRound": "short round {} hair",
    "shortWaved": "short wavy {} hair",
    "sides": "a bald top and {} hair on the sides",
    "straight01": "long straight {} hair",
    "straight02": "long straight {} hair",
    "straightAndStrand": "straight {} hair with a strand",
    "theCaesar": "a {} buzz cut",
    "theCaesarAndSidePart": "a {} buzz cut with a side part",
}
HEADWEAR = {
    "hat": "hat",
    "hijab": "hijab",
    "turban": "turban",
    "winterHat02": "winter hat with ear flaps",
    "winterHat03": "winter hat with a pompom",
    "winterHat04": "winter hat with cat ears",
}
CLOTHES = {
    "collarAndSweater": "sweater with a collar",
    "hoodie": "hoodie",
    "overall": "overalls",
    "shirtCrewNeck": "shirt",
    "shirtScoopNeck": "scoop neck shirt",
    "shirtVNeck": "v-neck shirt",
}
EYES = ("default", "happy", "side", "squint", "closed", "wink", "surprised")
EYEBROWS = ("default", "defaultNatural", "flatNatural", "raisedExcitedNatural", "upDownNatural")
MOUTH = {
    "smile": "smiling",
    "twinkle": "with a gentle smile",
    "default": "with a faint smile",
    "serious": "looking serious",
    "sad": "looking sad",
    "concerned": "looking worried",
    "disbelief": "in disbelief",
    "grimace": "with a grimace",
    "screamOpen": "with an open mouth",
}
GLASSES = {
    "prescription01": "glasses",
    "prescription02": "glasses",
    "round": "round glasses",
    "sunglasses": "sunglasses",
    "wayfarers": "dark sunglasses",
}
BEARDS = {
    "beardLight": "a short {} beard",
    "beardMedium": "a {} beard",
    "beardMajestic": "a big {} beard",
    "moustacheFancy": "a {} moustache",
}


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
    caption = compose(
        rng,
        subject=rng.choice(("person", "cartoon person", "face")),
        features=[
            part
            for part in (
                attributes["hair"],
                f"{skin} skin",
                attributes["glasses"],
                attributes["beard"],
            )
            if part
        ],
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
