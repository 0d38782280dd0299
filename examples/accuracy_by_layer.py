"""Read the concept from each layer of the sample: 5-fold cross-validated accuracy of a logistic regression."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import featurestore

STORE = "stores/dishonesty.zarr"


def accuracy(layer: int) -> tuple[float, float]:
    """Mean and standard error over five repetitions; the scaler is fitted on each training fold alone."""
    dataset = featurestore.build(STORE, "hidden-to-concept", layer=layer, normalize="none")
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    means = [
        cross_val_score(model, dataset.X, dataset.y, cv=StratifiedKFold(5, shuffle=True, random_state=seed)).mean()
        for seed in range(5)
    ]
    return float(np.mean(means)), float(np.std(means, ddof=1) / np.sqrt(len(means)))


if __name__ == "__main__":
    featurestore.ingest("examples/dishonesty", STORE)
    print("layer  accuracy (chance 25 %)")
    for layer in featurestore.open_store(STORE).layer.values.tolist():
        mean, error = accuracy(layer)
        print(f"{layer:5}  {100 * mean:4.0f} ± {100 * error:.0f} %  {'#' * round(40 * mean)}")
