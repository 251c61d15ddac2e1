"""A generator is tuned on a reward: DRaFT-K and two dozen rivals, and what all need.

A way of tuning is an update, a function that leaves a gradient in the LoRA; `training` runs it in the training loop. `draft` backpropagates
the reward through the last steps of the sampler, `jumping` into single steps (`endpoint` has their form). `fitting` fits own pictures
noised anew, `walking` takes random steps (`stochastic`): both ask the reward for values only, with a loss of `optimisers`, which are made
of `preferences` and `matching`. `negative` draws away from what was learnt, `costs` counts, `monitor` measures held-out prompts meanwhile,
`alarms` says whether a reward is being gamed, `alarm_figures` draws that.

`flow` has the sampler's steps, `rewards` what pictures are worth, `lora` adds, saves and loads the LoRA, `encoding` encodes prompts,
`sampling` draws pictures, `identity` tells runs and files of pictures apart."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
