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
"""Its wordings by place: before a noun (early, late), right behind it (in), behind "with", "has",
"wearing" or "is" (with, has, wears, is), with the verb (verb), as participle (does), behind a comma
(loose), at the end (tail), as a clause (says), in a list as noun or as another word (tag, mood)."""

_WORDS: Mapping[str, Any] = json.loads(Path(__file__).with_name("grammar_words.json").read_bytes())
_FORMS, _COLOURS = {"Straight_Hair", "Wavy_Hair"}, set(_WORDS["colours"])
_BEARDS, _STUBBLE = {"Goatee", "Mustache", "Sideburns"}, "5_o_Clock_Shadow"
_PALETTE = sorted(palette.CLOTHES | palette.HAIR | palette.BACKGROUND, key=len, reverse=True)
_COLOUR = re.compile(rf"\b(?:{'|'.join(_PALETTE)})\b")
_AN = re.compile(r"\b(a) (?=(?!eu|uni|use|one)[aeiou]|hour|8|11\b|18\b)", re.IGNORECASE)
_FRAMED = re.compile("cartoon|photo|picture")
_VERBS = re.compile(r"\b(?:is|are|has|have|who|wears?|looks?|shows?|me|want|\w+'(?:t|s|re))\b")
_DENIAL, _HEAVY = re.compile("no |not |without "), re.compile(r"\{his\}| with | on$|background")


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
    plain, other = _WORDS["nouns"][gender], _WORDS["nouns"][f"{age} {gender}"]

    def draw(count: int) -> _Person:
        # Hair is what people ask for first.
        names = sorted(said, key=lambda name: rng.random() * _WORDS["rank"].get(name, 1))[:count]
        names = [name for name in names if not {*_WORDS["within"].get(name, ())} & {*names}]
        absent = rng.sample(denied, len(denied))[: count > 0 and rng.random() < 0.3]
        names = [name for name in names if name != "Serious" or not absent]
        facts = [_hair(rng, has) if name == "Hair" else _WORDS["is"][name] for name in names]
        facts += [_WORDS["not"][name] for name in absent]
        noun = rng.choice(plain + other)
        known = age if noun in plain and rng.random() < 0.6 else ""  # A young girl is a child.
        return _Person(noun=noun, gender=gender, facts=facts, age=known)

    return _captions(rng, draw, CAPTIONS)


def utkface_captions(number: int, age: int, gender: str) -> tuple[str, ...]:
    """Ten of UTKFace's image `number`; KeyError unless `gender` is man or woman."""
    rng = random.Random(f"dpwg/utkface/{number}")
    band = next(band for band in _WORDS["ages"] if age <= band["until"])

    def draw(count: int) -> _Person:
        who = "person" if rng.random() < 0.1 else gender
        facts = [_age(rng, age)] if count and rng.random() < 0.7 else []
        nouns = band.get("plain", _WORDS["nouns"]) if facts else band
        return _Person(noun=rng.choice(nouns[who]), gender=who, facts=facts)

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
    has |= {name for name, parts in _WORDS["joint"].items() if has.issuperset(parts)}
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
    silent = {other for name in has for other in _WORDS["undenied"].get(name, ())}
    return has, sorted({*_WORDS["not"]} - has - silent)


