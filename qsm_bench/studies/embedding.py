"""Maps of actions in the plane: principal components, and UMAP.

UMAP (McInnes, Healy, Melville 2018) comes with the extra ``studies``.
"""

from typing import Any

import numpy as np

from qsm_bench.errors import UserError
from qsm_bench.statistics.selection import FloatArray

NEIGHBORS = 15
"""The number of neighbors that UMAP keeps close, its default."""


def import_umap() -> Any:
    """Import the class UMAP, which takes seconds. Raises UserError where that is not possible."""
    try:
        from umap import UMAP
    except ImportError as error:
        raise UserError(
            f"the study action-map needs umap-learn ({error}): pip install 'qsm_bench[studies]'"
        ) from error
    except RuntimeError as error:  # numba keeps what it has compiled, and finds no place for it
        raise UserError(
            f"umap-learn cannot be imported ({error}): set NUMBA_CACHE_DIR to a folder that can be "
            "written"
        ) from error
    return UMAP


def principal_components(points: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The first two principal components of points [n, d], d of at least 2.

    Returns coordinates [n, 2], and the share of the variance that each has: [2]. The largest
    loading of a component is positive. The shares are 0 if all points are equal.
    """
    centered = points - points.mean(axis=0)
    _, deviation, axes = np.linalg.svd(centered, full_matrices=False)
    largest = np.abs(axes).argmax(axis=1)
    axes = axes * np.sign(axes[np.arange(len(axes)), largest])[:, np.newaxis]
    variance = deviation**2
    shares = variance[:2] / max(float(variance.sum()), np.finfo(float).tiny)
    return centered @ axes[:2].T, shares


def neighbor_map(points: FloatArray) -> FloatArray:
    """UMAP of points [n, d] into the plane: [n, 2]. The same points give the same map.

    Points that are equal have one place, as ``unique`` has it in UMAP. Few different points have no
    neighbors to speak of: their principal components are returned.
    """
    different, which = np.unique(points, axis=0, return_inverse=True)
    if len(different) <= NEIGHBORS:
        return principal_components(points)[0]
    # With a random state UMAP uses one thread. It starts from the principal components, because
    # the start decides how far places with no neighbors in common lie apart (Kobak and Linderman
    # 2021).
    umap = import_umap()(n_neighbors=NEIGHBORS, init="pca", random_state=0, n_jobs=1)
    found: FloatArray = umap.fit_transform(different)[which.ravel()].astype(float)
    return found
