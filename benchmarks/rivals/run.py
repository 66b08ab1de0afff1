"""The rivals: which there are, their environments, and how to ask one.

    python benchmarks/rivals/run.py --setup --environments FOLDER [--only ENVIRONMENT ...]

builds their virtual environments from the pinned requirements beside this file. Rivals are spoken to through files
alone (protocol.py, README.md).
"""

import argparse
import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

HERE = Path(__file__).parent
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
LAST_WORDS = 2000  # characters of a failed rival's output that are worth reading


class RivalFailed(RuntimeError):
    """A rival ended without an answer; the message has the end of what it wrote."""


@dataclass(frozen=True)
class Rival:
    """`kind` says what it learns from: the chosen model's reward alone (bandit), or every model's (full). Rivals of one
    `family` are settings of one router, of which the best counts."""

    family: str
    environment: str
    script: str
    kind: Literal["bandit", "full"]
    setting: str = ""


RIVALS = {
    "paretobandit": Rival("ParetoBandit LinUCB", "paretobandit", "paretobandit_linucb.py", "bandit", "published"),
    "paretobandit-stationary": Rival(
        "ParetoBandit LinUCB", "paretobandit", "paretobandit_linucb.py", "bandit", "stationary"
    ),
    "paretobandit-own-pca": Rival("ParetoBandit LinUCB", "paretobandit", "paretobandit_linucb.py", "bandit", "own-pca"),
    "paretobandit-full": Rival("ParetoBandit LinUCB", "paretobandit", "paretobandit_linucb.py", "bandit", "full"),
    "vowpal-squarecb": Rival("Vowpal Wabbit", "vowpalwabbit", "vowpal_adf.py", "bandit", "squarecb"),
    "vowpal-squarecb-coin": Rival("Vowpal Wabbit", "vowpalwabbit", "vowpal_adf.py", "bandit", "squarecb-coin"),
    "vowpal-bag": Rival("Vowpal Wabbit", "vowpalwabbit", "vowpal_adf.py", "bandit", "bag"),
    "vowpal-epsilon": Rival("Vowpal Wabbit", "vowpalwabbit", "vowpal_adf.py", "bandit", "epsilon"),
    "litellm-adaptive": Rival("LiteLLM adaptive", "litellm", "litellm_adaptive.py", "bandit"),
    "semantic-router": Rival("semantic-router fit", "semantic-router", "semantic_router_fit.py", "full", "published"),
    "semantic-router-fallback": Rival(
        "semantic-router fit", "semantic-router", "semantic_router_fit.py", "full", "fallback"
    ),
    "semantic-router-vote": Rival("semantic-router fit", "semantic-router", "semantic_router_fit.py", "full", "vote"),
    "llmrouter-knn": Rival("LLMRouter knn", "torch", "llmrouter_lib.py", "full", "knn"),
    "llmrouter-knn50": Rival("LLMRouter knn", "torch", "llmrouter_lib.py", "full", "knn50"),
    "llmrouter-svm": Rival("LLMRouter svm", "torch", "llmrouter_lib.py", "full", "svm"),
    "llmrouter-svm-drawn": Rival("LLMRouter svm", "torch", "llmrouter_lib.py", "full", "svm-drawn"),
    "llmrouter-mlp": Rival("LLMRouter mlp", "torch", "llmrouter_lib.py", "full", "mlp"),
    "llmrouter-mf": Rival("LLMRouter mf", "torch", "llmrouter_lib.py", "full", "mf"),
    "llmrouter-mf-drawn": Rival("LLMRouter mf", "torch", "llmrouter_lib.py", "full", "mf-drawn"),
    "routellm-mf": Rival("RouteLLM mf", "torch", "routellm_mf.py", "full"),
}


def interpreter(environment: str, environments: Path) -> Path:
    return environments / environment / "bin" / "python"


def available(environments: Path) -> list[str]:
    """Names of the rivals whose environment has been set up under this folder."""
    return [name for name, rival in RIVALS.items() if (environments / rival.environment / "ready").exists()]


def ask(name: str, job: Path, out: Path, environments: Path, timeout: float | None = None) -> None:
    """Let a rival answer the job file. Raises RivalFailed when it ends without an answer or takes over `timeout` s."""
    rival = RIVALS[name]
    python = interpreter(rival.environment, environments)
    try:
        done = subprocess.run(
            [python, HERE / rival.script, "--job", job, "--out", out, "--setting", rival.setting],
            env={**os.environ, **ONE_THREAD, "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RivalFailed(f"{name}: {error}") from error
    if done.returncode or not out.exists():
        raise RivalFailed(f"{name} ended with status {done.returncode}: ...{done.stdout[-LAST_WORDS:]}")


def setup(environment: str, environments: Path) -> None:
    """Build one environment, and see that its scripts start. Packages whose own requirements are mostly not needed here
    (a chat page, a server) are listed in `...-alone.txt` and come without them."""
    folder = environments / environment
    venv.create(folder, clear=True, with_pip=True)
    python = str(interpreter(environment, environments))
    pip = [python, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "-r", str(HERE / f"requirements-{environment}.txt")], check=True)
    alone = HERE / f"requirements-{environment}-alone.txt"
    if alone.exists():
        subprocess.run([*pip, "--no-deps", "-r", str(alone)], check=True)
    for script in sorted({rival.script for rival in RIVALS.values() if rival.environment == environment}):
        subprocess.run([python, HERE / script, "--help"], check=True, stdout=subprocess.DEVNULL)
    (folder / "ready").touch()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--environments", type=Path, required=True)
    arguments.add_argument("--setup", action="store_true")
    arguments.add_argument("--only", nargs="*", choices=sorted({rival.environment for rival in RIVALS.values()}))
    options = arguments.parse_args()
    if options.setup:
        for environment in options.only or sorted({rival.environment for rival in RIVALS.values()}):
            setup(environment, options.environments)
    sys.stdout.write("\n".join(available(options.environments)) + "\n")


if __name__ == "__main__":
    main()
