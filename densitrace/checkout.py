"""Fix imports in a checkout, where the parts of the package are siblings of this folder.

When Python runs in the repository's root, the root is on its path. It then finds this folder,
without the parts, before the installed package, and the folder kernels/ under the top-level name
`kernels`. That name belongs to another package, which transformers imports if it finds it.
"""

import pkgutil
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import cast

ROOT = Path(__file__).resolve().parents[1]


def search_path(own: list[str]) -> list[str]:
    """Return the package's search path: the installed package first, then this folder.

    An editable install has no folder of its own; its finder locates the parts.
    """
    folders = list(pkgutil.extend_path(own, __package__))
    return [*(folder for folder in folders if folder not in own), *own]


class OtherKernels(MetaPathFinder):
    """Finds the top-level package `kernels`, ignoring the repository's root on the path."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "kernels":
            return None
        others = [entry for entry in sys.path if Path(entry).resolve() != ROOT]
        return PathFinder.find_spec(fullname, others)


def release_kernels() -> None:
    """Make the top-level name `kernels` mean the other package, or none, instead of kernels/."""
    spec = PathFinder.find_spec("kernels")
    if spec is None or spec.origin is None or Path(spec.origin).resolve().parents[1] != ROOT:
        return
    finder = OtherKernels()
    if finder.find_spec("kernels", None) is not None:
        sys.meta_path.insert(0, finder)
    else:
        sys.modules["kernels"] = cast(ModuleType, None)  # None: importing it raises (documented)
