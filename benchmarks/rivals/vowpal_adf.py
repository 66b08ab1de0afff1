"""Vowpal Wabbit's contextual bandits, `--cb_explore_adf`: one shared namespace with the vector, one action a model,
crossed by `-q sa`. Which settings and why: README.md."""

import numpy as np
import vowpalwabbit
from protocol import Float, Int, Job, play, serve

SETTINGS = {
    "squarecb": "--squarecb --gamma_scale 100 -l 0.2",
    "squarecb-coin": "--squarecb --coin",
    "bag": "--bag 5 --greedify -l 0.05",
    "epsilon": "--epsilon 0.1 --coin",
}


class VowpalWabbit:
    ranked = True

    def __init__(self, job: Job, setting: str) -> None:
        self.job = job
        self.notes = f"--cb_explore_adf -q sa {SETTINGS[setting]}"
        # VW takes the seed 0 for none
        self.workspace = vowpalwabbit.Workspace(f"{self.notes} -b 22 --random_seed {job.seed + 1} --quiet")
        self.generator = np.random.default_rng(job.seed)
        self.actions = [f"|a m{model}" for model in range(len(job.models))]
        self.drawn: tuple[list[str], float] = ([], 1.0)

    def choose(self, row: int) -> int:
        lines = self.lines(row)
        chances = np.array(self.workspace.predict(lines))
        chosen = int(self.generator.choice(len(chances), p=chances / chances.sum()))
        self.drawn = lines, chances[chosen]
        return chosen

    def learn(self, row: int, chosen: int, reward: float) -> None:
        """Cost is 1 - reward: what was never tried starts at cost 0 and so gets its turn."""
        lines, chance = self.drawn
        lines[1 + chosen] = f"0:{1 - reward}:{chance:.6f} {lines[1 + chosen]}"
        self.workspace.learn(lines)

    def scores(self, rows: Int) -> Float:
        return np.array([self.utilities(row) for row in rows.tolist()])

    def utilities(self, row: int) -> list[float]:
        """Minus the predicted cost of every model (m,), which exploration is wrapped around."""
        examples = self.workspace.parse(self.lines(row))
        self.workspace.predict(examples)
        utilities = [-example.get_partial_prediction() for example in examples[1:]]
        self.workspace.finish_example(examples)
        return utilities

    def lines(self, row: int) -> list[str]:
        vector = " ".join(f"{i}:{value:.5g}" for i, value in enumerate(self.job.features[row].tolist()))
        return [f"shared |s {vector}", *self.actions]


if __name__ == "__main__":
    serve(VowpalWabbit, play)
