"""Captions as people type them, by a public grammar, from the attributes of one image alone.

Each is true of it, and none judges a person. The words are in grammar_words.json.
"""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dpwg.data import palette

CAPTIONS = 10
MAX_WORDS = 27  # The text encoder cuts what is much longer.

Said = dict[str, list[str]]
Fact = Mapping[str, Sequence[str]]
"""Its wordings by where they fit: before a noun (early, late), right behind it (in), behind "with",
"wearing" or "is" (has, wears, is), as a participle (does), behind a comma (loose), at the end
(tail), as a clause (says), in a list (tag)."""

_WORDS: Mapping[str, Any] = json.loads(Path(__file__).with_name("grammar_words.json").read_bytes())
_FORMS, _COLOURS = {"Straight_Hair", "Wavy_Hair"}, set(_WORDS["colours"])
_BEARDS, _STUBBLE = {"Goatee", "Mustache", "Sideburns"}, "5_o_Clock_Shadow"
_PALETTE = sorted(palette.CLOTHES | palette.HAIR | palette.BACKGROUND, key=len, reverse=True)
_COLOUR = re.compile(rf"\b(?:{'|'.join(_PALETTE)})\b")
_AN = re.compile(r"\b(a) (?=(?!eu|uni|use|one)[aeiou]|hour|8|11\b|18\b)", re.IGNORECASE)
_FRAMED = re.compile("cartoon|photo|picture")
_VERBS = re.compile(r"\b(?:is|are|has|have|who|wears?|shows?|me|want)\b")


class _Person(NamedTuple):
    """Who or what to write about; `gender` is man, woman or person."""

    noun: str
    gender: str = "person"
    facts: Sequence[Fact] = ()
    age: str = ""
    article: str = "a"
    frames: str = "photo"


def celeba_captions(number: int, attributes: Mapping[str, bool]) -> tuple[str, ...]:
    """Ten of CelebA's image `number` from its 40 official attributes; KeyError without them."""
    rng = random.Random(f"dpwg/celeba/{number}")
    gender = "man" if attributes["Male"] else "woman"
    age = "young" if attributes["Young"] else "older"
    has, denied = _celeba_truths(attributes)
    said = sorted(has & {"Hair", *_WORDS["is"]})
    nouns = _WORDS["nouns"][gender] + ["girl"] * ((gender, age) == ("woman", "young"))

    def draw(count: int) -> _Person:
        # Hair is what people ask for first.
        names = sorted(said, key=lambda name: rng.random() * (0.5 if name == "Hair" else 1))[:count]
        names = [n for n in names if "Beard" not in names or n not in ("Goatee", _STUBBLE)]
        facts = [_hair(rng, has) if name == "Hair" else _WORDS["is"][name] for name in names]
        if count and rng.random() < (0.2 if len(names) == count else 0.5):
            absent = rng.sample(denied, min(len(denied), rng.choice((1, 1, 2))))
            facts += [_WORDS["not"][name] for name in absent]
        noun = rng.choice(nouns)
        # A young girl would be a child.
        known = age if noun != "girl" and rng.random() < 0.6 else ""
        return _Person(noun=noun, gender=gender, facts=facts, age=known)

    return _captions(rng, draw, CAPTIONS)


def utkface_captions(number: int, age: int, gender: str) -> tuple[str, ...]:
    """Ten of UTKFace's image `number`; KeyError unless `gender` is man or woman."""
    rng = random.Random(f"dpwg/utkface/{number}")
    band = next(band for band in _WORDS["ages"] if age <= band["until"])

    def draw(count: int) -> _Person:
        who = "person" if rng.random() < 0.1 else gender
        if count and rng.random() < 0.7:
            noun = rng.choice(band.get("plain", _WORDS["nouns"])[who])
            return _Person(noun=noun, gender=who, facts=[_age(rng, age)])
        return _Person(noun=rng.choice(band[who]), gender=who)

    return _captions(rng, draw, CAPTIONS)


