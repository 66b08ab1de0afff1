"""The API holds against its own description; and what attacks it finds the mistakes that are planted in it."""

from pathlib import Path

from drills.contract import PLANTED, attack, target


def test_every_operation_keeps_its_contract_and_every_planted_mistake_is_found(tmp_path: Path) -> None:
    with target(tmp_path, planted=True) as gateway:
        found = attack(gateway, "quick", gateway.key, seeded=False)
    assert found.cases > 1000
    assert found.operations > 35
    by_plan = {path: [failure for failure in found.failures if path in failure] for path in PLANTED}
    assert all(by_plan.values()), found.failures
    assert [failure for failure in found.failures if "/planted/" not in failure] == [], found.said
