import functools
import gc
from contextlib import nullcontext
from types import SimpleNamespace

import jaxtyping
import pytest
import torch
from conftest import make_classifier
from torch import nn

from cifar_lightning.callbacks.clock import Clock
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.commands import train as training
from cifar_lightning.commands.train import train
from cifar_lightning.engine import compile as compilation
from cifar_lightning.engine.compile import compile_in_place, refuse_accumulation
from cifar_lightning.engine.warmup import BlankData, warm_up
from cifar_lightning.errors import UserError
from cifar_lightning.models import build
from cifar_lightning.optim.muon import Muon

SPEEDRUN = ("experiment=speedrun", "model.widths=[8,8,8]", "trainer.max_epochs=3", "data.batch_size=25", "tta=1")


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.fixture(autouse=True)
def nothing_is_compiled_yet(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its checks cannot be traced
    yield
    torch._dynamo.reset()


@pytest.fixture
def graphs(monkeypatch):
    """The graphs compiled so far, by a backend that runs them as they are; CPUs' own wants a C++ compiler."""
    found = []

    def backend(graph, inputs):
        found.append([tuple(tensor.shape) for tensor in inputs if isinstance(tensor, torch.Tensor)])
        return graph.forward

    original = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda net, **options: original(net, backend=backend, dynamic=False))
    return found


def test_compile_in_place_compiles_the_network_and_keeps_the_names_of_its_weights(graphs):
    uncompiled, compiled = make_classifier(), make_classifier()
    compile_in_place(uncompiled.net, False)
    compile_in_place(compiled.net, True)
    images = torch.arange(2 * 3 * 32 * 32).reshape(2, 3, 32, 32).to(torch.uint8)
    logits = uncompiled(images)
    assert graphs == []
    torch.testing.assert_close(compiled(images), logits)
    assert len(graphs) == 1
    assert list(compiled.state_dict()) == list(uncompiled.state_dict())


@pytest.fixture
def small_speedrun(compose, tiny_root):
    dataset = (f"data.root={tiny_root}", "data.dataset._target_=conftest.TinyCIFAR10")
    return lambda *overrides: compose(*SPEEDRUN, *dataset, "callbacks=none", "logger=none", *overrides)


@pytest.mark.parametrize(
    ("overrides", "kinds"),
    [
        # 24x24 with the first layer's bias, 32x32 with it and without, each with a last batch of 10; and the test.
        (["freeze=[[patches.bias,0.5]]"], 3 * 2 + 1),
        # 24x24 with it and without, 32x32 without, a last batch of 15; validation with it and without; and the test.
        (["freeze=[[patches.bias,0.3]]", "augment.early_sizes=[24,24]", "data.val_size=20"], 3 * 2 + 2 + 1),
        # Two epochs: 24x24 with it, 32x32 without.
        (["freeze=[[patches.bias,0.5]]", "trainer.max_epochs=null", "trainer.max_steps=6"], 2 * 2 + 1),
        slow(["freeze=[[patches.bias,0.3]]", "trainer.limit_train_batches=2"], 2 * 2 + 1),
        slow(["freeze=[]", "trainer.precision=bf16-true"], 2 * 2 + 1),
        # It ends within the second epoch, and is validated after that, too.
        slow(["freeze=[]", "data.val_size=15", "trainer.max_epochs=null", "trainer.max_steps=3"], 2 * 2 + 1 + 1),
    ],
)
def test_nothing_is_compiled_after_the_clock_has_started(small_speedrun, graphs, monkeypatch, overrides, kinds):
    before_the_clock = []
    monkeypatch.setattr(Clock, "on_fit_start", lambda *args: before_the_clock.append(len(graphs)))
    train(small_speedrun("compile=true", "augment.early_sizes=[24]", *overrides))
    assert before_the_clock == [len(graphs)]
    assert len(graphs) == kinds


