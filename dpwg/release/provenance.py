"""The public inputs that every card names: what a release was made with besides the records.

Those that never change stand in `provenance.json`.
"""

from __future__ import annotations

from pathlib import Path

from dpwg.config import MINILM, TextEncoderId, read_json

Input = dict[str, str]
KNOWN: dict[str, Input] = read_json(Path(__file__).with_suffix(".json"))
FROZEN_PARTS = tuple(KNOWN[name] for name in ("superresolution", "realesrgan", "templates"))
TOKENIZER_SHA256 = "d61cb8573e75f995901afe72a62bb6ffc3f8eb8a3e8ae620e7c827def58963b7"
"""Of the shipped tokenizer, as releases name theirs: `pretrain` may be given another."""
PHOTO_TERMS = "research and education, not commercial, as its photographs"


def public_inputs(
    training_set: str,
    records: int,
    encoder: TextEncoderId,
    tokenizer_sha256: str,
    *,
    rendered: bool,
) -> tuple[Input, ...]:
    """The inputs of a model that was trained on `records` records of a public set.

    `rendered` says whether the set is the public mix, or one that only its user knows.
    """
    mix, licence = KNOWN["public_mix"], "Apache-2.0"
    if not rendered:
        licence = "theirs"
        mix = _input(training_set, "declared public by its user", licence)
    source = f"trained with dpwg on {records:,} records of {training_set}"
    return (
        mix,
        tokenizer_input(tokenizer_sha256),
        text_encoder_input(encoder),
        *FROZEN_PARTS,
        _input("WaveletGPT before fine-tuning", source, licence),
    )


def photo_inputs(
    records: int, encoder: TextEncoderId, *, cleaned: bool, upsampled: bool
) -> tuple[Input, ...]:
    """The inputs of a family that was trained on `records` public photographs.

    `cleaned` says whether UTKFace's near-copies of CelebA's photographs were left out, `upsampled`
    whether upsamplers may go with the pictures.
    """
    copies = (
        "near-copies of CelebA's photographs were found by comparing with them, a choice that "
        "epsilon does not cover, and left out; other photographs of the same people may be there"
    )
    if not cleaned:
        copies = "it holds near-copies of CelebA's photographs, which epsilon does not cover"
    faces, trained = KNOWN["utkface"], f"trained with dpwg on {records:,} public photographs"
    return (
        KNOWN["tiny_imagenet"],
        faces | {"source": f"{faces['source']}; {copies}"},
        _input("tokenizer or autoencoder of images", trained, PHOTO_TERMS),
        text_encoder_input(encoder),
        *(KNOWN[n] for n in ("photo_superresolution", "realesrgan") if upsampled),
        *(KNOWN[n] for n in ("celeba_list", "grammar")),
        _input("generator before fine-tuning", trained, PHOTO_TERMS),
    )


def tokenizer_input(sha256: str) -> Input:
    """Which tokenizer made the codes: this project's, or one whose data only its user knows."""
    source, licence = "trained by this project on the public mix", "Apache-2.0"
    if sha256 != TOKENIZER_SHA256:
        source = f"a tokenizer that its user declared public; SHA-256 {sha256:.12}"
        licence = "theirs"
    return _input("spectral tokenizer and codebooks", source, licence)


def reranker_input(training_set: str, records: int, *, rendered: bool) -> Input:
    """What a reranker was trained on; `rendered` as for `public_inputs`."""
    source = f"trained with dpwg on {records:,} records of {training_set}"
    source += "" if rendered else ", declared public by its user"
    licence = "Apache-2.0" if rendered else "theirs"
    return _input("reranker of captions and coarsest bands", source, licence)


def text_encoder_input(encoder: TextEncoderId) -> Input:
    """Which encoder reads the captions, and where it came from."""
    if encoder.name == MINILM:
        return KNOWN["minilm"]
    source = f"a folder that its user declared public, frozen; SHA-256 {encoder.digest}"
    if encoder.revision is not None:
        source = (
            f"Hugging Face Hub, revision {encoder.revision}, declared public by its user, frozen"
        )
    return _input(f"{encoder.name} text encoder", source, "its publisher's")


def _input(name: str, source: str, licence: str) -> Input:
    return {"name": name, "source": source, "licence": licence}
