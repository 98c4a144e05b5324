"""Captions as people type them: ten a record, true, various, short enough, and judging nobody."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest

from dpwg.data import faces, palette
from dpwg.data.faces import face
from dpwg.data.grammar import (
    CAPTIONS,
    celeba_captions,
    faces_captions,
    tiny_imagenet_captions,
    utkface_captions,
)
from dpwg.data.records import MAX_CAPTION_CHARACTERS

Attributes = dict[str, bool]

NAMES = (
    "5_o_Clock_Shadow,Arched_Eyebrows,Attractive,Bags_Under_Eyes,Bald,Bangs,Big_Lips,Big_Nose,"
    "Black_Hair,Blond_Hair,Blurry,Brown_Hair,Bushy_Eyebrows,Chubby,Double_Chin,Eyeglasses,Goatee,"
    "Gray_Hair,Heavy_Makeup,High_Cheekbones,Male,Mouth_Slightly_Open,Mustache,Narrow_Eyes,"
    "No_Beard,Oval_Face,Pale_Skin,Pointy_Nose,Receding_Hairline,Rosy_Cheeks,Sideburns,Smiling,"
    "Straight_Hair,Wavy_Hair,Wearing_Earrings,Wearing_Hat,Wearing_Lipstick,Wearing_Necklace,"
    "Wearing_Necktie,Young"
)
HAIR = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair")
BEARDS = ("5_o_Clock_Shadow", "Goatee", "Mustache", "Sideburns")
JUDGING = re.compile(
    r"\b(attractive|beautiful|pretty|handsome|hot(?! pink)|sexy|cute|ugly|fat|chubby|plump|"
    r"overweight|double chin|big (nose|lips)|pointy|narrow eyes|oval face|cheekbones|bags|blurry|"
    r"arched|old|weird|nice|gorgeous|lovely)\b"
)
LABELS = (
    "spiny lobster, langouste, rock lobster, crawfish",
    "sunglasses, dark glasses, shades",
    "guacamole",
    "iPod",
    "hourglass",
    "abacus",
    "American lobster, Northern lobster, Maine lobster, Homarus americanus",
    "hog, pig, grunter, squealer, Sus scrofa",
    "European fire salamander, Salamandra salamandra",
)


def drawn_attributes(rng: random.Random) -> Attributes:
    """As correlated as CelebA's: with contradictions, two hair colours, and colours under a hat."""

    def share(woman: float, man: float) -> bool:
        return rng.random() < (man if male else woman)

    male, young = rng.random() < 0.42, rng.random() < 0.77
    drawn: Attributes = {name: rng.random() < 0.25 for name in NAMES.split(",")}
    drawn |= {"Male": male, "Young": young, "Bald": share(0.002, 0.08)}
    drawn |= {name: rng.random() < p for name, p in zip(HAIR, (0.1, 0.06, 0.1, 0.02), strict=True)}
    if rng.random() < 0.6:
        drawn[rng.choice(HAIR[:3] if young else HAIR)] = True
    drawn |= {"Straight_Hair": rng.random() < 0.2, "Wavy_Hair": share(0.45, 0.15)}
    drawn |= {"Bangs": share(0.2, 0.08), "Receding_Hairline": share(0.02, 0.15)}
    drawn["No_Beard"] = not share(0.01, 0.4)
    drawn |= {name: share(0.003, 0.05 if drawn["No_Beard"] else 0.4) for name in BEARDS}
    drawn |= {"Eyeglasses": share(0.02, 0.13), "Wearing_Hat": share(0.03, 0.1)}
    drawn |= {"Smiling": rng.random() < 0.5, "Wearing_Necktie": share(0.001, 0.17)}
    drawn["Mouth_Slightly_Open"] = rng.random() < (0.77 if drawn["Smiling"] else 0.24)
    drawn |= {"Heavy_Makeup": share(0.66, 0.002), "Wearing_Lipstick": share(0.8, 0.005)}
    drawn |= {"Wearing_Earrings": share(0.32, 0.02), "Wearing_Necklace": share(0.2, 0.03)}
    return drawn


