"""Releases on the Hugging Face Hub: pushed from an explicit list of files, checked when pulled.

What is pushed is never a folder of the user's: the checked release is written anew into an empty
one, so that whatever lies beside it, training state above all, cannot travel. What is pulled is
JSON and safetensors only, and is refused unless `dpwg.release.folder` would take it.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCardData

from dpwg.config import TextEncoderId, read_json
from dpwg.download import download
from dpwg.modules import checkpoint_root
from dpwg.privacy.accounting import epsilon_text
from dpwg.privacy.card import PrivacyCard
from dpwg.privacy.curves import explain
from dpwg.release.folder import Release, find_checkpoint, load_release, save_release
from dpwg.release.provenance import text_encoder_input

FOLDERS = ("", "tokenizer/")
PULLED = (
    "privacy_card.json",
    *(f"{folder}config.json" for folder in FOLDERS),
    *(f"{folder}model.safetensors.index.json" for folder in FOLDERS),
    *(f"{folder}model*.safetensors" for folder in FOLDERS),
)
"""Patterns of what is downloaded."""
RELEASED = re.compile(
    r"README\.md|privacy_card\.json|(tokenizer/)?"
    r"(config\.json|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json)"
)
"""Names of what is uploaded: nothing else is in a release."""
LICENSE = "apache-2.0"
CITATION = """\
```bibtex
@article{dpwavelet2026,
  title   = {Decomposing Private Image Generation via Coarse-to-Fine Wavelet Modeling},
  journal = {arXiv preprint arXiv:2602.23262},
  year    = {2026}
}
```
"""


def open_release(name_or_path: str | Path, *, revision: str | None = None) -> Release:
    """A release by its local name, from a folder, or from the hub as "user/name".

    Local ones come first, and a `revision` is the hub's. A name whose first part is a folder of
    local checkpoints is not asked of the hub. Raises FileNotFoundError where there is none.
    """
    if revision is None:
        try:
            folder = find_checkpoint(name_or_path)
        except FileNotFoundError:
            if not _could_be_on_the_hub(name_or_path):
                raise
        else:
            return load_release(folder)
    return pull(str(name_or_path), revision=revision)


def pull(name: str, *, revision: str | None = None) -> Release:
    """Download a release, JSON and safetensors only, and load it if all of it can be trusted.

    Refused are a false card, other weights or another tokenizer than the release names, a missing
    file, and anything but safetensors. Raises FileNotFoundError or ValueError.
    """
    at = f"{name!r}" if revision is None else f"{name!r} at {revision!r}"
    folder = download(
        name,
        PULLED,
        what="checkpoint",
        otherwise="set DPWG_CHECKPOINTS to a folder of checkpoints",
        revision=revision,
    )
    _check_whole(folder, at)
    return load_release(folder, called=at)


def push(
    release: Release,
    name: str,
    *,
    revision: str | None = None,
    private: bool = False,
    license: str | None = None,
    without_bound: bool = False,
    token: str | None = None,
) -> str:
    """Upload a release with its model card as "user/name"; returns the commit's address.

    The repository is made where it is missing; files of an earlier release in it are replaced. A
    release without a bound on epsilon is refused unless `without_bound` says that nothing in its
    records is sensitive.
    """
    if release.card.epsilon is None and not without_bound:
        raise ValueError(
            "Expected a release with a bound on epsilon, found none: its training records may be "
            "reproduced. Declare that nothing in them is sensitive to publish it all the same."
        )
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as empty:
        folder = Path(empty) / name.rpartition("/")[2]
        save_release(folder, release)
        page = model_card(release.card, name, release.text_encoder, license=license)
        (folder / "README.md").write_text(page)
        files = release_files(folder)
        api.create_repo(name, private=private, exist_ok=True)
        if private and not api.repo_info(name).private:
            raise ValueError(
                f"Expected {name} to be private, but it is there already and public; make it "
                "private first, or take another name."
            )
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        stale = {
            path
            for path in api.list_repo_files(name, revision=revision)
            if RELEASED.fullmatch(path) and path not in files
        }
        commit = api.create_commit(
            name,
            [
                *(CommitOperationAdd(path, file) for path, file in files.items()),
                *(CommitOperationDelete(path) for path in sorted(stale)),
            ],
            commit_message=f"{_promise(release.card)} with its model card",
            revision=revision,
        )
    return str(commit.commit_url)


def release_files(folder: Path) -> dict[str, Path]:
    """Every file below a release folder, by its name in the repository.

    Raises ValueError where there is anything that does not belong into a release, or a link.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or (path.is_file() and not RELEASED.fullmatch(name)):
            raise ValueError(f"Expected only release files in {folder}, found {name}; remove it.")
        if path.is_file():
            files[name] = path
    return files


