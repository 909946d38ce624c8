"""Hyper-parameter search: trials that are runs of ``train``, chosen by Optuna."""
