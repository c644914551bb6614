"""The stage cache: exact round trips, stable names, corrupt entries computed again, no half files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lora3d_splat.artifacts import StageCache, digest, read_artifact, write_artifact
from lora3d_splat.errors import InputError
from lora3d_splat.files import atomic_file, atomic_folder, default_cache_folder
from lora3d_splat.record_codec import decode_record, encode_record
from lora3d_splat.records import ImagePair, PairPrediction, PixelAffine, View


def prediction(seed: int = 0) -> PairPrediction:
    generator = torch.Generator().manual_seed(seed)
    both = torch.rand(4, 5, 8, generator=generator)
    # Slices of one storage, as a network's batched output gives them.
    return PairPrediction(ImagePair(0, 1), both[..., :3], both[..., 3], both[..., 4:7], both[..., 7])


def assert_equal(found: PairPrediction, expected: PairPrediction) -> None:
    assert found.pair == expected.pair
    for name in ("points_reference", "confidence_reference", "points_other", "confidence_other"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_a_stored_record_comes_back_bit_by_bit(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    first = cache.load_or_compute("prediction", "k", prediction)
    second = cache.load_or_compute("prediction", "k", lambda: pytest.fail("computed twice"))
    assert not first.reused
    assert second.reused
    assert second.seconds == first.seconds
    assert_equal(second.value, prediction())


def test_nested_records_paths_arrays_and_odd_floats_round_trip() -> None:
    view = View(
        "a.jpg", Path("/photos/a.jpg"), 640, 480, np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
        PixelAffine(0.1, 1 / 3, float("inf"), -0.0), "abc", None,
    )  # fmt: skip
    value = {"views": (view, replace(view, focal_hint=np.float64(1e-300))), "flags": (True, None, 3, "x")}
    found = decode_record(*encode_record(value))
    assert found["flags"] == (True, None, 3, "x")
    for a, b in zip(found["views"], value["views"], strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        assert replace(a, image=None) == replace(b, image=None)


def test_unknown_types_are_refused() -> None:
    with pytest.raises(TypeError, match="object"):
        encode_record((object(),))


def damage_cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def damage_flip(data: bytes) -> bytes:
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


def damage_replace(data: bytes) -> bytes:
    return b"not a safetensors file"


@pytest.mark.parametrize("damage", [damage_cut, damage_flip, damage_replace, lambda data: b""])
def test_a_corrupt_entry_is_computed_again_with_a_line(tmp_path: Path, damage, capsys: pytest.CaptureFixture) -> None:
    """Cut short, one bit flipped, other content, empty: each is noticed, said, and replaced by the right value."""
    cache = StageCache(tmp_path)
    cache.load_or_compute("prediction", "k", prediction)
    path = cache.path("prediction", "k")
    path.write_bytes(damage(path.read_bytes()))
    again = cache.load_or_compute("prediction", "k", prediction)
    assert not again.reused
    assert "corrupt" in capsys.readouterr().out
    assert_equal(cache.load("prediction", "k").value, prediction())


def test_changed_facts_are_noticed(tmp_path: Path) -> None:
    """The checksum covers the metadata too, not the tensors alone."""
    write_artifact(tmp_path / "a.safetensors", prediction(), {"seconds": "1.0"})
    data = (tmp_path / "a.safetensors").read_bytes().replace(b'"1.0"', b'"9.0"')
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(Exception, match="checksum"):
        read_artifact(tmp_path / "a.safetensors")


def break_off(writer, path: Path, failure: type[BaseException]) -> None:
    with writer(path) as temporary:
        (temporary / "file" if temporary.is_dir() else temporary).write_text("half")
        raise failure


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("writer", [atomic_file, atomic_folder])
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, writer, failure: type[BaseException]) -> None:
    with pytest.raises(failure):
        break_off(writer, tmp_path / "x", failure)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_stage_stores_nothing_and_runs_again(tmp_path: Path) -> None:
    def interrupted() -> PairPrediction:
        raise KeyboardInterrupt

    cache = StageCache(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        cache.load_or_compute("prediction", "k", interrupted)
    assert cache.load("prediction", "k") is None
    assert not cache.load_or_compute("prediction", "k", prediction).reused


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with atomic_folder(tmp_path / "adapter") as temporary:
            (temporary / name).write_text(name)
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == ["new"]


@dataclass(frozen=True)
class Settings:
    steps: int = 3
    rate: float = 0.1


def test_digests_differ_where_values_differ() -> None:
    """Kind, framing, dtype, shape, class and order all count."""
    values = [
        1, 1.0, True, "1", b"1", None, Path("1"), (1,), ("1",), (1, 2), ((1, 2),), (12,), ("ab", "c"), ("a", "bc"), {},
        {"a": 1}, torch.ones(2), torch.ones(2).double(), torch.ones(2, 1), torch.ones(1, 2), torch.empty(0), Settings(),
        Settings(4), replace(Settings(), rate=0.2),
    ]  # fmt: skip
    assert len({digest(value) for value in values}) == len(values)


def test_a_digest_is_the_same_in_every_process_and_release() -> None:
    """A change of this value throws every user's cache away, so it may not happen by accident."""
    assert digest({"b": 1.5, "a": (None, torch.ones(3).double())}) == digest({"a": (None, np.ones(3)), "b": 1.5})
    assert digest({"b": 1.5, "a": (None, torch.ones(3).double())}, Settings()) == "73b6c0c986f5e3c00403ebaa45282b44"


def test_objects_without_a_stable_digest_are_refused() -> None:
    with pytest.raises(TypeError, match="object"):
        digest(object())


def test_a_cache_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        StageCache(tmp_path / "file" / "cache")


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LORA3D_SPLAT_CACHE", str(tmp_path))
    assert default_cache_folder() == tmp_path
    monkeypatch.delenv("LORA3D_SPLAT_CACHE")
    assert default_cache_folder() == Path.home() / ".cache" / "lora3d-splat"
