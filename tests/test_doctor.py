"""What the doctor finds, and the remedy beside everything that is absent."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from lora3d_splat import doctor


def test_every_finding_that_is_not_ok_has_a_remedy() -> None:
    checks = doctor.examine()
    assert {"Python", "torch", "GPU", "lpips_alex", "lpips_vgg", "nerfstudio", "cache"} <= {c.name for c in checks}
    assert [check for check in checks if check.state != "ok" and not check.remedy] == []


def test_a_backbone_is_found_in_the_hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    absent = doctor.check_backbone("lpips_vgg", "vgg16-397923af.pth")
    assert absent.state == "optional"
    assert str(tmp_path) in absent.remedy
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "vgg16-397923af.pth").write_bytes(b"x")
    assert doctor.check_backbone("lpips_vgg", "vgg16-397923af.pth").state == "ok"


def test_an_absent_libusb_names_the_debian_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    check = doctor.check_libusb()
    assert check.state == "optional"
    assert "libusb-1.0-0" in check.remedy


def test_ffmpeg_on_the_path_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/somewhere/ffmpeg")
    assert doctor.check_ffmpeg().found == "/somewhere/ffmpeg"


def test_a_cache_in_the_way_of_a_file_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LORA3D_SPLAT_CACHE", str(tmp_path / "file"))
    assert doctor.check_cache().state == "missing"
    monkeypatch.setenv("LORA3D_SPLAT_CACHE", str(tmp_path / "cache"))
    assert doctor.check_cache().state == "ok"
    assert not (tmp_path / "cache").exists()


def test_a_failing_check_is_a_finding_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_gpu() -> doctor.Check:
        raise RuntimeError("driver and library versions differ")

    monkeypatch.setattr(doctor, "check_gpu", check_gpu)
    found = next(check for check in doctor.examine() if "driver" in check.found)
    assert (found.name, found.state) == ("gpu", "missing")
