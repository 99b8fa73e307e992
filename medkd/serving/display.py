"""A scan and its label map as the page shows them: eight bits, at most 256 voxels a side, seen from the feet."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.io.orientation import axis_code, turn, turn_geometry

SIDE = 256
_CODE = "LPS"  # x to the left, y to the back, z to the head: rows and columns as radiologists look at them


def displayed(image: np.ndarray, labels: np.ndarray, geometry: Geometry, spec: LabelSpec) -> dict[str, Any]:
    """What the page's viewer needs, for JSON.

    Args:
        image: ``(z, y, x)``, any values.
        labels: ``(z, y, x)``.
        geometry: of both.
        spec: names of the labels.
    """
    code = axis_code(geometry)
    turned = turn_geometry(geometry, _CODE)
    steps = [-(-side // SIDE) for side in turned.shape]
    thinned = tuple(slice(None, None, step) for step in steps)
    grey = _eight_bit(turn(image, code, _CODE)[thinned])
    shown = _numbered(turn(labels, code, _CODE)[thinned], spec)
    spacing = [side * step for side, step in zip(turned.spacing, steps, strict=True)]
    return {
        "shape": list(grey.shape),
        "spacing": [round(side, 5) for side in spacing],
        "image": base64.b64encode(grey.tobytes()).decode(),
        "labels": base64.b64encode(shown.tobytes()).decode(),
        "structures": _structures(labels, geometry, spec),
    }


def _numbered(labels: np.ndarray, spec: LabelSpec) -> np.ndarray:
    """Label values as places among the structures, from 1; 0 elsewhere."""
    places = np.zeros(max(spec.values[-1], 0) + 1, np.uint8)
    painted = spec.order if spec.regions else [values[0] for _, values in spec.foreground]
    for place, value in enumerate(painted, start=1):
        places[value] = min(place, 255)
    return np.ascontiguousarray(places[labels])


def _structures(labels: np.ndarray, geometry: Geometry, spec: LabelSpec) -> list[dict[str, Any]]:
    """Name and volume of every structure, in the order of :func:`_numbered`."""
    voxel = float(np.prod(geometry.spacing)) / 1000
    counts = np.bincount(labels.ravel(), minlength=spec.values[-1] + 1)
    found = []
    for name, values in spec.foreground:
        voxels = int(counts[list(values)].sum())
        found.append({"name": name, "millilitres": round(voxels * voxel, 3)})
    return found


def _eight_bit(image: np.ndarray) -> np.ndarray:
    """Grey values from the first to the last half percent of the voxels' values."""
    low, high = np.percentile(image, (0.5, 99.5))
    scaled = (image - low) * (255 / max(float(high - low), 1e-6))
    return np.ascontiguousarray(np.clip(scaled, 0, 255), np.uint8)
