"""Pictures of a report: thumbnails of a photograph, its truth and masks, and where two masks differ.

They are kept beside a report's JSON, as `NAME.panels.json`, so that the numbers stay a small file.

Legend: H height, W width of the picture; photographs are uint8 RGB, masks float32 in 0..1.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from basnet_torch.errors import UsageError

__all__ = ["Panel", "heat_panel", "panels_path", "read_panels", "truth_panel", "write_panels"]

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]
_SIDE = 224  # pixels of a thumbnail's longer side
_QUALITY = 82


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One picture's images, side by side.

    Attributes:
        group: What the panel is shown under: a data set and `best` or `worst`, or a candidate.
        name: The picture's.
        caption: What is to be said of it, with numbers.
        images: Labels with `data:` addresses of JPEG.
    """

    group: str
    name: str
    caption: str
    images: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        images = [list(image) for image in self.images]
        return {"group": self.group, "name": self.name, "caption": self.caption, "images": images}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_dict`; what is no image is refused, because it goes into a page as it stands."""
        images = tuple((str(label), str(address)) for label, address in values["images"])
        if not all(address.startswith(_PREFIX) for _, address in images):
            raise ValueError(f"{values['name']}: holds an image that is no JPEG")
        return cls(group=str(values["group"]), name=str(values["name"]), caption=str(values["caption"]), images=images)


_PREFIX = "data:image/jpeg;base64,"


def truth_panel(*, group: str, name: str, caption: str, image_HWC: UInt8, truth_HW: Float32, mask_HW: Float32) -> Panel:
    """Photograph, truth and mask."""
    images = (("photo", image_HWC), ("truth", _grey(truth_HW)), ("mask", _grey(mask_HW)))
    return Panel(group=group, name=name, caption=caption, images=_addresses(images))


def heat_panel(
    *,
    group: str,
    name: str,
    caption: str,
    image_HWC: UInt8,
    truth_HW: Float32 | None,
    reference_HW: Float32,
    candidate_HW: Float32,
) -> Panel:
    """Photograph, truth where it is known, the two masks, and their difference, brightest where it is largest."""
    difference_HW = np.abs(candidate_HW - reference_HW)
    largest = float(np.nanmax(difference_HW, initial=0.0))
    images: list[tuple[str, UInt8]] = [("photo", image_HWC)]
    if truth_HW is not None:
        images.append(("truth", _grey(truth_HW)))
    images += [("reference mask", _grey(reference_HW)), ("candidate mask", _grey(candidate_HW))]
    images.append((f"difference, 0 (black) to {largest:.2g} (yellow)", _heat(difference_HW, largest)))
    return Panel(group=group, name=name, caption=caption, images=_addresses(images))


def panels_path(report: Path) -> Path:
    """The file beside a report's JSON that holds its pictures.

    >>> str(panels_path(Path("out/parity.json")))
    'out/parity.panels.json'
    """
    return report.with_name(f"{report.stem}.panels.json")


def write_panels(panels: Sequence[Panel], path: Path, *, overwrite: bool) -> None:
    """Write them, whole or not at all.

    Raises:
        MediaError: The file cannot be written.
    """
    from basnet_runtime.media.files import whole_file

    with whole_file(path, overwrite=overwrite) as beside:
        beside.write_text(json.dumps([panel.to_dict() for panel in panels], indent=1) + "\n", encoding="utf-8")


def read_panels(path: Path) -> tuple[Panel, ...]:
    """What `write_panels` wrote; none where there is no such file.

    Raises:
        UsageError: The file is something else.
    """
    if not path.exists():
        return ()
    try:
        return tuple(map(Panel.from_dict, json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{path}: holds no pictures of a report ({error}); measure again with --panels") from error


def _addresses(images: Sequence[tuple[str, UInt8]]) -> tuple[tuple[str, str], ...]:
    return tuple((label, _address(image)) for label, image in images)


def _address(image: UInt8) -> str:
    """A thumbnail as a `data:` address; RGB H,W,3 or grey H,W."""
    import cv2

    height, width = image.shape[:2]
    factor = min(1.0, _SIDE / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    ordered = small[..., ::-1] if small.ndim == 3 else small
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(ordered), (cv2.IMWRITE_JPEG_QUALITY, _QUALITY))
    return _PREFIX + base64.b64encode(data.tobytes()).decode("ascii")


def _grey(mask_HW: Float32) -> UInt8:
    return np.asarray(np.rint(np.nan_to_num(mask_HW).clip(0, 1) * 255), np.uint8)


def _heat(difference_HW: Float32, largest: float) -> UInt8:
    """RGB from black over red to yellow; what is not finite is the brightest."""
    import cv2

    share_HW = np.nan_to_num(difference_HW / largest if largest > 0 else difference_HW, nan=1.0, posinf=1.0)
    coloured_HWC = cv2.applyColorMap(_grey(share_HW.astype(np.float32)), cv2.COLORMAP_INFERNO)
    return np.asarray(coloured_HWC[..., ::-1], np.uint8)
