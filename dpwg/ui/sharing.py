"""Links that open the same images: what was asked for, as a query and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from urllib.parse import urlencode

from dpwg.data.records import MAX_CAPTION_CHARACTERS
from dpwg.method.pipeline import MAX_SEED
from dpwg.method.sampling import MAX_CANDIDATES, Sampling
from dpwg.release.folder import checkpoint_names
from dpwg.ui.families import suited_upsampler, usual_checkpoint
from dpwg.ui.limits import MAX_IMAGES, whole
from dpwg.upsampling.upsamplers import DEFAULT_UPSAMPLER, all_upsamplers


@dataclass(frozen=True)
class Drawing:
    """All that decides what is drawn, in the order of `generate`'s parameters."""

    checkpoint: str
    caption: str
    seed: int
    count: int = 1
    guidance: float = Sampling.guidance
    temperature: float = Sampling.temperature
    upsampler: str = DEFAULT_UPSAMPLER
    candidates: int = Sampling.candidates

    @property
    def sampling(self) -> Sampling:
        """How its codes are drawn. Raises ValueError for what is out of range."""
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
    names, caption = checkpoint_names(), query.get("caption", "")
    if len(caption) > MAX_CAPTION_CHARACTERS:
        raise ValueError(
            f"Expected a caption of at most {MAX_CAPTION_CHARACTERS} characters in the link, found "
            f"{len(caption)}; shorten it."
        )
    checkpoint = query.get("checkpoint", usual_checkpoint(names) if names else "")
    _check("checkpoint", checkpoint, names)
    upsampler = query.get("upsampler", suited_upsampler(checkpoint))
    _check("upsampler", upsampler, list(all_upsamplers()))
    drawing = Drawing(
        checkpoint=checkpoint,
        caption=caption,
        seed=whole("seed", _number(query, "seed", 0), 0, MAX_SEED),
        count=whole("count", _number(query, "count", 1), 1, MAX_IMAGES),
        guidance=_number(query, "guidance", Sampling.guidance),
        temperature=_number(query, "temperature", Sampling.temperature),
        upsampler=upsampler,
        candidates=whole(
            "candidates", _number(query, "candidates", Sampling.candidates), 1, MAX_CANDIDATES
        ),
    )
    _ = drawing.sampling  # refuses what is absurd
    return drawing


def _check(name: str, value: str, known: list[str]) -> None:
    if value not in known:
        raise ValueError(f"Expected {name}={value!r:.80} in the link to be in {known}.")


def _number(query: Mapping[str, str], name: str, default: float) -> float:
    try:
        return float(query.get(name, default))
    except ValueError:
        raise ValueError(
            f"Expected {name}={query[name]!r:.80} in the link to be a number."
        ) from None
