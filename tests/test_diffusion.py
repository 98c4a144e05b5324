"""Upsampling by diffusion: tiny real pipelines from the folders that diffusers saves."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import torch
from diffusers_models import save_ldm, save_sd_x4
from huggingface_hub import constants
from PIL import Image
from torch import Tensor

from dpwg.cli import main
from dpwg.method.pipeline import DPWaveletPipeline
from dpwg.release.export import Export, export_dataset
from dpwg.ui.drawing import from_query, generate
from dpwg.ui.generate import describe_upsampler
from dpwg.ui.pipelines import load_pipeline
from dpwg.upsampling.diffusion import DiffusionUpsampler
from dpwg.upsampling.diffusion_models import (
    KINDS,
    VARIABLE,
    DiffusionSettings,
    offered,
    public_name,
)
from dpwg.upsampling.upsamplers import (
    UPSAMPLERS,
    PromptedUpsampler,
    all_upsamplers,
    chosen_upsampler,
    get_upsampler,
)

CAPTIONS = ("a person", "long red hair", "blue")
SEEDS = (5, 6, 7)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder: Path = tmp_path_factory.mktemp("models")
    return {"sd-x4": save_sd_x4(folder / "sd"), "ldm": save_ldm(folder / "ldm")}


@pytest.fixture(autouse=True)
def _no_other_models(root, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(root))
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture(scope="module", params=KINDS)
def upsample(request, models) -> DiffusionUpsampler:
    return DiffusionUpsampler(
        DiffusionSettings(kind=request.param, source=str(models[request.param]), steps=3)
    )


@pytest.fixture(scope="module")
def coarse() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def drawn(upsample: DiffusionUpsampler, image_BCHW: Tensor, captions=("a",), seeds=(1,)) -> Tensor:
    *_, large = upsample.draw(image_BCHW, captions=captions, seeds=seeds)
    assert isinstance(large, Tensor)
    return large


def test_a_batch_is_its_images_alone_and_every_step_is_told(upsample, coarse) -> None:
    *steps, large = upsample.draw(coarse, captions=CAPTIONS, seeds=SEEDS)
    assert (large.shape, large.dtype) == ((3, 3, 128, 128), torch.float32)
    assert 0 <= large.min() < large.max() <= 1
    assert steps == [(done, 9) for done in range(1, 10)]
    torch.manual_seed(99)  # no global generator decides anything, or is used
    before = torch.get_rng_state()
    for i in (2, 0):
        one = slice(i, i + 1)
        assert torch.equal(drawn(upsample, coarse[one], CAPTIONS[one], SEEDS[one]), large[one])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("guidance", [9.0, 1.0])
def test_the_pictures_are_those_of_the_pipelines_own_loop(upsample, coarse, guidance) -> None:
    settings = dataclasses.replace(upsample.settings, guidance=guidance)
    own, pipe = DiffusionUpsampler(settings, device="cpu"), upsample._pipe
    asked = {"num_inference_steps": 3, "output_type": "pt"}
    generator = torch.Generator().manual_seed(5)
    if settings.kind == "ldm":
        theirs = pipe(coarse[:1] * 2 - 1, generator=generator, **asked).images
    else:
        asked |= {"guidance_scale": guidance, "noise_level": settings.noise_level}
        theirs = pipe(["long red hair"], coarse[:1], generator=generator, **asked).images
    assert torch.equal(drawn(own, coarse[:1], ["long red hair"], [5]), theirs)


def test_caption_seed_and_image_decide_and_a_drawing_that_is_left_nothing(upsample, coarse) -> None:
    left = upsample.draw(coarse, captions=CAPTIONS, seeds=SEEDS)
    assert [next(left), next(left)] == [(1, 9), (2, 9)]  # and waits
    usual = drawn(upsample, coarse[:1], ["a person"], [5])
    left.close()
    assert torch.equal(drawn(upsample, coarse[:1], ["a person"], [5]), usual)
    assert not torch.equal(drawn(upsample, coarse[:1], ["a person"], [6]), usual)
    assert not torch.equal(drawn(upsample, coarse[1:2], ["a person"], [5]), usual)
    follows = upsample.settings.kind == "sd-x4"
    other = drawn(upsample, coarse[:1], ["blue hair \ud800"], [5])
    assert torch.equal(other, usual) != follows
    assert torch.equal(upsample(coarse[:1]), drawn(upsample, coarse[:1], [""], [0]))


def test_half_precision_and_slices_draw_nearly_the_same(upsample, coarse) -> None:
    usual = drawn(upsample, coarse[:1, :, :8, :8])
    for options in ({"dtype": torch.bfloat16}, {"sliced": True}):
        other = DiffusionUpsampler(upsample.settings, device="cpu", **options)
        found = drawn(other, coarse[:1, :, :8, :8])
        assert found.dtype == torch.float32
        assert (found - usual).abs().mean() < 0.03
        if upsample.settings.kind == "sd-x4":
            assert other._pipe.vae.dtype == torch.float32
            assert other._pipe.vae.use_tiling == ("sliced" in options)


def test_bad_input_is_refused_in_words(upsample, coarse) -> None:
    for images, captions, words in (
        (coarse, CAPTIONS[:2], "found 2 and 3"),
        (coarse[..., 1:], CAPTIONS, r"\(32, 31\)"),
        (coarse + 1, CAPTIONS, "clamp them"),
    ):
        with pytest.raises(ValueError, match=words):
            drawn(upsample, images, captions, SEEDS)


def test_the_pipeline_gives_captions_seeds_and_steps(root, models, coarse) -> None:
    pipe = DPWaveletPipeline.from_pretrained(root / "faces" / "eps-1")
    name = f"sd-x4:{models['sd-x4']},steps=2"
    *stages, result = pipe.stages(CAPTIONS, seed=SEEDS, upsampler=name)
    assert result.image.shape == (3, 128, 128, 3)
    assert len(result.bands) == 1 + 4
    steps = [(stage.step, stage.steps) for stage in stages if not stage.private]
    assert steps == [(done, 6) for done in range(1, 7)]
    shown = torch.from_numpy(result.coarse).permute(0, 3, 1, 2).float() / 255
    large = drawn(get_upsampler(name), shown, CAPTIONS, SEEDS)
    assert np.array_equal(result.image, (large * 255).round().byte().permute(0, 2, 3, 1).numpy())
    alone = pipe(CAPTIONS[1], seed=SEEDS[1], upsampler=name)
    assert np.array_equal(alone.image[0], result.image[1])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ldm:a/b", {"kind": "ldm", "source": "a/b", "steps": 100}),
        ("sd-x4:/x, y/z", {"kind": "sd-x4", "source": "/x, y/z", "steps": 75}),
        (
            "sd-x4:a/b,steps=5,revision=v1,noise_level=0,guidance=1.5",
            {"kind": "sd-x4", "source": "a/b", "steps": 5, "revision": "v1", "noise_level": 0,
             "guidance": 1.5},
        ),
    ],
)  # fmt: skip
def test_a_name_says_which_model_and_how(name: str, settings: dict[str, object]) -> None:
    read = DiffusionSettings.parse(name)
    assert read == DiffusionSettings(**settings)
    assert (read.name, get_upsampler(name).name) == (name, name)
    assert isinstance(get_upsampler(name), PromptedUpsampler)
    assert not isinstance(get_upsampler("wavelet-sharp"), PromptedUpsampler)


@pytest.mark.parametrize(
    "name",
    ["ldm:", "x4:a/b", "ldm:a/b,noise_level=3", "sd-x4:a/b,step=3", "sd-x4:a/b,steps=many",
     "sd-x4:a/b,steps=-1", "sd-x4:a/b,guidance=nan", "sd-x4:a/b,revision="],
)  # fmt: skip
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="Expected"):
        get_upsampler(name)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def pickled(part: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (weights,) = (folder / part).glob("*.safetensors")
        name = "pytorch_model.bin" if weights.stem == "model" else f"{weights.stem}.bin"
        torch.save({}, weights.with_name(name))
        weights.unlink()

    return change


def pickled_shard(folder: Path) -> None:
    torch.save({}, folder / "unet" / "evil.bin")
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "evil.bin"}}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *((pickled(part), f"no {part}/.*pickles") for part in KINDS["sd-x4"].weights),
        (pickled_shard, "weights 'evil.bin' in unet; pickles"),
        (lambda at: edit(at / "model_index.json", unet=["evil", "UNet"]), r"unet of \['evil'"),
        (lambda at: edit(at / "model_index.json", vae=["diffusers", "VQModel"]), "vae of"),
        (lambda at: edit(at / "model_index.json", _class_name="Other"), "found a Other"),
        (lambda at: (at / "model_index.json").write_text("[["), "no readable model_index.json"),
        *(
            (
                lambda at, part=part: edit(at / part / "config.json", transformers_weights="a.bin"),
                f"'transformers_weights' in {part}, which is to be removed; pickles",
            )
            for part in KINDS["sd-x4"].weights
        ),
        (lambda at: torch.save({}, at / "text_encoder" / "adapter_model.bin"), "adapter_model.bin"),
        (
            lambda at: (at / "unet" / "config.json").write_text("["),
            "to load as StableDiffusion.*OSError",
        ),
        (lambda at: (at / "vae" / "config.json").unlink(), "to load as StableDiffusion.*OSError"),
        (lambda at: edit(at / "model_index.json", max_noise_level=9), "noise_level=20 above its 9"),
    ],
)
def test_a_folder_that_cannot_be_trusted_is_not_loaded(models, tmp_path, change, words) -> None:
    folder = shutil.copytree(models["sd-x4"], tmp_path / "sd")
    change(folder)
    with pytest.raises(ValueError, match=words) as caught:
        get_upsampler(f"sd-x4:{folder}")(torch.zeros(1, 3, 8, 8))
    assert "'wavelet-sharp'" in str(caught.value)


def test_what_is_missing_names_an_embedded_upsampler_and_no_folder(models, tmp_path) -> None:
    folder = shutil.copytree(models["ldm"], tmp_path / "ldm")
    (folder / "vqvae" / "config.json").unlink()
    for source, words in (
        (str(folder), "'ldm:ldm' to load as LDM"),
        ("some/one", "on the hub, which cannot be reached"),
        ("/no/folder", "to be a folder or, as user/name, a model on the hub"),
    ):
        with pytest.raises((FileNotFoundError, ValueError), match=words) as caught:
            get_upsampler(f"ldm:{source}")(torch.zeros(1, 3, 8, 8))
        assert "'wavelet-sharp'" in str(caught.value)
        assert str(tmp_path) not in str(caught.value)


def cached(folder: Path, name: str) -> Path:
    """Put a model into the hub's local cache, as a download leaves it."""
    at = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    (at / "refs").mkdir(parents=True)
    (at / "refs" / "main").write_text("c0ffee")
    return Path(shutil.copytree(folder, at / "snapshots" / "c0ffee"))


