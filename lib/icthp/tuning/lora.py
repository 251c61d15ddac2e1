"""The LoRA of a tuning: added to a Stable Diffusion 3 pipeline, saved, loaded with a check, merged, left out for a moment.

Other LoRAs may lie in the same transformer. Those that are active when `add_lora` comes are part of what is tuned: they stay active
and frozen, and `save_lora` leaves them out.
"""

import contextlib
from pathlib import Path

import torch
from accelerate.utils import extract_model_from_parallel
from diffusers import StableDiffusion3Pipeline
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError
from torch import nn

from icthp.files import atomic_folder

ADAPTER = "default"  # the name of add_lora's adapter; diffusers calls those that it loads default_0, default_1, ...
LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
FILE = "pytorch_lora_weights.safetensors"


def unwrap(model: nn.Module) -> nn.Module:
    """The module that torch.compile, accelerate or DistributedDataParallel has wrapped."""
    return extract_model_from_parallel(model, keep_torch_compile=False)


def add_lora(
    pipe: StableDiffusion3Pipeline, rank: int, seed: int = 0, *, alpha: float | None = None, targets: list[str] | None = None
) -> list[nn.Parameter]:
    """Freeze the pipeline, add a LoRA to the transformer; returns the float32 parameters to train. alpha: the update counts
    alpha / rank times, by default once; targets: names of linear layers, by default the attention's. The pictures stay as they are, for a
    new LoRA does nothing and one that is active stays so; torch's random numbers too, though `seed` draws the LoRA's.
    ValueError where the transformer has a LoRA of that name, or one that is fused into its weights but not unloaded."""
    transformer = unwrap(pipe.transformer)
    _refuse_to_add(transformer)
    active = active_adapters(transformer)
    for part in (transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3):
        if part is not None:
            part.requires_grad_(False)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,
        init_lora_weights="gaussian",
        target_modules=LORA_TARGETS if targets is None else targets,
    )
    with torch.random.fork_rng(devices=[]):  # PEFT draws on the CPU, wherever the layer lies
        torch.default_generator.manual_seed(seed)
        transformer.add_adapter(config, ADAPTER)
    for layer in _layers(transformer):
        layer.enable_adapters(True)  # where disable_lora had been called; then nothing was active, and is not now
        layer.set_adapter([*active, ADAPTER])
    parameters = train_adapter(transformer)
    cast_training_params(transformer, dtype=torch.float32)
    return parameters


def has_adapter(model: nn.Module) -> bool:
    return ADAPTER in getattr(model, "peft_config", {})


def _refuse_to_add(transformer: nn.Module) -> None:
    if has_adapter(transformer):
        remedy = f"take it out with pipe.delete_adapters({ADAPTER!r}), or load it under another adapter_name"
        raise ValueError(f"the transformer already has a LoRA called {ADAPTER!r}, the name of add_lora's: {remedy}")
    if any(layer.merged for layer in _layers(transformer)):
        raise ValueError("a LoRA is fused into the transformer and still listed: call pipe.unload_lora_weights(), the fused weights stay")
    kinds = {type(m).__name__ for m in transformer.modules() if isinstance(m, BaseTunerLayer) and not isinstance(m, LoraLayer)}
    if kinds:
        raise ValueError(f"the transformer has adapters that are no LoRA ({', '.join(sorted(kinds))}): fuse and unload them first")


def _layers(model: nn.Module) -> list[LoraLayer]:
    return [m for m in model.modules() if isinstance(m, LoraLayer)]


def active_adapters(model: nn.Module) -> list[str]:
    """The names of the LoRAs that act in a forward pass, each once."""
    names = []
    for layer in _layers(model):
        if not layer.disable_adapters:
            names += [name for name in layer.active_adapters if name in layer.scaling]
    return list(dict.fromkeys(names))


def train_adapter(model: nn.Module) -> list[nn.Parameter]:
    """Freeze everything but the parameters of add_lora's adapter, and return these. ValueError where it is not active: diffusers
    activates a LoRA that it loads alone."""
    active = active_adapters(model)
    if ADAPTER not in active:
        remedy = f"load others before add_lora, or call pipe.set_adapters({[*active, ADAPTER]})"
        raise ValueError(f"the LoRA of add_lora is not active, {', '.join(active) or 'none'} is: {remedy}")
    for name, p in model.named_parameters():
        p.requires_grad_(f".{ADAPTER}." in name)
    return [p for p in model.parameters() if p.requires_grad]


def save_lora(pipe: StableDiffusion3Pipeline, folder) -> None:
    """folder/pytorch_lora_weights.safetensors, which pipe.load_lora_weights(folder) reads: add_lora's adapter alone, at the strength
    that it has now. Its scale, alpha / rank by default, is multiplied into the weights, so that every program that reads them draws the
    same pictures, also one that takes alpha for the rank. ValueError where there is no LoRA of add_lora."""
    model = unwrap(pipe.transformer)
    if not has_adapter(model):
        raise ValueError("this pipeline has no LoRA of add_lora that could be saved")
    scale = {name: m.scaling[ADAPTER] for name, m in model.named_modules() if isinstance(m, LoraLayer) and ADAPTER in m.scaling}
    state = {}
    for name, value in get_peft_model_state_dict(model, adapter_name=ADAPTER).items():
        layer, _, half = name.rpartition(".lora_")
        plain_name = name.replace("_orig_mod.", "")  # of blocks that were compiled one by one
        state[plain_name] = value * scale[layer] if half.startswith("B.") else value
    atomic_folder(folder, lambda partial: StableDiffusion3Pipeline.save_lora_weights(str(partial), transformer_lora_layers=state))


