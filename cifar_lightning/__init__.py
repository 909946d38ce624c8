"""CIFAR-10 classifiers: trained by Lightning, composed by Hydra, watched in TensorBoard, judged by ``evaluate.py``."""

__version__ = "0.1.0"
