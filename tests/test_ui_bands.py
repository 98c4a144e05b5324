"""The Bands tab's handlers, and uploads of every bad kind."""

import zlib

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from dpwg.measure.spectra import decompose, energy_shares
from dpwg.ui.bands import (
    WAVELETS,
    Subject,
    from_generated,
    from_upload,
    pyramid,
    read_upload,
    rebuild,
    spectra,
)
from dpwg.ui.limits import MAX_UPLOAD_MEGABYTES, MAX_UPLOAD_PIXELS
from dpwg.ui.own import Shown


@pytest.fixture(autouse=True)
def _checkpoints(root, monkeypatch):
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(root))


@pytest.fixture
def subject() -> Subject:
    image = np.random.default_rng(1).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    return Subject("a title", image, image[:32, :32], image, real=True)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.full((300, 200, 3), (250, 40, 90), np.uint8)).save(path)
    return path


def test_the_pyramid_is_that_of_spectra(subject):
    about, _, table = pyramid(subject, "db2", 3)
    shares = energy_shares(decompose(subject.image / 255, wavelet="db2", levels=3))
    assert [row[0] for row in table] == list(shares)
    assert [row[1] for row in table] == ["16×16"] * 4 + ["32×32"] * 3 + ["64×64"] * 3
    assert [row[2] for row in table] == [f"{share:.3%}" for share in shares.values()]
    assert table[-1][3] == "100.000%"
    assert "**a title**, 128×128 pixels" in about
    assert "is orthogonal" in about
    assert "not orthogonal" in pyramid(subject, "bior2.2", 2)[0]
    assert "wrap around the borders from level 2 on" in pyramid(subject, "dmey", 3)[0]


def told(subject: Subject, wavelet: str, levels: int, count: int) -> tuple[str, str]:
    """How many coefficients are kept, and how near the picture comes."""
    return tuple(rebuild(subject, wavelet, levels, count)[1].split(": ")[1].split(", "))


def test_all_bands_give_the_image_and_the_first_its_means(subject):
    assert told(subject, "haar", 4, 13) == ("100.00% of the coefficients", "the whole image.")
    np.testing.assert_array_equal(rebuild(subject, "haar", 4, 99)[0][::4, ::4], subject.image)
    coarse, words = rebuild(subject, "haar", 2, 1)
    means = subject.image.reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(coarse[::16, ::16], means, atol=0.51)
    assert words.startswith("**1 of 7 bands**, up to LL2: 6.25% of the coefficients, PSNR ")


def test_every_discrete_wavelet_works(subject):
    assert len(WAVELETS) > 100
    for wavelet in WAVELETS:
        near = "PSNR 54.2 dB." if wavelet == "dmey" else "the whole image."  # cut-off filters
        assert told(subject, wavelet, 2, 7)[1] == near, wavelet


def test_spectra_hold_what_there_is(subject):
    def names(figure):
        return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]

    three = ["real, 128×128", "coarse, 32×32", "upsampled, 128×128"]
    assert names(spectra(subject)) == three
    assert names(spectra(subject._replace(real=False))) == three[1:]


@pytest.mark.parametrize(
    "ask",
    [
        lambda _: pyramid(None, "haar", 1),
        lambda _: rebuild(None, "haar", 1, 1),
        lambda _: spectra(None),
        lambda _: from_upload(None),
        lambda subject: pyramid(subject, "morl", 1),
        lambda subject: pyramid(subject, "haar", 0),
    ],
)
def test_what_cannot_be_shown_is_told_in_a_sentence(subject, ask):
    with pytest.raises(gr.Error) as told:
        ask(subject)
    assert told.value.message.endswith(".")


def test_a_black_picture_has_no_energy_to_share(subject):
    with pytest.raises(gr.Error, match="black image"):
        pyramid(subject._replace(image=np.zeros_like(subject.image)), "haar", 2)


def test_the_generated_image_is_taken_or_an_example_is_drawn():
    image = np.zeros((2, 128, 128, 3), np.uint8)
    taken = from_generated(Shown("faces/public", image[:, :32, :32], image, "mine"), "faces/eps-1")
    assert (taken.title, taken.real, taken.image.shape) == ("mine", False, (128, 128, 3))
    example = from_generated(None, "faces/eps-1")
    assert (example.image.shape, example.coarse.shape) == ((128, 128, 3), (32, 32, 3))
    assert example.title == "An example of faces/eps-1, seed 0"


def test_an_upload_becomes_what_the_model_sees(picture):
    subject = from_upload(str(picture))
    assert subject.image.shape == subject.upsampled.shape == (128, 128, 3)
    assert subject.coarse.shape == (32, 32, 3)
    assert (subject.image == (250, 40, 90)).all()
    assert (subject.coarse == (250, 40, 90)).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK"])
def test_pictures_of_every_mode_are_read(tmp_path, mode):
    grey = Image.fromarray(np.tile(np.arange(0, 256, 2, dtype=np.uint8), (128, 1)))
    made = (
        Image.fromarray(np.asarray(grey, np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    )
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    made.save(path)
    image = read_upload(path, 128)
    assert (image.shape, image.dtype) == ((128, 128, 3), np.uint8)
    assert image[:, -8:].mean() > image[:, :8].mean() + 150


def test_transparent_is_white_and_a_turned_photo_upright(tmp_path):
    Image.new("RGBA", (40, 40), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert (read_upload(tmp_path / "a.png", 32) == 255).all()
    photo = Image.new("RGB", (64, 64), "white")
    photo.paste("black", (0, 0, 64, 32))
    exif = photo.getexif()
    exif[274] = 3  # upside down
    photo.save(tmp_path / "b.jpg", exif=exif)
    image = read_upload(tmp_path / "b.jpg", 32)
    assert image[:8].mean() > 200 > 50 > image[-8:].mean()


def test_bad_uploads_are_refused_in_words(tmp_path, picture):
    whole = picture.read_bytes()
    head = b"IHDR" + (30_000).to_bytes(4, "big") * 2 + whole[24:29]
    png = whole[:12] + head + zlib.crc32(head).to_bytes(4, "big") + whole[33:]
    bad = {
        "another kind of file": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "found another kind": b"",
        "damaged or cut off": whole[: len(whole) - 30],
        "million pixels": png,
        f"at most {MAX_UPLOAD_MEGABYTES} MB": whole + bytes(MAX_UPLOAD_MEGABYTES * 1_000_000),
    }
    for message, content in bad.items():
        path = tmp_path / "bad.png"
        path.write_bytes(content)
        with pytest.raises(gr.Error, match=message) as error:
            from_upload(str(path))
        assert str(tmp_path) not in str(error.value)
    assert MAX_UPLOAD_PIXELS < 30_000**2
