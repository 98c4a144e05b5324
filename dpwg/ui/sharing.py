"""All that decides what is drawn, checked in one place, as a link and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any
from urllib.parse import urlencode

from dpwg.data.records import MAX_CAPTION_CHARACTERS
from dpwg.method.pipeline import MAX_SEED
from dpwg.method.sampling import MAX_CANDIDATES, Sampling
from dpwg.release.folder import checkpoint_names
from dpwg.ui.families import suited_upsampler, usual_checkpoint
from dpwg.ui.limits import MAX_IMAGES, whole
from dpwg.upsampling.upsamplers import DEFAULT_UPSAMPLER, chosen_upsampler

NUMBERS = ("seed", "count", "guidance", "temperature", "candidates")


@dataclass
class Drawing:
    """What is drawn, in the order of `generate`'s parameters; ValueError, in words, for what cannot
    be. Whether there is such a checkpoint is left to whoever loads it.
    """

    checkpoint: str
    caption: str
    seed: int = 0
    count: int = 1
    guidance: float = Sampling.guidance
    temperature: float = Sampling.temperature
    upsampler: str = DEFAULT_UPSAMPLER
    candidates: int = Sampling.candidates

    def __post_init__(self) -> None:
        self.caption = self.caption.strip()
        if len(self.caption) > MAX_CAPTION_CHARACTERS:
            raise ValueError(
                f"A caption has at most {MAX_CAPTION_CHARACTERS} characters, this one has "
                f"{len(self.caption)}; shorten it."
            )
        self.seed = whole("seed", self.seed, 0, MAX_SEED)
        self.count = whole("count", self.count, 1, MAX_IMAGES)
        self.candidates = whole("candidates", self.candidates, 1, MAX_CANDIDATES)
        _ = chosen_upsampler(self.upsampler), self.sampling

    @property
    def seeds(self) -> tuple[int, ...]:
        """One for each picture."""
        return tuple(range(self.seed, self.seed + self.count))

    @property
    def sampling(self) -> Sampling:
        """How its codes are drawn."""
        return Sampling(
            guidance=self.guidance, temperature=self.temperature, candidates=self.candidates
        )


def to_query(drawing: Drawing) -> str:
    """`?caption=…&seed=…&checkpoint=…`, and whatever else differs from its default, which of the
    upsampler is that of the checkpoint.
    """
    always = {name: getattr(drawing, name) for name in ("caption", "seed", "checkpoint")}
    usual = {field.name: field.default for field in fields(Drawing)}
    usual["upsampler"] = suited_upsampler(drawing.checkpoint)
    changed = {name: value for name, value in asdict(drawing).items() if value != usual[name]}
    return "?" + urlencode(always | changed, errors="replace")


def from_query(query: Mapping[str, str]) -> Drawing | None:
    """The inverse of `to_query`: None where nothing was asked for, ValueError where it is bad.

    A link needs a caption or a seed; what it leaves out is the page's own.
    """
    if not {"caption", "seed"} & set(query):
        return None
    names = checkpoint_names()
    checkpoint = query.get("checkpoint", usual_checkpoint(names) if names else "")
    try:
        if checkpoint not in names:
            raise ValueError(f"there is no checkpoint {checkpoint!r:.80} here.")
        numbers: dict[str, Any] = {n: float(query[n]) for n in NUMBERS if n in query}
        upsampler = query.get("upsampler", suited_upsampler(checkpoint))
        caption = query.get("caption", "")
        return Drawing(checkpoint=checkpoint, caption=caption, upsampler=upsampler, **numbers)
    except ValueError as error:
        raise ValueError(f"This link does not work: {error}") from None
