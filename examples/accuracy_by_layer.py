"""Read the concept from each layer of the sample: 5-fold cross-validated accuracy of a logistic regression."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import featurestore

STORE = "stores/dishonesty.zarr"


def accuracy(layer: int) -> tuple[float, float]:
    """Mean over the sentences of how often each is right in ten repetitions, and its standard error over sentences.

    The scaler is fitted on each training fold alone, so the dataset is built without normalization.
    """
    dataset = featurestore.build(STORE, "hidden-to-concept", layer=layer, normalize="none")
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    folds = [StratifiedKFold(5, shuffle=True, random_state=seed) for seed in range(10)]
    right = np.mean([cross_val_predict(model, dataset.X, dataset.y, cv=fold) == dataset.y for fold in folds], axis=0)
    return float(right.mean()), float(right.std(ddof=1) / np.sqrt(len(right)))


if __name__ == "__main__":
    featurestore.ingest("examples/dishonesty", STORE)
    print("layer  accuracy (chance 25 %)")
    for layer in featurestore.open_store(STORE).layer.values.tolist():
        mean, error = accuracy(layer)
        print(f"{layer:5}  {100 * mean:4.0f} ± {100 * error:.0f} %  {'#' * round(40 * mean)}")
