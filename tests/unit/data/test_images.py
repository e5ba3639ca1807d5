import io

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from incdet.data.images import image_size, read_image
from incdet.errors import DataError

WIDTH, HEIGHT = 60, 40


@pytest.fixture
def pixels():
    """Red on the left, blue on the right."""
    array = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    array[:, : WIDTH // 2, 0] = 250
    array[:, WIDTH // 2 :, 2] = 250
    return array


def encode(array, form, mode="RGB", **options):
    stream = io.BytesIO()
    Image.fromarray(array).convert(mode).save(stream, form, **options)
    return stream.getvalue()


def test_png_is_read_to_the_bit_as_rgb(tmp_path, pixels):
    path = tmp_path / "a.png"
    path.write_bytes(encode(pixels, "PNG"))
    image = read_image(path)
    assert image.dtype == torch.uint8
    assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1))
    assert image_size(path) == (WIDTH, HEIGHT)


@pytest.mark.parametrize(("form", "mode"), [("PNG", "L"), ("JPEG", "L"), ("PNG", "LA"), ("PNG", "RGBA"), ("PNG", "P")])
def test_grey_alpha_and_palette_become_three_channels(tmp_path, pixels, form, mode):
    path = tmp_path / f"a.{form.lower()}"
    path.write_bytes(encode(pixels, form, mode))
    image = read_image(path)
    assert image.shape == (3, HEIGHT, WIDTH)
    if mode.startswith("L"):
        assert torch.equal(image[0], image[1])
        assert torch.equal(image[0], image[2])


def test_exif_rotation_is_ignored(tmp_path, pixels):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees to view"
    path = tmp_path / "turned.jpg"
    path.write_bytes(encode(pixels, "JPEG", exif=exif))
    image = read_image(path)
    assert image.shape == (3, HEIGHT, WIDTH)
    assert image_size(path) == (WIDTH, HEIGHT)
    assert image[0, 20, 5] > 200
    assert image[0, 20, 55] < 50


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP"])
@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.9, 0.99])
def test_truncated_image_is_refused(tmp_path, form, part):
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    data = encode(noise, form)
    path = tmp_path / "cut.img"
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(DataError, match=r"cut\.img.*download the file again"):
        read_image(path)


def test_progressive_jpeg_cut_between_scans_is_refused(tmp_path, pixels):
    data = encode(pixels, "JPEG", progressive=True)
    path = tmp_path / "cut.jpg"
    path.write_bytes(data[: data.rfind(b"\xff\xda")])
    with pytest.raises(DataError, match="cut short"):
        read_image(path)


def test_end_marker_of_a_thumbnail_does_not_make_a_jpeg_whole(tmp_path, pixels):
    thumbnail = encode(cv2.resize(pixels, (8, 8)), "JPEG")
    block = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    data = encode(pixels, "JPEG")
    whole = data[:2] + block + data[2:]
    path = tmp_path / "thumb.jpg"
    path.write_bytes(whole)
    assert read_image(path).shape == (3, HEIGHT, WIDTH)
    path.write_bytes(whole[:-40])
    with pytest.raises(DataError, match="cut short"):
        read_image(path)


def test_bytes_after_the_image_do_no_harm(tmp_path, pixels):
    for form in ("JPEG", "PNG"):
        path = tmp_path / form
        path.write_bytes(encode(pixels, form) + b"\0 a note of some camera")
        assert read_image(path).shape == (3, HEIGHT, WIDTH)


@pytest.mark.parametrize("read", [read_image, image_size])
def test_no_image_and_no_file(tmp_path, read):
    path = tmp_path / "page.jpg"
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(DataError, match=r"page\.jpg"):
        read(path)
    with pytest.raises(DataError, match=r"nowhere\.jpg.*No such file"):
        read(tmp_path / "nowhere.jpg")
