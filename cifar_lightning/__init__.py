"""Image classifiers: trained by Lightning, composed by Hydra, watched in TensorBoard."""

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cifar_lightning.predictor import Prediction, Predictor, load

__all__ = ["Prediction", "Predictor", "load"]

STARTED = time.perf_counter()
"""When this package was imported, which train.py does within a fraction of a second."""

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """``load`` and what it gives, imported when they are first asked for: torch takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cifar_lightning import predictor

    return getattr(predictor, name)
