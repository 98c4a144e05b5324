"""Training the reranker of captions and coarsest bands, on public images only.

Each image of a batch has to find its own caption among those of the batch, and each caption its
image. What is hard about that is what captions of one wording tell apart: so a batch is made of
groups whose captions share words, other ones in every pass through the set.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from dpwg.config import Count, Decay, Natural, RerankerConfig
from dpwg.data.records import Records
from dpwg.method.captions import TextEncoder
from dpwg.method.reranker import Reranker
from dpwg.method.tokenizer import SpectralTokenizer
from dpwg.release.shared import reranker_reads, save_reranker
from dpwg.training.encodings import captions_of, encode_examples
from dpwg.training.examples import Examples
from dpwg.training.optimizer import Job, Progress, PublicTraining, Weights, descend
from dpwg.training.processes import Ranks

COMMON = 0.25
"""A word of more than this share of all captions tells no group from another."""
SHARED = 4
"""How many words a group is brought together by, at most."""
CHUNK = 500
"""Images that are decoded at once."""


@dataclass(frozen=True, kw_only=True)
class RerankerTraining(PublicTraining):
    """Settings. A batch is of groups of `group` records with similar captions."""

    steps: Count = 2400
    batch: Count = 256
    group: Annotated[int, Field(ge=2)] = 64
    warmup: Natural = 200
    weight_decay: float = 0.01
    ema_decay: Decay = 0.998

    def __post_init__(self) -> None:
        super().__post_init__()
        self._divisible(batch=self.group)


def make_reranker(
    job: Job,
    encoder: TextEncoder,
    tokenizer: SpectralTokenizer,
    settings: RerankerTraining,
    public_input: dict[str, str],
) -> Iterator[Progress]:
    """Train a reranker on public records, which `public_input` tells of, and save it."""
    check_sizes(settings, len(job.records), job.ranks.world)
    reads = reranker_reads(tokenizer, encoder.digest, encoder.max_tokens)
    size = tokenizer.config.image_size(0)
    torch.manual_seed(settings.seed)
    model = Reranker(
        RerankerConfig(**reads, text_width=encoder.width, image_size=size, patch=max(1, size // 4))
    )
    pairs = yield from encode_pairs(job.records, encoder, tokenizer, job.cache)
    yield from train_reranker(model, *pairs, settings, job.ranks)
    if job.ranks.leads:
        save_reranker(job.out, model.cpu(), public_input)


def encode_pairs(
    records: Records, encoder: TextEncoder, tokenizer: SpectralTokenizer, cache: Path
) -> Generator[Progress, None, tuple[Tensor, Examples, list[str]]]:
    """A set's coarsest images, its examples, and its first captions in words."""
    examples = yield from encode_examples(records, encoder, tokenizer, cache)
    captions = [captions_of(records, index)[0] for index in range(len(records))]
    return torch.cat(list(coarsest_images(tokenizer, examples))), examples, captions