def load_lora(pipe: StableDiffusion3Pipeline, folder, adapter_name: str | None = None) -> None:
    """pipe.load_lora_weights(folder), of safetensors only. ValueError, before the pipeline changes, for a weight that is not finite, that
    fits no layer of it or lacks its other half, and for a file that is cut; FileNotFoundError where a folder has no such file."""
    if Path(folder).is_dir() and not list(Path(folder).glob("*.safetensors")):
        raise FileNotFoundError(f"{folder} has no {FILE}: tuning.save_lora writes it")
    try:
        state, metadata = pipe.lora_state_dict(str(folder), use_safetensors=True, return_lora_metadata=True)
    except SafetensorError as error:
        raise ValueError(f"{folder}: its LoRA cannot be read ({error}); write or download it again") from error
    _refuse_to_load(pipe, state, folder)
    try:
        if any(not name.startswith("transformer.") for name in state):
            pipe.load_lora_weights(str(folder), adapter_name=adapter_name, use_safetensors=True)
        else:  # as load_lora_weights does, without looking for layers of the text encoders, of which it would warn
            options = {"adapter_name": adapter_name, "metadata": metadata, "low_cpu_mem_usage": True, "_pipeline": pipe}
            pipe.load_lora_into_transformer(state, pipe.transformer, **options)
    except RuntimeError as error:
        raise ValueError(f"{folder} holds the LoRA of another model: {error}") from error


def _refuse_to_load(pipe, state: dict, folder) -> None:
    not_finite = next((name for name, value in state.items() if not value.isfinite().all()), None)
    if not_finite:
        raise ValueError(f"{folder}: {not_finite} is not finite; it would draw nothing (train or download it again)")
    layers = _layer_names(pipe)
    known = set(layers)
    unknown = [name for name in state if name.partition(".lora")[0] not in known]
    if unknown or not state:
        example = next((layer for layer in layers if layer.endswith(LORA_TARGETS[0])), layers[0])
        reason = "it is empty"
        if unknown:
            reason = f"{len(unknown)} of its {len(state)} weights fit no layer of this pipeline, {unknown[0]} for one"
        raise ValueError(f"{folder} is no LoRA for it: {reason}; names such as {example}.lora_A.weight were looked for")
    for name in state:
        other_half = _other_half(name)
        if other_half not in state:
            raise ValueError(f"{folder}: {name} has no {other_half} beside it; write or download it again")


def _layer_names(pipe) -> list[str]:
    """Of all parts that may have a LoRA, sorted, as its weights begin."""
    parts = {name: getattr(pipe, name, None) for name in pipe._lora_loadable_modules}
    names = []
    for name, part in parts.items():
        if part is not None:
            names += [f"{name}.{layer}" for layer, _ in unwrap(part).named_modules()]
    return sorted(names)


HALVES = {".lora_A.weight": ".lora_B.weight", ".lora.down.weight": ".lora.up.weight"}  # as PEFT and as older diffusers call them


def _other_half(name: str) -> str:
    """The name of B's weight for A's and of A's for B's; any other name itself."""
    for one, two in HALVES.items():
        if one in name:
            return name.replace(one, two)
        if two in name:
            return name.replace(two, one)
    return name


@contextlib.contextmanager
def merged(transformer):
    """Within, the active LoRAs are part of the weights: fewer products a step, for steps without a gradient. The weights come back as
    they were, bit for bit. Not for bfloat16 weights, which round most of a young LoRA away."""
    layers = [layer for layer in _layers(transformer) if not layer.merged and not layer.disable_adapters]
    weights = [(p, p.data) for layer in layers for p in layer.get_base_layer().parameters()]
    try:
        for p, data in weights:
            p.data = data.clone()
        for layer in layers:
            layer.merge()
        yield
    finally:
        for p, data in weights:
            p.data = data
        for layer in layers:
            layer.merged_adapters.clear()


@contextlib.contextmanager
def without_lora(transformer):
    """Within, the transformer is the one that the tuning began with: add_lora's adapter is off, other LoRAs act as before. Where
    there is none of add_lora, all are off. ValueError where there is no LoRA at all, or where one is fused into the weights."""
    layers = _layers(transformer)
    if not layers:
        raise ValueError("the transformer has no LoRA that could be left out: call add_lora, or load one")
    if any(layer.merged for layer in layers):
        raise ValueError("the LoRA is fused into the transformer and cannot be left out: call pipe.unfuse_lora() first")
    keeps_others = has_adapter(unwrap(transformer))
    active = [layer.active_adapters for layer in layers]
    trainable = [p for layer in layers for p in layer.parameters() if p.requires_grad]
    try:
        for layer, names in zip(layers, active):
            layer.set_adapter([name for name in names if keeps_others and name != ADAPTER], inference_mode=True)
        yield
    finally:
        for layer, names in zip(layers, active):
            layer.set_adapter(names, inference_mode=True)
        for p in trainable:
            p.requires_grad_(True)
