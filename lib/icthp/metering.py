"""What a computation costs: floating-point operations, and bytes of the tensors that are alive at once, those saved for the backward pass
included. It is counted as the computation runs, on tensors with numbers or, in `without_numbers`, on tensors that have only a shape, so
that a model of billions of weights costs no memory."""

import contextlib
import weakref
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Meter(TorchDispatchMode):
    """Inside, `flops` are counted, and `peak`, the most bytes that were alive at once beside the weights of `modules`."""

    def __init__(self, *modules: nn.Module):
        super().__init__()
        self.flops = 0
        self.peak = 0
        self.alive = 0
        self._storages = {}
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                self._add(tensor)
        self.peak = self.alive = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if count := flop_registry.get(function._overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return
        self.alive += size
        self.peak = max(self.peak, self.alive)
        self._storages[key] = weakref.ref(storage, lambda _: self._remove(key, size))

    def _remove(self, key: int, size: int) -> None:
        self.alive -= size
        self._storages.pop(key, None)


@contextlib.contextmanager
def without_numbers(dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Inside, new tensors have a shape and a type, `dtype` unless they name another, and no numbers."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with FakeTensorMode():
            yield
    finally:
        torch.set_default_dtype(before)


def size_of(module: nn.Module) -> int:
    """Bytes of its weights."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))
