"""Gate versions by somebody else are refused and nothing in them runs; what would run it is banned from this code."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from drills import checkpoints
from drills.checkpoints import EXPERTS, NOW, learned

from multimoe.checkpoint import MANIFEST, TENSORS, Manifest, Registry
from multimoe.errors import CheckpointError, NotFound

ROOT = Path(__file__).parents[1]


# the same tests under python -O are left to the drill: without its bytecode at hand all that is imported compiles anew
@pytest.mark.parametrize("drill", [checkpoints.attacks, checkpoints.names], ids=lambda drill: drill.__name__)
def test_nothing_strange_serves_or_runs(drill):
    rows = list(drill("quick"))
    assert [row for row in rows if not row.met] == []
    assert rows


@pytest.mark.parametrize("version", [-1, 10**9, 10**30, 10**300])
def test_a_number_that_no_version_has_is_not_found(tmp_path, version):
    with pytest.raises(NotFound):
        Registry(tmp_path).load(version)


@pytest.mark.parametrize("name", [TENSORS, MANIFEST])
def test_a_good_file_behind_a_link_is_not_taken(tmp_path, name):
    registry = Registry(tmp_path / "gates")
    registry.write(learned(), Manifest(created=NOW))
    file = registry.root / "0001" / name
    file.rename(tmp_path / name)
    with pytest.raises(CheckpointError, match=os.strerror(errno.ENOENT)):
        registry.load(1)
    file.symlink_to(tmp_path / name)
    with pytest.raises(CheckpointError, match=os.strerror(errno.ELOOP)):
        registry.load(1)
    file.unlink()
    (tmp_path / name).rename(file)
    assert registry.load(1).experts == EXPERTS


def test_a_folder_of_versions_may_itself_lie_behind_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "gates").symlink_to("elsewhere")
    registry = Registry(tmp_path / "gates")
    registry.write(learned(), Manifest(created=NOW))
    assert registry.load(1).experts == EXPERTS


# --- what may not be written ---

BANNED = {
    "import pickle\npickle.loads(b'')": "TID251",
    "from pickle import load": "TID251",
    "import cloudpickle": "TID251",
    "import dill": "TID251",
    "import joblib": "TID251",
    "import marshal": "TID251",
    "import shelve": "TID251",
    "import torch\ntorch.load('x')": "TID251",
    "import torch\ntorch.load('x', weights_only=False)": "TID251",
    "import numpy as np\nnp.load('x', allow_pickle=True)": "TID251",
    "import numpy\nnumpy.load('x')": "TID251",
    "from numpy import load": "TID251",
    "import yaml\nyaml.load('x', yaml.Loader)": "S506",
    "import yaml\nyaml.unsafe_load('x')": "TID251",
    "import pandas\npandas.read_pickle('x')": "TID251",
    "eval('1')": "S307",
    "exec('1')": "S102",
    "import os\nos.system('x')": "S605",
    "import subprocess\nsubprocess.run('x', shell=True)": "S602",
    "assert 1": "S101",
}


def codes(package: str, source: str) -> set[str]:
    """What ruff says, by this project's settings, of a file with `source` in `package`."""
    options = ["--output-format=concise", "--stdin-filename", f"{package}/x.py"]
    command = [sys.executable, "-m", "ruff", "check", *options, "-"]
    done = subprocess.run(command, input=source + "\n", cwd=ROOT, capture_output=True, text=True, check=False)
    return {line.split(": ")[1].split(" ")[0] for line in done.stdout.splitlines() if line.startswith(f"{package}/")}


@pytest.mark.parametrize("package", ["multimoe", "experts", "gateway"])
def test_what_runs_a_strangers_code_is_banned(package):
    everything = "\n".join(BANNED)
    assert set(BANNED.values()) <= codes(package, everything)
    if package == "gateway":
        assert {source: code for source, code in BANNED.items() if code not in codes(package, source)} == {}
    assert not codes(package, "import safetensors.numpy\n\nsafetensors.numpy.load(b'')") & set(BANNED.values())


def test_the_code_is_as_it_should_be_without_exception_but_these():
    """Each line that is excepted says why, beside it."""
    options = ["--select", "TID251,S102,S307,S506,S602,S605", "--ignore-noqa", "--output-format=concise"]
    command = [sys.executable, "-m", "ruff", "check", *options, "multimoe", "experts", "gateway"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [line.split(": ") for line in done.stdout.splitlines() if ".py:" in line]
    assert sorted({f"{where.split(':')[0]} {what}" for where, what, *_ in lines}) == [
        "experts/faces.py TID251 `torch.load` is banned",
        "experts/torchaudio_speech.py TID251 `pickle` is banned",
        "multimoe/contract/promises.py TID251 `pickle` is banned",
        "multimoe/outcomes.py TID251 `numpy.load` is banned",
        "multimoe/pretrained.py TID251 `pickle` is banned",
        "multimoe/pretrained.py TID251 `torch.load` is banned",
    ]
