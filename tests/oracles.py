"""The same off-policy estimates by others' code: Open Bandit Pipeline (obp 0.4.1) and Vowpal Wabbit."""

import numpy as np
import vowpalwabbit
from logged_world import Played, World


def by_obp(world: World, played: Played, chances: np.ndarray) -> dict[str, float]:
    """IPS, SNIPS, direct and doubly robust values of a policy with `chances` (kinds, orders).

    An ordered choice is an action to obp. It takes seconds to import, and warns of what it calls in others.
    """
    from obp.ope import (
        DirectMethod,
        DoublyRobust,
        InverseProbabilityWeighting,
        SelfNormalizedInverseProbabilityWeighting,
    )

    logged = {
        "reward": played.log.rewards,
        "action": played.choices,
        "pscore": played.log.propensities,
        "action_dist": chances[played.kinds][:, :, None],  # (n, orders, 1)
        "estimated_rewards_by_reg_model": world.guess[played.kinds][:, :, None],
    }
    theirs = {
        "ips": InverseProbabilityWeighting(),
        "snips": SelfNormalizedInverseProbabilityWeighting(),
        "direct": DirectMethod(),
        "robust": DoublyRobust(),
    }
    return {name: float(estimator.estimate_policy_value(**logged)) for name, estimator in theirs.items()}


def by_wabbit(world: World, played: Played, wanted: np.ndarray, estimator: str) -> float:
    """The value of always making choice `wanted` (kinds,); `estimator` is "ips" or "dr", which learns its own model.

    Wabbit counts costs from 1, keeps them in 32 bits and evaluates policies without chance.
    """
    workspace = vowpalwabbit.Workspace(f"--cb {len(world.orders)} --cb_type {estimator} --eval --quiet")
    rows = zip(played.kinds, played.choices, played.log.rewards, played.log.propensities, strict=True)
    for kind, choice, reward, propensity in rows:
        workspace.learn(f"{wanted[kind] + 1} {choice + 1}:{-reward}:{propensity:.9f} | kind{kind}")
    value = -workspace.get_sum_loss() / workspace.get_weighted_examples()
    workspace.finish()
    return float(value)
