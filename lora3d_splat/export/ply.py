"""PLY (binary, little-endian): a table of vertices, and the coloured points kept in one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lora3d_splat.errors import InputError
from lora3d_splat.files import atomic_file

_NAMES = {"<f4": "float", "<f8": "double", "|u1": "uchar", "<i4": "int"}
_TYPES = {
    "float": "<f4", "float32": "<f4", "double": "<f8", "float64": "<f8",
    "uchar": "|u1", "uint8": "|u1", "int": "<i4", "int32": "<i4",
}  # fmt: skip
_POINT = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")])


def write_points_ply(path: Path, points_world: np.ndarray, rgb: np.ndarray, comment: str = "") -> None:
    """Write points (N, 3) with colours (N, 3) uint8."""
    table = np.empty(len(points_world), _POINT)
    for axis, name in enumerate(("x", "y", "z")):
        table[name] = points_world[:, axis]
    for channel, name in enumerate(("red", "green", "blue")):
        table[name] = rgb[:, channel]
    write_vertices(path, table, comment)


def read_points_ply(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 3) float32 and colours (N, 3) uint8."""
    table = read_vertices(path)
    return columns(table, ("x", "y", "z")), columns(table, ("red", "green", "blue"))


def write_vertices(path: Path, table: np.ndarray, comment: str = "") -> None:
    """Write a structured array (N,) as the vertex element of a PLY file, with a line of ASCII text in its header."""
    assert table.dtype.fields is not None
    properties = [f"property {_NAMES[kind.str]} {name}" for name, (kind, *_) in table.dtype.fields.items()]
    comments = [f"comment {comment}"] if comment else []
    head = ["ply", "format binary_little_endian 1.0", *comments, f"element vertex {len(table)}"]
    lines = [*head, *properties, "end_header", ""]
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        stream.write("\n".join(lines).encode("ascii", errors="replace"))
        stream.write(table.tobytes())


def read_vertices(path: Path) -> np.ndarray:
    """The vertex table of a binary little-endian PLY whose first element is `vertex`, as a structured array (N,)."""
    content = path.read_bytes()
    head, separator, body = content.partition(b"end_header\n")
    try:
        count, dtype = _parse_header(head.decode("ascii").splitlines())
        if not separator or len(body) < count * dtype.itemsize:
            raise ValueError(f"{count} vertices announced, the file is cut short")
    except (ValueError, KeyError, UnicodeDecodeError) as error:
        raise InputError(
            found=f"{path}, which does not read as points ({error})",
            accepted="a binary little-endian PLY file with a vertex element of scalars",
            remedy="export it again",
        ) from error
    return np.frombuffer(body, dtype, count=count)


def columns(table: np.ndarray, names: tuple[str, ...] | list[str]) -> np.ndarray:
    """Stack columns of a vertex table into (N, len(names))."""
    return np.stack([table[name] for name in names], axis=-1) if names else np.empty((len(table), 0), np.float32)


def _parse_header(lines: list[str]) -> tuple[int, np.dtype]:
    words = [line.split() for line in lines if line and not line.startswith("comment")]
    if words[:2] != [["ply"], ["format", "binary_little_endian", "1.0"]] or words[2][:2] != ["element", "vertex"]:
        raise ValueError("no binary little-endian vertex table")
    properties = []
    for word in words[3:]:
        if word[0] != "property":
            break  # another element follows the vertices
        properties.append((word[2], _TYPES[word[1]]))
    return int(words[2][2]), np.dtype(properties)
