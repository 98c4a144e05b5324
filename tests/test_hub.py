"""Releases over HTTP: pushed whole and alone, pulled only if everything in them agrees."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers_models import save_ldm
from hub_server import Files, Hub, serve
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from torch import Tensor

from dpwg.config import TextEncoderId
from dpwg.method.captions import TextEncoder
from dpwg.method.encoders import default_encoder
from dpwg.method.pipeline import DPWaveletPipeline
from dpwg.method.transformer import WaveletGPT
from dpwg.privacy.accounting import epsilon_text
from dpwg.release.folder import find_checkpoint, load_card, load_release, save_release
from dpwg.release.hub import model_card, push
from dpwg.training.run_state import STATE, save_state

HERE = Path(__file__).parent
SECRET = b"no one may ever see this gradient"
FILES = {
    "README.md",
    "config.json",
    "privacy_card.json",
    "model.safetensors",
    "tokenizer/config.json",
    "tokenizer/model.safetensors",
}


class Client:
    """Another process, for which HF_ENDPOINT is the small hub."""

    def __init__(self, root: Path, home: Path, address: str) -> None:
        environment = os.environ | {
            "HF_ENDPOINT": address,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(home),
            "HF_TOKEN": "hf_test",
            "HF_HUB_DISABLE_XET": "1",
            "DPWG_CHECKPOINTS": str(root),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(HERE.parent),
        }
        self.process = subprocess.Popen(
            [sys.executable, HERE / "hub_client.py"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __call__(self, call: str, *given: object, **options: object) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        line = json.dumps([call, [str(g) for g in given], options])
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def refusal(self, call: str, *given: object, **options: object) -> str:
        told = self(call, *given, **options)
        assert told.get("error") in {"ValueError", "FileNotFoundError", "CardMismatchError"}, told
        assert "\n" not in told["message"]
        return told["message"]


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serve(Hub()) as hub:
        yield hub


@pytest.fixture(scope="module")
def client(root, hub, tmp_path_factory) -> Iterator[Client]:
    client = Client(root, tmp_path_factory.mktemp("home"), hub.address)
    yield client
    client.process.kill()
    client.process.wait()


@pytest.fixture(autouse=True)
def _checkpoints(root, monkeypatch) -> None:
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(root))


@pytest.fixture(scope="module")
def pushed(client, hub) -> Files:
    """The files of a release that was pushed as me/eps-1."""
    assert "answer" in client("push", "faces/eps-1", "me/eps-1")
    return hub.files("me/eps-1")


def read_since(hub: Hub) -> set[str]:
    """The files that were asked for since `hub.requests` was cleared."""
    return {path.partition("/resolve/")[2].partition("/")[2] for _, path in hub.requests} - {""}


def test_what_is_pulled_draws_the_identical_image_and_is_json_and_safetensors_only(
    client, hub, pushed
) -> None:
    assert pushed.keys() == FILES
    bad = ("pytorch_model.bin", "model.pt", "evil.py", "a/model.ckpt", "x.safetensors")
    hub.commit("me/crowded", pushed | dict.fromkeys(bad, b"bad"))
    hub.requests.clear()
    assert client("draw", "me/crowded") == client("draw", "faces/eps-1")
    assert read_since(hub) == FILES - {"README.md"}


def test_the_model_card_states_what_the_privacy_card_promises(pushed) -> None:
    card = load_card(find_checkpoint("faces/eps-1"))
    page = ModelCard(pushed["README.md"].decode())
    data = page.data.to_dict()
    found = [data[name] for name in ("license", "pipeline_tag", "library_name")]
    assert found == ["apache-2.0", "text-to-image", "dpwg"]
    assert "differential-privacy" in data["tags"]
    assert "datasets" not in data  # a private set's name is no data set of the hub
    assert f"epsilon = {epsilon_text(card.epsilon)} at delta = {card.delta:g}" in page.text
    assert 'from_pretrained("me/eps-1")' in page.text
    for line in card.to_markdown().splitlines():
        assert line.lstrip("# ").replace("Privacy card", "Privacy") in page.text
    for name, promise in (("public", "epsilon = 0"), ("eps-inf", "no bound on epsilon")):
        card = load_card(find_checkpoint(f"faces/{name}"))
        page = " ".join(str(model_card(card, f"me/{name}", default_encoder().id)).split())
        assert promise in page
        assert "epsilon does not cover" in page


def test_a_release_takes_the_encoder_that_it_names_from_the_hub(
    client, hub, encoders, tmp_path
) -> None:
    folder = encoders / "tiny" / "clip"
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    bad = ("pytorch_model.bin", "evil.py", "model.fp16.safetensors")
    commit = hub.commit("me/clip", files | dict.fromkeys(bad, b"bad"))
    hub.commit("me/clip", files, branch="v2")
    named = TextEncoder.from_folder(folder, name="me/clip", revision=commit).id
    hub.requests.clear()
    told = client("encoder", "me/clip")
    assert told == {"answer": named.to_json()}, told
    assert not read_since(hub) & {*bad}
    assert client("encoder", "me/clip@v2")["answer"]["revision"] == hub.branches["me/clip"]["v2"]
    assert "'me/clip' at 'v3' on the hub, found none" in client.refusal("encoder", "me/clip@v3")
    release = load_release("faces/public")
    model = WaveletGPT.for_tokenizer(
        release.tokenizer, width=32, blocks=1, heads=2, code_hidden=32, text_width=16
    )

    def saved(**change: object) -> Path:
        encoder = TextEncoderId.from_json(named.to_json() | change)
        save_release(tmp_path / "reads", replace(release, model=model, text_encoder=encoder))
        return tmp_path / "reads"

    assert "answer" in client("push", saved(), "me/reads")
    assert f"revision {commit}" in hub.files("me/reads")["README.md"].decode()
    hub.commit("me/clip", {"config.json": b"{}"})  # the branch goes on, the commit stays
    assert client("draw", "me/reads") == client("draw", saved())
    for change, words in (
        ({"digest": "0" * 64}, "text encoder 000000000000..."),
        ({"name": "me/lost"}, "text encoder='me/lost' at"),
    ):
        assert words in client.refusal("draw", saved(**change))


def test_a_revision_is_another_release(client, hub, pushed) -> None:
    told = client("push", "faces/public", "me/eps-1", revision="v2")
    assert hub.branches["me/eps-1"]["v2"] in told.get("answer", ""), told
    assert "answer" in client("draw", "me/eps-1", revision="v2")
    assert hub.files("me/eps-1") == pushed
    assert b"epsilon = 0" in hub.files("me/eps-1", "v2")["README.md"]
    commit = hub.branches["me/eps-1"]["main"]
    assert client("draw", "me/eps-1", revision=commit) == client("draw", "faces/eps-1")


def edited(file: bytes, **changes: object) -> bytes:
    return json.dumps(json.loads(file) | changes).encode()


def without(files: Files, *names: str) -> Files:
    return {name: data for name, data in files.items() if name not in names}


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/a-pickle-was-read",)


def tampered(files: Files) -> Iterator[tuple[Files, str]]:
    """Pulled releases with something wrong, and words of the refusal."""
    config, card, weights = (
        files[name] for name in ("config.json", "privacy_card.json", "model.safetensors")
    )
    bomb = pickle.dumps(Bomb())
    alone = without(files, "model.safetensors")
    index = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}).encode()
    others = "not those that the release names"
    for change, words in (
        ({"privacy_card.json": edited(card, epsilon=0.5)}, "epsilon=0.5, its ledger"),
        ({"privacy_card.json": edited(card, comment="x")}, r"unknown \['comment'\]"),
        ({"privacy_card.json": b"[]"}, "names with values"),
        ({"model.safetensors": weights[:-1] + bytes([weights[-1] ^ 1])}, others),
        ({"model-2.safetensors": weights}, others),
        ({"model.safetensors": bomb}, others),
        (
            {
                "model.safetensors": bomb,
                "config.json": edited(config, weights_sha256=hashlib.sha256(bomb).hexdigest()),
            },
            "to be safetensors .* never read",
        ),
        ({"config.json": edited(config, text_encoder="0" * 64)}, "TextEncoderId has no"),
        ({"config.json": edited(config, model=None)}, "to be a release of dpwg, found"),
        ({"config.json": edited(config, tokenizer="../..")}, "with its tokenizer in"),
        ({"config.json": edited(config, base="../public")}, "found an adapter"),
        ({"config.json": b"{}"}, "with its tokenizer in"),
        ({"config.json": b"{"}, "Expected JSON"),
        (
            {"tokenizer/config.json": edited(files["tokenizer/config.json"], heads=1)},
            "Expected the tokenizer",
        ),
    ):
        yield files | change, words
    for name in FILES - {"README.md"}:
        yield without(files, name), "found none"
    yield alone | {"pytorch_model.bin": bomb}, "Expected safetensors files in .*, found none"
    yield alone | {"model.safetensors.index.json": index}, "Expected safetensors files"
    for sizes in ({"blocks": 10**9}, {"width": 10**7}, {"positions": 10**6}, {"heads": 0}):
        model = json.loads(config)["model"] | sizes  # would fill memory
        yield files | {"config.json": edited(config, model=model)}, "its config|heads=0"


def test_whatever_is_wrong_with_a_pulled_release_is_refused_in_words(client, hub, pushed) -> None:
    for number, (files, words) in enumerate(tampered(pushed)):
        hub.commit(f"me/bad-{number}", files)
        message = client.refusal("draw", f"me/bad-{number}")
        assert re.search(words, message), (words, message)
    assert number > 20
    assert not Path("/tmp/a-pickle-was-read").exists()


def test_what_is_nowhere_is_said_to_be_missing_and_a_misspelt_name_not_asked_for(
    client, hub, pushed
) -> None:
    assert "'me/none' on the hub, found none" in client.refusal("draw", "me/none")
    told = client.refusal("draw", "me/eps-1", revision="v9")
    assert "'me/eps-1' at 'v9' on the hub, found none" in told
    hub.requests.clear()
    for name in ("faces/eps-11", "faces", "/no/such", "../x/y", "a/b/c"):
        assert "to be a release folder or one of ['faces/public'" in client.refusal("draw", name)
    assert hub.requests == []


def test_an_upsampler_comes_from_the_hub_without_anything_but_what_is_loaded(
    client, hub, tmp_path
) -> None:
    folder = save_ldm(tmp_path / "ldm")
    loaded = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}
    beside = ("unet/diffusion_pytorch_model.bin", "unet/x.py", "x.safetensors", "x.ckpt")
    hub.commit("me/ldm", loaded | dict.fromkeys(beside, pickle.dumps("not asked for")))
    hub.requests.clear()
    drawn = client("draw", "faces/eps-1", upsampler="ldm:me/ldm,steps=2")
    assert drawn == client("draw", "faces/eps-1", upsampler=f"ldm:{folder},steps=2")
    assert "answer" in drawn
    assert read_since(hub) == loaded.keys()
    told = client.refusal("draw", "faces/eps-1", upsampler="ldm:me/none")
    assert "upsampler='me/none' at 'main' on the hub, found none" in told


def test_without_a_network_one_sentence_says_so(root, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="here or on the hub, which cannot be reached"):
        DPWaveletPipeline.from_pretrained("some/one")
    with pytest.raises(ConnectionError, match="is there a network") as caught:
        push(load_release("faces/eps-1"), "some/one")
    assert "\n" not in str(caught.value)
    lost = Client(root, tmp_path, "http://127.0.0.1:9")
    try:
        told = lost("push", "faces/eps-1", "me/lost")
    finally:
        lost.process.kill()
        lost.process.wait()
    assert told["error"] == "ConnectionError"
    assert "\n" not in told["message"]


def secret() -> Tensor:
    return torch.frombuffer(bytearray(SECRET), dtype=torch.uint8)


def state_in(folder: Path) -> Path:
    """Training state as a run leaves it, in a folder; returns its file."""
    save_state(folder, {"momentum": secret()}, {"loss": SECRET.decode()})
    return folder / STATE


def a_link_to_a_run(folder: Path) -> None:
    (folder / "README.md").symlink_to(state_in(folder.parent / "run"))
    (folder / "more").symlink_to(folder.parent / "run")


def linked_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(state_in(folder.parent / "run"))


def words_in_the_files(folder: Path) -> None:
    """State hidden in what a release's own files would carry along."""
    for name in ("config.json", "model.safetensors.index.json", "README.md", ".gitattributes"):
        path = folder / name
        values = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(values | {"losses": SECRET.decode()}))