def usual_license(card: PrivacyCard) -> str:
    """That of what is made with a release, unless its owner names another: "other" where a public
    input is not for commercial use.
    """
    limited = any("commercial" in item["licence"].lower() for item in card.public_inputs)
    return "other" if limited else LICENSE


def model_card(
    card: PrivacyCard, name: str, encoder: TextEncoderId, *, license: str | None = None
) -> str:
    """The README.md of a release on the hub, made from its privacy card."""
    named = re.fullmatch(r"[\w.-]{1,96}(/[\w.-]{1,96})?", card.dataset)
    front = ModelCardData(
        license=license or usual_license(card),
        library_name="dpwg",
        pipeline_tag="text-to-image",
        tags=["differential-privacy", "dp-sgd", "dp-wavelet", "wavelet", "autoregressive"],
        datasets=[card.dataset] if named else None,
    )
    reader = text_encoder_input(encoder)
    privacy = card.to_markdown().replace("\n## ", "\n### ").replace("# Privacy card", "## Privacy")
    return f"""---
{front.to_yaml()}
---

# {name.rpartition("/")[2]}

Text to image, coarse to fine, by [DP-Wavelet](https://arxiv.org/abs/2602.23262). {_promise(card)}.
{explain(card.ledger)}

```python
from dpwg.method.pipeline import DPWaveletPipeline

pipe = DPWaveletPipeline.from_pretrained({name!r})
pipe("a caption", seed=7).image
```

WaveletGPT predicts the codes of a coarse image from the caption; the tokenizer in `tokenizer/`
decodes them. A public upsampler, which is not in here, makes the image large; it sees only what
these release and, if it reads captions, the caption. Where a public reranker of captions and images
lies beside it, it chooses among candidates of the coarsest scale. What a public model that others
trained knew before, epsilon does not cover.

Loading recomputes epsilon from the ledger in `privacy_card.json`, compares the digests of
all weights, and refuses what does not agree. There is no pickle and no training state in here.

Captions are read by the frozen {reader["name"]} ({reader["source"]}), which is
not in here either. No other is taken than the one whose weights have this SHA-256, which is of the
weights alone, not of its configuration and tokenizer:
`{encoder.digest}`

{privacy}
## Cite

{CITATION}"""


def _promise(card: PrivacyCard) -> str:
    if card.epsilon is None:
        return "Trained without privacy (no bound on epsilon)"
    if card.kind == "public":
        return "Trained on public data only (epsilon = 0)"
    return f"Trained with epsilon = {epsilon_text(card.epsilon)} at delta = {card.delta:g}"


def _could_be_on_the_hub(name: str | Path) -> bool:
    """Two plain words with a slash, the first of which is no folder of local checkpoints."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        return False
    return not (checkpoint_root() / name.partition("/")[0]).is_dir() and not Path(name).exists()


def _check_whole(folder: Path, at: str) -> None:
    """Raise unless every file that a self-contained release needs has come."""
    for part in FOLDERS:
        names = ["config.json"] if part else ["config.json", "privacy_card.json"]
        index = folder / part / "model.safetensors.index.json"
        if index.is_file():
            shards = read_json(index).get("weight_map")
            names += sorted(set(map(str, shards.values()))) if isinstance(shards, dict) else []
        for name in names:
            if not (folder / part / name).is_file():
                raise FileNotFoundError(
                    f"Expected {part}{name} in {at}, found none; it is refused."
                )
        if not any((folder / part).glob("model*.safetensors")):
            raise FileNotFoundError(
                f"Expected {part}model.safetensors in {at}, found none; pickles (.bin, .pt, .ckpt) "
                "are never read."
            )
    config = read_json(folder / "config.json")
    if "base" in config:
        raise ValueError(f"Expected the whole model in {at}, found an adapter; push it with dpwg.")
    inside = config.get("tokenizer")
    if inside != "tokenizer":
        raise ValueError(f"Expected the tokenizer of {at} inside of it, found {inside!r}.")
