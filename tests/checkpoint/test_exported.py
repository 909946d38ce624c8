"""Exported files of unknown origin: whatever they hold, none runs code, and each is refused in one line."""

import io
import json
import os
import pickle
import zipfile
from contextlib import suppress

import pytest
import torch
from conftest import save_checkpoint

from cifar_lightning.checkpoint import pt2_file
from cifar_lightning.checkpoint.exported import DESCRIPTION, ExportedClassifier
from cifar_lightning.checkpoint.load import load_classifier, read_settings
from cifar_lightning.errors import UserError
from cifar_lightning.export import FORMATS
from cifar_lightning.export.source import load_source


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Folder of a checkpoint's last.onnx and last.pt2."""
    folder = tmp_path_factory.mktemp("exported")
    source = load_source(save_checkpoint(folder / "last.ckpt", name="tutorial"))
    for library in FORMATS["onnx"].packages:
        pytest.importorskip(library)
    for name in ("onnx", "torch_export"):
        for path, content in FORMATS[name].files(source, f"last{FORMATS[name].ending}").items():
            (folder / path).write_bytes(content)
    return folder


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def repacked(path, contents, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def changed_json(path, target, name, change):
    """A copy of an archive with one JSON member changed."""
    contents = members(path)
    (key,) = [key for key in contents if key.endswith(name)]
    value = json.loads(contents[key])
    change(value)
    return repacked(target, contents | {key: json.dumps(value)})


def graph_of(model):
    return model["graph_module"]["graph"]


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return os.mkdir, (str(self.sentinel),)


def pickled(sentinel):
    content = io.BytesIO()
    torch.save(Bomb(sentinel), content)
    return content.getvalue()


def test_an_exported_file_describes_itself_and_computes_in_float32(exported):
    own = read_settings(exported / "last.ckpt")
    for name, accelerator in (("last.onnx", {"accelerator": "cpu"}), ("last.pt2", {})):
        classifier, _ = load_classifier(exported / name)
        assert isinstance(classifier, ExportedClassifier)
        expected = {**own, "trainer": {**own["trainer"], "precision": "32-true", **accelerator}}
        assert read_settings(exported / name) == expected


@pytest.mark.parametrize("value", [0.0, float("nan"), 1e300, "1", [1.0]])
@pytest.mark.parametrize("name", ["last.onnx", "last.pt2"])
def test_an_impossible_temperature_is_refused(exported, tmp_path, name, value):
    path = tmp_path / name
    if name == "last.pt2":
        changed_json(exported / name, path, DESCRIPTION, lambda description: description.update(temperature=value))
    else:
        onnx = pytest.importorskip("onnx")
        model = onnx.load(exported / name)
        (entry,) = [entry for entry in model.metadata_props if entry.key == DESCRIPTION]
        entry.value = json.dumps(json.loads(entry.value) | {"temperature": value})
        onnx.save(model, path)
    with pytest.raises(UserError, match=r"temperature must be in \[0\.01, 100\], got ") as refused:
        load_classifier(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "target",
    [
        *("torch.ops.aten.from_file.default", "torch.hub.load", "torch.load", "torch.ops.load_library", "math.sin"),
        *("_operator.concat", "#triton:x", "torch.ops.higher_order.cond", "os.system", "__import__", "", None, 3),
    ],
)
def test_other_operators_are_refused(exported, tmp_path, target):
    def change(model):
        graph_of(model)["nodes"][3]["target"] = target

    hostile = changed_json(exported / "last.pt2", tmp_path / "last.pt2", "model.json", change)
    with pytest.raises(UserError, match=r"which is not among the operators that are read") as refused:
        load_classifier(hostile)
    assert "\n" not in str(refused.value)


def test_expressions_and_guards_of_a_file_are_not_evaluated(exported, tmp_path):
    """torch.export.load itself would evaluate both; the first shows that these texts do run there."""
    sentinel = tmp_path / "sentinel"
    code = f"__import__('os').mkdir({str(sentinel)!r})"

    def change(model):
        model["guards_code"] = [code]
        for value in graph_of(model)["tensor_values"].values():
            value["sizes"][0] = {"as_expr": {"expr_str": code, "hint": None}}
        model["range_constraints"] = {code: {"min_val": 1, "max_val": None}}
        for node in graph_of(model)["nodes"]:
            node["metadata"] = {"custom": code, "nn_module_stack": code, "from_node": code}

    hostile = changed_json(exported / "last.pt2", tmp_path / "last.pt2", "model.json", change)
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    classifier, _ = load_classifier(hostile)
    with torch.no_grad():
        assert torch.equal(classifier(images), load_classifier(exported / "last.pt2")[0](images))
    assert not sentinel.exists()
    with suppress(Exception):  # whatever torch says after running it
        torch.export.load(hostile)
    assert sentinel.exists()


def test_pickles_in_a_file_are_not_loaded(exported, tmp_path):
    sentinel = tmp_path / "sentinel"
    contents = members(exported / "last.pt2")
    root = next(iter(contents)).partition("/")[0]

    samples = {f"{root}/data/sample_inputs/model.pt": pickled(sentinel)}
    load_classifier(repacked(tmp_path / "samples.pt2", contents | samples))

    def use_pickle(config):
        config["config"]["net.conv1.weight"]["use_pickle"] = True

    weights = changed_json(exported / "last.pt2", tmp_path / "weights.pt2", "weights_config.json", use_pickle)
    repacked(weights, members(weights) | {f"{root}/data/weights/weight_0": pickled(sentinel)})
    with pytest.raises(UserError, match=r"'net.conv1.weight' is pickled, and was not loaded"):
        load_classifier(weights)

    constants = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    config = {f"{root}/data/constants/model_constants_config.json": json.dumps({"config": {"x": constants}})}
    with pytest.raises(UserError, match="it holds objects beside its weights"):
        load_classifier(repacked(tmp_path / "constants.pt2", contents | config))
    for name in ("data/constants/opaque_obj_0", "data/constants/custom_obj_0", "data/aotinductor/model/x.so", "../x"):
        hostile = {f"{root}/{name}": pickle.dumps(Bomb(sentinel))}
        with pytest.raises(UserError, match="which no export of this project does"):
            load_classifier(repacked(tmp_path / "members.pt2", contents | hostile))
    assert not sentinel.exists()


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"sizes": [{"as_int": 10**6}, {"as_int": 10**6}]}, "larger than what the file holds"),
        ({"strides": [{"as_int": 0}, {"as_int": 0}], "sizes": [{"as_int": 10**9}] * 2}, "larger than what the file"),
        ({"sizes": [{"as_expr": {"expr_str": "exit()"}}]}, "as_int"),
        ({"storage_offset": {"as_int": -8}}, "impossible shape"),
        ({"storage_offset": {"as_int": 10**12}}, "larger than what the file holds"),
        ({"dtype": 13}, "13 is missing or unknown"),
    ],
)
def test_weights_that_are_not_there_are_refused(exported, tmp_path, meta, message):
    def change(config):
        config["config"]["net.fc1.weight"]["tensor_meta"].update(meta)

    hostile = changed_json(exported / "last.pt2", tmp_path / "last.pt2", "weights_config.json", change)
    with pytest.raises(UserError, match=message):
        load_classifier(hostile)


