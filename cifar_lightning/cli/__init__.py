"""The command line: Hydra runs a command, and each error is one line and an exit code."""