NOT = (
    r"(?:no|without(?: a)?|(?:not|isn't|aren't) wearing(?: a| any)?|"
    r"(?:does not|doesn't|do not|don't) have(?: a| any)?)"
)
CLAIMS = (
    ("Male", True, r"man|guy|dude|gentleman|male|he|his"),
    ("Male", False, r"woman|lady|girl|female|she|her"),
    ("Young", True, r"young|girl"),
    ("Young", False, r"older"),
    ("Black_Hair", True, r"(?:black|dark)(?:,? (?:straight|wavy))? hair|(?:black|dark)-haired"),
    ("Brown_Hair", True, r"brown(?: (?:straight|wavy))? hair|brown-haired|brunette"),
    ("Blond_Hair", True, r"blonde?|blonde?-haired|fair-haired"),
    ("Gray_Hair", True, r"gr[ae]y"),
    ("Black_Hair", True, r"hair is (?:\w+ and )?(?:black|dark)"),
    ("Brown_Hair", True, r"hair is (?:\w+ and )?brown"),
    ("Straight_Hair", True, r"straight(?: \w+)? hair|hair is (?:\w+ and )?straight"),
    ("Wavy_Hair", True, r"wavy"),
    ("Bald", True, r"bald"),
    ("Bangs", False, rf"{NOT} bangs"),
    ("Bangs", True, r"bangs|fringe"),
    ("Receding_Hairline", True, r"receding"),
    ("Wearing_Hat", False, rf"{NOT} hat"),
    ("Wearing_Hat", True, r"hat"),
    ("Eyeglasses", False, rf"{NOT} glasses"),
    ("Eyeglasses", True, r"(?:eye)?glasses|spectacles|specs"),
    ("Smiling", False, r"(?:not|isn't|aren't) smiling|straight face"),
    ("Smiling", False, r"serious|neutral expression"),
    ("Smiling", True, r"smiling|smile|happy"),
    ("Mouth_Slightly_Open", False, r"mouth (?:is )?(?:closed|shut)|closed mouth"),
    ("Mouth_Slightly_Open", True, r"mouth (?:is )?(?:slightly )?open|open mouth|part(?:ed) lips"),
    ("Mouth_Slightly_Open", True, r"lips(?: are)? parted"),
    ("No_Beard", True, rf"{NOT} (?:beard|facial hair)|clean[- ]shaven"),
    ("Goatee", True, r"goatee"),
    ("No_Beard", False, r"beard|bearded|facial hair"),
    ("Mustache", True, r"mou?stache"),
    ("5_o_Clock_Shadow", True, r"stubble|unshaven|(?:5|five) o'clock shadow"),
    ("Sideburns", True, r"sideburns"),
    ("Heavy_Makeup", False, rf"{NOT} make-?up"),
    ("Heavy_Makeup", True, r"make-?up"),
    ("Wearing_Lipstick", True, r"lipstick"),
    ("Wearing_Earrings", False, rf"{NOT} earrings"),
    ("Wearing_Earrings", True, r"earrings"),
    ("Wearing_Necklace", False, rf"{NOT} necklace"),
    ("Wearing_Necklace", True, r"necklace"),
    ("Wearing_Necktie", False, rf"{NOT} tie"),
    ("Wearing_Necktie", True, r"(?:neck)?tie"),
    ("Bushy_Eyebrows", True, r"(?:bushy|thick) (?:eye)?brows|eyebrows are (?:bushy|thick)"),
    ("Pale_Skin", True, r"pale|fair skin|(?:pale|fair)-skinned"),
    ("Rosy_Cheeks", True, r"(?:rosy|pink) cheeks|cheeks are rosy|rosy-cheeked"),
)


def read_back(caption: str) -> Attributes:
    """What a caption claims; a denial is taken out of the text before what it denies is sought."""
    text, claims = caption.lower(), dict[str, bool]()
    for name, value, words in CLAIMS:
        found = re.compile(rf"(?<![\w-])(?:{words})(?![\w-])")
        if found.search(text):
            assert claims.get(name, value) == value, caption
            claims[name] = value
            # "wavy brown hair" and "girl" say two things each.
            several = name.endswith(("_Hair", "Male", "Young"))
            text = text if several else found.sub(" ; ", text)
    return claims


@pytest.fixture(scope="module")
def people() -> list[tuple[Attributes, tuple[str, ...]]]:
    rng = random.Random(7)
    drawn = [drawn_attributes(rng) for _ in range(300)]
    return [(own, celeba_captions(number, own)) for number, own in enumerate(drawn)]


