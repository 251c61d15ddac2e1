"""The field's ways to tune a generator without backpropagation through its sampler, a function each: what `fit_step` and `walk_step` take
as their loss.

Losses of a `Fit` see n own pictures of each prompt, noised anew; losses of a `Transition` one random step of a rollout. Both read rewards,
never their gradient. Each says its formula, its source, what it needs and what it costs: F is one evaluation of the transformer without a
graph, G one with its backward pass, for each of the n pictures; to draw them costs T F more and a reward each.
D_i is a picture's `Fit.gain`, w the best and l the worst picture of a prompt. beta is not portable between methods, error types and
generators: tune it."""

from dataclasses import replace

import torch
from torch import Tensor

from icthp.tuning import preferences
from icthp.tuning.fitting import Fit
from icthp.tuning.matching import advantages, matching_loss, nft_loss, winrate
from icthp.tuning.preferences import best_over_worst, clipped_log_ratio, pair_loss
from icthp.tuning.stochastic import clipped_ratio_loss, step_kl
from icthp.tuning.walking import Transition

# ---- preferences: functions of the gain -------------------------------------------------------------------------


def dpo(fit: Fit, *, beta: float, link: preferences.Link = preferences.logistic, margin: float = 0.0) -> Tensor:
    """Diffusion-DPO (arXiv 2311.12908; SalesforceAIResearch/DiffusionDPO@train.py): -log sigmoid(-beta / 2 (D_w - D_l)).
    Needs: an order. Cost: 1 G + 1 F. Also the loss of TPO (`one_picture_two_captions`) and of DCPO (`caption_of_its_own`)."""
    return pair_loss(-beta / 2 * fit.gain, best_over_worst(fit.rewards), link=link, margin=margin)


def ipo(fit: Fit, *, beta: float) -> Tensor:
    """IPO (arXiv 2310.12036, as in G-U-N/Diffusion-NPO): (u - 1 / 2)^2, u DPO's argument: a lead beyond 1 / 2 is pulled back.
    Needs: an order. Cost: 1 G + 1 F."""
    return dpo(fit, beta=beta, link=preferences.square, margin=0.5)


def hinge_dpo(fit: Fit, *, beta: float) -> Tensor:
    """The hinge of Diffusion-NPO's script (arXiv 2505.11245): max(0, 1 - u), u DPO's argument. Needs: an order. Cost: 1 G + 1 F."""
    return dpo(fit, beta=beta, link=preferences.hinge)


def dmpo(fit: Fit, *, beta: float) -> Tensor:
    """DMPO (huaishengzhu/DSPO): KL(Bernoulli(sigmoid(u)) || Bernoulli(0.99)), u DPO's argument. Needs: an order. Cost: 1 G + 1 F."""
    return dpo(fit, beta=beta, link=preferences.bernoulli_kl)


def smpo(fit: Fit, *, beta: float, temperature: float = 1.0) -> Tensor:
    """SmPO's soft labels (arXiv 2506.02698; JaydenLyh/SmPO@train.py): DPO's argument times 10 (2 p - 1), p = sigmoid((r_w - r_l) /
    temperature): no gradient where p is 1 / 2. Its inverted noise is not here, noise is drawn. Needs: values. Cost: 1 G + 1 F."""
    rewards = fit.rewards / temperature
    scale = 10 * (2 * torch.sigmoid(rewards[:, :, None] - rewards[:, None, :]) - 1)
    return pair_loss(-beta / 2 * fit.gain, best_over_worst(fit.rewards), scale=scale)


def rank_dpo(fit: Fit, *, beta: float, temperature: float = 1.0) -> Tensor:
    """RankDPO (arXiv 2410.18013): DPO over all pairs of the n pictures, each with `rank_weight`; gains are sigmoid(reward / temperature).
    Needs: values. Cost: 1 G + 1 F."""
    score = -beta * fit.gain
    return pair_loss(score, preferences.rank_weight(torch.sigmoid(fit.rewards / temperature), score))


