"""ParetoBandit's disjoint LinUCB through its `route` and `process_feedback`, quality only (no cost penalty, no budget).

Its encoder is asked for by row number and looks our vector up; all that follows (PCA, whitening, bias) is its own.
"""

import tempfile
from pathlib import Path

import joblib
import numpy as np
from pareto_bandit import BanditRouter
from pareto_bandit.config import BEST_K3_HPARAMS, DEFAULT_PCA_PATH
from pareto_bandit.feature_service import FeatureService
from protocol import Float, Int, Job, play, serve
from sklearn.decomposition import PCA

SETTINGS = {  # features, alpha, forgetting factor
    "published": ("shipped PCA", BEST_K3_HPARAMS["alpha"], BEST_K3_HPARAMS["forgetting_factor"]),
    "stationary": ("shipped PCA", BEST_K3_HPARAMS["alpha"], 1.0),
    "own-pca": ("PCA of the stream", 0.1, 1.0),
    "full": ("all dimensions", 0.3, 1.0),
}
SHIPPED_PCA_READS = 384  # numbers a MiniLM vector


class ParetoBandit:
    ranked = True

    def __init__(self, job: Job, setting: str) -> None:
        features, alpha, forgetting = SETTINGS[setting]
        self.models = job.models
        self.router = BanditRouter.create(
            model_registry={model: {"input_cost_per_m": 1.0, "output_cost_per_m": 1.0} for model in job.models},
            priors="none",
            feature_service=self.service(job, features),
            alpha=alpha,
            forgetting_factor=forgetting,
            cost_penalty=0.0,
            bandit_seed=job.seed,
        )
        self.notes = f"{features}, alpha {alpha}, forgetting {forgetting}"
        self.request = ""

    def service(self, job: Job, features: str) -> FeatureService:
        dimensions = job.features.shape[1]
        pca: Path | None = None
        if features == "shipped PCA":
            if dimensions != SHIPPED_PCA_READS:
                raise ValueError(f"the shipped PCA reads {SHIPPED_PCA_READS} numbers, not {dimensions}")
            pca = DEFAULT_PCA_PATH
        elif features == "PCA of the stream":
            self.kept = tempfile.TemporaryDirectory()  # it reads the file when first asked
            pca = Path(self.kept.name) / "pca.joblib"  # made as its train_pca does, apart from the encoder
            projection = PCA(n_components=BEST_K3_HPARAMS["pca_components"], random_state=job.seed)
            joblib.dump(projection.fit(job.features[job.stream]), pca)
        vectors = job.features.astype(np.float64)
        return FeatureService(custom_encoder=lambda row: vectors[int(row)], embedding_dim=dimensions, pca_path=pca)

    def choose(self, row: int) -> int:
        model, log = self.router.route(str(row))
        self.request = log.request_id
        return self.models.index(model)

    def learn(self, row: int, chosen: int, reward: float) -> None:
        self.router.process_feedback(self.request, reward=reward)

    def scores(self, rows: Int) -> Float:
        """Expected rewards, which it takes the largest of under its `exploit()`."""
        expected = self.router.bandit.get_expected_reward
        vectors = [self.router.features.extract_features(str(row)) for row in rows.tolist()]
        return np.array([[expected(model, vector) for model in self.models] for vector in vectors])


if __name__ == "__main__":
    serve(ParetoBandit, play)
