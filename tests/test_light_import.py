"""nerfstudio loads plugins unguarded before anything else: ours must be quick and must not need heavy packages."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCK = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError("blocked: " + name)
def block():
    sys.meta_path.insert(0, Blocker())
"""
HEAVY = ("peft", "gsplat", "numba", "transformers", "open3d", "ray")


def run(code: str) -> str:
    """Standard output of a fresh process in which `block()` makes the heavy packages unimportable."""
    program = BLOCK.format(blocked=HEAVY) + code
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_entry_modules_import_with_everything_heavy_blocked():
    """The modules that the entry points name import nothing at all by themselves."""
    loaded = run(
        "block(); import method_configs.lora3d_splat, method_configs.lora3d_data\n"
        "print([m for m in ('torch', 'nerfstudio', 'lora3d_splat') if m in sys.modules])"
    )
    assert loaded.strip() == "[]"


def test_specifications_need_nothing_heavy():
    """Both specifications are built with the heavy packages blocked (benchmarks/plugin_import.py times it).

    nerfstudio's own trainer imports gsplat; it is loaded first and then hidden, so that only our imports are judged.
    The dataparser is asked for first, as nerfstudio does.
    """
    pytest.importorskip("nerfstudio")
    name = run(
        """
import importlib.metadata
found = importlib.metadata.entry_points
class Nothing(dict):
    names = ()
hidden = lambda **k: Nothing() if str(k.get("group", "")).startswith("nerfstudio") else found(**k)
importlib.metadata.entry_points = hidden
import nerfstudio.configs.method_configs
for name in [m for m in sys.modules if m.split(".")[0] in HEAVY]:
    del sys.modules[name]
block()
from method_configs.lora3d_data import lora3d_data
from method_configs.lora3d_splat import lora3d_splat
print(lora3d_splat.config.method_name, type(lora3d_data.config).__name__)
""".replace("HEAVY", repr(HEAVY))
    )
    assert name.split() == ["lora3d-splat", "Lora3DDataParserConfig"]


def test_dataparser_loads_in_the_middle_of_nerfstudios_own_import():
    """The dataparser's module in a fresh process: a circle here would kill every ns-command."""
    pytest.importorskip("nerfstudio")
    out = run("from method_configs.lora3d_data import lora3d_data; print(type(lora3d_data.config).__name__)")
    assert out.strip() == "Lora3DDataParserConfig"


def test_unknown_attributes_are_attribute_errors():
    """The lazy modules still behave like modules."""
    import method_configs.lora3d_data
    import method_configs.lora3d_splat

    for module in (method_configs.lora3d_splat, method_configs.lora3d_data):
        with pytest.raises(AttributeError):
            _ = module.nothing_of_the_kind
