"""Convert a pretrained backbone (ResNet or Swin) to the names that Detectron2 and this project use.

MODEL.WEIGHTS reads all these files as they are; this makes the files that published configs name, such as `R-101.pkl`
and `swin_tiny_patch4_window7_224.pkl`, and prints what became of each part.

Examples:
    python tools/convert_pretrained.py resnet101-63fe2227.pth R-101.pkl
    python tools/convert_pretrained.py swin_tiny_patch4_window7_224.pth swin_tiny_patch4_window7_224.pkl --kind swin
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from mask2former.checkpoint import CheckpointError, read_checkpoint, write_weights
from mask2former.checkpoint.backbones import RENAMES, ConvertedBackbone, convert_backbone


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", help="weights file: .pth, .pkl or .safetensors, a path or an address")
    parser.add_argument("output", type=Path, help="file to write: .pkl (Detectron2's), .pth or .safetensors")
    parser.add_argument("--kind", choices=["auto", *RENAMES], default="auto", help="where the input is from")
    args = parser.parse_args(arguments)
    try:
        converted = convert_backbone(read_checkpoint(args.input)["model"], args.kind)
        write_weights(args.output, converted.weights, author=converted.kind)
    except (CheckpointError, OSError, ValueError) as error:
        sys.exit(f"{args.input}: {error}")
    print(report(converted))
    print(f"wrote {args.output}")


def report(converted: ConvertedBackbone) -> str:
    """Return a table of what became of the tensors."""
    size = sum(value.numel() for value in converted.weights.values())
    left_out = sorted({name.rpartition(".")[0] or name for name in converted.left_out})
    rows = [
        ("origin", converted.kind),
        ("kept", f"{len(converted.weights)} tensors, {size / 1e6:.1f} M numbers"),
        ("of these renamed", len(converted.renamed)),
        ("left out", f"{len(converted.left_out)} tensors: {', '.join(left_out[:5])}" if left_out else "nothing"),
    ]
    return tabulate(rows, tablefmt="plain")


if __name__ == "__main__":
    main()