def _hair(rng: random.Random, has: set[str]) -> Fact:
    """Form and colour, or either."""
    words = _WORDS["colours"].get("".join(has & _COLOURS), {"colour": [""], "late": []})
    form = "".join(has & _FORMS).removesuffix("_Hair").lower()
    both = [part for part in (form, rng.choice(words["colour"])) if part]
    told = both if rng.random() < 0.65 else [rng.choice(both)]
    hair, turned = f"{' '.join(told)} hair", " and ".join(told[:: rng.choice((1, -1))])
    late = words["late"] + words.get("woman", []) * ("Female" in has)  # of the colour alone
    return {"has": [hair], "says": [f"{{his}} hair is {turned}"], "tag": [hair], "late": late}


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
    worn = [attributes["clothes"], attributes["glasses"]]
    shown = [attributes["beard"], f"{attributes['skin']} skin"]
    (shown if attributes["hair_colour"] else worn).append(attributes["hair"])
    kinds = {"worn": worn, "shown": shown, "background": [attributes["background"]]}
    facts: list[Fact] = [_WORDS["expressions"][attributes["expression"]]]
    for kind, item in [(kind, _look(rng, x)) for kind, items in kinds.items() for x in items if x]:
        told = {"a": item, "item": item.removeprefix("a ")}
        facts.append({k: [w.format(**told) for w in v] for k, v in _WORDS[kind].items()})
    name = rng.choice(("glasses", "beard", "hat"))
    lacks = not attributes.get(name, not attributes["hair_colour"]) and rng.random() < 0.3
    return facts + [_WORDS["absent"][name]] * lacks


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
    own, bare = rng.sample(person.facts, len(person.facts)), style.endswith("list")
    instead = _WORDS["instead"].get(style, {}).get(person.noun, [person.noun])
    person = person._replace(noun=rng.choice(instead))
    if style in ("sentences", "everything") and own and rng.random() < 0.75:
        texts = _sentences(rng, person, own)
    else:
        texts = [_list(rng, person, own) if bare else _phrase(rng, person, own, who=style == "who")]
        if rng.random() < (0.2 if bare else 0.45) and not _FRAMED.search(texts[0]):
            texts = [f"{rng.choice(_WORDS[person.frames])} {person.article * bare} {texts[0]}"]
    return _typed(rng, [text.format_map(_WORDS["gender"][person.gender]) for text in texts])


def _worded(rng: random.Random, person: _Person, facts: Sequence[Fact], *places: str) -> Said:
    """One wording of each fact under its place; the noun with adjectives, one a place at most."""
    said: Said = defaultdict(list)
    for fact in facts:
        full = [p for p in ("early", "late", "in") if said[p]]
        if fits := [p for p in places if fact.get(p) and p not in full]:
            place = rng.choice(fits)
            said["has" if place == "with" else place].append(rng.choice(fact[place]))
    for words in said.values():
        # What is not there comes last: "a beard and no glasses".
        words.sort(key=lambda word: (bool(_DENIAL.match(word)), bool(_HEAVY.search(word))))
    said["noun"] = list(filter(None, (*said["early"], person.age, *said["late"], person.noun)))
    return said


def _list(rng: random.Random, person: _Person, facts: Sequence[Fact]) -> str:
    """Words between commas, as one types into a search box."""
    said = _worded(rng, person, facts, "early", "late", "tag", "mood", "wears")
    nouns, worn = said["tag"], [f"wearing {_and(rng, said['wears'])}"] * bool(said["wears"])
    items = said["mood"] + worn + ([_and(rng, nouns)] if nouns and rng.random() < 0.4 else nouns)
    items = sorted(rng.sample(items, len(items)), key=lambda item: bool(_DENIAL.match(item)))
    return ", ".join([" ".join(said["noun"]), *items])


def _phrase(rng: random.Random, person: _Person, facts: Sequence[Fact], *, who: bool) -> str:
    """One noun with all: "a young man with a beard, smiling", "a man with a beard who is bald"."""
    own = ["is", "is", "verb"] if who else ["with", "does", "loose"]
    own += ["in"] * (not who and not person.noun.endswith(("face", "kid")))
    said = _worded(rng, person, facts, "early", "late", "has", "wears", *own, "tail")
    text = " ".join([person.article, *said["noun"], *said["in"]])
    parts = [f"with {_and(rng, said['has'])}"] if said["has"] else []
    if who and (said["is"] or said["wears"] or said["verb"]) and rng.random() < 0.6:
        text, said["has"] = " ".join([text, *parts]), []
    if who and (told := _predicates(rng, said)):
        longest = max(told, key=lambda part: part.count(" and "))
        return ", ".join([f"{text} who {longest}", *said["tail"]])
    parts += [f"wearing {_and(rng, said['wears'])}"] if said["wears"] else []
    parts = rng.sample(parts + said["does"], len(parts + said["does"]))
    for i, part in enumerate([*parts, *said["loose"], *said["tail"]]):
        near = i == 0 and not said["in"] and not part.startswith("no ")
        text += (" " if near else ", ") + part
    return text


