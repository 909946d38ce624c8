"""Each argument of the Trainer has its effect or is refused in one line; and a run is no rank of several."""

import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from conftest import BARE, FAST, ROOT, make_batches, make_classifier
from torch import nn

from cifar_lightning import models, ranks
from cifar_lightning.config.resolve import resolve
from cifar_lightning.device import refuse_several_processes
from cifar_lightning.engine.assembly import refuse_single_images
from cifar_lightning.engine.launch import ranks_to_start
from cifar_lightning.engine.trainer import PROFILERS, build_trainer, refuse_half_precision_on_cpu
from cifar_lightning.errors import UserError


@pytest.fixture
def build(compose, tmp_path):
    """Build the Trainer that overrides ask for."""

    def built(*overrides, **objects):
        section = resolve(compose("trainer.enable_progress_bar=false", *overrides)).trainer
        refuse_half_precision_on_cpu(section)
        return build_trainer(section, output_dir=str(tmp_path / "run"), **objects)

    return built


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "strategy=ddp_spawn",
            r"trainer\.strategy must be auto, got 'ddp_spawn': several devices train by data",
        ),
        ("strategy=ddp", r"trainer\.strategy must be auto, got 'ddp'"),
        ("strategy=single_device", r"trainer\.strategy must be auto, got 'single_device'"),
        ("use_distributed_sampler=false", r"trainer\.use_distributed_sampler must be true, got False"),
        ("limit_predict_batches=3", r"trainer\.limit_predict_batches must be null, got 3: nothing is predicted"),
        ("enable_autolog_hparams=false", r"trainer\.enable_autolog_hparams must be true, got False"),
        ("profiler=xla", r"trainer\.profiler must be one of simple, advanced, pytorch or null, got 'xla'"),
        ("profiler=1", r"trainer\.profiler must be text or null, got 1"),
        ("min_epochs=-1", r"trainer\.min_epochs must be at least 0 or null, got -1"),
        ("min_epochs=3", r"trainer\.min_epochs must be at most trainer\.max_epochs=2, got 3"),
        ("min_steps=-1", r"trainer\.min_steps must be at least 0 or null, got -1"),
        ("num_sanity_val_steps=-2", r"trainer\.num_sanity_val_steps must be at least -1 or null, got -2"),
        ("log_every_n_steps=-1", r"trainer\.log_every_n_steps must be at least 0 or null, got -1"),
        ("gradient_clip_val=-1", r"trainer\.gradient_clip_val must be at least 0 or null, got -1"),
        ("gradient_clip_algorithm=value", r"trainer\.gradient_clip_algorithm clips nothing by itself: set trainer"),
        ("val_check_interval=0", r"trainer\.val_check_interval must be above 0, got 0"),
        ("val_check_interval=0.0", r"trainer\.val_check_interval must be above 0, got 0"),
        ("val_check_interval={minuts:1}", r"trainer\.val_check_interval must be a time above 0, .*, got {'minuts': 1}"),
        ("max_time={hours:a}", r"trainer\.max_time must be a time above 0, as DD:HH:MM:SS or .*, got {'hours': 'a'}"),
        ("max_time={}", r"trainer\.max_time must be a time above 0, as DD:HH:MM:SS or .*, got {}"),
        ("precision=16-mixed", r"trainer\.precision=16-mixed is for a GPU; on a CPU set bf16-mixed, 32-true or auto"),
        ("precision=16", r"trainer\.precision=16 is for a GPU"),
        ("devices=[0]", r"trainer\.accelerator=cpu trainer\.devices=\[0\]: `devices` selected"),
    ],
)
def test_arguments_that_would_do_nothing_or_harm_are_refused(build, override, message):
    with pytest.raises(UserError, match=f"^{message}"):
        build(f"trainer.{override}")


@pytest.mark.parametrize(
    ("override", "attribute", "value"),
    [
        ("val_check_interval=00:00:01:00", "_val_check_time_interval", 60),
        ("val_check_interval={minutes:2}", "_val_check_time_interval", 120),
        ("gradient_clip_val=0", "gradient_clip_val", 0),
        ("log_every_n_steps=0", "log_every_n_steps", 0),
        ("num_sanity_val_steps=-1", "num_sanity_val_steps", float("inf")),
        ("min_epochs=2", "min_epochs", 2),
        ("min_steps=3", "min_steps", 3),
    ],
)
def test_arguments_at_their_limits_are_taken(build, override, attribute, value):
    assert getattr(build(f"trainer.{override}"), attribute) == value


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_what_leaves_no_batch_is_named(run):
    with pytest.raises(UserError, match=r"trainer\.overfit_batches=1e-07 leaves none of the 15 batches"):
        run(*BARE, "trainer.overfit_batches=0.0000001")


