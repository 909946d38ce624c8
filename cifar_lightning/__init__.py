"""CIFAR-10 classifiers: trained by Lightning, composed by Hydra, watched in TensorBoard, judged by ``evaluate.py``."""

import time

STARTED = time.perf_counter()
"""When this package was imported, which train.py does within a fraction of a second."""

__version__ = "0.1.0"
