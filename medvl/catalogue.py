"""Names to factories: how a recipe's name and options become an object, with a typed signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from medvl.errors import ConfigError, nearest

T = TypeVar("T")


class Catalogue(Generic[T]):
    """A closed list of named factories; the only way from a name in a file to code.

    Args:
        kind: what is listed, in words, for messages: ``"objective"``.

    Examples:
        >>> shapes = Catalogue("shape")
        >>> @shapes.add("square")
        ... def square(*, side_mm: float = 1.0) -> float:
        ...     return side_mm**2
        >>> shapes.build("square", {"side_mm": 3.0})
        9.0
        >>> shapes.build("squar", {})
        Traceback (most recent call last):
        medvl.errors.ConfigError: unknown shape 'squar'. Allowed: square. Did you mean 'square'?
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._factories: dict[str, Callable[..., T]] = {}

    def add(self, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Return a decorator that lists a factory under ``name``."""

        def register(factory: Callable[..., Any]) -> Callable[..., Any]:
            if name in self._factories:
                raise ValueError(f"{self.kind} '{name}' is listed twice")
            self._factories[name] = factory
            return factory

        return register

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names in alphabetical order."""
        return iter(sorted(self._factories))

    def __contains__(self, name: object) -> bool:
        """Say whether ``name`` is listed."""
        return name in self._factories

    def factory(self, name: str) -> Callable[..., T]:
        """Return the factory called ``name``.

        Raises:
            ConfigError: the name is not listed; the message names the nearest one.
        """
        if name not in self._factories:
            raise ConfigError(f"unknown {self.kind} '{name}'.", hint=nearest(name, self))
        return self._factories[name]

    def options(self, name: str) -> dict[str, Any]:
        """Return the option names of a factory with their default values."""
        return {
            parameter.name: parameter.default
            for parameter in inspect.signature(self.factory(name)).parameters.values()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }

    def build(self, name: str, options: Mapping[str, Any], *subject: Any) -> T:
        """Call the factory ``name`` with ``options`` as its keyword-only arguments.

        Args:
            name: a listed name.
            options: values from a recipe; unknown keys are refused.
            subject: positional arguments that no recipe can set.

        Raises:
            ConfigError: an unknown name, or an option that the factory does not have.
        """
        allowed = self.options(name)
        for key in options:
            if key not in allowed:
                raise ConfigError(f"{self.kind} '{name}' has no option '{key}'.", hint=nearest(key, allowed))
        return self.factory(name)(*subject, **options)
