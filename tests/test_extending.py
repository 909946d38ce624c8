"""A network, a data set, an augmentation and an optimizer of one's own, as docs/recipes.md adds them."""

import re
import shlex
import sys

import numpy as np
import pytest
from conftest import BARE
from documents import EXTENSIONS

from cifar_lightning import models


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes the files of a section, whose names stand in the first line of each; gives its command."""

    def written(section: str) -> list[str]:
        for file, text in re.findall(r"^```\w+\n# (\S+)\n(.*?)^```$", EXTENSIONS[section], re.DOTALL | re.MULTILINE):
            path = tmp_path / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "mine", raising=False)
        _, entry, *arguments = shlex.split(re.search(r"```bash\n(.*)\n", EXTENSIONS[section])[1])
        assert entry == "train.py"
        return arguments

    yield written
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("section", EXTENSIONS)
def test_what_is_added_trains_and_is_evaluated(section, write, command, tmp_path, monkeypatch):
    arguments = write(section)
    if section == "A network":
        namespace: dict[str, type] = {}
        exec((tmp_path / "cifar_lightning" / "models" / "mlp.py").read_text(), namespace)
        monkeypatch.setitem(models.NETWORKS, "mlp", namespace["MLP"])
    if section == "A data set":
        (tmp_path / "data" / "mine").mkdir(parents=True)
        for split, num in (("train", 64), ("test", 32)):
            images = np.random.default_rng(num).integers(0, 256, (num, 32, 32, 3), dtype=np.uint8)
            np.savez(tmp_path / "data" / "mine" / split, images=images, labels=np.arange(num) % 2)
    tiny = section != "A data set"
    conf = f"--config-dir={tmp_path / 'conf'}"
    short = ("trainer.max_epochs=1", "trainer.accelerator=cpu", f"output_dir={tmp_path / 'run'}")
    trained = command("train.py", *arguments, *short, *BARE, conf, tiny=tiny)
    assert trained.code == 0, trained.err
    evaluated = command(
        "evaluate.py", f"ckpt={tmp_path}/run/checkpoints/last.ckpt", "trainer.accelerator=cpu", conf, tiny=tiny
    )
    assert evaluated.code == 0, evaluated.err
