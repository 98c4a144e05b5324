"""Releases on the Hugging Face Hub: pushed from an explicit list of files, checked when pulled.

What is pushed is never a folder of the user's: the checked release is written anew into an empty
one, so that whatever lies beside it, training state above all, cannot travel. What is pulled is
JSON and safetensors only, and is refused unless `dpwg.release.folder` would take it.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelCardData

from dpwg.config import TextEncoderId, read_json
from dpwg.download import download
from dpwg.method.families import DEFAULT_FAMILY
from dpwg.modules import CONFIG, checkpoint_root
from dpwg.privacy.accounting import epsilon_text
from dpwg.privacy.card import PrivacyCard
from dpwg.privacy.curves import explain
from dpwg.release.folder import Release, find_checkpoint, load_release, save_release
from dpwg.release.provenance import text_encoder_input

_MODULE = ("config.json", "model*.safetensors", "model.safetensors.index.json")
PULLED = ("privacy_card.json", *_MODULE, *(f"tokenizer/{name}" for name in _MODULE))
"""What is downloaded, and what of a new folder is uploaded beside its page: nothing else."""
TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
LICENSE = "apache-2.0"


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
        otherwise="name a local one, or by DPWG_CHECKPOINTS the folder that holds it",
        revision=revision,
    )
    for needed in ("privacy_card.json", CONFIG, f"tokenizer/{CONFIG}"):
        if not (folder / needed).is_file():
            raise FileNotFoundError(f"Expected {needed} in {at}, found none; it is refused.")
    config = read_json(folder / CONFIG)
    if "base" in config or config.get("tokenizer") != "tokenizer":
        raise ValueError(
            f"Expected a whole model with its tokenizer in {at}, found an adapter or a tokenizer "
            "elsewhere; push it with dpwg."
        )
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
    records is sensitive. Raises ConnectionError where the hub cannot be reached, or refuses.
    """
    if release.card.epsilon is None and not without_bound:
        raise ValueError(
            "Expected a release with a bound on epsilon, found none: its training records may be "
            "reproduced. Declare that nothing in them is sensitive to publish it all the same."
        )
    if release.family != DEFAULT_FAMILY:
        raise ValueError(f"Expected a release of DP-Wavelet: {release.family} has no model card.")
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as empty:
        folder = Path(empty) / "release"
        save_release(folder, release)
        model_card(release.card, name, release.text_encoder, license=license).save(
            folder / "README.md"
        )
        try:
            api.create_repo(name, private=private, exist_ok=True)
            if private and not api.repo_info(name).private:
                raise ValueError(
                    f"Expected {name} to be private, but it is there already and public; make it "
                    "private first, or take another name."
                )
            if revision is not None:
                api.create_branch(name, branch=revision, exist_ok=True)
            commit = api.upload_folder(
                repo_id=name,
                folder_path=folder,
                allow_patterns=["README.md", *PULLED],
                delete_patterns=list(PULLED),
                commit_message=f"{promise(release.card)} with its model card",
                revision=revision,
            )
        except ValueError:
            raise
        except Exception as error:  # the hub's client has other ones in every version
            told = str(error).strip().partition("\n")[0]
            raise ConnectionError(
                f"{name} was not pushed ({type(error).__name__}: {told}); is there a network, and "
                "are you signed in with `hf auth login` to an account that may write there?"
            ) from error
    return str(commit.commit_url)


def usual_license(card: PrivacyCard) -> str:
    """That of what is made with a release, unless its owner names another: "other" where a public
    input is not for commercial use.
    """
    limited = any("commercial" in item["licence"].lower() for item in card.public_inputs)
    return "other" if limited else LICENSE


def model_card(
    card: PrivacyCard, name: str, encoder: TextEncoderId, *, license: str | None = None
) -> ModelCard:
    """The README.md of a release on the hub, made from its privacy card."""
    privacy = card.to_markdown().replace("\n## ", "\n### ").replace("# Privacy card", "## Privacy")
    return ModelCard.from_template(
        ModelCardData(
            license=license or usual_license(card),
            library_name="dpwg",
            pipeline_tag="text-to-image",
            tags=["differential-privacy", "dp-sgd", "dp-wavelet", "wavelet", "autoregressive"],
        ),
        template_path=str(TEMPLATE),
        name=name,
        title=name.rpartition("/")[2],
        promise=promise(card),
        meaning=explain(card.ledger),
        encoder=text_encoder_input(encoder),
        encoder_sha256=encoder.digest,
        privacy=privacy,
    )


def promise(card: PrivacyCard) -> str:
    """What a card promises, in a few words."""
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