def test_validations_by_the_clock(run):
    metrics, _ = run(*BARE, "data.val_size=20", "trainer.val_check_interval=00:00:00:01")
    assert metrics["num_val_images"] == 20


@pytest.mark.filterwarnings("ignore:The PyTorch Profiler default schedule")
@pytest.mark.parametrize("name", PROFILERS)
def test_a_profile_is_written_into_the_runs_folder(name, build, tmp_path, caplog):
    caplog.set_level("INFO")
    trainer = build(f"trainer.profiler={name}", "trainer.max_steps=2", logger=False, enable_checkpointing=False)
    trainer.fit(make_classifier(), make_batches(), make_batches())
    [profile] = (tmp_path / "run" / "profile").glob("fit-*.txt")
    assert profile.name == f"fit-{name}.txt"
    assert profile.read_text().startswith("FIT Profiler Report")
    assert f"profile   {name}, into " in caplog.text


@pytest.mark.parametrize("linked", ["profile", "profile/fit-simple.txt"])
def test_a_profile_goes_through_no_link(linked, build, tmp_path):
    path = tmp_path / "run" / linked
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path)
    with pytest.raises(UserError, match=rf"trainer\.profiler: .*{linked} is a link: there must be a plain"):
        build("trainer.profiler=simple")


# Several devices


@pytest.fixture
def to_start(compose):
    """How many ranks overrides ask for."""
    return lambda *overrides: ranks_to_start(
        resolve(compose(*(f"trainer.{override}" for override in overrides))).trainer
    )


@pytest.mark.parametrize(
    ("overrides", "num"),
    [([], 1), (["devices=auto"], 1), (["devices=2"], 2), (["devices='3'"], 3), (["devices=1", "accelerator=auto"], 1)],
)
def test_one_rank_for_each_device(overrides, num, to_start):
    assert to_start(*overrides) == num


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["num_nodes=2"],
            r"trainer\.num_nodes=2: on several machines torchrun or srun starts the processes",
        ),
        (["num_nodes=0"], r"trainer\.num_nodes must be at least 1, got 0"),
        (
            ["sync_batchnorm=true"],
            r"trainer\.sync_batchnorm must be false, got true: on 1 device batch norm sees",
        ),
        (
            ["sync_batchnorm=true", "devices=2"],
            r"trainer\.sync_batchnorm must be false, got true: torch's",
        ),
        (["devices=0"], r"trainer\.accelerator=cpu trainer\.devices=0: "),
        (["devices=[0,1]"], r"trainer\.accelerator=cpu trainer\.devices=\[0, 1\]: `devices` selected"),
        (["devices=2", "accelerator=gpu"], r"trainer\.accelerator=gpu trainer\.devices=2: "),
    ],
)
def test_devices_that_cannot_be_had(overrides, message, to_start):
    with pytest.raises(UserError, match=f"^{message}"):
        to_start(*overrides)


def test_a_trainer_of_several_devices_wants_as_many_processes(build):
    with pytest.raises(UserError, match=r"^trainer\.devices: 2 devices need as many processes, and there is 1"):
        build("trainer.devices=2")


