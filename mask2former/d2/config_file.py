"""Reading config files: YAML with `_BASE_`, every error naming file and key, nothing ever executed.

The same code serves both sources: Detectron2's own `merge_from_file` may run Python that it finds in a file.
"""

import ast
import functools
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import BASE_KEY
from fvcore.common.config import CfgNode as _FvcoreCfgNode

from mask2former.d2.bundled.defaults import DEFAULTS
from mask2former.similar import did_you_mean

__all__ = ["load_config_file", "merge_config_file", "merge_config_text", "merge_key_values", "parse_yaml"]

logger = logging.getLogger(__name__)

MAX_SIZE = 1 << 20  # characters of a file; a complete dump has some 20,000
MAX_VALUES = 100_000  # of a file, with its aliases written out
MAX_DEPTH = 50  # files based on one another

_EVAL_TAG = "tag:yaml.org,2002:python/object/apply:eval"
_SIZE_LIST = re.compile(
    r"\[\s*int\(\s*x\s*\*\s*(\d+(?:\.\d+)?)\s*\*\s*(\d+)\s*\)"
    r"\s+for\s+x\s+in\s+range\(\s*(\d{1,4})\s*,\s*(\d{1,4})\s*\)\s*\]"
)


def merge_config_file(cfg: _FvcoreCfgNode, path: str | Path) -> None:
    """Merge a YAML file and the `_BASE_` files below it into `cfg`, which stays as it was on an error.

    Lists and tuples may replace each other, an integer a float; every other change of type is an error. Of a complete
    dump, as a run of Detectron2 or of another version leaves behind, keys that `cfg` lacks are logged and left out.

    Raises:
        FileNotFoundError: when the file or one of its bases does not exist.
        KeyError: for keys `cfg` lacks; names each, its close matches and the file.
        ValueError: for what is not plain YAML, a circular `_BASE_`, or a value of the wrong type.
    """
    fit = functools.partial(_fit, cfg)
    cfg.merge_from_other_cfg(type(cfg)(_combine(Path(path).expanduser(), fit)))


def merge_config_text(cfg: _FvcoreCfgNode, text: str, source: str) -> None:
    """Merge YAML, as `cfg.dump()` writes it, into `cfg`, which stays as it was on an error; it has no `_BASE_`.

    Args:
        source: where the text is from, for messages.

    Raises:
        KeyError, ValueError: as `merge_config_file`.
    """
    cfg.merge_from_other_cfg(type(cfg)(_fit(cfg, parse_yaml(text, source), source)))


def merge_key_values(cfg: _FvcoreCfgNode, key_values: Sequence[str]) -> None:
    """Merge `[KEY, VALUE, KEY, VALUE, ...]` of a command line into `cfg`, which stays as it was on an error.

    Raises:
        KeyError, ValueError: as `merge_config_file`, and for a key without a value.
    """
    if len(key_values) % 2:
        raise ValueError(f"Expected pairs KEY VALUE, but {key_values[-1]!r} has no value.")
    layer: dict[str, Any] = {}
    for key, value in zip(key_values[::2], key_values[1::2], strict=True):
        *parents, name = key.split(".")
        entry: dict[str, Any] = {name: _literal(value)}
        for parent in reversed(parents):
            entry = {parent: entry}
        _overlay(entry, layer, "the command line")
    layer = _widen_integers(layer, cfg)
    _check(layer, cfg, "the command line")
    cfg.merge_from_other_cfg(type(cfg)(layer))


def _literal(value: str) -> Any:
    """The Python literal that a text spells, else the text."""
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def load_config_file(path: str | Path) -> dict[str, Any]:
    """The content of a YAML file over that of its `_BASE_` files, as nested dicts.

    Raises:
        FileNotFoundError, ValueError: as `merge_config_file`.
    """
    return _combine(Path(path).expanduser(), lambda layer, source: layer)