def _first_input(model, value):
    graph_of(model)["nodes"][3]["inputs"][0]["arg"] = value


@pytest.mark.parametrize(
    "change",
    [
        lambda model: _first_input(model, {"as_tensor": {"name": "later"}}),
        lambda model: _first_input(model, {"as_string": "/etc/passwd"}),
        lambda model: _first_input(model, {"as_graph": {}}),
        lambda model: _first_input(model, {"as_ints": [10**9]}),
        lambda model: _first_input(model, {"as_float": float("inf")}),
        lambda model: _first_input(model, 3),
        lambda model: graph_of(model)["outputs"].clear(),
        lambda model: graph_of(model)["nodes"].clear(),
        lambda model: graph_of(model)["nodes"].append(graph_of(model)["nodes"][1]),
        lambda model: graph_of(model)["nodes"][1].update(target="torch.ops.aten.relu_.default"),
        lambda model: model["graph_module"].pop("signature"),
        lambda model: model.clear(),
    ],
)
def test_graphs_of_another_form_are_refused(exported, tmp_path, change):
    hostile = changed_json(exported / "last.pt2", tmp_path / "last.pt2", "model.json", change)
    with pytest.raises(UserError, match=r"is no file that export.py wrote|cannot be run") as refused:
        load_classifier(hostile)
    assert "\n" not in str(refused.value)


