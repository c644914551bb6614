"""Image metrics against numbers worked out by hand, and LPIPS that never stands in the way."""

from __future__ import annotations

import math

import pytest
import torch

from lora3d_splat.metrics.image import NAMES, image_metrics, psnr, ssim
from lora3d_splat.metrics.lpips import BACKBONE_FILES, Lpips, find_backbone, path_variable


def picture(seed: int, size: int = 32) -> torch.Tensor:
    return torch.rand(size, size, 3, generator=torch.Generator().manual_seed(seed))


def test_psnr_by_hand():
    """A constant error of 0.1 is 20 dB; equal pictures reach the ceiling of 100 dB."""
    black = torch.zeros(8, 8, 3)
    assert psnr(black + 0.1, black) == pytest.approx(20.0, abs=1e-4)
    assert psnr(black, black) == pytest.approx(100.0)


def test_ssim_ends_and_symmetry():
    """1 for equal pictures, near 0 for unrelated noise, symmetric; None with a reason below the window."""
    a, b = picture(0), picture(1)
    assert ssim(a, a).number == pytest.approx(1.0, abs=1e-6)
    assert abs(ssim(a, b).number) < 0.1
    assert ssim(a, b).number == pytest.approx(ssim(b, a).number, abs=1e-6)
    small = ssim(a[:10], b[:10])
    assert small.number is None
    assert "window" in small.reason


def test_masked_pixels_say_nothing():
    """Wrong pixels under the mask change no metric; the rest is judged as by hand, windows by their centres."""
    photo, rendered = picture(0, 48), picture(0, 48).clone()
    counted = torch.ones(48, 48, 1, dtype=torch.bool)
    counted[:, :24] = False
    rendered[:, 24:] = (rendered[:, 24:] * 0.8).clamp(0, 1)
    wrong = rendered.clone()
    wrong[:, :24] = 1 - wrong[:, :24]
    assert psnr(wrong, photo, counted) == pytest.approx(psnr(rendered[:, 24:], photo[:, 24:]), abs=1e-6)
    kept, judged = (image_metrics(each, photo, Lpips("off"), counted) for each in (rendered, wrong))
    assert kept == judged
    whole = ssim(rendered, photo, torch.ones_like(counted)).number
    assert whole == pytest.approx(ssim(rendered, photo).number, abs=1e-5)
    assert judged["ssim"].number < whole  # the left half, equal to the photograph, is not counted as a success
    nothing = image_metrics(rendered, photo, Lpips("off"), torch.zeros_like(counted))
    assert all(value.number is None and "mask" in (value.reason or "") for value in nothing.values())


def test_missing_backbones_give_reasons_and_no_numbers(tmp_path, monkeypatch):
    """With an empty cache and downloads off, LPIPS is None and says where the weights belong."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for backbone in BACKBONE_FILES:
        monkeypatch.delenv(path_variable(backbone), raising=False)
    values = image_metrics(picture(0, 64), picture(1, 64), Lpips("cached"))
    assert tuple(values) == NAMES
    for backbone, name in BACKBONE_FILES.items():
        value = values[f"lpips_{backbone}"]
        assert value.number is None
        assert name in value.reason
    assert values["psnr"].number is not None


def test_failed_download_is_a_reason(tmp_path, monkeypatch):
    """A server that cannot be reached costs a reason, not an exception, and leaves no file."""
    from lora3d_splat.metrics import lpips

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(lpips, "SOURCE", "http://127.0.0.1:9/")
    found = find_backbone("alex", "auto")
    assert isinstance(found, str)
    assert "could not be downloaded" in found
    assert not any((tmp_path / "checkpoints").glob("*"))


def test_named_backbone_must_exist(tmp_path, monkeypatch):
    """A wrong path in the environment is said, not replaced by something else."""
    monkeypatch.setenv(path_variable("vgg"), str(tmp_path / "nowhere.pth"))
    assert "no file" in find_backbone("vgg", "cached")


def test_damaged_backbone_is_a_reason(tmp_path, monkeypatch):
    """A file that holds no weights costs a reason."""
    broken = tmp_path / "alexnet.pth"
    broken.write_bytes(b"nothing")
    monkeypatch.setenv(path_variable("alex"), str(broken))
    assert "could not be loaded" in Lpips("cached").distance("alex", picture(0, 64), picture(1, 64))


def test_lpips_from_a_path(tmp_path, monkeypatch):
    """Backbone weights named by a path are used: 0 for equal pictures, symmetric, larger for stronger noise."""
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    weights = tmp_path / "alexnet.pth"
    features = torchvision.models.AlexNet().features.state_dict()
    torch.save({f"features.{key}": value for key, value in features.items()}, weights)
    monkeypatch.setenv(path_variable("alex"), str(weights))
    lpips, a = Lpips("cached"), picture(0, 64)
    noise = torch.randn(64, 64, 3, generator=torch.Generator().manual_seed(2))
    weak, strong = (lpips.distance("alex", (a + level * noise).clamp(0, 1), a) for level in (0.05, 0.3))
    assert lpips.distance("alex", a, a) == pytest.approx(0.0, abs=1e-6)
    assert 0 < weak < strong
    assert math.isclose(
        lpips.distance("alex", a, picture(3, 64)), lpips.distance("alex", picture(3, 64), a), rel_tol=1e-4
    )
