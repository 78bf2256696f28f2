"""Write MODEL_ZOO.md from the table of published models (`mask2former/checkpoint/published.json`).

python tools/make_model_zoo.py            # write it
python tools/make_model_zoo.py --check    # exit with 1 if it is out of date
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from tabulate import tabulate

from mask2former import model_zoo
from mask2former.checkpoint.published import PublishedModel, published_models
from mask2former.d2.modeling import build_model

REPOSITORY = Path(__file__).resolve().parent.parent
TARGET = REPOSITORY / "MODEL_ZOO.md"
HEAD = """# Model zoo

The published models of Mask2Former. Every config builds a model with the parameters, names and shapes of its published
checkpoint (tested against their lists; no published file itself has been loaded here yet):

```python
import mask2former.model_zoo as model_zoo

model = model_zoo.get_model("coco/panoptic-segmentation/maskformer2_R50_bs16_50ep", trained=True)
```

or, for evaluation from the command line:

```bash
mask2former eval --weights zoo://coco/panoptic-segmentation/maskformer2_R50_bs16_50ep
```

Metrics are **the paper authors'**, in percent; none of them was measured by this project. Parameters are counted from
our models. FLOPs are multiply-adds of a forward pass at the sizes of the config: the paper's, averaged over 100
validation images, and, where they were measured, ours from `mask2former analyze`, averaged over 5 others and
inference included.

Two rows of the published table are corrected: the backbone of ADE20K instance Swin-L, and the config name of Mapillary
Vistas semantic R50. This file is written by `tools/make_model_zoo.py`.
"""


def main() -> int:
    """Write or check the file; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the file is out of date")
    args = parser.parse_args()
    text = render()
    if args.check:
        return int(TARGET.read_text(encoding="utf-8") != text)
    TARGET.write_text(text, encoding="utf-8")
    return 0


def render() -> str:
    """Return the text of the file."""
    models = published_models()
    sections: dict[tuple[str, str], list[str]] = {}
    for name, model in models.items():
        sections.setdefault((model.dataset, model.task), []).append(name)
    parts = [HEAD]
    for (dataset, task), names in sections.items():
        parts.append(f"## {dataset}, {task} segmentation\n\n{_table(names, models)}\n")
    return "\n".join(parts)


def _table(names: Iterable[str], models: dict[str, PublishedModel]) -> str:
    names = list(names)
    metrics = list(dict.fromkeys(metric for name in names for metric in models[name].metrics))
    with_flops = any(models[name].gflops or models[name].paper_gflops for name in names)
    headers = ["config", "schedule", *metrics, "parameters", *(["GFLOPs (paper)"] if with_flops else []), "checkpoint"]
    rows = []
    for name in names:
        model = models[name]
        row = [f"[{model.backbone}](configs/{name}.yaml)", model.schedule]
        row += [str(model.metrics.get(metric, "")) for metric in metrics]
        row.append(f"{count_parameters(name) / 1e6:.1f} M")
        if with_flops:
            row.append(f"{_figure(model.gflops)} ({_figure(model.paper_gflops)})")
        rows.append([*row, f"[weights]({model.checkpoint})"])
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def count_parameters(name: str) -> int:
    """Return the number of parameters of the model of a config; allocates none of them."""
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(cfg).parameters())


if __name__ == "__main__":
    sys.exit(main())
