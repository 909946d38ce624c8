"""What ``--help`` shows: a page read off conf/ at once; Hydra's own help takes a second to compose every choice."""

import re

from cifar_lightning.config.schema import CONF, groups_of, keys_of


def help_page(about: str, config_name: str, *, sweeps: bool) -> str:
    """The page of an entry: what it does, examples, choices, keys, flags.

    Args:
        about: The entry's docstring, with its examples.
        config_name: Name of the entry's file in conf/.
        sweeps: Whether several jobs may be asked for.
    """
    primary = (CONF / f"{config_name}.yaml").read_text(encoding="utf-8")
    rows = [f"  {group:<11} {_choices(group, primary)}" for group in groups_of(config_name)]
    chosen = "\n".join(["Choices, as group=choice (* is taken by itself):", *rows, "", ""]) if rows else ""
    keys = re.sub(r"^defaults:\n(?:  .*\n)+\n?", "", primary.partition("\nhydra:")[0], flags=re.MULTILINE).strip()
    flags = ["--cfg job         show every key of the composed config, and run nothing"]
    if sweeps:
        flags.append("-m                a job for each of several values: key=value1,value2")
        if "seed" in keys_of(config_name):
            flags.append("                  seeds=5 with it: seed=0,1,2,3,4")
    flags.append("--config-dir DIR  choices of your own: DIR has the form of conf/")
    flags.append("--hydra-help      Hydra's own flags")
    more = "\n".join(f"  {flag}" for flag in flags)
    return f"""{about.strip()}

{chosen}Keys, as key=value (conf/{config_name}.yaml):
{keys}

More:
{more}

Tab completes groups and keys in bash after: eval "$(python {config_name}.py -sc install=bash)"
docs/recipes.md has what people come for, README.md every page."""


def _choices(group: str, primary: str) -> str:
    """The names of a group, with a star before the one that an entry's file takes by itself."""
    default = re.search(rf"^  - {group}: (\w+)", primary, re.MULTILINE)
    names = sorted(file.stem for file in (CONF / group).glob("*.yaml"))
    return ", ".join(f"*{name}" if default and name == default[1] else name for name in names)
