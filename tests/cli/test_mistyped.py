"""Arguments that Hydra cannot read: one line says what to type instead."""

import pytest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data = synthetic"], "data = synthetic: no spaces around =: data=synthetic"),
        (["data", "=", "synthetic"], "data = synthetic: no spaces around =: data=synthetic"),
        (["seed=1", "data=", "synthetic"], "data= synthetic: no spaces around =: data=synthetic"),
        (["name = my run"], "name = my run: no spaces around =: 'name=my run'"),
        (["data=synthetic,"], "data=synthetic,: the comma at the end is too much: data=synthetic"),
        (
            ["freeze=[[conv1,", "0.5]]"],
            "freeze=[[conv1, 0.5]]: no spaces after a comma: 'freeze=[[conv1,0.5]]'",
        ),
        (
            ["resume=logs/tutorial/<time>"],
            "resume=logs/tutorial/<time>: <time> stands for the name of a folder: type that in its place",
        ),
        (["model=<model>"], "model=<model>: <model> stands for a value: type that in its place"),
    ],
)
def test_syntax(command, arguments, message):
    assert command("train.py", *arguments).refusal == message


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("name=a<b", ""),
        ("optimizer.lr=[0.1", ""),
        ("augment=größe", ""),
        ("name=a=b", ""),
        ("trainer.max_epochs=int(x)", " (int(x): invalid literal for int() with base 10: 'x')"),
    ],
)
def test_other_syntax_is_told_without_words_of_the_grammar(command, override, reason):
    refusal = command("train.py", override).refusal
    assert refusal.startswith(f"cannot read '{override}': a value with any of = , ")
    assert refusal.endswith(f"such as 'key=\"value\"'{reason}")


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("evaluate.py", ["logs/x/last.ckpt"], "'logs/x/last.ckpt' has no key: did you mean ckpt=logs/x/last.ckpt?"),
        ("export.py", ["a b.ckpt"], """'a b.ckpt' has no key: did you mean 'ckpt="a b.ckpt"'?"""),
        ("serve.py", ["a.onnx"], "'a.onnx' has no key: did you mean ckpt=a.onnx?"),
        ("predict.py", ["a.ckpt", "a.jpg"], "'a.ckpt' has no key: did you mean ckpt=a.ckpt?"),
        ("predict.py", ["ckpt=a.ckpt", "a.jpg"], "'a.jpg' has no key: did you mean images=a.jpg?"),
        ("compare.py", ["logs/x"], "'logs/x' has no key: did you mean runs=logs/x?"),
        ("compare.py", ["a.ckpt"], "'a.ckpt' has no key: did you mean 'ckpt=[a.ckpt,OTHER]'?"),
        ("search.py", ["logs/x"], "'logs/x' has no key: did you mean study=logs/x?"),
        ("train.py", ["logs/x/checkpoints/last.ckpt"], "has no key: did you mean resume=logs/x?"),
        ("train.py", ["a.ckpt"], "'a.ckpt' has no key: did you mean init=a.ckpt?"),
        ("train.py", ["photos/"], "'photos/' has no key: a key is set as key=value, and --help lists the keys"),
        ("evaluate.py", ["fast"], "'fast' has no key: a key is set as key=value, and --help lists the keys"),
        ("train.py", ["trainer.max_epochs"], "has no value: a key is set as trainer.max_epochs=VALUE, and --help"),
        ("train.py", ["=3"], "'=3' has no key: a key is set as key=value"),
        ("train.py", [""], "'' has no key: a key is set as key=value"),
        (
            "predict.py",
            ["ckpt=a.ckpt", "images=a.jpg", "b.jpg", "c.jpg", "topk=1"],
            "images=a.jpg b.jpg: several values are a list: 'images=[a.jpg,b.jpg,c.jpg]'",
        ),
        ("compare.py", ["runs=", "a", "b"], "runs= a: several values are a list: 'runs=[a,b]'"),
    ],
)
def test_an_argument_without_a_key(command, script, arguments, message):
    assert message in command(script, *arguments).refusal


def test_a_word_is_a_path_where_there_is_one(command, tmp_path):
    (tmp_path / "fast").touch()
    assert command("evaluate.py", "fast").refusal == "'fast' has no key: did you mean ckpt=fast?"


def test_the_name_that_an_example_stands_for(command, tmp_path):
    ckpt = "ckpt=logs/tutorial/<time>/checkpoints/last.ckpt"
    told = f"{ckpt}: <time> stands for the name of a folder: type that in its place"
    assert command("evaluate.py", ckpt).refusal == told
    (tmp_path / "logs" / "tutorial" / "<time>").mkdir(parents=True)  # somebody's folder is called so
    assert command("evaluate.py", ckpt).refusal.startswith("there is no file ")


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (
            "train.py",
            ["optimizer.lr=0.1,0.2"],
            "optimizer.lr=0.1,0.2: several values are a sweep; add -m, as in python train.py -m optimizer.lr=0.1,0.2; "
            "a list is 'optimizer.lr=[0.1,0.2]'",
        ),
        (
            "train.py",
            ["seed=range(1,3)"],
            "seed=range(1,3): several values are a sweep; add -m, as in python train.py -m 'seed=range(1,3)'",
        ),
        ("compare.py", ["runs=a,b"], "runs=a,b: compare.py does one thing at a time; a list is 'runs=[a,b]'"),
    ],
)
def test_several_values_without_a_sweep(command, script, arguments, message):
    assert command(script, *arguments).refusal == message
