"""Makes the synthetic panoptic set `shapes_{train,val}`, which the quickstart trains on, in COCO's layout.

    python datasets/make_shapes.py --workers 2

The same options give the same files, byte for byte. A split that is complete is left as it is; an interrupted
one is made again.
"""

import argparse
import json
import os
from pathlib import Path

from tqdm import tqdm

from mask2former.data.datasets.shapes import split_info, write_split


def parse_args() -> argparse.Namespace:
    default_root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "shapes"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=default_root, help="folder to write (default: %(default)s)")
    parser.add_argument("--train", type=int, default=800, metavar="N", help="training images (%(default)s)")
    parser.add_argument("--val", type=int, default=100, metavar="N", help="validation images (%(default)s)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(96, 128), metavar=("HEIGHT", "WIDTH"),
        help="mean size in pixels; each image varies by an eighth (96 128)",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace a set made with other options")
    args = parser.parse_args()
    if min(args.train, args.val) < 1 or args.workers < 1 or min(args.size) < 32:
        parser.error("--train, --val and --workers must be at least 1, --size at least 32 pixels")
    return args


def is_complete(root: Path, split: str, count: int, size: tuple[int, int]) -> bool:
    """Whether the split lies there with exactly these options.

    Raises:
        SystemExit: one with other options lies there.
    """
    path = root / "annotations" / f"panoptic_{split}2017.json"
    if not path.is_file():
        return False
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["info"] != split_info(size) or len(found["images"]) != count:
        raise SystemExit(f"{path} was made with other options; give --overwrite to replace it, or another --root")
    return all(
        (root / f"{split}2017" / image["file_name"]).is_file()
        and (root / f"panoptic_{split}2017" / image["file_name"].replace(".jpg", ".png")).is_file()
        for image in found["images"]
    )


def main() -> None:
    args = parse_args()
    size = (args.size[0], args.size[1])
    for split, count in (("train", args.train), ("val", args.val)):
        if not args.overwrite and is_complete(args.root, split, count, size):
            print(f"{args.root}: the {count} images of {split} are there already")
            continue
        written = write_split(args.root, split, count, size=size, workers=args.workers)
        for _ in tqdm(written, total=count, desc=split, unit="image"):
            pass


if __name__ == "__main__":
    main()
