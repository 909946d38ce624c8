"""A sweeper that Hydra finds here, as it finds installed ones: a package of this name is on the tests' path."""

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper


class Optimiser(BasicSweeper):
    """Runs the jobs that Hydra's own sweeper runs, and prints what each returns to it."""

    def sweep(self, arguments: list[str]) -> None:
        print("returned", [job.return_value for batch in super().sweep(arguments) for job in batch])
