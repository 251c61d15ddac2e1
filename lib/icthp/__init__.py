"""Reward models beyond text-image alignment: the scoring paradox, Pick-High, ICT and HP, DRaFT-K (arXiv 2507.19002).

`icthp.load("ict", source)` gives a scorer. Packages and modules in the paper's order; each package says what its modules are:

information     the decomposition I(v) = I(v;t) + I(v|t), in bits; what a shared embedding space can score
data            triplets I1 < I2 < I3, refined prompts, published data sets, the audit of shortcuts
losses          labels and losses of ICT and HP, pure functions; kernels has their fast twins
train           the two stages, ICT and HP: objectives are what they minimise, freezing chooses the layers that train
trainer         the loop of every training and tuning; optimizers, precision, checkpointing and isolation are its parts
scorers         ICT, HP, CLIP, PickScore, HPS v2, ImageReward, aesthetic, JPEG: one interface
tuning          DRaFT-K, DPO, LoRA, sampling; pipelines loads and saves diffusers folders
evaluation      statistics, metrics, GenEval, human votes, the gallery
microworld      the world of the micro scale: scenes whose information is known exactly, and their base models
images          pictures from and into files; preprocessing brings them to the size that a model reads, corruptions spoil them
tables, files   tables of pictures and prompts; files that are written whole or not at all; shards are files that many workers
                make, threads do the same to many rows
chat, custom    requests to an OpenAI-compatible endpoint; Python files of one's own, the one place that runs them
run, params     notebooks as stages of the pipeline, and their parameters; notebook_client waits for their cells; project finds the
                project's root
strip           what a stage depends on: the code that it reaches, by imports, and what its parameters name, by places; preflight says
                what is missing before the first one
plan            what a run will need: blueprints are the models' shapes, metering counts operations and memory
figures         figures in one style; timing measures how long a function takes
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