def test_compiled_and_uncompiled_training_agree(small_speedrun, graphs, monkeypatch, tmp_path):
    monkeypatch.setattr("cifar_lightning.optim.muon.multiplies_bf16", {"cpu": False}.__getitem__)
    plain, compiled = (
        train(small_speedrun("trainer.precision=32-true", f"compile={choice}", f"output_dir={tmp_path / choice}"))
        for choice in ("false", "true")
    )
    assert graphs
    # In fp32 throughout, weights that differ by 1e-7 at the start move these losses by up to 2e-7. Another learning
    # rate (0.34), label smoothing (0.19), image sizes or frozen layers move the losses on test images by 3e-4 and more.
    # In bf16, for the network or for Muon, rounding moves the losses as far as such a fault does.
    for name in ("train/loss", "test/loss", "test/loss_tta"):
        assert compiled[name] == pytest.approx(plain[name], rel=1e-5)


@pytest.mark.slow
def test_what_earlier_jobs_have_compiled_leaves_room_for_more(small_speedrun, graphs, tmp_path):
    found = []
    with torch._dynamo.config.patch(recompile_limit=2, accumulated_recompile_limit=2):
        for width in (2, 3, 4):
            already = len(graphs)
            train(small_speedrun("compile=true", f"model.widths=[{width},4,4]", f"output_dir={tmp_path / str(width)}"))
            found.append(len(graphs) - already)
    assert found == [3 * 2 + 1] * 3


def test_warming_up_leaves_no_trace(small_speedrun, monkeypatch):
    seen = {}

    def look(classifier, *args, **options):
        def facts():
            parameters = dict(classifier.named_parameters())
            return {
                "state": {name: value.clone() for name, value in classifier.state_dict().items()},
                "gradients": [name for name, parameter in parameters.items() if parameter.grad is not None],
                "trainable": [name for name, parameter in parameters.items() if parameter.requires_grad],
                "training": [module.training for module in classifier.modules()],
                "random": torch.get_rng_state().tolist(),
            }

        seen["before"] = facts()
        warm_up(classifier, *args, **options)
        seen["after"] = facts()

    monkeypatch.setattr(nn.Module, "compile", lambda net, **options: None)
    monkeypatch.setattr(training, "warm_up", look)
    train(small_speedrun("compile=true"))
    states = [seen[when].pop("state") for when in ("before", "after")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert seen["after"] == seen["before"]


@pytest.mark.parametrize(
    ("choice", "on_gpu", "expected"),
    [
        (True, True, {"mode": None, "dynamic": False}),
        ("default", True, {"mode": "default", "dynamic": False}),
        ("reduce-overhead", True, {"mode": "default", "dynamic": False}),
        ("max-autotune", True, {"mode": "max-autotune-no-cudagraphs", "dynamic": False}),
        ("max-autotune-no-cudagraphs", True, {"mode": "max-autotune-no-cudagraphs", "dynamic": False}),
        ("reduce-overhead", False, None),
        (False, True, None),
    ],
)
def test_muon_is_compiled_on_a_gpu_without_cuda_graphs(small_speedrun, monkeypatch, choice, on_gpu, expected):
    found = []
    monkeypatch.setattr(compilation, "is_on_gpu", lambda net: on_gpu)
    monkeypatch.setattr(Muon, "compile", lambda self, **options: found.append(options))
    monkeypatch.setattr(nn.Module, "compile", lambda net, **options: None)
    train(small_speedrun(f"compile={choice}", "trainer.max_steps=1"))
    assert [options for options in found if options != expected] == []
    assert bool(found) == (expected is not None)


@pytest.mark.parametrize("fails", [False, True])
def test_no_garbage_is_collected_while_graphs_may_be_recorded(small_speedrun, monkeypatch, fails):
    was_enabled = []

    def step(self, *args):
        if isinstance(self.trainer.datamodule, BlankData):
            was_enabled.append(gc.isenabled())
            if fails:
                raise RuntimeError("as a step may")
        return original(self, *args)

    original = ImageClassifier.training_step
    monkeypatch.setattr(ImageClassifier, "training_step", step)
    monkeypatch.setattr(nn.Module, "compile", lambda net, **options: None)
    with pytest.raises(RuntimeError, match="as a step may") if fails else nullcontext():
        train(small_speedrun("compile=true"))
    assert was_enabled
    assert not any(was_enabled)
    assert gc.isenabled()


on_either = pytest.mark.parametrize(
    "accelerator", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("gpu", marks=pytest.mark.gpu)]
)


