"""Write a model in the layout of transformers: config.json, preprocessor_config.json and model.safetensors.

Example:
    python tools/convert_to_transformers.py configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml \\
        zoo://coco/panoptic-segmentation/maskformer2_R50_bs16_50ep output/mask2former-r50-coco-panoptic

`mask2former convert transformers` needs no config file where the weights say which model they belong to.
"""

from collections.abc import Sequence

from mask2former.cli.arguments import described_parser
from mask2former.cli.convert import add_model_arguments, convert_to_transformers
from mask2former.engine.command import run


def main(argv: Sequence[str] | None = None) -> None:
    """Write the model."""
    parser = described_parser(__doc__)
    parser.add_argument("config_file", metavar="CONFIG", help="config file of the model")
    add_model_arguments(parser)
    convert_to_transformers(parser.parse_args(argv))


if __name__ == "__main__":
    run(main)