def every_set() -> Iterator[tuple[str, ...]]:
    rng = random.Random(11)
    for number in range(60):
        yield celeba_captions(number, drawn_attributes(rng))
        yield utkface_captions(number, rng.randint(1, 116), rng.choice(("man", "woman")))
        yield tiny_imagenet_captions(number, LABELS[number % len(LABELS)])
    for index in range(20):
        yield face("train", index).captions


def test_ten_captions_follow_from_the_record_alone(people) -> None:
    sets = list(every_set())
    assert sets == list(every_set())
    assert all(len(captions) == CAPTIONS for captions in sets)
    drawn, captions = people[5]
    assert celeba_captions(5, dict(reversed(drawn.items()))) == captions
    assert celeba_captions(6, drawn) != captions


def test_captions_are_various_and_fit_the_encoder() -> None:
    sets = list(every_set())
    assert sum(len(set(captions)) for captions in sets) >= 9.5 * len(sets)
    for caption in (caption for captions in sets for caption in captions):
        assert 0 < len(caption) <= MAX_CAPTION_CHARACTERS
        assert len(caption.split()) < 30
        # Two of the encoder's 40 tokens are its marks.
        assert len(re.findall(r"\w+|[^\w\s]", caption)) <= 38, caption
        assert not re.search(r"  | [,.]|[{}]|,,|\.\.", caption)
        assert not re.search(r"\ba (?=[aio])|\ban (?![aeiou81h])", caption.lower())
        assert caption == caption.strip()


def test_people_are_asked_for_in_few_words_and_in_many(people) -> None:
    captions = [caption for _, own in people for caption in own]
    words = [len(caption.split()) for caption in captions]
    assert sum(len(set(own)) for _, own in people) >= 9.5 * len(people)
    assert sum(count < 5 for count in words) > 0.04 * len(words)
    assert sum(count > 18 for count in words) > 0.05 * len(words)
    typed = [text for text in captions if text == text.lower() and text[-1] != "."]
    assert 0.25 < len(typed) / len(captions) < 0.7
    assert sum(bool(re.search("photo|portrait|picture", text.lower())) for text in captions) > 300
    for word in ("guy", "lady", "grey", "no beard", "without glasses", "not smiling", "moustache"):
        assert sum(word in text.lower() for text in captions) >= 3, word


def test_every_claim_about_a_person_is_true(people) -> None:
    silent = 0
    for drawn, captions in people:
        for caption in captions:
            claims = read_back(caption)
            silent += len(claims) < 2
            wrong = {name for name, value in claims.items() if drawn[name] != value}
            assert not wrong, (caption, wrong)
    assert silent < 0.1 * CAPTIONS * len(people)


def test_what_is_hidden_or_in_doubt_is_not_said(people) -> None:
    for drawn, captions in people:
        text = " ; ".join(captions).lower()
        if sum(drawn[name] for name in HAIR) != 1:
            assert not re.search(
                r"\b(black|dark|brown|blonde?|gr[ae]y|fair)[ -]hair|brunette", text
            )
        if drawn["Bald"] and not drawn["Wearing_Hat"]:
            assert not re.search(r"wavy|straight (?!face)|bangs|fringe|-haired|receding", text)
        if drawn["Wearing_Hat"]:
            assert not re.search(rf"bald|receding|{NOT} bangs", text)
        if any(drawn[name] for name in BEARDS) or not drawn["No_Beard"]:
            assert not re.search(rf"{NOT} (?:beard|facial hair)|shaven(?<!unshaven)", text)
        if drawn["Male"]:
            assert not re.search(r"lipstick|make-?up|bangs|blonde", text)
        else:
            assert not re.search(r"beard|shaven|stubble|stache|sideburns|facial hair", text)
            assert "receding" not in text
        if drawn["Wearing_Lipstick"]:
            assert not re.search(rf"{NOT} make-?up", text)


