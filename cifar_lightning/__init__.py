"""Image classifiers: trained by Lightning, composed by Hydra, watched in TensorBoard."""

import time

STARTED = time.perf_counter()
"""When this package was imported, which train.py does within a fraction of a second."""

__version__ = "0.2.0"
