"""The network of docs/networks.md, taken from the page."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "networks.md"


def write_wall(folder: Path) -> Path:
    """The file that the page tells the reader to write."""
    section = PAGE.read_text(encoding="utf-8").partition("## A network of your own")[2]
    (folder / "wall.py").write_text(re.findall(r"```python\n(.*?)```", section, re.S)[0])
    return folder / "wall.py"
