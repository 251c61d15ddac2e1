"""Reward models beyond text-image alignment: the scoring paradox, Pick-High, ICT and HP, DRaFT-K (arXiv 2507.19002).

`icthp.load("ict", source)` gives a scorer. The rooms, in the paper's order:

information     what a picture and a text tell of each other, in bits; what a shared embedding space can score
losses          labels and losses of ICT and HP, pure functions; kernels has their fast twins
data            triplets I1 < I2 < I3, refined prompts, published sets, the audit of shortcuts
train           the two stages, ICT and HP; trainer is the loop that runs them and the tuning
scorers         ICT, HP, CLIP, PickScore, HPS v2, ImageReward, aesthetic, JPEG: one interface
tuning          DRaFT-K, DPO, LoRA, sampling; pipelines reads diffusers folders
evaluation      statistics, metrics, GenEval, human votes, the gallery
microworld      the world in which all of it runs at micro scale
images, preprocessing, tables, files, params, project, run, figures, timing    pictures, geometry, files and the bridge to the notebooks
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
