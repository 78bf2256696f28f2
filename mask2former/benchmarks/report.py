"""Tables of what was measured, in a document too."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from mask2former.benchmarks.results import Document, read_document
from mask2former.files import write_text

SUITES = ("op", "inference", "inference stages", "train", "criterion")
_RUN = "run"
_EMPTY = "Not measured."


def fill(path: Path, runs: Sequence[Path]) -> None:
    """Fill the tables of a document from files that runs wrote.

    Raises:
        ValueError: a run was a quick one, or the document has a mark for which there is no table.
    """
    documents = [read_document(run) for run in runs]
    for run, document in zip(runs, documents, strict=True):
        if document["settings"]["quick"]:
            raise ValueError(f"{run} was made with --quick: its numbers mean nothing")
    write_text(path, render(path.read_text(encoding="utf-8"), documents))


def render(text: str, documents: Sequence[Document]) -> str:
    """Put new tables between the marks `<!-- begin NAME -->` and `<!-- end NAME -->` of a document.

    Raises:
        ValueError: if the document has a mark for which there is no table.
    """
    numbered = [
        {**row, "case": {_RUN: str(number), **row["case"]}}
        for number, document in enumerate(documents, 1)
        for row in document["rows"]
    ]
    content = {**dict.fromkeys(SUITES, _EMPTY), **tables(numbered)}
    content["runs"] = _runs_table(documents)

    def table(match: re.Match[str]) -> str:
        name = match[1]
        if name not in content:
            raise ValueError(f"there is no table {name!r}; there are {', '.join(content)}")
        return f"<!-- begin {name} -->\n{content[name]}\n<!-- end {name} -->"

    return re.sub(r"<!-- begin (.*?) -->\n.*?<!-- end \1 -->", table, text, flags=re.DOTALL)


def describe_run(document: Document) -> str:
    """Return what a run was, in lines."""
    parts = [document["machine"], document["versions"], document["settings"]]
    lines = [", ".join(f"{key} {value}" for key, value in part.items()) for part in parts]
    return "\n".join([document["command"], *lines])


def tables(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return a table in Markdown for each suite that has rows, as `Row.to_json` gives them."""
    return {
        suite: _table([row for row in rows if row["suite"] == suite])
        for suite in dict.fromkeys(row["suite"] for row in rows)
    }


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """Columns are those that any of the rows has."""
    case_keys = _union(row["case"] for row in rows)
    figure_keys = _union(row["figures"] for row in rows)
    headers = [*case_keys, "time", "times faster than", *figure_keys]
    body = [
        [row["case"].get(key, "") for key in case_keys]
        + [_time(row["seconds"]), _ratio(row["ratio"])]
        + [f"{row['figures'][key]:.3g}" if key in row["figures"] else "" for key in figure_keys]
        for row in rows
    ]
    return tabulate(body, headers=headers, tablefmt="github", disable_numparse=True)


def _runs_table(documents: Sequence[Document]) -> str:
    if not documents:
        return _EMPTY
    body = []
    for number, document in enumerate(documents, 1):
        details = [
            ", ".join(f"{key} {value}" for key, value in document[part].items())
            for part in ("machine", "versions", "settings")
        ]
        body.append([str(number), document["date"][:10], *details, f"`{document['command']}`"])
    headers = [_RUN, "date", "machine", "versions", "settings", "command"]
    return tabulate(body, headers=headers, tablefmt="github", disable_numparse=True)


def _union(mappings: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _time(seconds: dict[str, Any]) -> str:
    if not seconds:
        return ""
    scale, unit = (1, "s") if seconds["median"] >= 1 else (1e3, "ms") if seconds["median"] >= 1e-3 else (1e6, "µs")
    median, low, high = (f"{scale * seconds[key]:.3g}" for key in ("median", "min", "max"))
    return f"{median} {unit} ({low} to {high})"


def _ratio(ratio: dict[str, Any] | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}) {ratio['versus']}"
