"""Optimizers as functions of a network, learning-rate schedules as functions of progress, and freezing."""
