"""How lazy arrays are computed: by threads of this process, or by the workers of a cluster whose client is active.

Their graph is cut into parts that need nothing of each other: all that is made of one chunk of the store is such a
part, so each chunk is read once, and no scheduler has to handle each task. On a cluster only results come back.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextvars import copy_context
from functools import partial
from hashlib import sha256
from itertools import batched, chain
from typing import TYPE_CHECKING, Any

import cloudpickle
import dask
import dask.array as da
import numpy as np
from dask._task_spec import DataNode, convert_legacy_graph
from dask.array.core import slices_from_chunks
from dask.core import flatten, get_dependencies
from dask.highlevelgraph import HighLevelGraph
from dask.local import get_sync
from dask.system import CPU_COUNT
from dask.threaded import get as get_threaded

if TYPE_CHECKING:
    from distributed import Client

    Array = np.ndarray[Any, Any]
    Graph = Mapping[Any, Any]
    Part = tuple[Graph, Sequence[Any]]
    Get = Callable[[Graph, Sequence[Any]], Sequence[Array]]
    Assign = Callable[[Mapping[Any, Array]], None]

_MOST_TASKS = 2000
"""Parts into which a graph is cut: on a cluster each takes the scheduler about a millisecond."""

_TASKS_AT_ONCE, _BLOCKS_AT_ONCE = 100, 4
"""Tasks that are sent to the scheduler together, which warns of more than 10 MB."""

_LANES = 16
"""Datasets that wait at once for what the workers measure of them."""


def active() -> Client | None:
    """Return the client of `dask.distributed` by which dask would compute now, if there is one."""
    if "distributed" not in sys.modules:
        return None
    client = getattr(dask.base.get_scheduler(), "__self__", None)
    return client if isinstance(client, sys.modules["distributed"].Client) else None


def compute(arrays: Sequence[da.Array]) -> list[Array]:
    """Compute some arrays into memory, what they share once."""
    values = [np.empty(array.shape, array.dtype) for array in arrays]
    store(arrays, values)
    return values


def store(arrays: Sequence[da.Array], targets: Sequence[Any]) -> None:
    """Compute some arrays, and assign each chunk to its place in the array's target, by whatever thread has it."""
    places = defaultdict(list)
    for array, target in zip(arrays, targets, strict=True):
        for key, place in zip(_keys(array), slices_from_chunks(array.chunks), strict=True):
            places[key].append((target, place))

    def assign(found: Mapping[Any, Array]) -> None:
        for key, values in found.items():
            for target, place in places[key]:
                target[place] = values

    given, graph = _graph(arrays)
    assign({key: given[key]() for key in places if key in given})
    parts = _parts(graph, [key for key in places if key in graph])
    if client := active():
        _on_workers(client, parts, given, assign)
    else:
        _in_threads(parts, given, assign)


def apply[T](function: Callable[[Array], T], arrays: Sequence[da.Array]) -> list[T]:
    """Apply a function to each of some arrays, (k, d) and one chunk wide, whole on a worker of the active cluster."""
    client = active()
    assert client is not None
    payloads = []
    for array in arrays:
        given, graph = _graph([array])
        payloads.append(_pickled((function, given | graph, _keys(array))))
    # By name, so that what several datasets ask for at the same time is done once.
    names = [f"featurestore-{sha256(payload).hexdigest()}" for payload in payloads]
    found: list[T] = client.gather(client.map(_apply, payloads, key=names, batch_size=_BLOCKS_AT_ONCE))
    return found


def each[T, U](function: Callable[[T], U], items: Sequence[T]) -> Iterator[Callable[[], U]]:
    """Yield a call of a function for each item; on a cluster some are under way already, as they wait for workers."""
    if active() is None:
        yield from (partial(function, item) for item in items)
        return
    with ThreadPoolExecutor(_LANES) as pool:
        try:
            futures = [pool.submit(copy_context().run, function, item) for item in items]
            yield from (future.result for future in futures)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _keys(array: da.Array) -> list[Any]:
    return list(flatten(array.__dask_keys__()))


def _graph(arrays: Sequence[da.Array]) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Return what the graph of some arrays is given, such as an array of the store, and its tasks."""
    graph = HighLevelGraph.merge(*(array.dask for array in arrays))
    needed = convert_legacy_graph(graph.cull({key for array in arrays for key in _keys(array)}))
    given = {key: node for key, node in needed.items() if isinstance(node, DataNode)}
    return given, {key: task for key, task in needed.items() if key not in given}


def _parts(graph: Graph, keys: Collection[Any]) -> list[Part]:
    """Cut a graph into at most `_MOST_TASKS` graphs that share no task, each with the keys of it that are wanted."""
    linked: dict[Any, set[Any]] = {key: set() for key in graph}
    for key in graph:
        for other in get_dependencies(graph, key):
            linked[key].add(other)
            linked[other].add(key)
    components = list(_components(linked, keys))
    wanted = set(keys)
    size = max(1, math.ceil(len(components) / _MOST_TASKS))
    merged = (list(chain.from_iterable(some)) for some in batched(components, size))
    return [({key: graph[key] for key in part}, [key for key in part if key in wanted]) for part in merged]


def _components(linked: Mapping[Any, set[Any]], starts: Collection[Any]) -> Iterator[list[Any]]:
    """Yield what hangs together, by the first of the `starts` that is in it."""
    seen: set[Any] = set()
    for start in starts:
        found, todo = [], [start]
        while todo:
            if (key := todo.pop()) not in seen:
                seen.add(key)
                found.append(key)
                todo += linked[key]
        if found:
            yield found


def _in_threads(parts: Sequence[Part], given: Graph, assign: Assign) -> None:
    get = _getter(len(parts))
    with ThreadPoolExecutor(CPU_COUNT) as pool:
        try:
            futures = [
                pool.submit(copy_context().run, lambda part: assign(_computed(get, part, given)), part)
                for part in parts
            ]
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _on_workers(client: Client, parts: Sequence[Part], given: Graph, assign: Assign) -> None:
    import distributed

    shared = client.submit(cloudpickle.loads, _pickled(given), pure=False)
    payloads = [_pickled((_getter(len(parts)), part)) for part in parts]
    futures = client.map(_unpickled_computed, payloads, given=shared, pure=False, batch_size=_TASKS_AT_ONCE)
    try:
        for _, found in distributed.as_completed(futures, with_results=True):
            assign(found)
    finally:
        client.cancel(futures)


def _getter(n_parts: int) -> Get:
    """Choose how each part is computed: where there are few, as of a mean over all sentences, by several threads."""
    return get_sync if n_parts > CPU_COUNT else partial(get_threaded, num_workers=CPU_COUNT // max(1, n_parts))


def _computed(get: Get, part: Part, given: Graph) -> dict[Any, Array]:
    graph, keys = part
    return dict(zip(keys, get({**given, **graph}, keys), strict=True))


def _unpickled_computed(payload: bytes, given: Graph) -> dict[Any, Array]:
    get, part = cloudpickle.loads(payload)
    return _computed(get, part, given)


def _apply(payload: bytes) -> Any:
    function, graph, keys = cloudpickle.loads(payload)
    return function(np.concatenate(get_sync(graph, keys)))


def _pickled(content: object) -> bytes:
    """Pickle for a worker, which cannot import a plugin that is a file."""
    for name, module in list(sys.modules.items()):
        if name.startswith("featurestore_plugin_"):
            cloudpickle.register_pickle_by_value(module)
    pickled: bytes = cloudpickle.dumps(content)
    return pickled