def sdpo(fit: Fit, *, beta: float, mu: float = 0.9) -> Tensor:
    """Diffusion-SDPO (arXiv 2511.03317; AIDC-AI/Diffusion-SDPO@train.py): DPO, the gradient of whose worst picture counts `safe_scale`
    times, so that the best one's error does not rise. Needs: an order. Cost: 1 G + 1 F."""
    residual = fit.velocity - fit.target
    pick = lambda x, index: x[torch.arange(len(x), device=x.device), index]
    best, worst = fit.rewards.argmax(1), fit.rewards.argmin(1)
    scale = preferences.safe_scale(pick(residual, best), pick(residual, worst), mu)
    lead = pick(fit.gain, best) - preferences.scale_gradient(pick(fit.gain, worst), scale)
    return (preferences.logistic(-beta / 2 * lead) * (best != worst)).mean()


def npo(fit: Fit, *, beta: float) -> Tensor:
    """Diffusion-NPO (arXiv 2505.11245; G-U-N/Diffusion-NPO@DPO-DPO-NPO/train_sd15.py): DPO with best and worst exchanged. What it trains is
    a negative generator, away from which `negative_branch` draws. Needs: an order. Cost: 1 G + 1 F, and each drawn step is 2 F."""
    return pair_loss(-beta / 2 * fit.gain, best_over_worst(-fit.rewards))


def mapo(fit: Fit, *, beta: float = 0.1, k: float = 0.5, scale: float = 1000.0) -> Tensor:
    """MaPO (arXiv 2406.06424; mapo-t2i/mapo@utils.py): e_w - beta log sigmoid(T (psi(e_w) - psi(e_l))), psi of `bounded`, e the error of
    the noise, (1 - sigma)^2 that of the velocity. Needs: an order, no untuned generator. Cost: 1 G."""
    error = fit.error * (1 - fit.sigma) ** 2
    best = best_over_worst(fit.rewards)
    return (best.sum(2) * error).sum(1).mean() + beta * pair_loss(preferences.bounded(error, k, scale), best)


def pso(fit: Fit, *, beta: float) -> Tensor:
    """PSO, its offline form (arXiv 2410.03190; ZichenMiao/Pairwise_Sample_Optimization): max(0, 1 - beta (e_l - e_w)), at the levels of the
    few steps that the generator draws with (`grid`). Needs: an order, no untuned generator. Cost: 1 G."""
    return pair_loss(-beta * fit.error, best_over_worst(fit.rewards), link=preferences.hinge)


def crd(fit: Fit, *, beta: float) -> Tensor:
    """CRD (arXiv 2603.14128, as in X-GenGroup/Flow-Factory): the differences of -beta D regress to those of the rewards.
    Needs: values. Cost: 1 G + 1 F."""
    gaps = fit.rewards[:, :, None] - fit.rewards[:, None, :]
    return pair_loss(-beta * fit.gain, preferences.all_pairs(fit.rewards), link=preferences.square, margin=gaps)


def kto(fit: Fit, *, beta: float) -> Tensor:
    """Diffusion-KTO (arXiv 2404.04465): `kto_loss` with a label for each picture, good where its reward is above its prompt's mean.
    Needs: labels. Cost: 1 G + 1 F."""
    label = (fit.rewards - fit.rewards.mean(1, keepdim=True)).sign()
    return preferences.kto_loss((-beta * fit.gain).flatten(), label.flatten())


# ---- weights on own pictures ------------------------------------------------------------------------------------


def best_of_n(fit: Fit) -> Tensor:
    """Fine-tuning on the best of each prompt's pictures (yifan123/flow_grpo's SFT script): e_w. Needs: an order. Cost: 1 G."""
    best = torch.nn.functional.one_hot(fit.rewards.argmax(1), fit.rewards.shape[1])
    return matching_loss(fit.error, best * fit.rewards.shape[1])


def rwr(fit: Fit, *, temperature: float = 1.0) -> Tensor:
    """Reward-weighted regression (arXiv 2302.12192): the mean of w e, w the softmax of reward / temperature over a prompt's pictures, times
    n. Needs: values. Cost: 1 G."""
    return matching_loss(fit.error, (fit.rewards / temperature).softmax(1) * fit.rewards.shape[1])


def awm(fit: Fit, *, power: float = 0.25, anchor: float = 0.001) -> Tensor:
    """Advantage-weighted matching (arXiv 2509.25050; scxue/advantage_weighted_matching): A sigma phi(e) of `matching_loss`, A `advantages`
    over 5, and anchor |v - v'|^2, v' the untuned velocity. Its second anchor, to an average of the weights, is not here.
    Needs: values. Cost: 1 G + 1 F."""
    pulled = anchor * fit.drift if anchor else 0.0
    return matching_loss(fit.error, advantages(fit.rewards) / 5 * fit.sigma, power) + pulled


