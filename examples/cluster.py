"""Build a study on the workers of a cluster, here of this machine: uv run --extra distributed examples/cluster.py."""

import sys

from distributed import Client, LocalCluster

import featurestore


def main(recipe: str = "examples/layers.yaml") -> None:
    """Any other cluster will do, such as dask_jobqueue's, if its workers see the stores by the same paths."""
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster):
        done = featurestore.sweep(recipe)
    print(f"{len(done.in_state('new', 'stale'))} of {len(done.datasets)} datasets built")


if __name__ == "__main__":  # the workers import this file
    main(*sys.argv[1:])
