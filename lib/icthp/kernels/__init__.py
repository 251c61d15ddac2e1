"""The paper's expensive parts, exact and fast: each has a slow twin that tests compare it with.

`ict` computes the ICT loss, on a GPU by `ict_triton`; `resize` applies a model's preprocessing; `fold` joins linear layers into one."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
