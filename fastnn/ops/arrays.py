"""What the functions over arrays accept: checks before any work, and as few copies as the kernels allow."""

import numpy as np

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


def floats(value: object, name: str) -> np.ndarray:
    """`value` as an aligned array of float32 or float64 in native byte order."""
    if type(value) is np.ndarray and value.flags.aligned and (value.dtype is FLOAT32 or value.dtype is FLOAT64):
        return value  # the usual case, at once; aligned means that strides are whole elements, too
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" or (array.dtype.kind == "f" and array.itemsize not in (4, 8)):
        raise TypeError(f"{name} must be an array of float32, float64, integers or bools, got dtype {array.dtype}")
    if array.dtype.kind != "f":
        array = array.astype(np.float64 if isinstance(value, np.ndarray | np.generic) else np.float32)
    elif not isinstance(value, np.ndarray | np.generic):
        array = array.astype(np.float32)
    whole = all(stride % array.itemsize == 0 for stride in array.strides)
    if not (array.dtype.isnative and array.flags.aligned and whole):
        array = np.ascontiguousarray(array, dtype=array.dtype.name)
    return array


def common(*arrays: np.ndarray) -> list[np.ndarray]:
    """Arrays of one dtype, the widest."""
    dtype = arrays[0].dtype
    if all(a.dtype is dtype for a in arrays):
        return list(arrays)
    dtype = np.result_type(*arrays)
    return [a if a.dtype == dtype else a.astype(dtype) for a in arrays]


def check_out(out: object, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Validate an array that a result of this shape and dtype is to be written to."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be an array, got {type(out).__name__}")
    if out.dtype != dtype or not out.dtype.isnative:
        raise TypeError(f"out must have dtype {dtype}, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"out must have shape {shape}, got {out.shape}")
    if not out.flags.writeable:
        raise ValueError("out is read-only")
    return out


def rows_of(x: np.ndarray) -> dict[str, int]:
    """A contiguous array as rows along its last axis."""
    cols = x.shape[-1]
    return {"rows": x.size // cols, "cols": cols, "ld": cols}


def in_place(array: object, name: str, like: np.ndarray | None = None) -> np.ndarray:
    """An array that a kernel may update: contiguous float32 or float64, of the dtype and shape of `like`."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} must be an array, since it is updated in place; got {type(array).__name__}")
    if array.dtype not in (FLOAT32, FLOAT64):
        raise TypeError(f"{name} must have dtype float32 or float64, got {array.dtype}")
    if like is not None and array.dtype != like.dtype:
        raise TypeError(f"{name} must have the dtype of param, {like.dtype}, got {array.dtype}")
    if like is not None and array.shape != like.shape:
        raise ValueError(f"{name} must have the shape of param, {like.shape}, got {array.shape}")
    if not array.flags.writeable:
        raise ValueError(f"{name} is read-only")
    return array
