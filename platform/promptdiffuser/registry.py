"""Open registries: whatever an experiment chooses by name, built in or the user's own."""

import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import TypeVar

from promptdiffuser.errors import UserError
from promptdiffuser.plugins import load_plugins

Item = TypeVar("Item")
LAST = 1_000
"""Place of an item that asks for none: behind the built-in ones."""


class Registry(Mapping[str, Item]):
    """Items by name. A lookup imports the plugins first, so it finds the user's items in every process."""

    def __init__(self, kind: str, items: Mapping[str, Item] | None = None) -> None:
        """Start with the items of the file that makes the registry; `kind` says in messages what they are."""
        self.kind = kind
        self.registered = dict(items or {})
        """What is registered so far, in order of registration."""
        self._places = dict[str, int]()
        self._sealed_by = ""

    def add(self, name: str, item: Item, place: int = LAST) -> Item:
        """Register an item and return it.

        Args:
            name: Its name in experiments and tables.
            item: The item.
            place: Where it stands among the others; those of equal place keep the order of their registration.

        Raises:
            UserError: The name is taken, or the registry is sealed.
        """
        if self._sealed_by:
            raise UserError(f"{self.kind} {name!r} is registered too late: {self._sealed_by}")
        if name in self.registered:
            raise UserError(f"there is a {self.kind} {name!r} already; give the second one another name")
        self.registered[name], self._places[name] = item, place
        return item

    def register(self, name: str, place: int = LAST) -> Callable[[Item], Item]:
        """Return a decorator that registers what it decorates; see `add`."""
        return lambda item: self.add(name, item, place)

    def seal(self, reason: str) -> None:
        """Accept no more items; `reason` says why, and what to do instead."""
        self._sealed_by = reason

    def find(self, name: str) -> Item:
        """Return an item; raises `UserError`, with the nearest name, if there is none of this name."""
        if name not in self:
            raise UserError(f"unknown {self.kind} {name!r}; {self.suggest(name)}")
        return self[name]

    def suggest(self, name: str) -> str:
        """Return the end of a message about an unknown name: the nearest name, if one is near, and all names."""
        return suggest(name, self)

    def __getitem__(self, name: str) -> Item:
        load_plugins()
        return self.registered[name]

    def __iter__(self) -> Iterator[str]:
        load_plugins()
        return iter(sorted(self.registered, key=lambda name: self._places.get(name, LAST)))

    def __len__(self) -> int:
        load_plugins()
        return len(self.registered)


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `did you mean 'NEAREST'? known: ...`, without the question where no name is near."""
    names = list(known)
    near = get_close_matches(name, names, n=1)
    return f"{f'did you mean {near[0]!r}? ' if near else ''}known: {', '.join(names)}"


def import_modules(package: str, path: Iterable[str]) -> None:
    """Import all modules directly in a package, in the order of their names, so that they register what they define."""
    for module in pkgutil.iter_modules(path):
        if not module.ispkg:
            import_module(f"{package}.{module.name}")
