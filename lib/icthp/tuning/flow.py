"""The flow of a Stable Diffusion 3 pipeline from noise to latents, one Euler step at a time, for what a pipeline's own call cannot do: keep
the graph of some of the steps."""

import copy

import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from icthp.losses import no_autocast
from icthp.tuning.lora import without_lora
from icthp.tuning.sampling import sides


class Sampler:
    """Euler steps for prompts (embeddings (b, n, d) and pooled (b, p), from `encode`), with classifier-free guidance where it is above 1,
    away from `negative`, `encode` of one text. ValueError for guidance without it, and for a scheduler with other steps than Euler's."""

    def __init__(
        self, pipe: StableDiffusion3Pipeline, prompt_embeds: Tensor, pooled: Tensor, steps: int, *, guidance: float = 0.0, negative=None
    ):
        if guidance > 1 and negative is None:
            raise ValueError('guidance above 1 needs negative=tuning.encode(pipe, [""])')
        self.transformer = pipe.transformer
        self.cond = (prompt_embeds, pooled)
        self.guidance = guidance
        self.negative = negative
        self.sigmas = noise_levels(pipe, steps).tolist()

    def denoise(self, x: Tensor, steps: range, rows: Tensor) -> Tensor:
        """The latents x (m, c, h, w) after these steps, each of the prompt that `rows` (m,) names."""
        for i in steps:
            x = self.step(x, i, self.velocity_at(x, self.sigmas[i], rows))
        return x

    def denoise_anchored(self, x: Tensor, steps: range, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and the mean squared distance of the velocity from the untuned transformer's, summed over the steps."""
        anchor_loss = torch.zeros((), device=x.device)
        for i in steps:
            v = self.velocity_at(x, self.sigmas[i], rows)
            base = self.base_velocity_at(x, self.sigmas[i], rows)
            anchor_loss = anchor_loss + (v - base).square().mean()
            x = self.step(x, i, v)
        return x, anchor_loss

    def base_velocity_at(self, x: Tensor, sigma: float, rows: Tensor) -> Tensor:
        """The untuned transformer's, without a graph."""
        with torch.no_grad(), without_lora(self.transformer):
            return self.velocity_at(x, sigma, rows)

    def noise_to_last_step(self, x: Tensor, noise: Tensor) -> Tensor:
        """Finished latents at the level where the last step starts."""
        return (1 - self.sigmas[-2]) * x + self.sigmas[-2] * noise

    def step(self, x: Tensor, i: int, v: Tensor) -> Tensor:
        """The latents one Euler step after step i's."""
        return x + (self.sigmas[i + 1] - self.sigmas[i]) * v

    def jump(self, x: Tensor, sigma: float, rows: Tensor) -> Tensor:
        """The finished latents that one step from this level would give."""
        return x - sigma * self.velocity_at(x, sigma, rows)

    def velocity_at(self, x: Tensor, sigma: float, rows: Tensor) -> Tensor:
        """The velocity at x (m, c, h, w) of this level, guided where the sampler is."""
        v = velocity(self.transformer, x, sigma, [part[rows] for part in self.cond])
        if self.guidance > 1:
            negative = [part.expand(len(x), *part.shape[1:]) for part in self.negative]
            v0 = velocity(self.transformer, x, sigma, negative)
            v = v0 + self.guidance * (v - v0)
        return v


def velocity(transformer, x: Tensor, sigma: float | Tensor, cond) -> Tensor:
    """float32 velocity (b, c, h, w) at x of level sigma, a number or (b,). cond: prompt embeddings and pooled."""
    time = torch.as_tensor(sigma, device=x.device).expand(len(x)) * 1000
    return transformer(x.to(cond[0].dtype), *cond, time, return_dict=False)[0].float()


def noise_levels(pipe: StableDiffusion3Pipeline, steps: int) -> Tensor:
    """(steps + 1,) noise levels from 1 to 0, by the pipeline's own scheduler. ValueError for one whose steps are no plain Euler steps
    between them."""
    scheduler = copy.deepcopy(pipe.scheduler)
    if scheduler.config.get("use_dynamic_shifting"):
        raise ValueError("dynamic shifting of the noise schedule is not supported; load the pipeline with a fixed `shift`")
    if scheduler.config.get("stochastic_sampling"):
        raise ValueError("a scheduler with stochastic_sampling is not supported: load the pipeline without it")
    scheduler.set_timesteps(steps)
    if len(scheduler.sigmas) != steps + 1 or scheduler.sigmas[-1] != 0:
        name = type(scheduler).__name__
        raise ValueError(f"{name} is not supported, its {steps} steps are no Euler steps: take a FlowMatchEulerDiscreteScheduler")
    return scheduler.sigmas


def draw_levels(pipe: StableDiffusion3Pipeline, count: int, generator, grid: int = 0) -> Tensor:
    """(count,) noise levels on the transformer's device, in [0, 1), uniform but for the scheduler's shift; with `grid` those where the
    steps of a sampler of so many start, all alike. generator: one, or one a row."""
    rows = [(1, each) for each in generator] if isinstance(generator, list) else [(count, generator)]
    uniform = torch.cat([torch.rand(n, generator=each, device=each.device) for n, each in rows]).to(pipe.transformer.device)
    if grid:
        return noise_levels(pipe, grid).to(uniform)[(uniform * grid).long()]
    shift = pipe.scheduler.config.shift
    return shift * uniform / (1 + (shift - 1) * uniform)


def of_the_batch(generator) -> torch.Generator:
    """The generator of a batch's own choices, of one or of one a row."""
    return generator[0] if isinstance(generator, list) else generator


def initial_noise(pipe: StableDiffusion3Pipeline, count: int, size, generator) -> Tensor:
    """(count, c, h, w) on the transformer's device. size: pixels, one side or (height, width), the transformer's own for None; generator:
    one, or one a row. ValueError for a size that the patches do not divide."""
    config = pipe.transformer.config
    height, width = sides(pipe, size)
    scale = pipe.vae_scale_factor
    patch = scale * config.patch_size
    if height % patch or width % patch:
        raise ValueError(f"size must be a multiple of {patch} pixels, the transformer's patches, not {size}")
    shape = (count, config.in_channels, height // scale, width // scale)
    return randn_tensor(shape, generator=generator, device=pipe.transformer.device)


def latents(pipe: StableDiffusion3Pipeline, pixels: Tensor) -> Tensor:
    """Pixels (b, 3, h, w) in [0, 1] -> the autoencoder's mean latents in the transformer's units; `decode` goes back."""
    vae = pipe.vae
    with no_autocast(pixels.device):
        mean = vae.encode((pixels * 2 - 1).to(vae.dtype)).latent_dist.mean.float()
    return (mean - vae.config.shift_factor) * vae.config.scaling_factor


def decode(pipe: StableDiffusion3Pipeline, latents: Tensor) -> Tensor:
    """Latents -> pixels (b, 3, h, w) in [0, 1], differentiable; in the autoencoder's own arithmetic, as the pipeline decodes, for autocast
    would normalise in float32."""
    vae = pipe.vae
    with no_autocast(latents.device):
        pixels = vae.decode((latents / vae.config.scaling_factor + vae.config.shift_factor).to(vae.dtype)).sample
    return (pixels.float() / 2 + 0.5).clamp(0, 1)