def metadata_of_the_weights(folder: Path) -> None:
    path, config = folder / "model.safetensors", folder / "config.json"
    tensors = load_release(folder).model.state_dict()
    save_file(tensors, path, metadata={"format": "pt", "losses": SECRET.decode()})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    config.write_bytes(edited(config.read_bytes(), weights_sha256=digest))


def a_run_instead(folder: Path) -> None:
    shutil.rmtree(folder)
    state_in(folder)


def tensors_as(name: str) -> Callable[[Path], None]:
    return lambda folder: save_file({"momentum": secret()}, folder / name)


PUSHED, REFUSED = True, False
SMUGGLED = {
    "inside": (lambda at: state_in(at / "run"), PUSHED),
    "in-the-tokenizer": (lambda at: state_in(at / "tokenizer" / "run"), PUSHED),
    "linked": (a_link_to_a_run, PUSHED),
    "words": (words_in_the_files, PUSHED),
    "metadata": (metadata_of_the_weights, PUSHED),
    "a-shard": (tensors_as("model-00002-of-00002.safetensors"), REFUSED),
    "optimizer": (tensors_as("optimizer.safetensors"), REFUSED),
    "as-weights": (tensors_as("model.safetensors"), REFUSED),
    "linked-weights": (linked_weights, REFUSED),
    "instead": (a_run_instead, REFUSED),
}


