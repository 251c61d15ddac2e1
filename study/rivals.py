"""The bench behind notebook 08, by study/rivals.yaml: `python study/rivals.py second_detector` trains the second detector, `... search`
tries each method's knobs, `... run` tunes with every method, reward and seed, `... time` measures what a step takes, `... table` makes the
tables. Any number of processes share the work, a run at a time; killed, each goes on with what no other has done."""

import inspect
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import results
import rivals_rewards
import rivals_tables
import torch

import icthp
from icthp import evaluation, files, microworld, pipelines, run, shards, tables, trainer, tuning
from icthp.data import wording
from icthp.tuning import endpoint, fitting, flow, negative, optimisers, stochastic

RUNS = results.RUNS / "rivals"
SECOND_DETECTOR = Path("study/second_detector")  # in git, so that every machine measures with the same
OWN = ("update", "prompts", "knob", "edited", "pictures", "negative_guidance", "lr")  # options that are not handed on
NEEDS_GRADIENT = ("draft_step", "jump_step", "align_step", "pull_step")
TRAIN = 512  # prompts
EDITS = {"wrong": lambda prompt: wording.hard_negative(prompt, 0, microworld.CLASSES), "rich": rivals_rewards.rich}
DISTANCE = 16  # held-out prompts whose velocities are compared


# ---- a method ---------------------------------------------------------------------------------------------------


def update_of(method: dict):
    """The update of a method of rivals.yaml: each option goes to whoever knows its name, the loss, the rule of noise or the path before the
    update itself. ValueError for an option that nobody knows."""
    options = {name: value for name, value in method.items() if name not in OWN}
    parts = {"loss": optimisers, "rule": stochastic, "path": endpoint, "arrange": fitting}
    made = {}
    for name, module in parts.items():
        if name in options:
            function = getattr(module, options.pop(name))
            known = inspect.signature(function).parameters.keys() & options.keys()
            made["path_of" if name == "path" else name] = partial(function, **{key: options.pop(key) for key in known})
    update = getattr(tuning, method["update"])
    if unknown := options.keys() - inspect.signature(update).parameters.keys() - inspect.signature(fitting.fit_loss).parameters.keys():
        raise ValueError(f"nobody knows the option {', '.join(sorted(unknown))} of {method}")
    return partial(update, **made, **options)


def inputs_of(method: dict, pipe) -> dict:
    """What the update takes of a batch's prompts beside: another caption, as EDITS has it, latents of renders of any richness."""
    made = {}
    if method.get("edited"):
        made["edited"] = lambda prompts: tuning.encode(pipe, list(map(EDITS[method["edited"]], prompts)))
    if method.get("pictures"):
        made["pictures"] = lambda prompts: tuning.latents(pipe, renders(prompts))
    return made


def renders(prompts: list[str]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))  # torch's numbers are seeded by the step
    return microworld.render(microworld.parse(prompts, generator).at(torch.rand(len(prompts), generator=generator)))


# ---- a run ------------------------------------------------------------------------------------------------------