def _sentences(rng: random.Random, person: _Person, facts: Sequence[Fact]) -> list[str]:
    """Sentences without their stops: who it is, then more of the same person."""
    plain, begin = " ".join([person.age, person.noun]), 0
    many = _WORDS["many"] if person.gender == "person" else {}
    texts, subject = [], rng.choice((f"the {plain}", f"this {plain}", "{he}"))
    if many or len(facts) < 3 or rng.random() < 0.6:
        opening, begin, subject = _WORDS[f"{person.frames} openings"], rng.randint(1, 2), "{he}"
        texts = [rng.choice(opening).format(_phrase(rng, person, facts[:begin], who=False))]
    said = _worded(rng, person, facts[begin:], "has", "wears", "is", "is", "verb", "says")
    parts = [re.sub(r"\w+", lambda w: many.get(w[0], w[0]), p) for p in _predicates(rng, said)]
    return texts + [f"{'{he}' if i else subject} {p}" for i, p in enumerate(parts)] + said["says"]


def _predicates(rng: random.Random, said: Said) -> list[str]:
    """Such as "has a beard" and "is smiling and is not wearing a hat", two in one at most."""
    parts = [f"has {_and(rng, said['has'])}"] if said["has"] else []
    doing, worn = said["is"], _and(rng, said["wears"])
    if worn and doing and " and " not in worn and rng.random() < 0.7:
        doing = [*doing, f"wearing {worn}"]
    elif worn:
        parts.append(f"{rng.choice(('wears', 'is wearing', 'is wearing'))} {worn}")
    parts += ([f"is {_and(rng, doing)}"] if doing else []) + said["verb"]
    parts = sorted(rng.sample(parts, len(parts)), key=lambda part: " not " in part)
    # A third "and" would be a chain.
    short = [part for part in parts if " and " not in part][:2]
    both = re.sub(r"(wear.*) and is not wearing (?:an? |any )?", r"\1 but no ", " and ".join(short))
    return [part for part in parts if part not in short] + [both] * bool(short)


def _and(rng: random.Random, words: Sequence[str]) -> str:
    words = " and ".join(words).split(" and ")  # "makeup and lipstick" are two
    last = rng.choice((" and ", " and ", ", and ")) if len(words) > 2 else " and "
    return last.join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def _typed(rng: random.Random, sentences: Sequence[str]) -> str:
    """Sentences as a hurried or a careful hand types them."""
    sentences = [_AN.sub(r"\1n ", " ".join(text.split())) for text in sentences]
    for long, short in rng.sample(_WORDS["short"], len(_WORDS["short"]) * (rng.random() < 0.7)):
        sentences = [text.replace(long, short) for text in sentences]  # "who isn't", "who's not"
    single = len(sentences) == 1
    if rng.random() < (0.5 if single else 0.3):
        text = rng.choice((", ", ". ")).join(sentences).lower()
        if not _VERBS.search(text) and rng.random() < 0.4:
            text = re.sub(r"\b(?:an?|the) ", "", text)
            # In two to four words nothing is between them, in more before some.
            needless = r",(?! \d)" if len(text.split()) < 5 else ",(?= (?:with|wearing|on|in) )"
            text = re.sub(needless, "", text) if rng.random() < 0.5 else text
        return text
    # An iPod keeps its letters.
    capital = [text if text[1:2].isupper() else text[0].upper() + text[1:] for text in sentences]
    return ". ".join(capital) + ("." if rng.random() < (0.5 if single else 0.85) else "")