@on_either
@pytest.mark.filterwarnings("ignore")  # of compilers
def test_compiled_in_bf16_it_trains_as_it_does_uncompiled(accelerator, small_speedrun, tmp_path):
    recipe = ("trainer.precision=bf16-mixed", f"trainer.accelerator={accelerator}")
    plain, compiled = (
        train(small_speedrun(*recipe, f"compile={mode}", f"output_dir={tmp_path / mode}"))
        for mode in ("false", "reduce-overhead")
    )
    assert compiled["train/loss"] == pytest.approx(plain["train/loss"], rel=0.01)
    assert compiled["test/loss_tta"] == pytest.approx(plain["test/loss_tta"], rel=0.02)


@on_either
@pytest.mark.filterwarnings("ignore")  # of compilers
def test_compiled_jobs_of_several_networks_in_one_process(accelerator, small_speedrun, tmp_path):
    recipe = ("compile=reduce-overhead", f"trainer.accelerator={accelerator}", "trainer.max_epochs=1")
    losses = [
        train(small_speedrun(*recipe, f"model.widths=[{width},8,8]", f"output_dir={tmp_path / str(job)}"))["train/loss"]
        for job, width in enumerate((8, 12, 8, 12))
    ]
    assert losses[2:] == pytest.approx(losses[:2], rel=0.01)
    assert losses[0] != pytest.approx(losses[1], rel=0.0001)


def test_the_maximum_of_a_map_is_not_looked_for_again_in_compiled_code():
    code, images = [], torch.randn(2, 3, 32, 32)

    def backend(graph, inputs):
        code.append(graph.code)
        return graph.forward

    net, compiled = (build("speedrun", num_classes=10, in_channels=3, widths=[8, 8, 8]).eval() for _ in range(2))
    compiled.load_state_dict(net.state_dict())
    compiled.compile(backend=backend, dynamic=False)
    assert torch.equal(compiled(images), net(images))
    assert len(code) == 1
    assert code[0].count("max_pool2d(") == 3 + 1  # of the groups, and of the last map
    assert "amax" not in code[0]


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
@pytest.mark.parametrize(("num", "device", "is_refused"), [(2, "cuda", True), (1, "cuda", False), (2, "cpu", False)])
def test_gradients_of_cuda_graphs_are_not_accumulated(mode, num, device, is_refused):
    strategy = SimpleNamespace(root_device=torch.device(device))
    trainer = SimpleNamespace(accumulate_grad_batches=num, strategy=strategy)
    for choice in (False, True, "default"):
        refuse_accumulation(trainer, choice)
    match = rf"trainer\.accumulate_grad_batches must be 1 on a GPU with compile={mode}.*, got 2; compile="
    with pytest.raises(UserError, match=match) if is_refused else nullcontext():
        refuse_accumulation(trainer, mode)


@pytest.mark.filterwarnings("ignore")  # of compilers
def test_no_compiler(small_speedrun, command, tmp_path):
    train(small_speedrun("trainer.max_epochs=1", f"output_dir={tmp_path / 'run'}"))
    said = "error: compile=true: torch.compile has found no working C or C++ compiler "
    with torch._inductor.config.patch({"cpp.cxx": (None, str(tmp_path / "none"))}):
        training = command("train.py", "experiment=smoke", "compile=true", f"output_dir={tmp_path / 'other'}")
        evaluation = command("evaluate.py", f"ckpt={tmp_path / 'run/checkpoints/last.ckpt'}", "compile=true", tiny=True)
    for outcome in (training, evaluation):
        assert outcome.code == 2
        assert outcome.err.count("\n") == 1
        assert outcome.err.startswith(said)
        assert outcome.err.endswith("; install one, such as g++, or set compile=false\n")


def test_modes_are_torchs(small_speedrun, monkeypatch):
    asked_for = []
    monkeypatch.setattr(nn.Module, "compile", lambda net, **options: asked_for.append(options["mode"]))
    train(small_speedrun("compile=max-autotune"))
    assert asked_for == ["max-autotune"]
    with pytest.raises(UserError, match=r"compile must be true, false or one of default, .*, got fastest"):
        train(small_speedrun("compile=fastest"))
