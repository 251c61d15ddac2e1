"""The microworld: a procedural world whose information content is known exactly.

`scenes` draws scenes and counts their bits, `grammar` captions and parses them, `renderer` paints them. `detector` reads its
pictures, `annotators` vote by what it reads, `oracle` makes a reward of that, `axes` are votes on alignment and quality apart. `models`
makes its small base models, `tasks` are GenEval's in this world, `refiner` completes its prompts, `playground` turns one scene
by richness, noise, blur and prompt. No other package imports it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
