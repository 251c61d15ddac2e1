"""A generator is tuned on a reward: DRaFT-K, preference losses, and what both need.

`draft` backpropagates the reward through the last steps of the sampler, `dpo` asks it for an order only; `flow` has the sampler's steps,
`rewards` what pictures are worth, `training` runs either in the training loop, `monitor` measures held-out prompts meanwhile. `lora` adds,
saves and loads the LoRA, `encoding` encodes prompts, `sampling` draws pictures, `identity` tells runs and files of pictures apart."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
