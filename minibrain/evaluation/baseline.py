"""What can be had without context: a classifier that sees one voxel at a time."""

from collections.abc import Callable, Sequence

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits

from minibrain.data.prepared import PreparedCase

VOXELS_PER_CASE = 5000  # that the classifier learns from
# OpenMP's threads wait for each other without sleeping: where other programs compute, the trees
# take a minute on all threads and four seconds on one.
ONE_THREAD = {"limits": 1, "user_api": "openmp"}


def voxelwise_classifier(
    cases: Sequence[PreparedCase], seed: int = 0
) -> Callable[[np.ndarray], np.ndarray]:
    """Boosted trees on the intensities of single voxels.

    A network is worth its trouble only as far as it is better than this.

    Returns
    -------
    predict : (X, Y, Z, C) prepared image -> (X, Y, Z) uint8 classes
    """
    rng = np.random.default_rng(seed)
    intensities, labels = [], []
    for case in cases:
        chosen = rng.integers(0, case.label.size, VOXELS_PER_CASE)
        intensities.append(case.image.reshape(-1, case.image.shape[-1])[chosen])
        labels.append(case.label.ravel()[chosen])
    classifier = HistGradientBoostingClassifier(
        max_iter=60, early_stopping=False, random_state=seed
    )
    with threadpool_limits(**ONE_THREAD):
        classifier.fit(np.concatenate(intensities), np.concatenate(labels))

    def predict(image):
        with threadpool_limits(**ONE_THREAD):
            classes = classifier.predict(image.reshape(-1, image.shape[-1]))
        return classes.reshape(image.shape[:-1]).astype(np.uint8)

    return predict
