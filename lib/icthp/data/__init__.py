"""Pick-High's data: triplets I1 < I2 < I3, and all that makes them.

`pairs` reads I1 < I2 and builds triplets from them, `triplets` writes and reads these, `parquet` reads their files. `refine` has the
refiners of prompts, `wording` what a refined prompt must keep, and hard negatives; `prompts` says when
two prompts are one. `published` reads Pick-High and Pick-a-Pic v2, `frames` a pickled table without running it; `sources` reads datasets
of pictures; `audit` finds shortcuts that tell I3 apart."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
