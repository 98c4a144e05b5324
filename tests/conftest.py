"""Tiny real models and random inputs that several test files share."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

os.environ["HF_HUB_OFFLINE"] = "1"  # read at import: no test asks a real hub
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start beside each other, too

import pytest
import torch
from app_server import SHIPPED, serving
from hypothesis import settings
from PIL import Image
from torch import Tensor, nn

from dpwg.config import ModelConfig, TokenizerConfig
from dpwg.method.encoders import default_encoder
from dpwg.method.tokenizer import SpectralTokenizer
from dpwg.method.transformer import LORA_LAYERS, WaveletGPT
from dpwg.privacy.accounting import Ledger, LedgerEntry
from dpwg.privacy.card import PrivacyCard
from dpwg.privacy.lora import add_lora
from dpwg.release.folder import Release, save_release
from dpwg.release.shared import save_tokenizer
from dpwg.training.examples import Examples

if TYPE_CHECKING:
    from playwright.sync_api import Browser

M = TypeVar("M", bound=nn.Module)

settings.register_profile("dpwg", deadline=None, derandomize=True)
settings.load_profile("dpwg")

TINY_MODEL = ModelConfig(
    codebook_sizes=(5, 7, 9),
    code_widths=(3, 9, 36),
    positions=4,
    codes=2,
    text_width=8,
    text_tokens=5,
    width=16,
    blocks=2,
    heads=2,
    code_hidden=12,
)
TINY_TOKENIZER = TokenizerConfig(
    codebook_sizes=(8, 12, 16),
    width=16,
    heads=2,
    encoder_blocks=1,
    decoder_blocks=1,
)


STEPS = {
    "public": [],
    "eps-1": [LedgerEntry(sampling_rate=0.02, noise_multiplier=2.0, steps=100)],
    "eps-inf": [LedgerEntry(sampling_rate=0.02, noise_multiplier=0.0, steps=100)],
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--studio-results", type=Path, help="write the studio's response times here")
    parser.addoption("--cuda-results", type=Path, help="write what passed on a GPU here")
    parser.addoption("--screenshots", type=Path, help="keep screenshots of the studio here")


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """The app with the shipped checkpoints: its address and its process."""
    with serving(SHIPPED, tmp_path_factory.mktemp("app")) as served:
        yield served


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser; tests of the page are skipped where there is none."""
    if (path := shutil.which("chromium")) is None:
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    arguments = ["--headless", "--no-sandbox", "--disable-gpu"]
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, args=arguments)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What WaveletGPT takes for a few records."""

    states_BLD: Tensor
    mask_BL: Tensor
    codes: list[Tensor]

    def __getitem__(self, part: slice | Tensor) -> Inputs:
        return Inputs(
            states_BLD=self.states_BLD[part],
            mask_BL=self.mask_BL[part],
            codes=[scale_BPK[part] for scale_BPK in self.codes],
        )

    def losses(self, model: WaveletGPT) -> Tensor:
        return model.negative_log_likelihood(self.states_BLD, self.mask_BL, self.codes)


@torch.no_grad()
def shaken(module: M, seed: int) -> M:
    """The module with every parameter moved, so that no bias or output layer is zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter += 0.15 * torch.randn(parameter.shape, generator=generator)
    return module


@pytest.fixture(scope="session")
def make_model() -> Callable[..., WaveletGPT]:
    """A tiny WaveletGPT, the same for the same seed."""

    def make(seed: int = 0) -> WaveletGPT:
        torch.manual_seed(seed)
        return shaken(WaveletGPT(TINY_MODEL), seed)

    return make


@pytest.fixture(scope="session", params=["full", "lora"])
def model(request, make_model) -> WaveletGPT:
    """A tiny WaveletGPT, all of it trainable or pairs that do something; copy it to change it."""
    model = make_model()
    if request.param == "lora":
        torch.manual_seed(0)
        add_lora(model, 3, LORA_LAYERS)
        for name, parameter in model.named_parameters():
            if name.endswith("up.weight"):
                nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(scope="session")
def make_inputs() -> Callable[..., Inputs]:
    """Random captions of one to five tokens and random codes."""

    def make(records: int, seed: int = 0, config: ModelConfig = TINY_MODEL) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        tokens_B = torch.randint(1, config.text_tokens + 1, (records,), generator=generator)
        shape = (records, config.text_tokens, config.text_width)
        mask_BL = torch.arange(config.text_tokens) < tokens_B[:, None]
        return Inputs(
            states_BLD=torch.randn(shape, generator=generator) * mask_BL[..., None],
            mask_BL=mask_BL,
            codes=[
                torch.randint(size, (records, config.positions, config.codes), generator=generator)
                for size in config.codebook_sizes
            ],
        )

    return make


