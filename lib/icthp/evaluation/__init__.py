"""What a picture, a scorer or a tuned generator is worth.

`statistics` has intervals and tests, `metrics` the measures, `scoring` runs a scorer over triplets, pictures and files, `generator`
measures what a generator draws. `geneval` has GenEval's rules, detector and files, `human_votes` how far a score agrees with people,
`claims` what became of a published claim; `gallery` scores a collection of pictures, `gallery_page` shows it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
