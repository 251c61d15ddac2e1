"""Which way each method goes: `python study/rivals_directions.py` compares its gradients at the untuned generator, where a LoRA's second
matrices alone have one, with the gradient of the true utility through the whole chain, into study/rivals_directions.csv. The same budget of
evaluations for each, with the knobs of the search; and what the settings of rivals.yaml are there for, in variants without them."""

from functools import cache

import pandas as pd
import results
import rivals
import torch
from torch.nn.functional import cosine_similarity, normalize

from icthp import evaluation, run, tuning

BUDGET, REFERENCE_BUDGET, REFERENCE_SEED = 5000, 12000, 1  # evaluations of the transformer; other prompts and noise than the methods' own
VARIANTS = {
    "dpo, any level": ("dpo", {"grid": 0}),
    "awm, any level": ("awm", {"grid": 0}),
    "flow_grpo, all steps": ("flow_grpo", {"random_steps": None, "window": 0}),
    "cps_grpo, the third step": ("cps_grpo", {"random_steps": [2]}),
    "cps_grpo, all steps": ("cps_grpo", {"random_steps": None, "window": 0}),
    "cps_grpo, all steps, own starts": ("cps_grpo", {"random_steps": None, "window": 0, "same_start": False}),
    "spo, the third step": ("spo", {"random_steps": [2]}),
}


def gradients(bench: rivals.Bench, method: dict, budget: int, seed: int = 0) -> tuple[torch.Tensor, float]:
    """(batches, entries) gradients of batches of its own, as many as the budget allows, and the evaluations of one."""
    pipe = bench.generator()
    tuning.add_lora(pipe, bench.config["bench"]["rank"], seed=0)
    learned = [p for name, p in pipe.transformer.named_parameters() if p.requires_grad and "lora_B" in name]
    scorer, update, inputs = bench.scorer_of(method, "truth"), bench.update_of(method), rivals.inputs_of(method, pipe)
    costs, found, choice = tuning.Costs(), [], torch.Generator().manual_seed(seed)
    while costs.equivalents < budget:
        prompts = [bench.train[k] for k in torch.randint(len(bench.train), (method["prompts"],), generator=choice).tolist()]
        found.append(one_gradient(pipe, learned, costs, update, scorer, prompts, inputs, 1000 * seed + len(found)))
    return torch.stack(found), costs.equivalents / len(found)


def one_gradient(pipe, learned, costs, update, scorer, prompts: list[str], inputs: dict, seed: int) -> torch.Tensor:
    pipe.transformer.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    taken = {name: of(prompts) for name, of in inputs.items()}
    reward = lambda pixels, rows: scorer.score(pixels, [prompts[row] for row in rows.tolist()])
    embeds, generator = tuning.encode(pipe, prompts), torch.Generator().manual_seed(seed)
    tuning.counted(costs, update, pipe, *embeds, reward, generator=generator, **taken)
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in learned])


def compare(found: torch.Tensor, reference: torch.Tensor) -> dict:
    """found (m, entries), reference (entries,): the cosine of one batch with the reference, with its interval, that of all batches' mean,
    and the mean cosine of two batches: how much of a batch is direction and how much chance."""
    each = cosine_similarity(found, reference[None], dim=1)
    unit = normalize(found)
    m = len(unit)
    among = ((unit @ unit.T).sum() - unit.square().sum()) / (m * (m - 1))
    whole = cosine_similarity(found.mean(0), reference, dim=0)
    names = {"mean": "cosine", "low": "cosine_low", "high": "cosine_high"}
    one = {names[key]: value for key, value in evaluation.bootstrap_ci(each).items() if key in names}
    return one | {"of_all": whole.item(), "among": among.item(), "batches": m}


def main() -> None:
    run.enter_project()
    torch.set_num_threads(1)
    config, params = run.read_params("study/rivals.yaml"), run.read_params()
    bench, methods = rivals.Bench(config, params["shared"], params["draft"]), rivals.chosen(config)
    methods |= {name: methods[of] | changed for name, (of, changed) in VARIANTS.items()}
    names, places = list(methods), [rivals.RUNS / "directions" / f"{name}.parquet" for name in methods]

    @cache
    def reference() -> torch.Tensor:
        return gradients(bench, methods["draft_4"], REFERENCE_BUDGET, REFERENCE_SEED)[0].mean(0)

    def make(k: int) -> pd.DataFrame:
        found, cost = gradients(bench, methods[names[k]], BUDGET)
        sign = -1 if methods[names[k]].get("negative_guidance") else 1  # it learns what the sampler then goes away from
        return pd.DataFrame([{"method": names[k]} | compare(sign * found, reference()) | {"equivalents": cost}])

    rivals.do_all(places, make)
    results.write(pd.concat(map(pd.read_parquet, places)), str(rivals.rivals_tables.DIRECTIONS))


if __name__ == "__main__":
    run.own_code()
    main()
