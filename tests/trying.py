"""Searches whose runs take no time: what stands in for ``train``."""

import json
import time
from pathlib import Path

from omegaconf import OmegaConf

from cifar_lightning.config.schema import SearchSettings, compose
from cifar_lightning.config.searching import resolve_search
from cifar_lightning.errors import RunError
from cifar_lightning.locks import held
from cifar_lightning.runs.folder import CONFIG, LOCK
from cifar_lightning.search import supervise, worker
from cifar_lightning.search.record import begin
from cifar_lightning.search.space import read_space
from cifar_lightning.search.worker import open_study

SPACE = ("experiment=smoke", "optimizer.lr=tag(log,interval(1e-4,1e-1))", "data.batch_size=choice(4,16,64)")
FINGERPRINT = {"train": "a", "val": "b", "test": "c"}


def begun(folder, *overrides, own=(), seeds=1, n_trials=6, **options):
    """Settings of a search in a folder that is ready for workers."""
    listed = OmegaConf.to_container(OmegaConf.create(list(overrides or SPACE)))
    cfg = compose(f"study={folder}", f"n_trials={n_trials}", f"seeds={seeds}", *own, config_name="search")
    cfg.overrides = listed
    settings = resolve_search(cfg)
    space = read_space(settings.space, settings.overrides)
    begin(settings, space, OmegaConf.create({"seed": 0}))
    return settings


def states(settings):
    return [trial.state.name for trial in open_study(settings).trials()]


def quickly(overrides, folder, *, resume=None):
    """What ``search.check.composed`` gives, as far as the runs here look at it: composing takes longer than they do."""
    given = OmegaConf.from_dotlist([override for override in overrides if "=" in override])
    usual = {"seed": 0, "optimizer": {"lr": 0.01}, "data": {"batch_size": 4}}
    return OmegaConf.merge(usual, given, {"output_dir": str(folder), "resume": resume})


def work_here(monkeypatch, train):
    """Have a search work in the test's own process, one trial after the other, with something in place of ``train``."""

    def work(code, message, environments, note_death):
        asked = json.loads(message)
        settings = SearchSettings(**{**asked["settings"], "overrides": tuple(asked["settings"]["overrides"])})
        worker.work(settings, asked["seeds"], train, num_failed=asked["num_failed"])
        return 0

    monkeypatch.setattr(supervise, "supervise", work)


class Train:
    """Validates three epochs; accuracies come from the learning rate, and an epoch is done once in a run's life."""

    def __init__(self, seconds=0.0, epochs=3):
        self.seconds, self.epochs = seconds, epochs
        self.calls = []

    def acc(self, cfg, epoch):
        return max(0.0, 0.9 - abs(cfg.optimizer.lr - 0.01)) * epoch / self.epochs

    def __call__(self, cfg, invocation):
        folder = Path(cfg.output_dir)
        self.calls.append((folder.name, cfg.seed, cfg.resume))
        with held(folder / LOCK):  # raises if two processes are in one folder
            (folder / CONFIG).parent.mkdir(exist_ok=True)
            (folder / CONFIG).write_text(OmegaConf.to_yaml(cfg))
            done = folder / "epochs"
            for epoch in range(done.stat().st_size if done.exists() else 0, self.epochs):
                time.sleep(self.seconds)
                if invocation.report is not None:
                    invocation.report(epoch + 1, self.acc(cfg, epoch + 1))
                with done.open("a") as file:
                    file.write("x")
            metrics = {"val/acc": self.acc(cfg, self.epochs), "fingerprint": FINGERPRINT}
            (folder / "metrics.json").write_text(json.dumps(metrics))
        return metrics


class Failing(Train):
    """Fails where the batch is large."""

    def __call__(self, cfg, invocation):
        if cfg.data.batch_size == 64:
            raise RunError("the loss is not finite")
        if cfg.data.batch_size == 16:
            raise MemoryError("no more")
        return super().__call__(cfg, invocation)