def test_models_in_the_local_cache_are_offered_and_drawn_with(models, coarse) -> None:
    assert offered() == []
    cached(models["sd-x4"], "some/x4")
    (cached(models["ldm"], "some/half") / "unet" / "config.json").unlink()
    broken = cached(models["ldm"], "some/broken")
    (broken / "vqvae" / "diffusion_pytorch_model.safetensors").unlink()
    assert offered() == ["ldm:some/half", "sd-x4:some/x4"]
    from_cache = get_upsampler("sd-x4:some/x4,steps=2")(coarse[:1])
    local = get_upsampler(f"sd-x4:{models['sd-x4']},steps=2")(coarse[:1])
    assert torch.equal(from_cache, local)


def test_models_named_in_the_environment_are_offered_where_they_can_be_had(
    models, tmp_path, monkeypatch
) -> None:
    here, other = f"ldm:{models['ldm']},steps=2", shutil.copytree(models["ldm"], tmp_path / "ldm")
    wrong, far = f"sd-x4:{models['ldm']}", "sd-x4:some/one,steps=4"
    monkeypatch.setenv(VARIABLE, f" {here}; {wrong};ldm:{tmp_path};{far};")
    assert offered() == [here]
    assert chosen_upsampler("ldm:ldm,steps=2") == here
    assert str(models["ldm"]) not in str(all_upsamplers())
    assert describe_upsampler("ldm:ldm,steps=2").endswith(": ldm, 2 steps.")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert offered() == [here, far]
    monkeypatch.setenv(VARIABLE, f"ldm:{models['ldm']};ldm:{other};ldm:{other}")
    names = [name for name, _ in UPSAMPLERS]
    assert list(all_upsamplers()) == [*names, "ldm:ldm", "ldm:ldm+"]  # two folders of one name
    assert chosen_upsampler("ldm:ldm") == f"ldm:{models['ldm']}"
    assert chosen_upsampler("ldm:ldm+") == f"ldm:{other}"
    with pytest.raises(ValueError, match=r"Expected upsampler='ldm:/"):
        chosen_upsampler(f"ldm:{other}")
    monkeypatch.setenv(VARIABLE, "magic")
    with pytest.raises(ValueError, match="found 'magic'"):
        offered()


