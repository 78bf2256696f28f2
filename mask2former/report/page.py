"""A run on one page that needs nothing else, not even a network: `report.html`."""

import os
from datetime import datetime
from html import escape
from importlib import resources
from pathlib import Path

from mask2former.evaluation.details import Details
from mask2former.files import write_text
from mask2former.report import sections
from mask2former.report.extremes import best_and_worst, draw_extremes
from mask2former.report.run import Evaluated, Run, read_run

FILE = "report.html"


def write_report(output_dir: str | os.PathLike[str], *, images: int = 3) -> Path:
    """Write `report.html` about a training into its OUTPUT_DIR, from what lies there, and return its path.

    It shows metrics, curves, tables by class, precision over recall, confusion, pictures and settings, as far as the
    run has written what they are made of. Pictures of the best and worst images need the data set to be registered.

    Args:
        output_dir: of a training, finished or not.
        images: so many best and so many worst images of each task.

    Raises:
        FileNotFoundError: the folder is not one of a run.
    """
    run = read_run(Path(output_dir))
    path = run.folder / FILE
    write_text(path, render(run, images=images))
    return path


def render(run: Run, *, images: int = 3) -> str:
    """The page as text."""
    name = escape(run.folder.resolve().name)
    last = max((points[-1][0] for points in run.curves.values()), default=None)
    state = "no iteration yet" if last is None else f"{last + 1} iterations"
    style = resources.files("mask2former.report").joinpath("style.css").read_text(encoding="utf-8")
    body = [
        f"<h1>{name}</h1><p class=quiet>{state}, written {datetime.now().astimezone():%d %B %Y %H:%M %Z}</p>",
        _navigation(run),
        f'<h2 id="metrics">Metrics</h2>{sections.headline(run.curves)}',
        f'<h2 id="curves">Curves</h2>{sections.training_curves(run.curves)}',
        *(_evaluated(evaluated, number, images) for number, evaluated in enumerate(run.evaluated)),
        '<h2 id="settings">Settings that differ from the defaults</h2>',
        sections.settings(run.settings),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{name}</title><style>\n{style}</style></head>\n'
        f"<body>\n{chr(10).join(body)}\n</body></html>\n"
    )


def _navigation(run: Run) -> str:
    links = [("metrics", "Metrics"), ("curves", "Curves")]
    links += [(f"data{number}", evaluated.title) for number, evaluated in enumerate(run.evaluated)]
    links.append(("settings", "Settings"))
    return f"<nav>{''.join(f'<a href=#{anchor}>{escape(text)}</a>' for anchor, text in links)}</nav>"


def _evaluated(evaluated: Evaluated, number: int, images: int) -> str:
    parts = [f'<h2 id="data{number}">{escape(evaluated.title)}</h2>']
    parts += [_task(details, evaluated.folder, images) for details in evaluated.details]
    parts.append(sections.pictures(evaluated.pictures))
    return "\n".join(parts)


def _task(details: Details, folder: Path, images: int) -> str:
    best, worst = best_and_worst(details, images)
    drawn = draw_extremes(details, folder, [*best, *worst])
    return "\n".join(
        [
            f"<h3>{escape(sections.TASKS.get(details.task, details.task))}</h3>",
            sections.class_table(details),
            sections.precision_recall(details),
            sections.confusion(details),
            sections.extremes("Best images", details, drawn[: len(best)]),
            sections.extremes("Worst images", details, drawn[len(best) :]),
        ]
    )