def parse_yaml(text: str, name: str = "the given text", *, number_keys: bool = False) -> dict[str, Any]:
    """Plain YAML → nested dicts; `name` stands in error messages, `number_keys` lets keys be integers too.

    Raises:
        ValueError: for invalid YAML, a tag, a key given two values, a key that is no string, or no mapping at all; for
            what is larger than any config, as written or with its aliases (`*name`) written out.
    """
    if len(text) > MAX_SIZE:
        raise ValueError(f"{name} is larger than any config file: more than {MAX_SIZE} bytes")
    try:
        content = yaml.load(text, Loader=_NumberKeysLoader if number_keys else _PlainLoader)  # SafeLoaders
    except (yaml.YAMLError, ValueError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{name} is not a valid config file: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{name} must hold `KEY: value` pairs, not a {type(content).__name__}.")
    return content


class _PlainLoader(yaml.SafeLoader):
    """Plain YAML with string keys of one value each, and the one published tag, which is computed, not evaluated.

    Published files give a key twice, with the same value.
    """

    key_tags: tuple[str, ...] = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")

    def get_single_node(self) -> yaml.Node | None:
        """The whole file, unless its aliases make far more of it than is written."""
        node = super().get_single_node()
        if node is not None and self._count(node, {}) > MAX_VALUES:
            raise yaml.YAMLError(f"its aliases and merges make more than {MAX_VALUES} values of it")
        return node

    def _count(self, node: yaml.Node, counts: dict[int, int]) -> int:
        """The values of a node with aliases written out; `counts` holds those of the nodes met so far."""
        if id(node) not in counts:
            counts[id(node)] = MAX_VALUES + 1  # what an alias to a node within itself makes
            children = node.value if isinstance(node, yaml.CollectionNode) else ()
            flat = (child for entry in children for child in (entry if isinstance(entry, tuple) else (entry,)))
            counts[id(node)] = 1 + sum(self._count(child, counts) for child in flat)
        return counts[id(node)]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, yaml.Node] = {}
        for key_node, value in node.value:
            key = key_node.value
            if not isinstance(key, str) or key_node.tag not in self.key_tags:
                raise yaml.YAMLError(f"the key {key!r} is not a string{key_node.start_mark}")
            if key in seen and self._spelt(seen[key]) != self._spelt(value):
                raise yaml.YAMLError(f"the key {key!r} is given twice, with two values{key_node.start_mark}")
            seen[key] = value
        return super().construct_mapping(node, deep)

    def _spelt(self, node: yaml.Node) -> str:
        return repr(self.construct_object(node, deep=True))  # unlike values, 1, 1.0 and true differ

    def construct_size_list(self, node: yaml.Node) -> list[int]:
        """`!!python/object/apply:eval ["[int(x * 0.1 * 512) for x in range(5, 21)]"]`, as published."""
        expressions = self.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else []
        match = _SIZE_LIST.fullmatch(str(expressions[0]).strip()) if len(expressions) == 1 else None
        if match is None:
            raise yaml.YAMLError(
                f"Python is never executed{node.start_mark}\n"
                "list the values; only the form [int(x * 0.1 * 512) for x in range(5, 21)] is understood"
            )
        factor, size, first, end = float(match[1]), int(match[2]), int(match[3]), int(match[4])
        return [int(x * factor * size) for x in range(first, end)]

    def refuse_tag(self, node: yaml.Node) -> None:
        raise yaml.YAMLError(f"the tag {node.tag!r} is not allowed: write a plain value{node.start_mark}")


class _NumberKeysLoader(_PlainLoader):
    """The same for data files of other tools, in which numbers are keys."""

    key_tags = (*_PlainLoader.key_tags, "tag:yaml.org,2002:int")


_PlainLoader.add_constructor(_EVAL_TAG, _PlainLoader.construct_size_list)
_PlainLoader.add_constructor(None, _PlainLoader.refuse_tag)


def _combine(path: Path, fit: Callable[[dict[str, Any], str], dict[str, Any]]) -> dict[str, Any]:
    """The content of a file over that of its bases; each file is read, and passed through `fit`, once."""
    done: dict[Path, dict[str, Any]] = {}

    def combine(path: Path, open_files: tuple[Path, ...]) -> dict[str, Any]:
        resolved = path.resolve()
        if resolved in open_files:
            chain = " -> ".join(map(str, (*open_files[open_files.index(resolved) :], resolved)))
            raise ValueError(f"Circular {BASE_KEY}: {chain}")
        if len(open_files) > MAX_DEPTH:
            raise ValueError(f"'{path}': more than {MAX_DEPTH} files, each the {BASE_KEY} of the next")
        if resolved not in done:
            content = parse_yaml(_read(path, open_files), f"'{path}'")
            combined: dict[str, Any] = {}
            for base in _bases(content, path):
                _overlay(combine(base, (*open_files, resolved)), combined, str(path))
            _overlay(fit(content, str(path)), combined, str(path))
            done[resolved] = combined
        return done[resolved]

    return combine(path, ())


def _read(path: Path, open_files: tuple[Path, ...]) -> str:
    if not path.is_file():
        by = f", the {BASE_KEY} of '{open_files[-1]}'," if open_files else ""
        raise FileNotFoundError(f"Config file '{path}'{by} does not exist.")
    with path.open("rb") as stream:
        try:
            return stream.read(MAX_SIZE + 1).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"'{path}' is not a valid config file: {error}") from error


def _bases(content: dict[str, Any], path: Path) -> list[Path]:
    """Take the bases of `path` out of its content; of one given twice the last place counts."""
    bases = content.pop(BASE_KEY, [])
    result: dict[Path, None] = {}
    for base in reversed(bases if isinstance(bases, list) else [bases]):
        if not isinstance(base, str) or "://" in base:
            raise ValueError(f"'{path}': {BASE_KEY} must name local files, not {str(base)[:100]!r}.")
        result[path.parent / Path(base).expanduser()] = None
    return list(reversed(result))


