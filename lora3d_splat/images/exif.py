"""What a camera wrote into a photograph about its focal length."""

from __future__ import annotations

import math

from PIL import ExifTags, Image

FULL_FRAME_DIAGONAL = math.hypot(36.0, 24.0)
MILLIMETRES_PER_UNIT = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}
"""FocalPlaneResolutionUnit: inch, centimetre, millimetre, micrometre"""


def focal_from_exif(photo: Image.Image) -> float | None:
    """Focal length in pixels of the photograph as stored (the same in both axes), None where EXIF says nothing usable.

    The 35 mm equivalent is read on the diagonal, as CIPA DCG-001 defines it; failing that, the focal length and the
    sensor's pixel pitch, rescaled when the file is not as wide as the sensor's image.
    """
    try:
        tags = photo.getexif().get_ifd(ExifTags.IFD.Exif)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError):  # a broken EXIF block is no reason to lose a photo
        return None
    equivalent = _positive(tags.get(ExifTags.Base.FocalLengthIn35mmFilm))
    if equivalent is not None:
        return equivalent / FULL_FRAME_DIAGONAL * math.hypot(*photo.size)
    return _focal_from_sensor(tags, photo.width)


def camera_from_exif(photo: Image.Image) -> str:
    """What tells one camera and lens setting from another: make, model, lens and focal length; empty if unknown."""
    try:
        base = photo.getexif()
        lens = base.get_ifd(ExifTags.IFD.Exif)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError):
        return ""
    words = [base.get(ExifTags.Base.Make), base.get(ExifTags.Base.Model), lens.get(ExifTags.Base.LensModel)]
    focal = _positive(lens.get(ExifTags.Base.FocalLength))
    return " ".join([str(word).strip() for word in words if word] + ([f"{focal:g} mm"] if focal else []))


def _focal_from_sensor(tags: dict[int, object], width: int) -> float | None:
    """Focal length [mm] x pixels per mm of the focal plane, which counts the pixels of the camera's own image."""
    millimetres = _positive(tags.get(ExifTags.Base.FocalLength))
    pixels_per_unit = _positive(tags.get(ExifTags.Base.FocalPlaneXResolution))
    unit = MILLIMETRES_PER_UNIT.get(int(_positive(tags.get(ExifTags.Base.FocalPlaneResolutionUnit)) or 2))
    if millimetres is None or pixels_per_unit is None or unit is None:
        return None
    camera_width = _positive(tags.get(ExifTags.Base.ExifImageWidth)) or width
    return millimetres * pixels_per_unit / unit * width / camera_width


def _positive(value: object) -> float | None:
    """A finite number above zero, else None (cameras write 0 or 0/0 for 'unknown')."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) and number > 0 else None
