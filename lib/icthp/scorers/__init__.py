"""Scorers: one interface, score(pixels in [0, 1], prompts) -> Tensor (b,), and a file for each family.

`loading` finds a scorer by name; `base` has what all share. `clip`, `hp` and `combined` are this project's own and those that they
come from; `hps` (1), `siglip`, `clip_iqa`, `aesthetic`, `aesthetic_v25` and `mps` stand on a CLIP or SigLIP as well, `imagereward`,
`cyclereward` and `fga_blip2` on BLIP (`blip` has its towers), `hpsv3`, `vqascore` and `yes_no` on language models that see; `endpoint` asks
one of these behind an address; `jpeg` stands on none.
`relative` is the difference of two prompts, `custom` loads a class of one's own. `checkpoints` reads CLIPs in every published layout with
`configs` and `tokenizers`, `states` the files of weights; `hub` saves, publishes and writes model cards."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