def faces_captions(key: str, attributes: Mapping[str, str]) -> tuple[str, ...]:
    """Nine of the synthetic face `key`, of two facts or more each: it has a tenth by `compose`."""
    rng = random.Random(f"dpwg/faces/captions/{key}")

    def draw(count: int) -> _Person:
        facts = _face_facts(rng, attributes)
        facts = rng.sample(facts, min(len(facts), max(2, count)))
        return _Person(noun=rng.choice(_WORDS["nouns"]["cartoon"]), facts=facts, frames="cartoon")

    return _captions(rng, draw, CAPTIONS - 1)


def tiny_imagenet_captions(number: int, label: str) -> tuple[str, ...]:
    """Ten of Tiny-ImageNet's image `number` from its label: synonyms between commas."""
    rng = random.Random(f"dpwg/tiny-imagenet/{number}")
    names = label.split(", ")
    usual = [name for name in names if name not in _WORDS["misleading"]][:3] or names[:1]

    def draw(count: int) -> _Person:
        name = rng.choices(usual, (4, 2, 1)[: len(usual)])[0]
        many = name in _WORDS["mass"] or re.search("(?<![sui])s$", name)
        noun, article = rng.choice(_WORDS["things"]).format(name), "" if many else "a"
        return _Person(noun=noun, article=article, frames="thing")

    return _captions(rng, draw, CAPTIONS)


def _celeba_truths(attributes: Mapping[str, bool]) -> tuple[set[str], list[str]]:
    """What a caption may say of a face, and what it may say that is not there."""
    has = {name for name, value in attributes.items() if value}
    has |= {"Male"} & has or {"Female"}
    for name, hidden in _WORDS["hides"].items():
        has -= set(hidden) if name in has else set()
    for group in (_COLOURS, _FORMS):  # Two at once are in doubt.
        has -= group if len(has & group) > 1 else set()
    has |= {"Hair"} if has & (_COLOURS | _FORMS) else set()
    # Two kinds beside each other are a beard, as is one of no kind; stubble alone is not.
    kinds = has & _BEARDS
    if {"Male", "No_Beard"} & has == {"Male"} and (len(kinds) > 1 or not kinds | has & {_STUBBLE}):
        has.add("Beard")
    has |= set() if has & {"Smiling", "Mouth_Slightly_Open"} else {"Serious"}
    denied = set(_WORDS["not"]) - has
    for name, silent in _WORDS["undenied"].items():
        denied -= set(silent) if name in has else set()
    return has, sorted(denied)


def _hair(rng: random.Random, has: set[str]) -> Fact:
    """Form and colour, or either."""
    words = _WORDS["colours"].get("".join(has & _COLOURS), {"colour": [""], "late": []})
    form = "".join(has & _FORMS).removesuffix("_Hair").lower()
    both = [part for part in (form, rng.choice(words["colour"])) if part]
    told = both[:: rng.choice((1, 1, 1, -1))] if rng.random() < 0.65 else [rng.choice(both)]
    hair = f"{' '.join(told)} hair"
    fact = {"has": [hair], "says": [f"{{his}} hair is {' and '.join(told)}"], "tag": [hair]}
    # An adjective tells the colour alone.
    late = words["late"] + words.get("woman", []) * ("Female" in has)
    return fact | {"late": late} if late else fact


