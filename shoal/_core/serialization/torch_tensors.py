"""PyTorch tensors without a copy.

A tensor is pickled as its storage plus shape, so that views of one storage share it again, and the storage's bytes travel out of band.
Torch knows no read-only tensor; therefore the buffer is marked *private*, and the reader makes the tensor over a private mapping of it.
"""

from __future__ import annotations

import ctypes
import importlib
import pickle
import threading
from typing import Any


class _Private(threading.local):
    #: Buffers that this thread is pickling and whose reader may write to them. None while no value is being pickled.
    buffers: list[pickle.PickleBuffer] | None = None


private = _Private()


def reducers(torch: Any) -> dict[type, Any]:
    """Return reducers by class; {} while torch is still being imported."""
    if not hasattr(torch, "Tensor") or not hasattr(torch, "UntypedStorage") or not hasattr(torch, "quantize_per_tensor"):
        return {}

    def reduce_tensor(tensor: Any) -> Any:
        ordinary = (
            tensor.layout is torch.strided
            and tensor.device.type == "cpu"
            and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
            and not vars(tensor)
        )
        if not ordinary:
            return tensor.__reduce_ex__(2)
        requires_grad, data = tensor.requires_grad, tensor.detach()
        if 2 * data.nbytes < data.untyped_storage().nbytes():
            data = data.clone(memory_format=torch.contiguous_format)  # a small view does not take the whole storage along
        place = (data.storage_offset(), tuple(data.shape), data.stride())
        return _rebuild_tensor, (data.untyped_storage(), str(data.dtype).removeprefix("torch."), *place, requires_grad)

    def reduce_storage(storage: Any) -> Any:
        if storage.device.type != "cpu" or private.buffers is None:
            return storage.__reduce_ex__(2)
        if not storage.nbytes():
            return _rebuild_storage, (None,)
        memory: Any = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
        memory.storage = storage  # the buffer keeps the array alive, and the array the storage
        buffer = pickle.PickleBuffer(memory)
        private.buffers.append(buffer)
        return _rebuild_storage, (buffer,)

    return {torch.Tensor: reduce_tensor, torch.UntypedStorage: reduce_storage}


def _rebuild_storage(buffer: Any) -> Any:
    torch = importlib.import_module("torch")
    if buffer is None:
        return torch.UntypedStorage(0)
    return torch.frombuffer(buffer, dtype=torch.uint8).untyped_storage()


def _rebuild_tensor(storage: Any, dtype: str, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], requires_grad: bool) -> Any:
    torch = importlib.import_module("torch")
    tensor = torch.empty(0, dtype=getattr(torch, dtype)).set_(storage, offset, shape, stride)
    return tensor.requires_grad_(requires_grad) if requires_grad else tensor