@pytest.mark.parametrize("way", SMUGGLED)
def test_private_training_state_never_travels(client, hub, pushed, tmp_path, way) -> None:
    (smuggle, outcome), folder = SMUGGLED[way], tmp_path / "mine"
    save_release(folder, load_release("faces/eps-1"))
    smuggle(folder)
    assert any(SECRET in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    told = client("push", folder, f"me/{way}")
    assert ("answer" in told) == outcome, told
    kept = (data for files in hub.commits.values() for data in files.values())
    assert not any(SECRET in data for data in (*hub.blobs.values(), *kept))
    if outcome == PUSHED:
        files = hub.files(f"me/{way}")
        assert files == pushed | {"README.md": files["README.md"]}
    else:
        assert f"me/{way}" not in hub.branches


def test_files_of_an_earlier_release_go_and_others_stay(client, hub, pushed) -> None:
    old = dict.fromkeys(
        ("model-00001-of-00002.safetensors", "tokenizer/model.safetensors.index.json"), b"old"
    )
    hub.commit("me/old", old | {"sheet.png": b"picture", ".gitattributes": b"lfs"})
    assert "answer" in client("push", "faces/eps-1", "me/old")
    assert hub.files("me/old").keys() == FILES | {"sheet.png", ".gitattributes"}


def test_a_release_without_a_bound_is_pushed_only_when_declared_harmless(client, hub) -> None:
    client.refusal("push", "faces/eps-inf", "me/free")
    assert "me/free" not in hub.branches
    assert "answer" in client("push", "faces/eps-inf", "me/free", without_bound=True)
    assert b"no bound on epsilon" in hub.files("me/free")["README.md"]


def test_push_on_the_command_line(client, hub, pushed) -> None:
    arguments = ("push", "faces/eps-1", "me/told", "--license", "cc0-1.0", "--json")
    status, told = client("command", *arguments)["answer"]
    assert status == 0, told
    commit = json.loads(told[told.index("{") :])["commit"]
    assert commit.endswith(hub.branches["me/told"]["main"])
    assert ModelCard(hub.files("me/told")["README.md"].decode()).data.license == "cc0-1.0"
    status, told = client("command", "push", "faces/none", "me/none")["answer"]
    assert status == 2
    assert "faces/none" in told
