"""The config tree, and classes and functions that take their arguments from one."""

import functools
import inspect
from collections.abc import Callable
from typing import IO, Any

from fvcore.common.config import CfgNode as _FvcoreCfgNode

from mask2former.d2.config_file import load_config_file, merge_config_file, parse_yaml


class CfgNode(_FvcoreCfgNode):
    """fvcore's config node; unlike Detectron2's it never executes what a file contains."""

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = False) -> None:
        """Merge a YAML file, see `merge_config_file`; `allow_unsafe` has no effect."""
        merge_config_file(self, cfg_filename)

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        """The file's content over that of its `_BASE_` files; `allow_unsafe` has no effect."""
        return load_config_file(filename)

    @classmethod
    def load_cfg(cls, cfg_file_obj_or_str: str | IO[str]) -> "CfgNode":
        """A node from YAML text or an open YAML file."""
        if isinstance(cfg_file_obj_or_str, str):
            return cls(parse_yaml(cfg_file_obj_or_str))
        return cls(parse_yaml(cfg_file_obj_or_str.read(), cfg_file_obj_or_str.name))


def get_cfg() -> CfgNode:
    """A fresh copy of the defaults: every Detectron2 key this library reads, with Detectron2's default."""
    from mask2former.d2.bundled.defaults import DEFAULTS  # defaults.py needs CfgNode

    return CfgNode(DEFAULTS)


def configurable(
    init_func: Callable[..., None] | None = None, *, from_config: Callable[..., dict[str, Any]] | None = None
) -> Any:
    """Let a class or function be called with a config in place of its arguments.

    On `__init__` (`@configurable`), the classmethod `from_config(cls, cfg, ...)` returns the arguments; on a
    function (`@configurable(from_config=f)`), `f(cfg, ...)` does. Called with a config, `from_config`
    is given the arguments it names; those it does not name overwrite its result.

    Raises:
        TypeError, AttributeError: when `from_config` is missing or does not take `cfg` first.
    """
    if init_func is not None:
        if not inspect.isfunction(init_func) or from_config is not None or init_func.__name__ != "__init__":
            raise TypeError("@configurable decorates __init__; a function needs @configurable(from_config=...).")
        return _configurable_init(init_func)
    if from_config is None:
        return configurable  # `@configurable()` means `@configurable`
    if not inspect.isfunction(from_config):
        raise TypeError("from_config of @configurable must be a function.")
    return functools.partial(_configurable_function, from_config)


def _configurable_init(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        from_config = getattr(type(self), "from_config", None)
        if from_config is None:
            raise AttributeError(f"{type(self).__name__} is @configurable: it needs a classmethod 'from_config'.")
        if not inspect.ismethod(from_config):
            raise TypeError(f"{type(self).__name__}.from_config must be a classmethod.")
        if _is_called_with_cfg(args, kwargs):
            init(self, **_arguments_from_config(from_config, args, kwargs))
        else:
            init(self, *args, **kwargs)

    return wrapped


def _configurable_function(from_config: Callable[..., dict[str, Any]], function: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if _is_called_with_cfg(args, kwargs):
            return function(**_arguments_from_config(from_config, args, kwargs))
        return function(*args, **kwargs)

    wrapped.from_config = from_config  # type: ignore[attr-defined]
    return wrapped


def _is_called_with_cfg(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return isinstance(args[0] if args else kwargs.get("cfg"), _FvcoreCfgNode)


def _arguments_from_config(
    from_config: Callable[..., dict[str, Any]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    parameters = inspect.signature(from_config).parameters
    if next(iter(parameters), None) != "cfg":
        raise TypeError(f"{from_config.__qualname__} must take 'cfg' as its first argument.")
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values()):
        return from_config(*args, **kwargs)
    named = {name: value for name, value in kwargs.items() if name in parameters}
    others = {name: value for name, value in kwargs.items() if name not in parameters}
    return {**from_config(*args, **named), **others}