class Bench:
    """What all runs have in common: a fresh generator for each, prompts, the second detector, what the untuned generator draws."""

    def __init__(self, config: dict, shared: dict, draft: dict):
        self.config, self.shared, self.draft = config, shared, draft
        self.second_detector = microworld.Detector.load(SECOND_DETECTOR).requires_grad_(False)
        self.clip = icthp.load("clip", shared["clip"])
        self.train = tables.read_lines(Path(shared["prompts"]) / "train.txt")[:TRAIN]
        self.test = tables.read_lines(Path(shared["prompts"]) / "test.txt")
        self.base = self.draw(self.generator(), self.train[:64], 0)
        self.equivalents = {}  # of a step, by method: the same for every reward and seed

    def generator(self):
        return pipelines.load_pipeline(self.draft["generator"], transformer=self.draft["transformer"])

    def draw(self, pipe, prompts, seed):
        return tuning.generate(pipe, prompts, steps=self.shared["sampler_steps"], size=self.shared["size"], seed=seed)

    def trajectory(self, method: dict, reward: str, own: dict, seed: int) -> pd.DataFrame:
        """One run, evaluated before and `evaluations` times: a row an evaluation and held-out prompt, with the steps and the costs until
        then. own: what `bench` of rivals.yaml holds, as it is in force here."""
        pipe, prompts, times = self.generator(), self.test[slice(*own["held_out"])], own["evaluations"]
        tuning.add_lora(pipe, own["rank"], seed=seed)
        scorer, update = self.scorer_of(method, reward), self.update_of(method)
        inputs = inputs_of(method, pipe)
        options = {"batch": method["prompts"], "lr": method["lr"], "schedule": "constant", "weight_decay": 0.0, "betas": (0.9, 0.999),
                   "ema": own["ema"], "seed": seed, "inputs": inputs, "label": f"{method['update']} {reward}"}  # fmt: skip
        key = repr(method)
        if key not in self.equivalents:
            self.equivalents[key] = self.costs_of_a_step(update, method, scorer)[0]
        steps = max(times, round(own["budget"] / self.equivalents[key]))
        costs, evaluations = tuning.Costs(), []

        def evaluate(_, step: int) -> float:
            evaluations.append(self.measure(pipe, method, scorer, prompts, own["pictures"], seed).assign(step=step + 1, **costs.as_dict()))
            return 0.0

        every = -(-steps // times)
        evaluate(None, -1)
        tuning.tune(pipe, self.train, scorer.score, partial(tuning.counted, costs, update), steps=steps, warmup=steps // 10,
                    validate=evaluate, validate_every=every, **options)  # fmt: skip
        return pd.concat(evaluations, ignore_index=True)

    def costs_of_a_step(self, update, method: dict, scorer) -> tuple[float, float]:
        """Equivalents, the mean of three steps, and seconds, the least of them, on a generator of its own."""
        pipe, costs, seconds = self.generator(), tuning.Costs(), [0.0]
        tuning.add_lora(pipe, self.config["bench"]["rank"], seed=0)

        def timed(*args, **options):
            made = tuning.counted(costs, update, *args, **options)
            seconds.append(costs.seconds)
            return made

        tuning.tune(pipe, self.train, scorer.score, timed, batch=method["prompts"], steps=3, lr=1e-5, inputs=inputs_of(method, pipe),
                    label="cost")  # fmt: skip
        return costs.equivalents / 3, min(after - before for before, after in zip(seconds, seconds[1:]))

    def seconds_of(self, method: dict, reward: str) -> float:
        """Of a step of the processor; a run's own seconds are those of the machine that it happened to run on."""
        return self.costs_of_a_step(self.update_of(method), method, self.scorer_of(method, reward))[1]

    def update_of(self, method: dict):
        return partial(update_of(method), steps=self.shared["sampler_steps"], size=self.shared["size"])

    def scorer_of(self, method: dict, reward: str):
        return rivals_rewards.reward_of(reward, method["update"] in NEEDS_GRADIENT, self.base, self.train[:64], self.shared)

    @torch.no_grad()
    def measure(self, pipe, method: dict, scorer, prompts: list[str], count: int, seed: int) -> pd.DataFrame:
        """rivals_tables.MEASURES of each held-out prompt, the means of `count` pictures; of a picture of each together their Vendi score
        over their number, and of some prompts the mean squared distance of the velocity from the untuned one."""
        guidance = method.get("negative_guidance", 0.0)
        with negative.negative_branch(pipe.transformer, guidance) if guidance else torch.no_grad():
            pixels = self.draw(pipe, prompts * count, 1000 * (seed + 1))
        values = microworld.read_qualities(self.second_detector, pixels, rivals_rewards.scenes_of(prompts * count))
        values |= {"utility": microworld.utility(values), "reward": evaluation.score_all(scorer, pixels, prompts * count)}
        features = self.clip.image_features(pixels[: len(prompts)])
        vendi = evaluation.vendi(features, [0] * len(prompts)).item() / len(prompts)
        means = {name: values[name].view(count, -1).mean(0).numpy() for name in rivals_tables.MEASURES}
        return pd.DataFrame(means).assign(prompt=prompts, vendi=vendi, distance=self.distance(pipe, prompts[:DISTANCE]))

    def distance(self, pipe, prompts: list[str]) -> float:
        sampler = flow.Sampler(pipe, *tuning.encode(pipe, prompts), self.shared["sampler_steps"])
        x = flow.initial_noise(pipe, len(prompts), self.shared["size"], torch.Generator().manual_seed(0))
        steps = range(self.shared["sampler_steps"])
        return (sampler.denoise_anchored(x, steps, torch.arange(len(x)))[1] / len(steps)).item()


# ---- jobs -------------------------------------------------------------------------------------------------------


def train_second_detector(config: dict) -> None:
    """A detector of another seed on scenes of its own."""
    seed = config["seed"]
    torch.manual_seed(seed)
    detector = microworld.Detector()

    def loss(model, step):
        generator = torch.Generator().manual_seed(seed * 100_003 + step)
        scenes = microworld.sample(config["batch"], generator)
        return microworld.detector_loss(model, microworld.render(scenes), scenes, generator), {}

    trainer.train(detector, loss, steps=config["steps"], lr=config["lr"], warmup=config["steps"] // 20, seed=seed,
                  checkpoint=RUNS / "second_detector.pt", label="second detector")  # fmt: skip
    detector.save(SECOND_DETECTOR)


def candidates(config: dict) -> list[tuple[str, dict]]:
    """(method's name, method with its knob and learning rate set) of the whole grid, each method's first knob value before the others."""
    found = []
    for name, method in config["methods"].items():
        knob, values = next(iter(method["knob"].items()), ("", [None]))
        found += [(name, method | ({knob: value} if knob else {}) | {"lr": lr}) for value in values for lr in config["search"]["lr"]]
    return found


def first_round(config: dict) -> list[tuple[str, dict]]:
    """The candidates with the first value of their knob."""
    return [(name, m) for name, m in candidates(config) if all(m[knob] == values[0] for knob, values in m["knob"].items())]


def second_round(config: dict) -> list[tuple[str, dict]]:
    """The candidates with another value at their first round's best learning rate."""
    first = first_round(config)
    lr = {name: best["lr"] for name, (best, *_) in ranked(config, first, 1).items()}
    return [(name, m) for name, m in candidates(config) if lr.get(name) == m["lr"] and (name, m) not in first]


def third_round(config: dict) -> list[tuple[str, dict]]:
    """Each method's best candidates so far, to be run with the other seeds: one seed prefers a learning rate at which others fall."""
    found = ranked(config, candidates(config), 1)
    return [(name, m) for name, several in found.items() for m in several[: config["search"]["again"]]]


def place_of_candidate(name: str, method: dict, seed: int) -> Path:
    knobs = [method["lr"], *(method[knob] for knob in method["knob"])]
    return RUNS / "search" / f"{name}-{'-'.join(f'{knob:g}' for knob in knobs)}-{seed}.parquet"


def ranked(config: dict, among: list[tuple[str, dict]], seeds: int) -> dict[str, list[dict]]:
    """Each method's candidates among these, the best first, by the reward itself at the end, the mean of the first `seeds` seeds of the
    search. A candidate without a run of each, whose gradient broke, is left out."""
    searched = pd.read_csv(rivals_tables.SEARCH).set_index("run").reward
    found = {}
    for name, method in among:
        runs = [place_of_candidate(name, method, seed).stem for seed in config["search"]["seeds"][:seeds]]
        if all(run in searched.index for run in runs):
            found.setdefault(name, []).append((searched[runs].mean(), method))
    return {name: [method for _, method in sorted(several, key=lambda one: -one[0])] for name, several in found.items()}


def chosen(config: dict) -> dict[str, dict]:
    """Each method as the best of its candidates that all seeds ran has it; ValueError for a method without one."""
    best = ranked(config, candidates(config), len(config["search"]["seeds"]))
    if missing := config["methods"].keys() - best.keys():
        raise ValueError(f"no run of {', '.join(sorted(missing))} in {rivals_tables.SEARCH}: python study/rivals.py search")
    return {name: several[0] for name, several in best.items()}


def jobs(config: dict) -> list[tuple[str, str, int]]:
    """(method, reward, seed) of every run, reward after reward, those of `longer` last, as REWARD_longer."""
    methods = config["methods"]
    who = {reward: methods if those == "all" else those for reward, those in config["rewards"].items()}
    who |= {f"{reward}{rivals_tables.LONGER}": those for reward, those in config["longer"]["rewards"].items()}
    return [(method, reward, seed) for reward, those in who.items() for seed in config["bench"]["seeds"] for method in those]


def settings(config: dict, method: dict, reward: str) -> tuple[dict, str, dict]:
    """(method, reward, what `bench` holds) of a run; of a longer one with its learning rate, and what `longer` holds in the place of it."""
    if not reward.endswith(rivals_tables.LONGER):
        return method, reward, config["bench"]
    own = config["bench"] | config["longer"]
    return method | {"lr": method["lr"] * own["lr_factor"]}, reward.removesuffix(rivals_tables.LONGER), own


def do_all(places: list[Path], make, earlier=frozenset()) -> None:
    """Make the files that are not there; earlier: the numbers of those whose rows are in the table already. A run whose gradient breaks is
    named and left out; the others go on."""
    is_done = lambda k: k in earlier or places[k].exists()

    def make_one(k: int) -> None:
        try:
            files.atomic(places[k], make(k).to_parquet)
        except FloatingPointError as error:
            print(f"{places[k].stem} is left out: {error}", file=sys.stderr)

    shards.make_all(places, make_one, is_done, "runs")


def main(argv: list[str]) -> None:
    run.enter_project()
    torch.set_num_threads(1)  # two processes on two cores
    config, params = run.read_params("study/rivals.yaml"), run.read_params()
    RUNS.mkdir(parents=True, exist_ok=True)
    if argv == ["second_detector"]:
        return train_second_detector(config["second_detector"])
    if argv == ["table"]:
        return rivals_tables.main(config, len(jobs(config)), RUNS)
    bench = Bench(config, params["shared"], params["draft"])
    if argv == ["search"]:
        search = config["search"]
        first, *others = search["seeds"]
        for tried_of, seeds in ((first_round, [first]), (second_round, [first]), (third_round, others)):
            tried, done = [(*candidate, seed) for seed in seeds for candidate in tried_of(config)], rivals_tables.searched()
            do_all([place_of_candidate(*one) for one in tried],
                   lambda k, tried=tried: bench.trajectory(tried[k][1], "truth", config["bench"] | search, tried[k][2]),
                   {k for k, one in enumerate(tried) if place_of_candidate(*one).stem in done})  # fmt: skip
            rivals_tables.write_search(RUNS / "search")
    elif argv == ["run"]:
        methods, todo, done = chosen(config), jobs(config), rivals_tables.done()
        do_all([RUNS / f"{method}-{reward}-{seed}.parquet" for method, reward, seed in todo],
               lambda k: bench.trajectory(*settings(config, methods[todo[k][0]], todo[k][1]), todo[k][2]),
               {k for k, job in enumerate(todo) if job in done})  # fmt: skip
    elif argv == ["time"]:
        methods = chosen(config)
        pairs = sorted({(method, reward) for method, reward, _ in jobs(config) if not reward.endswith(rivals_tables.LONGER)})
        rivals_tables.write_seconds((pair, bench.seconds_of(methods[pair[0]], pair[1])) for pair in pairs)
    else:
        raise ValueError(f"{' '.join(argv)} is none of second_detector, search, run, time, table")


if __name__ == "__main__":
    run.own_code()
    main(sys.argv[1:])
