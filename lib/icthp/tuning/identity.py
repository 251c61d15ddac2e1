"""Plain values (JSON's types) that tell options and pipelines apart, the same in every process: for the config of a run that goes on
after a kill, and for the names of files that are kept between runs."""

import functools
import inspect
from importlib.metadata import version

import numpy as np
import torch
from diffusers import DiffusionPipeline
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from icthp import files
from icthp.tuning.encoding import encoded

LIBRARIES = ("torch", "diffusers", "transformers", "peft")
DRAWING = ("tuning.sampling", "tuning.encoding", "tuning.lora", "pipelines")  # the modules of this project between a prompt and its picture


def identity_of(value):
    """An option's: a tensor's bytes; a function's name, and where it has no name of its own its code and the values that it closes over;
    what a partial calls and with what; of any other object its repr, or its class where the repr holds an address."""
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, np.ndarray | np.generic):
        value = torch.from_numpy(np.array(value))
    if isinstance(value, Tensor):
        return [str(value.dtype), list(value.shape), files.digest(_bytes(value))]
    if isinstance(value, dict):
        return {str(name): identity_of(part) for name, part in value.items()}
    if isinstance(value, list | tuple | range):
        return [identity_of(part) for part in value]
    if isinstance(value, functools.partial):
        return {"calls": identity_of(value.func), "arguments": identity_of(value.args)} | identity_of(value.keywords)
    if inspect.ismethod(value):
        return [identity_of(value.__func__), identity_of(value.__self__)]
    if inspect.isfunction(value):
        return _identity_of_function(value)
    if isinstance(value, nn.Module):
        return [type(value).__qualname__, files.digest(repr(value)), files.fingerprint(value)]
    text = repr(value)
    if " at 0x" in text:  # an address, another one in every process
        return f"{type(value).__module__}.{type(value).__qualname__}"
    return text


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _identity_of_function(function):
    if "<" not in function.__qualname__:  # neither <lambda> nor <locals>
        return f"{function.__module__}.{function.__qualname__}"
    contents = [cell.cell_contents for cell in function.__closure__ or ()]
    closed_over = [value for value in contents if value is not function]  # it may call itself
    return [*identity_of_code(function), identity_of([function.__defaults__, function.__kwdefaults__, closed_over])]


def identity_of_code(function) -> list:
    """A function's name and what it does, without the values that it closes over."""
    return [f"{function.__module__}.{function.__qualname__}", files.digest(_code(function.__code__))]


def _code(code) -> list:
    """What a compiled function does: instructions, names and constants, without the lines that they stand in."""
    constants = [_code(part) if inspect.iscode(part) else repr(part) for part in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), constants]


def identity_of_pipeline(pipe: DiffusionPipeline) -> dict:
    """Of all that a diffusers pipeline draws with but the text, which the tokenizers read: weights, configurations, scheduler, LoRAs and
    how strong they are, device class, libraries and the code of this project that draws."""
    parts = {name: _identity_of_part(part) for name, part in sorted(pipe.components.items()) if part is not None}
    versions = {name: version(name) for name in LIBRARIES}
    identity = {"pipeline": type(pipe).__name__, "config": _config(pipe), "device": pipe.device.type}
    if torch.is_autocast_enabled(pipe.device.type):
        identity["autocast"] = str(torch.get_autocast_dtype(pipe.device.type))
    if ahead := encoded(pipe):
        identity["encoded"] = identity_of([ahead.embeds, ahead.pooled])
    return identity | {"parts": parts, "versions": versions, "code": files.code(*DRAWING)}


def _identity_of_part(part) -> list:
    shift = str(getattr(part, "shift", ""))  # a scheduler's, which set_shift moves
    identity = [type(part).__name__, _config(part), shift]
    if not isinstance(part, nn.Module):
        return identity
    tiling = {name: str(value) for name, value in sorted(vars(part).items()) if name.startswith(("use_", "tile_"))}  # an autoencoder's
    return [*identity, files.fingerprint(part), _adapters(part), tiling, _hooks(part)]


def _hooks(model: nn.Module) -> list:
    """The hooks of its layers, which may change what they compute; those of transformers only record."""
    hooked = []
    for name, module in model.named_modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks"):
            hooks = [hook for hook in getattr(module, kind).values() if not getattr(hook, "__module__", "").startswith("transformers.")]
            if hooks:
                hooked.append([name, kind, [identity_of(hook) for hook in hooks]])
        if hasattr(module, "_diffusers_hook"):
            hooked.append([name, sorted(module._diffusers_hook.hooks)])
    return hooked


def _config(part) -> dict:
    """Without the path that it came from."""
    config = getattr(part, "config", {})
    config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {name: str(value) for name, value in config.items() if name != "_name_or_path"}


def _adapters(model: nn.Module) -> list:
    """Of each layer with LoRAs: which are active and how strongly, which are fused into the weights."""
    return [[name, _strengths(m), m.merged_adapters] for name, m in model.named_modules() if isinstance(m, LoraLayer)]


def _strengths(layer: LoraLayer) -> dict[str, float]:
    if layer.disable_adapters:
        return {}
    return {name: layer.scaling[name] for name in layer.active_adapters if name in layer.scaling}


def identity_of_tokens(pipe: DiffusionPipeline, prompts: list[str]) -> dict:
    """What each tokenizer of the pipeline reads in the prompts and in the empty one."""
    tokens = {}
    for name, tokenizer in sorted(pipe.components.items()):
        if name.startswith("tokenizer") and tokenizer is not None:
            tokens[name] = [tokenizer([*prompts, ""], truncation=True).input_ids, str(tokenizer.model_max_length)]
    return tokens