UNHEARD = re.compile(
    r"\b(?:is|are) looking|(?:brown|black|dark|blonde?|gr[ae]y) (?:straight|wavy)\b|closeup|"
    r"lipstick on|(?:has|have|with) lipstick|goatee beard|on (?:his|her) head|"
    r"(?:has|have) (?:a |an )?(?:tie|necktie|hat(?! on)|no hat|no hair|no glasses|specs)\b|"
    r"in (?:a hat|a tie|glasses) (?:smiling|not|looking)\b|around (?:his|her) neck|with no hat|"
    r"no tie|without a (?:tie|smile)|\ba (?:cartoon )?face (?:that|who)|\bperson\b.*\b(?:he|she)\b|"
    r"(?:young|older) (?:\S+ )?dude|(?<!older )(?<!elderly )gentleman|senior (?:wo)?man|"
    r"\b(?:fe)?male (?:with|who|is)\b|of (?:about|around) \d|"
    r"this is (?!a (?:photo|cartoon))|\bwearing [^,.]* not wearing\b"
)
DENIAL = re.compile(r"\b(?:no|not|without)\b|n't\b")


def test_captions_are_worded_as_people_type(people) -> None:
    captions = [caption for _, own in people for caption in own]
    for caption in captions + [caption for own in every_set() for caption in own[1:]]:
        assert not UNHEARD.search(caption.lower()), caption
        for part in re.split("[,.]", caption):
            assert part.count(" and ") < 3, caption
            assert len(DENIAL.findall(part)) < 2, caption
    for word in ("isn't", "who's", "she's", "he's", "doesn't", "straight brown hair"):
        assert sum(word in caption.lower() for caption in captions) >= 3, word
    for text, share in (("smile on h", 0.02), ("parted lips", 0.04), (r"\b(?:fe)?male\b", 0.04)):
        assert sum(bool(re.search(text, caption)) for caption in captions) < share * len(captions)


def test_nobody_is_judged() -> None:
    for caption in (caption for captions in every_set() for caption in captions):
        plain = re.sub(r"years? old|-year-old", "", caption.lower())
        assert not JUDGING.search(plain), caption


DECADES = ["twenties", "thirties", "forties", "fifties", "sixties", "seventies", "eighties"]


@pytest.mark.parametrize("gender", ["man", "woman"])
def test_an_age_is_told_truly(gender: str) -> None:
    for age in range(1, 117):
        for caption in utkface_captions(age, age, gender):
            text = caption.lower()
            other = r"\b(?:wo)?(?:man|boy|guy|girl|lady|male|female|he|she|his|her)\b"
            said = set(re.findall(other, text)) & (
                {"woman", "girl", "lady", "female", "she", "her"}
                if gender == "man"
                else {"man", "boy", "guy", "male", "he", "his"}
            )
            assert not said, caption
            for number in map(int, re.findall(r"\b\d+\b", text)):
                about = re.search(rf"(?:about|around) {number}", text)
                assert abs(number - age) <= (2 if about else 0), (age, caption)
            for tens in map(int, re.findall(r"(\d0)s\b", text)):
                assert age // 10 * 10 == tens, (age, caption)
            for number, decade in enumerate([*DECADES, "nineties"], start=2):
                assert decade not in text or age // 10 == number, (age, caption)
            for word, low, high in (
                ("early", 0, 3),
                ("mid", 4, 6),
                ("late", 7, 9),
            ):
                assert not re.search(rf"\b{word} ", text) or low <= age % 10 <= high, (age, caption)
            for words, low, high in (
                ("baby|infant", 1, 1),
                ("toddler", 2, 3),
                ("little|small", 1, 8),
                ("boy|girl|kid|child", 1, 24),
                ("teen|teenage|teenager", 13, 19),
                (r"young (?:man|woman|guy|lady|male|female|adult|person)", 18, 39),
                ("man|woman|guy|lady|gentleman|dude|adult", 18, 116),
                ("middle-aged", 40, 59),
                ("older", 45, 116),
                ("elderly|senior", 65, 116),
            ):
                assert not re.search(rf"\b(?:{words})\b", text) or low <= age <= high, (
                    age,
                    caption,
                )


def test_a_person_is_a_man_or_a_woman_of_utkface() -> None:
    with pytest.raises(KeyError):
        utkface_captions(0, 30, "other")


