"""Figures and tables: one look, one place that writes them.

`palette` has names, colours and the style, `drawing` what figures are made of, `writing` writes them, `takeaways` boxes a conclusion.
`marks` has what several figures share, `published` the paper's own numbers, `captions` what each file shows. Of the figures, `scorers` has
those about scorers, `tuned` those about tuned generators, `study` those of the three-seed study, `pictures` pictures side by side,
`framework` the diagram of the method. `summaries` makes tables."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