@pytest.fixture(scope="session")
def make_examples(make_inputs) -> Callable[..., Examples]:
    """Random examples of as many captions as asked, one number a record.

    `images` says which image each has, so that some may be the same; `group_I` joins them.
    """

    def make(
        captions: tuple[int, ...] = (1,) * 12,
        images: tuple[int, ...] | None = None,
        group_I: Tensor | None = None,
        config: ModelConfig = TINY_MODEL,
    ) -> Examples:
        inputs = make_inputs(len(captions), config=config)
        texts = make_inputs(sum(captions), seed=1, config=config)
        tensors = {
            "states": texts.states_BLD,
            "mask": texts.mask_BL,
            "count": torch.tensor(captions),
            "empty_states": torch.full((config.text_tokens, config.text_width), 9.0),
            "empty_mask": torch.arange(config.text_tokens) < 2,
        }
        own = list(range(len(captions)) if images is None else images)
        codes = {f"codes_{s}": c[own].to(torch.int16) for s, c in enumerate(inputs.codes)}
        return Examples(tensors, codes, group_I=group_I)

    return make


@pytest.fixture
def no_epsilon(monkeypatch) -> None:
    """Runs of many steps, of which nobody asks what they have spent."""
    monkeypatch.setattr(Ledger, "pld_epsilon", lambda self, delta: 0.0)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., SpectralTokenizer]:
    """A tiny tokenizer of 32x32 images whose blocks do something."""

    def make(seed: int = 0) -> SpectralTokenizer:
        torch.manual_seed(seed)
        return shaken(SpectralTokenizer(TINY_TOKENIZER), seed).requires_grad_(False).eval()

    return make


@pytest.fixture(scope="session")
def images() -> Tensor:
    """Smooth random images with a hard edge each, 32x32 in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    blobs = torch.rand(48, 3, 5, 5, generator=generator)
    smooth = nn.functional.interpolate(blobs, size=32, mode="bicubic").clamp(0, 1)
    for image_CHW, row in zip(
        smooth, torch.randint(4, 28, (48,), generator=generator), strict=True
    ):
        image_CHW[:, row:] = 1 - image_CHW[:, row:]
    return smooth


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory, images) -> Path:
    """Twelve captioned images in the ImageFolder convention."""
    folder: Path = tmp_path_factory.mktemp("mine")
    rows = []
    for index, image_CHW in enumerate((images[:12] * 255).to(torch.uint8)):
        Image.fromarray(image_CHW.permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
        rows.append(json.dumps({"file_name": f"{index}.png", "text": f"image {index}"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="session")
def root(tmp_path_factory, make_tokenizer):
    """Tiny untrained releases: public, private and without privacy."""
    folder, tokenizer = tmp_path_factory.mktemp("checkpoints"), make_tokenizer()
    save_tokenizer(folder / "tokenizer", tokenizer)
    model = WaveletGPT.for_tokenizer(tokenizer, width=32, blocks=1, heads=2, code_hidden=32)
    for name, entries in STEPS.items():
        card = PrivacyCard.from_ledger(
            Ledger(entries=entries),
            delta=1e-6,
            dataset="made up",
            records=5_000,
            max_grad_norm=1.0,
            public_inputs=[],
        )
        encoder = default_encoder().id
        release = Release(model=model, tokenizer=tokenizer, card=card, text_encoder=encoder)
        save_release(folder / "faces" / name, release, tokenizer_folder=folder / "tokenizer")
    return folder


@pytest.fixture(scope="session")
def encoders(tmp_path_factory) -> Path:
    """Tiny random text encoders as hub folders: tiny/clip with its image half, tiny/t5 in parts."""
    import transformers

    root: Path = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    marks = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {
        token: index
        for index, token in enumerate([*marks, *letters, *(f"{letter}</w>" for letter in letters)])
    }
    text = {
        "vocab_size": len(vocabulary),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 24,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    vision = text | {"image_size": 8, "patch_size": 4}
    for name in ("vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id"):
        vision.pop(name)
    clip = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    )
    clip.save_pretrained(root / "tiny" / "clip")
    transformers.CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(root / "tiny" / "clip")
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=32, d_model=12, d_kv=6, d_ff=24, num_layers=2, num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )  # fmt: skip
    t5.save_pretrained(root / "tiny" / "t5", max_shard_size=6_000)
    tokens = transformers.T5Tokenizer(
        vocab=[*pieces, *((letter, -3.0) for letter in letters)], extra_ids=0
    )
    tokens.save_pretrained(root / "tiny" / "t5")
    return root
