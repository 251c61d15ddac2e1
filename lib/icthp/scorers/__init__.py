"""Scorers: one interface, score(pixels in [0, 1], prompts) -> Tensor (b,), and a file for each family.

`loading` finds a scorer by name; `base` has what all share; `clip`, `hp`, `combined`, `jpeg`, `aesthetic` and `imagereward` are the
families, `custom` loads a class of one's own. `checkpoints` reads CLIPs in every published layout with `configs` and `tokenizers`,
`states` the files of weights; `hub` saves, publishes and writes model cards."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
