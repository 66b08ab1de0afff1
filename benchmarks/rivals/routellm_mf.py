"""RouteLLM's matrix factorisation, trained by its own `MFModel_Train` and `train_loops` on pairs of the same rows, then
asked through its `MFModel`. Patched: the OpenAI client it embeds prompts with looks our vector up, and the names of
its 64 models are replaced by the table's."""

import os
import tempfile
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from protocol import Float, Int, Job, serve, train

os.environ.setdefault("OPENAI_API_KEY", "unused")  # it makes a client when imported
from routellm.routers.matrix_factorization import model as mf_model
from routellm.routers.matrix_factorization import train_matrix_factorization as mf_train

# as its training script has them
DIMENSIONS, BATCH, EPOCHS, NOISE, RATE, DECAY = 128, 64, 100, 0.1, 3e-4, 1e-5
TESTED = 0.05  # of the pairs, as in its script; it reports on them and learns nothing from them
MOST_PAIRS = 65_000  # it learned from as many arena battles; with many models a table has millions


class MatrixFactorization:
    ranked = True
    notes = f"{DIMENSIONS} dimensions, {EPOCHS} epochs"

    def __init__(self, job: Job, setting: str) -> None:
        self.job = job
        torch.manual_seed(job.seed)
        mf_model.MODEL_IDS.clear()  # the training module holds the same dictionary
        mf_model.MODEL_IDS.update({name: i for i, name in enumerate(job.models)})
        mf_model.OPENAI_CLIENT = SimpleNamespace(embeddings=SimpleNamespace(create=self.embedding))

    def embedding(self, input: list[str], model: str) -> SimpleNamespace:
        return SimpleNamespace(data=[SimpleNamespace(embedding=self.job.features[int(input[0])])])

    def fit(self, rows: Int, rewards: Float) -> None:
        pairs = self.pairs(rows, rewards)
        tested = int(TESTED * len(pairs))
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder) / "vectors.npy", self.job.features)
            net = mf_train.MFModel_Train(
                dim=DIMENSIONS,
                num_models=len(self.job.models),
                num_prompts=len(self.job.features),
                text_dim=self.job.features.shape[1],
                npy_path=Path(folder) / "vectors.npy",
            )
        loaders = [
            mf_train.PairwiseDataset(part).get_dataloaders(batch, shuffle)
            for part, batch, shuffle in ((pairs[tested:], BATCH, True), (pairs[:tested], 1024, False))
        ]
        mf_train.train_loops(net, *loaders, RATE, DECAY, NOISE, EPOCHS, device="cpu")
        self.model = self.asked(net)

    def pairs(self, rows: Int, rewards: Float) -> list[dict]:
        """Every two models one of which did better, shuffled; it drops ties too."""
        first, second = np.array(list(combinations(range(len(self.job.models)), 2))).T
        gaps = rewards[:, first] - rewards[:, second]  # (b, pairs of models)
        where, pair = np.nonzero(np.nan_to_num(gaps))
        kept = np.random.default_rng(self.job.seed).permutation(len(where))[:MOST_PAIRS]
        return [
            {
                "model_a": self.job.models[first[pair[i]]],
                "model_b": self.job.models[second[pair[i]]],
                "idx": int(rows[where[i]]),
                "winner": "model_a" if gaps[where[i], pair[i]] > 0 else "model_b",
            }
            for i in kept
        ]

    def asked(self, net: torch.nn.Module) -> torch.nn.Module:
        """The model it routes with, which names two of the layers otherwise and has no table of prompts."""
        model = mf_model.MFModel(DIMENSIONS, len(self.job.models), self.job.features.shape[1], 1, use_proj=True)
        trained = net.state_dict()
        model.load_state_dict(
            {
                "P.weight": trained["P.weight"],
                "text_proj.0.weight": trained["text_proj.weight"],
                "classifier.0.weight": trained["classifier.weight"],
            }
        )
        return model.eval()

    def choose(self, row: int) -> int:
        """The strong model where its win rate reaches the neutral threshold; of many models the one with most."""
        if len(self.job.models) == 2:
            return int(self.model.pred_win_rate(0, 1, str(row)) < 0.5)
        return int(self.logits(row).argmax())

    def scores(self, rows: Int) -> Float:
        return np.array([self.logits(row) for row in rows.tolist()])

    def logits(self, row: int) -> Float:
        with torch.no_grad():
            return self.model(list(range(len(self.job.models))), str(row)).numpy()


if __name__ == "__main__":
    serve(MatrixFactorization, train)
