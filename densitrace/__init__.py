"""Computation density of transformer language models: how much of the graph a token needs.

Public names are imported on first use, so that `import densitrace` loads neither torch nor
transformers.

Example:
    >>> from densitrace import Threshold, Tracer
    >>> tracer = Tracer.from_pretrained("path-or-hub-id")
    >>> trace = tracer.trace("The cat sat on the mat", select=Threshold([1e-3, 1e-2]))
    >>> trace.density_at(0.1)  # float32 [T]
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .errors import (
        BackendError,
        CorpusError,
        DensitraceError,
        InputError,
        ModelError,
        NotFiniteError,
        NotPlannedError,
        ScanError,
        StoreError,
    )
    from .estimator.compare import Comparison, compare
    from .estimator.density import DensityEstimator, DensityResult
    from .estimator.explain import FactorExplanation
    from .estimator.targets import TargetError
    from .tracer.scan import scan
    from .tracer.select import AutoStrata, Nucleus, Rule, Size, Threshold, TopFraction
    from .tracer.store import Store, open_store
    from .tracer.trace import Trace
    from .tracer.tracer import Tracer
    from .tracer.verification import Verification

__version__ = "0.1.0"

if Path(__file__).resolve().parents[1].joinpath("pyproject.toml").is_file():  # a checkout
    from . import checkout

    __path__ = checkout.search_path(__path__)
    checkout.release_kernels()

_HOME = {  # the module of each public name, relative to this package
    "AutoStrata": ".tracer.select",
    "BackendError": ".errors",
    "Comparison": ".estimator.compare",
    "CorpusError": ".errors",
    "DensitraceError": ".errors",
    "DensityEstimator": ".estimator.density",
    "DensityResult": ".estimator.density",
    "FactorExplanation": ".estimator.explain",
    "InputError": ".errors",
    "ModelError": ".errors",
    "NotFiniteError": ".errors",
    "NotPlannedError": ".errors",
    "Nucleus": ".tracer.select",
    "Rule": ".tracer.select",
    "ScanError": ".errors",
    "Size": ".tracer.select",
    "Store": ".tracer.store",
    "StoreError": ".errors",
    "TargetError": ".estimator.targets",
    "Threshold": ".tracer.select",
    "TopFraction": ".tracer.select",
    "Trace": ".tracer.trace",
    "Tracer": ".tracer.tracer",
    "Verification": ".tracer.verification",
    "compare": ".estimator.compare",
    "open_store": ".tracer.store",
    "scan": ".tracer.scan",
}

__all__ = [
    "AutoStrata",
    "BackendError",
    "Comparison",
    "CorpusError",
    "DensitraceError",
    "DensityEstimator",
    "DensityResult",
    "FactorExplanation",
    "InputError",
    "ModelError",
    "NotFiniteError",
    "NotPlannedError",
    "Nucleus",
    "Rule",
    "ScanError",
    "Size",
    "Store",
    "StoreError",
    "TargetError",
    "Threshold",
    "TopFraction",
    "Trace",
    "Tracer",
    "Verification",
    "__version__",
    "compare",
    "open_store",
    "scan",
]


def __getattr__(name: str) -> object:
    """Import a public name on its first use and keep it in the module (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