def _overlay(layer: dict[str, Any], combined: dict[str, Any], source: str, parents: str = "") -> None:
    """Write `layer` over `combined`, section by section."""
    for key, value in layer.items():
        if key in combined and isinstance(value, dict) != isinstance(combined[key], dict):
            raise ValueError(f"{source}: {parents}{key} is a section in one place and a value in the other.")
        if isinstance(value, dict):  # a section of its own, even if `layer` has it in two places
            _overlay(value, combined.setdefault(key, {}), source, f"{parents}{key}.")
        else:
            combined[key] = value


def _widen_integers(layer: dict[str, Any], cfg: _FvcoreCfgNode) -> dict[str, Any]:
    """`WEIGHT_DECAY: 0` means 0.0 where `cfg` holds a float."""
    widened: dict[str, Any] = {}
    for key, value in layer.items():
        current = cfg.get(key)
        if isinstance(value, dict) and isinstance(current, _FvcoreCfgNode):
            value = _widen_integers(value, current)
        elif type(value) is int and isinstance(current, float):
            value = float(value)
        widened[key] = value
    return widened


def _check(layer: dict[str, Any], cfg: _FvcoreCfgNode, source: str) -> None:
    """Raise unless `layer` fits into `cfg`; `source` is where it comes from."""
    version = layer.get("VERSION", cfg.get("VERSION"))
    if version != cfg.get("VERSION"):
        raise ValueError(f"{source}: VERSION {version} is not supported, write it as VERSION {cfg.get('VERSION')}.")
    if unknown := list(_unknown_keys(layer, cfg, cfg, "")):
        known = list(_all_keys(cfg, ""))
        raise KeyError(f"{source}: unknown config key {'; '.join(_describe(key, known) for key in unknown)}")
    try:
        cfg.clone().merge_from_other_cfg(type(cfg)(layer))
    except (ValueError, AssertionError) as error:
        raise ValueError(f"{source}: {error}") from error


def _fit(cfg: _FvcoreCfgNode, layer: dict[str, Any], source: str) -> dict[str, Any]:
    """A layer as `cfg` can take it up."""
    layer = _widen_integers(layer, cfg)
    if _is_dump(layer):
        _drop_unknown(layer, cfg, source)
    _check(layer, cfg, source)
    return layer


def _is_dump(layer: dict[str, Any]) -> bool:
    """Whether nearly all keys of Detectron2 stand in a file, as `cfg.dump()` writes them; releases differ in a few."""
    known = set(_all_keys(DEFAULTS, ""))
    return len(known.intersection(_all_keys(layer, ""))) >= 0.9 * len(known)


def _drop_unknown(layer: dict[str, Any], cfg: _FvcoreCfgNode, source: str) -> None:
    """Remove keys `cfg` lacks from `layer`, and say which."""
    unknown = list(_unknown_keys(layer, cfg, cfg, ""))
    for key in unknown:
        *parents, name = key.split(".")
        del functools.reduce(dict.__getitem__, parents, layer)[name]
    if unknown:
        logger.warning("%s: left out %d settings that nothing here reads: %s", source, len(unknown), ", ".join(unknown))


def flat_settings(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a config, or of what a config file holds, as `{"SOLVER.BASE_LR": 0.0001, ...}`: plain data."""
    flat: dict[str, Any] = {}
    for key, value in cfg.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": setting for inner, setting in flat_settings(value).items()}
        else:
            flat[str(key)] = value
    return flat


def _unknown_keys(layer: dict[str, Any], cfg: _FvcoreCfgNode, root: _FvcoreCfgNode, parents: str) -> Iterator[str]:
    for key, value in layer.items():
        full_key = f"{parents}{key}"
        if key in cfg:
            if isinstance(value, dict) and isinstance(cfg[key], _FvcoreCfgNode):
                yield from _unknown_keys(value, cfg[key], root, f"{full_key}.")
        elif not (cfg.is_new_allowed() or root.key_is_deprecated(full_key) or root.key_is_renamed(full_key)):
            yield full_key


def _all_keys(tree: Mapping[str, Any], parents: str) -> Iterator[str]:
    for key, value in tree.items():
        yield f"{parents}{key}"
        if isinstance(value, dict):
            yield from _all_keys(value, f"{parents}{key}.")


def _describe(key: str, known: list[str]) -> str:
    """The key with what may have been meant: a similar key, or one of the same name in another section."""
    name = key.rpartition(".")[2]
    elsewhere = [other for other in known if other.rpartition(".")[2] == name]
    return key + did_you_mean(key, known, first=elsewhere, cutoff=0.75)