def _age(rng: random.Random, age: int) -> Fact:
    """An age in years, in round years, or its decade."""
    kind = "year" if age == 1 else "years"
    if age >= 20 and rng.random() < 0.7:
        kind = "decade" if age < 100 and rng.random() < 0.75 else "about"
    tens, part = f"{age // 10}0s", ("early", "mid", "late")[(age % 10 > 3) + (age % 10 > 6)]
    name = rng.choice((tens, (_WORDS["decades"][age // 10 :] or [tens])[0]))
    told = {"tens": tens, "name": rng.choice((name, name, f"{part} {name}"))}
    told |= {"age": str(age), "near": str(5 * round(age / 5)), "his": "{his}"}
    return {key: [w.format(**told) for w in words] for key, words in _WORDS[kind].items()}


def _face_facts(rng: random.Random, attributes: Mapping[str, str]) -> list[Fact]:
    """The facts of a synthetic face, their synonyms drawn."""
    worn = ["clothes", "glasses"] + ["hair"] * (not attributes["hair_colour"])
    shown = ["beard", *{"hair"}.difference(worn)]
    absent = ["hat"] * ("hair" in shown) + [n for n in ("glasses", "beard") if not attributes[n]]
    facts: list[Fact] = [_WORDS["expressions"][attributes["expression"]]]
    for item in [_look(rng, attributes[part]) for part in worn if attributes[part]]:
        facts.append({"wears": [item], "in": [f"in {item}"], "tag": [item.removeprefix("a ")]})
    for item in [_look(rng, attributes[part]) for part in shown if attributes[part]]:
        facts.append({"has": [item], "tag": [item.removeprefix("a ")]})
    skin, ground = f"{attributes['skin']} skin", _look(rng, attributes["background"])
    facts.append({"has": [skin], "tag": [skin]})
    facts.append({k: [w.format(ground) for w in v] for k, v in _WORDS["background"].items()})
    return facts + [_WORDS["absent"][name] for name in absent if rng.random() < 0.1]


def _look(rng: random.Random, phrase: str) -> str:
    """A phrase, or a colour, in other words."""
    colour = found[0] if (found := _COLOUR.search(phrase)) else ""
    frame = _COLOUR.sub("{}", phrase, count=1)
    shade = rng.choice(_WORDS["synonyms"].get(colour, [colour]))
    return str(rng.choice(_WORDS["looks"].get(frame, [frame]))).format(shade)


def _captions(rng: random.Random, draw: Callable[[int], _Person], count: int) -> tuple[str, ...]:
    """In `count` styles; with fewer facts by and by while one is too long or there already."""
    found: dict[str, str] = {}
    for style in rng.sample(_WORDS["ten"], count):
        for attempt in range(200):
            facts = rng.randint(*_WORDS["styles"][style]) - attempt // 5
            text = _caption(rng, style, draw(max(0, facts)))
            if text.lower().rstrip(".") not in found and len(text.split()) <= MAX_WORDS:
                break
        found[text.lower().rstrip(".")] = text
    return tuple(found.values())


def _caption(rng: random.Random, style: str, person: _Person) -> str:
    told = rng.sample(person.facts, len(person.facts))
    if style.endswith("list"):
        texts = [_list(rng, person, told)]
    elif style in ("sentences", "everything") and told and rng.random() < 0.75:
        texts = _sentences(rng, person, told)
    else:
        texts = [_phrase(rng, person, told, who=style == "who")]
        if rng.random() < 0.45 and not _FRAMED.search(texts[0]):
            texts = [f"{rng.choice(_WORDS[person.frames])} {texts[0]}"]
    return _typed(rng, [text.replace("{his}", _WORDS["his"][person.gender]) for text in texts])


def _worded(rng: random.Random, person: _Person, facts: Sequence[Fact], *places: str) -> Said:
    """One wording of each fact under its place; the noun with adjectives, one a place at most."""
    said: Said = defaultdict(list)
    for fact in facts:
        fits = [p for p in places if p in fact and not (p in ("early", "late", "in") and said[p])]
        if fits:
            place = rng.choice(fits)
            said[place].append(rng.choice(fact[place]))
    for words in said.values():
        # What is not there comes last: "a beard and no glasses"; and "his mouth open" before it.
        words.sort(key=lambda w: (w.startswith(("no ", "not ")), w[0] == "{" or w.endswith(" on")))
    said["noun"] = list(filter(None, (*said["early"], person.age, *said["late"], person.noun)))
    return said


def _list(rng: random.Random, person: _Person, facts: Sequence[Fact]) -> str:
    """Words between commas, or with nothing between, as one types into a search box."""
    said = _worded(rng, person, facts, "early", "late", "tag", "tag", "tag")
    who, items = " ".join(said["noun"]), said["tag"]
    if rng.random() < 0.2 and not _FRAMED.search(who):
        items.insert(0, f"{rng.choice(_WORDS[person.frames])} {person.article} {who}")
    else:
        items.insert(rng.choice((0, 0, rng.randint(0, len(items)))), who)
    return (" " if len(items) < 4 and rng.random() < 0.2 else ", ").join(items)


def _phrase(rng: random.Random, person: _Person, facts: Sequence[Fact], *, who: bool) -> str:
    """One noun with all: "a young man with a beard, smiling", "a man who has a beard"."""
    own = ("is", "does") if who else ("in", "does", "loose")
    said = _worded(rng, person, facts, "early", "late", "has", "wears", *own, "tail")
    text = " ".join([person.article, *said["noun"], *said["in"]])
    if who and (parts := _predicates(rng, said, many=False)):
        that = "that" if person.noun.endswith("face") else "who"
        return ", ".join([f"{text} {that} {' and '.join(parts)}", *said["tail"]])
    parts = [f"with {_and(rng, said['has'])}"] if said["has"] else []
    parts += [f"wearing {_and(rng, said['wears'])}"] if said["wears"] else []
    parts = rng.sample(parts + said["does"], len(parts + said["does"]))
    for i, part in enumerate([*parts, *said["loose"], *said["tail"]]):
        near = i == 0 and not (said["in"] and part.startswith("with"))
        text += (" " if near else ", ") + part
    return text


def _sentences(rng: random.Random, person: _Person, facts: Sequence[Fact]) -> list[str]:
    """Sentences without their stops: who it is, then more of the same person."""
    subject = he = _WORDS["he"][person.gender]
    texts, begin = [], rng.randint(1, 2)
    if he == "they" or rng.random() < 0.6:
        opening, first = _WORDS[f"{person.frames} openings"], facts[:begin]
        texts.append(rng.choice(opening).format(_phrase(rng, person, first, who=False)))
    else:
        begin, plain = 0, " ".join(_worded(rng, person, ())["noun"])
        subject = rng.choice((f"the {plain}", f"this {plain}", he))
    said = _worded(rng, person, facts[begin:], "has", "wears", "is", "does", "says")
    parts = _predicates(rng, said, many=he == "they")
    if len(parts) == 2 and rng.random() < 0.6:
        parts = [" and ".join(parts)]
    return texts + [f"{he if i else subject} {part}" for i, part in enumerate(parts)] + said["says"]


def _predicates(rng: random.Random, said: Said, *, many: bool) -> list[str]:
    """Such as "has a beard" and "is smiling and wearing glasses"."""
    has, be, wears = ("have", "are", "wear") if many else ("has", "is", "wears")
    parts = [f"{has} {_and(rng, said['has'])}"] if said["has"] else []
    doing, worn = said["is"] + said["does"], _and(rng, said["wears"])
    if worn and rng.random() < 0.5:
        parts.append(f"{wears} {worn}")
    elif worn:
        doing = sorted([*doing, f"wearing {worn}"], key=lambda word: word.startswith("not "))
    parts += [f"{be} {_and(rng, doing)}"] if doing else []
    return rng.sample(parts, len(parts))


def _and(rng: random.Random, words: Sequence[str]) -> str:
    last = rng.choice((" and ", ", and ")) if len(words) > 2 else " and "
    return last.join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def _typed(rng: random.Random, sentences: Sequence[str]) -> str:
    """Sentences as a hurried or a careful hand types them."""
    sentences = [_AN.sub(r"\1n ", text.strip().replace("  ", " ")) for text in sentences]
    single = len(sentences) == 1
    if rng.random() < (0.5 if single else 0.3):
        text = rng.choice((", ", ". ")).join(sentences).lower()
        if not _VERBS.search(text) and rng.random() < 0.4:
            text = re.sub(r"\b(?:an?|the) " + rng.choice(("", "", "|,")), "", text)
        return text
    # An iPod keeps its letters.
    capital = [text if text[1:2].isupper() else text[0].upper() + text[1:] for text in sentences]
    return ". ".join(capital) + ("." if rng.random() < (0.5 if single else 0.85) else "")
