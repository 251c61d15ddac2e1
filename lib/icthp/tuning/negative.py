"""A negative generator: drawing away from what a LoRA has learnt (Diffusion-NPO, arXiv 2505.11245)."""

import contextlib

from icthp.tuning.lora import unwrap, without_lora


@contextlib.contextmanager
def negative_branch(transformer, guidance: float):
    """Within, the velocity is v' + guidance (v - v'), v' the tuned transformer's and v the untuned one's; at 1 it is the untuned one. Each
    evaluation counts twice. For drawing; ValueError as `without_lora`."""
    model = unwrap(transformer)
    forward = model.forward

    def guided(*args, **kwargs):
        kwargs["return_dict"] = False
        negative = forward(*args, **kwargs)[0]
        with without_lora(model):
            positive = forward(*args, **kwargs)[0]
        return (negative + guidance * (positive - negative),)

    model.forward = guided
    try:
        yield
    finally:
        model.forward = forward
