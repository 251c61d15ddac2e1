"""Pick-High's data: triplets I1 < I2 < I3, and all that makes them.

`pairs` reads I1 < I2 and builds triplets from them, `triplets` writes and reads these, `parquet` reads their files. `refine` has the
refiners of prompts, `wording` what a refined prompt must keep, and hard negatives; `prompts` says when
two prompts are one; `making` checks refined prompts and drops the rejected rows. `published` reads Pick-High and Pick-a-Pic v2, `frames` a
pickled table without running it; `sources` reads datasets of pictures; `audit` finds what tells the better picture of a pair, `shortcuts`
asks it about I3; `selection` picks pictures to look at."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