INPUTS = {
    "checkpoint": "faces/eps-1", "caption": "a person", "seed": 7, "count": 2, "guidance": 2.0,
    "temperature": 1.0,
}  # fmt: skip


def test_the_generate_tab_tells_the_steps_and_takes_only_what_is_offered(
    models, monkeypatch
) -> None:
    path, name = f"sd-x4:{models['sd-x4']},steps=3", f"sd-x4:{models['sd-x4'].name},steps=3"
    link = {"caption": "a", "checkpoint": "faces/eps-1", "upsampler": name}
    with pytest.raises(ValueError, match="upsampler="):
        from_query(link)
    monkeypatch.setenv(VARIABLE, path)
    with pytest.raises(gr.Error, match="Expected upsampler="):
        list(generate(**INPUTS, upsampler=path))
    drawing = from_query(link)
    assert drawing is not None
    assert drawing.upsampler == name
    frames = list(generate(**INPUTS, upsampler=name))
    assert all(str(models["sd-x4"]) not in f"{frame.status} {frame.authors}" for frame in frames)
    steps = [frame.status for frame in frames if "upsampling step" in frame.status]
    assert steps
    assert all(re.search(r" [1-6] of 6 …$", status) for status in steps)


def test_the_command_line_draws_with_it_and_an_export_publishes_no_path(models, tmp_path) -> None:
    name = f"ldm:{models['ldm']},steps=2"
    words = ["sample", "--checkpoint", "faces/eps-1", "--seed", "3", "--caption", "a", "--n", "2"]
    assert main([*words, "--upsampler", name, "--out", str(tmp_path / "a")]) == 0
    pipe = load_pipeline("faces/eps-1")
    image = pipe(["a", "a"], seed=3, upsampler=name).image[1]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a" / "image-1.png")), image)
    assert main([*words, "--upsampler", "ldm:no,steps=x", "--out", str(tmp_path / "b")]) == 2
    export = Export(captions=("a",), captions_from="Written here", upsampler=name)
    assert list(export_dataset(pipe, export, tmp_path / "set", checkpoint="faces/eps-1")) == [1]
    for file in ("export.json", "README.md"):
        written = (tmp_path / "set" / file).read_text()
        assert "ldm:ldm,steps=2" in written
        assert str(models["ldm"].parent) not in written
    assert "ldm:ldm,steps=2 was trained by others" in written
    for same in ("bicubic", "sd-x4:a/b,revision=v1"):
        assert public_name(same) == same