def test_archives_of_another_form_are_refused(exported, tmp_path, monkeypatch):
    contents = members(exported / "last.pt2")
    compressed = repacked(tmp_path / "compressed.pt2", contents, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="it is compressed"):
        load_classifier(compressed)
    damaged = bytearray((exported / "last.pt2").read_bytes())
    damaged[damaged.index(members(exported / "last.pt2")[next(iter(contents))][:40])] ^= 1
    (tmp_path / "damaged.pt2").write_bytes(damaged)
    with pytest.raises(UserError, match=r"wrong checksum|damaged"):
        load_classifier(tmp_path / "damaged.pt2")
    for length in (0, 100, len(damaged) // 2):
        (tmp_path / "short.pt2").write_bytes(damaged[:length])
        with pytest.raises(UserError, match=r"damaged|empty"):
            load_classifier(tmp_path / "short.pt2")
    monkeypatch.setattr(pt2_file, "_MAX_JSON_BYTES", 1_000)
    with pytest.raises(UserError, match="is larger than 1,000 bytes"):
        load_classifier(exported / "last.pt2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found | {"format_version": 99}, "has format 99, and this version"),
        (
            lambda found: with_setting(found, data={"root": "${oc.env:HOME}"}),
            r"settings\.data\.root holds an interp",
        ),
        (lambda found: with_setting(found, classes=["a", "b"]), r"2 class names for logits of \(2, 10\)"),
        (lambda found: {key: value for key, value in found.items() if key != "settings"}, "settings is missing"),
        (lambda found: [found], "it holds a list, not a dictionary"),
        (lambda found: with_setting(found, image_size=[8, 8]), "the program in it cannot be run"),
    ],
)
def test_descriptions_are_checked_as_those_of_checkpoints(exported, tmp_path, change, message):
    contents = members(exported / "last.pt2")
    (key,) = [key for key in contents if key.endswith(DESCRIPTION)]
    contents[key] = json.dumps(change(json.loads(contents[key]))).encode()
    with pytest.raises(UserError, match=message) as refused:
        load_classifier(repacked(tmp_path / "last.pt2", contents))
    assert "\n" not in str(refused.value)


def with_setting(found, **changed):
    return found | {"settings": found["settings"] | changed}


def _model(exported):
    onnx = pytest.importorskip("onnx")
    return onnx.load(exported / "last.onnx")


def test_a_weight_in_another_file_is_not_opened(exported, tmp_path):
    model = _model(exported)
    secret = tmp_path / "secret"
    secret.write_bytes(b"\0" * 10_000)
    for place in ("secret", "../secret", str(secret)):
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = 1
        del tensor.external_data[:]
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", place
        (tmp_path / "last.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(UserError, match="is in another file, which is not opened"):
            load_classifier(tmp_path / "last.onnx")


@pytest.mark.parametrize("change", ["domain", "operator", "loop", "function", "input", "metadata", "text"])
def test_onnx_files_of_another_form_are_refused(exported, tmp_path, change):
    model = _model(exported)
    node = model.graph.node[2]
    if change == "domain":
        node.domain = "com.microsoft"
    elif change == "operator":
        node.op_type = "PythonOp"
    elif change == "loop":
        node.attribute.add(name="body", type=5).g.name = "body"
    elif change == "function":
        model.functions.add(name="f", domain="")
    elif change == "input":
        model.graph.input.add(name="path")
    elif change == "metadata":
        del model.metadata_props[:]
    content = b"hello" if change == "text" else model.SerializeToString()
    (tmp_path / "last.onnx").write_bytes(content)
    with pytest.raises(UserError, match=r"is no file that export.py wrote") as refused:
        load_classifier(tmp_path / "last.onnx")
    assert "\n" not in str(refused.value)


def test_a_program_that_fails_is_one_line(exported, tmp_path):
    model = _model(exported)
    del model.graph.node[4:6]
    (tmp_path / "last.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="onnxruntime refuses it: "):
        load_classifier(tmp_path / "last.onnx")
    with pytest.raises(UserError, match="there is no file"):
        load_classifier(tmp_path / "other.pt2")
    with pytest.raises(UserError, match="is an address"):
        load_classifier("https://example.org/last.onnx")
