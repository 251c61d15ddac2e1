"""Figures and tables: one look, one place that writes them.

`palette` has names, colours and the style, `drawing` what figures are made of, `writing` writes them, `takeaways` boxes a conclusion."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