def train_reranker(
    model: Reranker,
    image_NChw: Tensor,
    examples: Examples,
    captions: Sequence[str],
    settings: RerankerTraining,
    ranks: Ranks | None = None,
) -> Iterator[Progress]:
    """Train in place on images (N, 3, S, S) in [0, 1] and the first captions of the same records.

    `captions` are those in words. The model ends with averaged weights; with several `ranks` each
    takes its share of a batch's groups, and looks no further than there.
    """
    ranks = ranks or Ranks()
    check_sizes(settings, len(examples), ranks.world)
    settings = replace(settings, precision=ranks.agree_on_precision(settings.precision))
    weights = Weights(model.to(ranks.device), settings)
    same_N, groups = numbered(captions), _groups(_Words(captions), settings)

    def loss_of_step(_: torch.Generator) -> Tensor:
        batch = [next(groups) for _ in range(settings.batch // settings.group)]
        own_B = torch.cat(batch[ranks.rank :: ranks.world])
        part = examples.batch(own_B).to(ranks.device)
        images_BChw = image_NChw[own_B].to(ranks.device)
        scores_BB = weights.worker.scores(images_BChw, part.states_BLD, part.mask_BL).float()
        loss = contrastive_loss(scores_BB, same_N[own_B].to(ranks.device))
        return loss * len(own_B) / settings.batch

    yield from descend(weights, settings, ranks, loss_of_step)


def check_sizes(settings: RerankerTraining, records: int, processes: int) -> None:
    """Raise ValueError for more records a batch than there are, or a process without a group."""
    if settings.batch > records:
        raise ValueError(
            f"Expected batch={settings.batch} to be at most the {records} records there are."
        )
    if settings.batch // settings.group < processes:
        raise ValueError(
            f"Expected batch={settings.batch} to hold a group={settings.group} or more for each of "
            f"{processes} processes; make the batch larger or the groups smaller."
        )


def coarsest_images(tokenizer: SpectralTokenizer, examples: Examples) -> Iterator[Tensor]:
    """Each record's first image as the codes of its coarsest scale give it back, in parts (B, 3, S,
    S).
    """
    for codes_BPK in examples.first_codes(0).split(CHUNK):
        yield tokenizer.decode([codes_BPK])


def contrastive_loss(scores_BB: Tensor, caption_B: Tensor) -> Tensor:
    """The mean of finding each image's caption and each caption's image, in nats.

    `scores_BB` are of images by captions; `caption_B` numbers the captions: one that equals
    another is no wrong answer there, and left out.
    """
    scores_BB = without_equal(scores_BB, caption_B)
    own_B = torch.arange(len(scores_BB), device=scores_BB.device)
    return (F.cross_entropy(scores_BB, own_B) + F.cross_entropy(scores_BB.T, own_B)) / 2


def without_equal(scores_BB: Tensor, caption_B: Tensor) -> Tensor:
    """The scores, those of an image with another's equal caption being -inf."""
    others_BB = ~torch.eye(len(scores_BB), dtype=torch.bool, device=scores_BB.device)
    equal_BB = (caption_B[:, None] == caption_B[None]) & others_BB
    return scores_BB.masked_fill(equal_BB, -torch.inf)


class _Words:
    """The words of every caption that not many of them have, as numbers."""

    def __init__(self, captions: Sequence[str]) -> None:
        rows = [sorted(set(re.findall(r"\w+", caption.lower()))) for caption in captions]
        counts = Counter(word for row in rows for word in row)
        telling = [word for word in counts if counts[word] <= max(1, COMMON * len(captions))]
        number = {word: index for index, word in enumerate(telling)}
        self.count = len(telling)
        longest = max(SHARED, *(len(row) for row in rows))
        self.number_NW = np.full((len(rows), longest), self.count)  # the last one is none
        for index, row in enumerate(rows):
            own = [number[word] for word in row if word in number]
            self.number_NW[index, : len(own)] = own

    def alike(self, generator: np.random.Generator) -> np.ndarray:
        """All captions in an order that puts those together which share words.

        The words come in a random order, and captions are sorted by their first few in it.
        """
        place_V = np.append(generator.permutation(self.count), self.count)
        first_NS = np.sort(place_V[self.number_NW], axis=1)[:, :SHARED]
        chance_N = generator.random(len(first_NS))
        return np.lexsort((chance_N, *first_NS.T[::-1]))


def _groups(words: _Words, settings: RerankerTraining) -> Iterator[Tensor]:
    """Groups of similar captions without end; in each pass through the set other ones."""
    generator = np.random.default_rng(settings.seed)
    while True:
        order_N = words.alike(generator)
        count = len(order_N) // settings.group
        group_KG = order_N[: count * settings.group].reshape(count, settings.group)
        for index in generator.permutation(count):
            yield torch.from_numpy(group_KG[index])


def numbered(captions: Sequence[str]) -> Tensor:
    """A number for each caption, the same for equal ones."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(caption, len(numbers)) for caption in captions])