# One of several processes


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK=1"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "RANK=1 WORLD_SIZE=2"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "WORLD_SIZE=2"),
        ({"RANK": "first"}, "RANK=first"),
        ({"RANK": ""}, "RANK="),
        ({"SLURM_PROCID": "1"}, "SLURM_PROCID=1"),
        ({"SLURM_LOCALID": "1"}, "SLURM_LOCALID=1"),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "job", "SLURM_PROCID": "0"}, "SLURM_NTASKS=4"),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "bash", "SLURM_PROCID": "2"}, "SLURM_PROCID=2"),
    ],
)
def test_a_rank_is_refused_with_what_says_so(variables, named):
    with pytest.raises(ValueError, match=f"^{named} in the environment: .* type: unset {named.partition('=')[0]}"):
        refuse_several_processes(variables)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"},  # torchrun --nproc-per-node=1
        {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_NAME": "job"},
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "interactive"},  # salloc -n 4, then by hand
    ],
)
def test_one_process_is_none_of_several(variables):
    refuse_several_processes(variables)


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
@pytest.mark.parametrize("variable", ["LOCAL_RANK=1", "SLURM_NTASKS=4"])
def test_no_rank_writes_anything(script, variable, command, monkeypatch, tmp_path):
    monkeypatch.setenv(*variable.split("="))
    outcome = command(script, *FAST, f"output_dir={tmp_path / 'run'}", "ckpt=nowhere" if "eval" in script else "seed=0")
    assert outcome.refusal.startswith(f"{variable} in the environment: ")
    assert not (tmp_path / "run").exists()


def test_from_python_a_rank_is_refused_too(build, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match=r"^trainer: RANK=1 in the environment"):
        build()


@pytest.mark.slow
def test_torchrun_with_one_process(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1", "train.py", "experiment=smoke"]
    command += ["trainer.accelerator=cpu", "trainer.limit_train_batches=2", f"output_dir={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "metrics.json").exists()


# The last batch


class Pooled(nn.Module):
    """Batch norm over one value of each image."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images):
        return self.dropout(self.norm(images.mean((2, 3))))


@pytest.mark.parametrize(
    ("num_images", "batch_size", "overrides", "message"),
    [
        (33, 8, (), r"data\.batch_size=8: of 33 training images the last batch has 1, .* with data\.batch_size=9 "),
        (33, 16, (), r"data\.batch_size=16: .* with data\.batch_size=17 it has more"),
        (8, 1, (), r"data\.batch_size=1: .* with data\.batch_size=2 it has more"),
        (33, 8, ("trainer.limit_train_batches=5",), "data\\.batch_size=8"),
        (33, 8, ("trainer.max_steps=5",), "data\\.batch_size=8"),
        (33, 8, ("trainer.limit_train_batches=4",), None),
        (33, 8, ("trainer.limit_train_batches=0.9",), None),
        (33, 8, ("trainer.max_steps=4",), None),
        (32, 8, (), None),
        (34, 8, (), None),
    ],
)
def test_a_last_batch_that_batch_norm_cannot_take(num_images, batch_size, overrides, message, build):
    net, trainer, shape = Pooled(), build(*overrides), torch.Size([3, 8, 8])
    before, random = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    with pytest.raises(UserError, match=message) if message else nullcontext():
        refuse_single_images(net, [shape], trainer, num_images=num_images, batch_size=batch_size, name="pooled")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("num_images", "batch_size", "syncs", "message"),
    [
        (
            32,
            8,
            False,
            r"data\.batch_size=8: of 32 training images the smallest shard of 5 devices has 1, .*_size=11 it",
        ),
        (39, 10, False, r"data\.batch_size=10: of 39 training images the smallest shard of 5 devices has 1"),
        (40, 10, False, None),
        (39, 8, True, None),
        (33, 10, True, r"of 33 training images the last batch has 3, too few for the batch norms of 5 devices"),
    ],
)
def test_shards_that_batch_norm_cannot_take(num_images, batch_size, syncs, message, build, monkeypatch):
    trainer, sizes = build(), {"num_images": num_images, "batch_size": batch_size}
    monkeypatch.setattr(ranks, "world_size", lambda: 5)
    with pytest.raises(UserError, match=message) if message else nullcontext():
        refuse_single_images(Pooled(), [torch.Size([3, 8, 8])], trainer, **sizes, name="pooled", syncs=syncs)


def test_a_network_that_trains_on_one_image_may(build):
    net = models.build("tutorial", num_classes=10, in_channels=3)
    refuse_single_images(net, [torch.Size([3, 32, 32])], build(), num_images=33, batch_size=8, name="tutorial")


def test_it_is_said_before_training(run, monkeypatch):
    monkeypatch.setitem(models.NETWORKS, "pooled", lambda *, num_classes, in_channels: Pooled())
    with pytest.raises(UserError, match=r"of 60 training images the last batch has 1, and model=pooled cannot train"):
        run(*BARE, "model.name=pooled", "data.batch_size=59")
