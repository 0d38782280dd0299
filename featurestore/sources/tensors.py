"""Arrays of other libraries as those of numpy, without importing any: by DLPack or ``__array__``, from any device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def as_array(value: Any) -> NDArray[Any]:
    """Return an array as numpy's in native byte order, bfloat16 as float32 of the same values; a list is stacked.

    Raises
    ------
    ValueError, TypeError
        If it is none, or the arrays of a list differ in shape.
    """
    if isinstance(value, list | tuple):
        arrays = [as_array(one) for one in value]
        if len({array.dtype for array in arrays if array.ndim}) > 1:  # which stacking would make one of
            raise ValueError(f"must be of one dtype, found {', '.join(sorted({str(one.dtype) for one in arrays}))}")
        return np.stack(arrays) if arrays else np.zeros(0)
    for step in ("detach", "cpu"):  # of PyTorch: from its graph, and from its device
        value = getattr(value, step)() if hasattr(value, step) else value
    if str(getattr(value, "dtype", "")) == "torch.bfloat16":  # which numpy does not know, nor its DLPack
        value = value.float()
    if hasattr(value, "__array__") or not hasattr(value, "__dlpack__"):
        array = np.asarray(value)
    else:
        array = np.from_dlpack(value)
    is_bfloat16 = array.dtype.name == "bfloat16"  # of ml_dtypes, as JAX has it
    return array.astype(np.float32 if is_bfloat16 else array.dtype.newbyteorder("="), copy=False)
