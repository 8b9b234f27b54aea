"""How far two surfaces lie apart, in millimetres.

The surface of a set of voxels are its voxels with a neighbour outside, across one of their six
faces; what lies beyond the edge of the volume is outside. Distances are between voxel centres.
"""

import numpy as np
from scipy.ndimage import binary_erosion, find_objects
from scipy.spatial import KDTree


def hausdorff95(truth: np.ndarray, prediction: np.ndarray, spacing: np.ndarray) -> float:
    """The larger of the two directed 95th-percentile distances between surfaces.

    From every surface voxel of one set the distance to the nearest surface voxel of the other,
    and of these the 95th percentile (interpolated); both ways; the larger.

    Parameters
    ----------
    truth, prediction : (X, Y, Z) bool
    spacing : (3,) distances between neighbouring voxels, in mm

    Returns
    -------
    distance : in mm; NaN if one of the two is empty, for there is no distance to nothing

    Source: Maier-Hein, Reinke et al., Metrics reloaded, Nature Methods 2024.
    """
    if not (truth.any() and prediction.any()):
        return float("nan")
    (box,) = find_objects((truth | prediction).astype(np.uint8))
    points = [_surface(voxels[box]) * spacing for voxels in (truth, prediction)]
    directed = (KDTree(there).query(here)[0] for here, there in (points, points[::-1]))
    return max(float(np.percentile(distances, 95)) for distances in directed)


def _surface(voxels: np.ndarray) -> np.ndarray:
    """(points, 3) indices."""
    return np.argwhere(voxels & ~binary_erosion(voxels))