def dgpo(fit: Fit, *, beta: float) -> Tensor:
    """DGPO (arXiv 2510.08425, as in X-GenGroup/Flow-Factory@trainers/dgpo.py): s A e, A `advantages`, s = sigmoid(beta mean(A D)) of the
    prompt's group without a gradient, one noise for the group. Needs: values. Cost: 1 G + 1 F."""
    advantage = advantages(fit.rewards)
    saturation = torch.sigmoid(beta * (advantage * fit.gain.detach()).mean(1, keepdim=True))
    return matching_loss(fit.error, saturation * advantage)


def nft(fit: Fit, *, beta: float = 1.0, anchor: float = 1e-4) -> Tensor:
    """DiffusionNFT (arXiv 2509.16117; NVlabs/DiffusionNFT@scripts/train_nft_sd3.py): 5 `nft_loss` with r = clip(A / 10 + 1 / 2, 0, 1) and
    anchor |v - v'|^2, v' the untuned velocity. The old generator is the one that learns, as its average begins; beta then drops out.
    Needs: values. Cost: 1 G, with an anchor 1 F more."""
    flat = lambda x: x.flatten(0, 1)
    r = (advantages(fit.rewards) / 10 + 0.5).clamp(0, 1)
    pulled = anchor * fit.drift if anchor else 0.0
    return 5 * nft_loss(*map(flat, (fit.velocity, fit.velocity.detach(), fit.target, fit.sigma, r)), beta) + pulled


# ---- log-ratios of random steps ---------------------------------------------------------------------------------


def flow_grpo(step: Transition, *, clip: float = 1e-4, kl: float = 0.04, over: str = "batch") -> Tensor:
    """Flow-GRPO (arXiv 2505.05470; yifan123/flow_grpo@scripts/train_sd3.py) and, by its rule of noise, DanceGRPO (2505.07818):
    `clipped_ratio_loss` with `advantages` over `over`, and kl `step_kl` to the untuned step. Needs: values. Cost: 1 G, with kl 1 F, a
    random step."""
    drift = kl * step_kl(step.mean, step.base, step.std).mean() if kl else 0.0
    advantage = advantages(step.rewards, over)
    return clipped_ratio_loss(step.logp.flatten(), step.old_logp.flatten(), advantage.flatten(), clip) + drift


def pref_grpo(step: Transition, *, clip: float = 1e-4, kl: float = 0.0) -> Tensor:
    """Pref-GRPO (arXiv 2508.20751; CodeGoat24/Pref-GRPO): Flow-GRPO whose reward is the `winrate` among a prompt's pictures.
    Needs: an order. Cost: 1 G, with kl 1 F, a random step."""
    difference = step.rewards[:, :, None] - step.rewards[:, None, :]
    return flow_grpo(replace(step, rewards=winrate((difference.sign() + 1) / 2)), clip=clip, kl=kl)


def grpo_guard(step: Transition, *, clip: float = 1e-4, over: str = "batch") -> Tensor:
    """GRPO-Guard (arXiv 2510.22319, as in X-GenGroup/Flow-Factory): Flow-GRPO whose log-ratio has mean 0 under the old steps and is scaled
    by their deviation, so that noisy and quiet steps weigh alike. Needs: values. Cost: 1 G a random step."""
    centre = step_kl(step.mean, step.old, step.std).flatten()
    logp, old, advantage = step.logp.flatten(), step.old_logp.flatten(), advantages(step.rewards, over).flatten()
    return clipped_ratio_loss(logp, old, advantage, clip, centre=centre, scale=step.std)


def pso_online(step: Transition, *, beta: float = 50.0, clip: float = 0.1) -> Tensor:
    """PSO, online (arXiv 2410.03190; ZichenMiao/Pairwise_Sample_Optimization): -log sigmoid(beta (log clip q_w - log clip q_l)), q a random
    step's ratio to the untuned generator's. Needs: an order. Cost: 1 G + 1 F a random step."""
    return pair_loss(beta * clipped_log_ratio(step.logp, step.base_logp, clip), best_over_worst(step.rewards))
