"""Run folders: lock, record, resume, sweeps, signals, loggers."""