@pytest.mark.parametrize("label", LABELS)
def test_a_thing_is_called_by_its_usual_names(label: str) -> None:
    names = label.lower().split(", ")
    for number in range(8):
        for caption in tiny_imagenet_captions(number, label):
            text = caption.lower()
            assert any(name in text for name in names), caption
            assert not re.search(r"\ban? (sunglasses|dark|shades|guacamole)\b(?! photo)", text)
            assert not re.search("homarus|salamandra|grunter", text)


SHADES = {name: name for name in palette.SKIN | palette.HAIR | palette.CLOTHES | palette.BACKGROUND}
SHADES |= {
    "grey": "gray",
    "blond": "blonde",
    "platinum blond": "platinum blonde",
    "reddish brown": "auburn",
    "navy": "navy blue",
    "dark blue": "navy blue",
    "light blue": "sky blue",
    "mint": "mint green",
    "light pink": "pastel pink",
    "bright pink": "hot pink",
    "violet": "purple",
    "lilac": "lavender",
}
SHADE = re.compile(rf"\b(?:{'|'.join(sorted(SHADES, key=len, reverse=True))})\b")
PARTS = (
    ("skin", "skin"),
    ("background", "background"),
    ("hair", "hair_colour"),
    *((word, "clothes_colour") for word in ("hoodie", "overalls", "sweater", "shirt", "tee")),
)
FACTS = re.compile(
    r"skin|background|backdrop|\bhair|curls|bob\b|dread|afro|mullet|buzz|bun\b|hat\b|hijab|scarf|"
    r"turban|hoodie|hooded|overalls|dungarees|shirt|\btee\b|v-neck|top\b|sweater|glasses|specs|"
    r"spectacles|shades|beard|stache|smil|happy|serious|sad\b|frown|unhappy|worried|concerned|"
    r"disbelie|grimac|mouth"
)


def drawn_face(rng: random.Random) -> dict[str, str]:
    """Attributes such as `face` gives, without its picture."""
    hair, clothes = rng.choice(sorted(palette.HAIR)), rng.choice(sorted(palette.CLOTHES))
    hat, covered = rng.choice(sorted(palette.CLOTHES)), rng.random() < 0.3
    glasses, beard = rng.choice(list(faces.GLASSES)), rng.choice(list(faces.BEARDS))
    kind = rng.choice(list(faces.HEADWEAR.values() if covered else faces.HAIR.values()))
    return {
        "hair": f"a {hat} {kind}" if covered else kind.format(hair),
        "hair_colour": "" if covered else hair,
        "skin": rng.choice(sorted(palette.SKIN)),
        "clothes": f"{clothes} {rng.choice(list(faces.CLOTHES.values()))}",
        "clothes_colour": clothes,
        "expression": rng.choice(list(faces.MOUTH.values())),
        "background": rng.choice(sorted(palette.BACKGROUND)),
        "glasses": faces.GLASSES[glasses] if rng.random() < 0.3 else "",
        "beard": faces.BEARDS[beard].format(hair) if rng.random() < 0.3 else "",
    }


def test_a_face_is_told_truly_in_other_words() -> None:
    rng, texts = random.Random(3), list[str]()
    for index in range(200):
        own = drawn_face(rng)
        colours = set(SHADE.findall(" ; ".join([*own.values(), "light skin", own["skin"]]).lower()))
        captions = faces_captions(f"test/{index}", own)
        assert len(set(captions)) == CAPTIONS - 1
        for caption in captions:
            text = caption.lower()
            assert len(FACTS.findall(text)) >= 2, caption
            for shade in SHADE.findall(text):
                assert SHADES[shade] in colours, (caption, own)
            for part, key in PARTS:
                for shade in re.findall(rf"({SHADE.pattern}) {part}", text):
                    assert SHADES[shade] == own[key], (caption, own)
            for part, words in (
                ("glasses", "(?:eye|sun)?glasses|specs|spectacles|shades"),
                ("beard", "beard|facial hair|mou?stache"),
            ):
                told = re.search(rf"\b(?:{words})\b", text)
                denied = re.search(rf"\b{NOT} (?:{words})", text)
                assert not told or bool(denied) != bool(own[part]), (caption, own)
            smile = re.search(r"smil|\bhappy", text.replace("not smiling", ""))
            assert not smile or "smil" in own["expression"], (caption, own)
        texts += captions
    assert sum(len(text.split()) < 6 for text in texts) > 20
    assert sum(len(text.split()) > 18 for text in texts) > 100
