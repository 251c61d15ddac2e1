"""What a picture, a scorer or a tuned generator is worth.

`statistics` has intervals and tests, `metrics` the measures, `scoring` runs a scorer over triplets, pictures and files, `generator`
measures what a generator draws. `geneval` has GenEval's rules, detector and files, `prompt_sets` GenEval 2, T2I-CompBench and DPG-Bench,
in, out and scored. `human_votes` has how far a score agrees with people; `vote_sets` and `vote_pairs` read published rankings, ratings and
choices row by row (`vote_rows`), RichHF's without TensorFlow (`tfrecord`).
`claims` has what became of a published claim; `gallery` scores a collection of pictures, which `picture_sources` reads with the prompts
beside them, and `gallery_page` shows it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
