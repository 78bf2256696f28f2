from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former.data.images import (
    DataError,
    UnreadableImageError,
    check_size,
    id_to_rgb,
    read_colors,
    read_image,
    read_label_map,
    read_panoptic_png,
    read_size,
    rgb_to_id,
)


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def test_channel_order(tmp_path: Path, picture: np.ndarray) -> None:
    Image.fromarray(picture).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png", "RGB"), picture)
    assert np.array_equal(read_image(tmp_path / "a.png", "BGR"), picture[:, :, ::-1])
    with pytest.raises(ValueError, match="RGB or BGR"):
        read_image(tmp_path / "a.png", "YUV")


def test_grey_and_transparent_images_become_rgb(tmp_path: Path, picture: np.ndarray) -> None:
    Image.fromarray(picture[:, :, 0]).save(tmp_path / "grey.png")
    Image.fromarray(picture).convert("RGBA").save(tmp_path / "alpha.png")
    assert np.array_equal(read_image(tmp_path / "grey.png"), picture[:, :, :1].repeat(3, axis=2))
    assert np.array_equal(read_image(tmp_path / "alpha.png"), picture)


def test_exif_orientation_is_applied(tmp_path: Path, picture: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show rotated by 90 degrees clockwise
    Image.fromarray(picture).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png"), np.rot90(picture, k=-1))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_greys_are_scaled(tmp_path: Path, suffix: str) -> None:
    grey = np.array([[0, 128, 129, 257], [3000, 32768, 65534, 65535]], dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / f"deep.{suffix}")
    read = read_image(tmp_path / f"deep.{suffix}")
    assert read.dtype == np.uint8
    assert read[..., 0].tolist() == [[0, 0, 1, 1], [12, 128, 255, 255]]
    assert (read == read[..., :1]).all()


@pytest.mark.parametrize("value", [-1, 65536, 0.5])
def test_deeper_greys_are_refused_rather_than_clipped(tmp_path: Path, value: float) -> None:
    Image.fromarray(np.full((4, 4), value, np.float32 if value == 0.5 else np.int32)).save(tmp_path / "deep.tif")
    with pytest.raises(DataError, match=r"deep\.tif: pixels of more than 16 bits"):
        read_image(tmp_path / "deep.tif")


@pytest.mark.parametrize("format", ["EPS", "PDF", "ICO", "TGA"])
def test_formats_that_are_more_than_pixels_are_not_opened(
    tmp_path: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args, **kwargs: pytest.fail("Ghostscript ran"))
    Image.fromarray(picture).save(tmp_path / "photo.jpg", format)
    for read in (read_image, read_label_map, read_panoptic_png):
        with pytest.raises(UnreadableImageError, match=r"photo\.jpg"):
            read(tmp_path / "photo.jpg")


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_bad_exif_names_the_file(tmp_path: Path, picture: np.ndarray, suffix: str) -> None:
    Image.fromarray(picture).save(tmp_path / f"a.{suffix}", exif=b"Exif\0\0garbage!!!!")
    with pytest.raises(UnreadableImageError, match=rf"a\.{suffix}: (its EXIF data cannot|cannot be read)"):
        read_image(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("keep", [0, 10, 600])
def test_truncated_image_names_the_file(tmp_path: Path, picture: np.ndarray, suffix: str, keep: int) -> None:
    path = tmp_path / f"cut{suffix}"
    Image.fromarray(picture).save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UnreadableImageError, match=r"cut\.(jpg|png)"):
        read_image(path)


def test_decompression_bomb_names_the_file(
    tmp_path: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(picture).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableImageError, match=r"bomb\.png.*exceeds limit"):
        read_image(tmp_path / "bomb.png")


def test_missing_image_is_not_a_corrupt_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        read_image(tmp_path / "none.png")


def test_panoptic_ids_survive_the_file(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 255], [256, 65536, 256**3 - 1]], dtype=np.int32)
    Image.fromarray(id_to_rgb(ids)).save(tmp_path / "ids.png")
    read = read_panoptic_png(tmp_path / "ids.png")
    assert read.dtype == np.int32
    assert np.array_equal(read, ids)


def test_rgb_code_is_that_of_coco() -> None:
    assert rgb_to_id(np.array([[[10, 20, 30]]], dtype=np.uint8)).item() == 10 + 20 * 256 + 30 * 256**2


def test_panoptic_png_of_another_mode(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "grey.png")
    with pytest.raises(DataError, match=r"grey\.png.*mode RGB.*has L"):
        read_panoptic_png(tmp_path / "grey.png")


@pytest.mark.parametrize(("dtype", "suffix"), [(np.uint8, "png"), (np.uint16, "png"), (np.uint16, "tif")])
def test_label_maps_of_8_and_16_bits(tmp_path: Path, dtype: type, suffix: str) -> None:
    labels = np.array([[0, 7], [200, np.iinfo(dtype).max]], dtype=dtype)
    Image.fromarray(labels).save(tmp_path / f"labels.{suffix}")
    assert np.array_equal(read_label_map(tmp_path / f"labels.{suffix}"), labels.astype(np.int32))


def test_label_map_with_a_palette_keeps_its_indices(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([9, 9, 9, 8, 8, 8, 7, 7, 7])
    image.putpixel((1, 0), 2)
    image.save(tmp_path / "palette.png")
    assert read_label_map(tmp_path / "palette.png").tolist() == [[0, 2]]


def test_coloured_label_map_is_refused(tmp_path: Path, picture: np.ndarray) -> None:
    Image.fromarray(picture).save(tmp_path / "colour.png")
    with pytest.raises(DataError, match=r"colour\.png.*mode RGB"):
        read_label_map(tmp_path / "colour.png")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_label_map_of_equal_channels(tmp_path: Path, mode: str) -> None:
    labels = np.array([[0, 1], [254, 255]], np.uint8)
    Image.fromarray(labels).convert(mode).save(tmp_path / "labels.png")
    assert np.array_equal(read_label_map(tmp_path / "labels.png"), labels)
    assert np.array_equal(read_colors(tmp_path / "labels.png"), labels.astype(int) * 65793)


def test_size_is_that_of_the_image_as_it_is_shown(tmp_path: Path, picture: np.ndarray) -> None:
    Image.fromarray(picture).save(tmp_path / "a.png")
    assert read_size(tmp_path / "a.png") == (20, 30)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(picture).save(tmp_path / "turned.jpg", exif=exif)
        assert read_size(tmp_path / "turned.jpg") == read_image(tmp_path / "turned.jpg").shape[:2]
    (tmp_path / "no.png").write_text("no image")
    with pytest.raises(UnreadableImageError, match=r"no\.png: cannot be read"):
        read_size(tmp_path / "no.png")


def test_sizes_are_named_on_both_sides() -> None:
    check_size("a.png", (2, 3), (2, 3), "b.jpg")
    with pytest.raises(DataError, match=r"a\.png is 3x2 pixels.*b\.jpg says 5x4"):
        check_size("a.png", (2, 3), (4, 5), "b.jpg")
