import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former import register_semantic
from mask2former.config import get_cfg
from mask2former.d2.config import CfgNode
from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.data.images import DataError, UnreadableImageError, read_label_map
from mask2former.data.mappers import build_mapper
from tests.helpers.catalog import registered_below
from tests.helpers.layouts import SIZE, save, save_image


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """Two images, one in a subfolder, and their label maps; empty catalogs."""
    for name in ("a", "deeper/b"):
        save_image(tmp_path / "images" / f"{name}.JPG")
        labels = np.zeros(SIZE, dtype=np.uint8)
        labels[0], labels[1] = 255, 1
        save(tmp_path / "labels" / f"{name}.png", labels)
    with registered_below(tmp_path):
        yield tmp_path


def register(root: Path, **options) -> None:
    register_semantic(
        "own", **{"image_root": root / "images", "label_root": root / "labels", "classes": ["sky", "sea"], **options}
    )


def mapper_cfg() -> CfgNode:
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = ("own",)
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    cfg.INPUT.CROP.ENABLED = False
    cfg.INPUT.MIN_SIZE_TRAIN = (SIZE[0],)
    return cfg


def test_images_and_label_maps_are_paired_by_name(root: Path) -> None:
    register(root, note="x")
    assert DatasetCatalog.get("own") == [
        {
            "file_name": str(root / "images" / f"{name}.JPG"),
            "image_id": name,
            "sem_seg_file_name": str(root / "labels" / f"{name}.png"),
        }
        for name in ("a", "deeper/b")
    ]
    metadata = MetadataCatalog.get("own")
    assert metadata.stuff_classes == ["sky", "sea"]
    assert len(metadata.stuff_colors) == 2
    assert (metadata.evaluator_type, metadata.ignore_label, metadata.note) == ("sem_seg", 255, "x")
    assert (metadata.image_root, metadata.sem_seg_root) == (str(root / "images"), str(root / "labels"))


def test_it_trains(root: Path) -> None:
    register(root)
    mapped = build_mapper(mapper_cfg(), True)(DatasetCatalog.get("own")[0])
    assert mapped["instances"].gt_classes.tolist() == [0, 1]
    assert mapped["instances"].gt_masks.tensor.sum(dim=(1, 2)).tolist() == [8 * 4, 8]


def test_suffixes_and_one_folder_for_all(root: Path) -> None:
    save_image(root / "mixed" / "x_photo.png")
    save(root / "mixed" / "x_mask.png", np.zeros(SIZE, dtype=np.uint8))
    (root / "mixed" / ".x_photo.png").touch()
    register(
        root, image_root=root / "mixed", label_root=root / "mixed", image_suffix="_photo.png", label_suffix="_mask.png"
    )
    assert [record["image_id"] for record in DatasetCatalog.get("own")] == ["x"]


def test_a_test_set_needs_no_labels(root: Path) -> None:
    register(root, label_root=None)
    assert all("sem_seg_file_name" not in record for record in DatasetCatalog.get("own"))


def test_missing_folder_is_named_at_use_only(root: Path) -> None:
    register(root, label_root=root / "gone", missing_hint="ask Ada")
    with pytest.raises(FileNotFoundError, match=rf"{root / 'gone'}, which data set own reads; ask Ada"):
        DatasetCatalog.get("own")


@pytest.mark.parametrize(
    ("folder", "name"), [("labels", "a.png"), ("images", "deeper/b.JPG")], ids=["no label", "no image"]
)
def test_a_file_without_partner_is_an_error(root: Path, folder: str, name: str) -> None:
    (root / folder / name).unlink()
    register(root, missing_hint="run it again")
    with pytest.raises(DataError, match=r"1 of the 2 files of .* no partner .*: (a\.JPG|deeper/b\.png); run it again"):
        DatasetCatalog.get("own")


def test_no_images_and_two_of_one_name(root: Path) -> None:
    register(root, image_suffix=".gif")
    with pytest.raises(DataError, match=r"images: no images \(\.gif\)"):
        DatasetCatalog.get("own")
    DatasetCatalog.remove("own")
    MetadataCatalog.remove("own")
    save_image(root / "images" / "a.png")
    register(root)
    with pytest.raises(DataError, match=r"a\.(JPG|png) and a\.(JPG|png) have one name"):
        DatasetCatalog.get("own")


@pytest.mark.parametrize(("classes", "ignore_label"), [([], 255), (["a", "b"], 1)])
def test_ignore_label_is_no_class(root: Path, classes: list[str], ignore_label: int) -> None:
    with pytest.raises(DataError, match=f"own: {len(classes)} classes and ignore_label {ignore_label}"):
        register(root, classes=classes, ignore_label=ignore_label)


def test_rgb_label_map(root: Path) -> None:
    save_image(root / "labels" / "a.png")
    register(root)
    with pytest.raises(DataError, match=r"a\.png: a label map has one channel.* has mode RGB"):
        build_mapper(mapper_cfg(), True)(DatasetCatalog.get("own")[0])


def test_label_above_the_class_count(root: Path) -> None:
    save(root / "labels" / "a.png", np.full(SIZE, 2, dtype=np.uint8))
    register(root)
    with pytest.raises(DataError, match=r"a\.png: labels \[2\] are neither one of the 2 classes"):
        build_mapper(mapper_cfg(), True)(DatasetCatalog.get("own")[0])


def test_sixteen_bits(root: Path) -> None:
    """847 classes, as ADE20K full: labels above 255, and 65535 to ignore."""
    labels = np.zeros(SIZE, dtype=np.uint16)
    labels[0], labels[1], labels[2] = 65535, 846, 255
    for name in ("a", "deeper/b"):
        save(root / "labels" / f"{name}.tif", labels)
    classes = [f"class {number}" for number in range(847)]
    register(root, classes=classes, ignore_label=65535, label_suffix=".tif")
    mapped = build_mapper(mapper_cfg(), True)(DatasetCatalog.get("own")[0])
    assert mapped["instances"].gt_classes.tolist() == [0, 255, 846]
    assert mapped["instances"].gt_masks.tensor.sum(dim=(1, 2)).tolist() == [8 * 3, 8, 8]


def write_bomb(path: Path) -> None:
    """A PNG of a few bytes that says it has 30000 by 30000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")))


def test_label_map_that_is_a_bomb(tmp_path: Path) -> None:
    write_bomb(tmp_path / "bomb.png")
    with pytest.raises(UnreadableImageError, match=re.escape(f"{tmp_path / 'bomb.png'}: cannot be read")) as caught:
        read_label_map(tmp_path / "bomb.png")
    assert isinstance(caught.value.__cause__, Image.DecompressionBombError)
