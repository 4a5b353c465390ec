"""A recipe is one file: a service runs a job with a recipe that was added to a copy of the packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from labeled_texts import other_label, save_labeled
from running_service import running
from source_modules import ROOT

from salem.records import Task
from salem.settings import Settings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the private Redis is a Linux binary"),
]

TEXT = "my lamp is broken"
DIRECT = '''
"""The `direct` recipe: trains the update of the weight itself."""

import torch
from pydantic import Field
from torch import nn

from salem.deltas.terms import Dense, applied
from salem.records import SharedOptions
from worker.recipes.base import Recipe, Trained
from worker.training.options import TrainingOptions


class DirectOptions(TrainingOptions, SharedOptions):
    strength: float = Field(default=1.0, gt=0, le=2, description="Factor of the update")


class Direct:
    shared = True

    def __init__(self, layer, strength):
        self.update, self.strength = nn.Parameter(torch.zeros(layer.d_out, layer.d_in)), strength

    def parameters(self):
        return iter((self.update,))

    def term(self):
        return Dense(self.strength * self.update)


class DirectRecipe(Recipe):
    name = "direct"
    summary = "Gradient descent on the weight itself."
    Options = DirectOptions

    def make(self, task):
        with applied(task.network.model, task.plain):
            learner = Direct(task.layer, self.options.strength)
            return Trained(task.fit(task.prepare(), learner, self.options))
'''
OPTIONS = {"recipe": "direct", "strength": 0.5, "max_steps": 60, "learning_rate": 0.05, "kl_weight": 0.0}


def copy_with_the_recipe(folder: Path) -> Path:
    """A copy of the packages with one more recipe file and an updated list of recipes."""
    for package in ("salem", "app", "worker"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "worker" / "recipes" / "direct.py").write_text(DIRECT)
    command = [sys.executable, "-m", "worker.recipes.describe", "json"]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    described = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=True)
    (folder / "app" / "validation" / "recipes.json").write_bytes(described.stdout)
    return folder


def test_a_recipe_is_added_with_one_file(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", _env_file=None)
    packages = copy_with_the_recipe(tmp_path / "packages")
    root = settings.effective_models_root
    reference = save_labeled(root, "intents", "bert", Task.SEQUENCE_CLASSIFICATION, 9)
    with running(settings, tmp_path / "log", packages) as service:
        schemas = service.get("/openapi.json")["components"]["schemas"]
        assert schemas["DirectOptions"]["properties"]["strength"]["description"] == "Factor of the update"
        assert service.register("intents", Task.SEQUENCE_CLASSIFICATION, reference)["state"] == "succeeded"
        edit = {"input": TEXT, "target": other_label(service.answers("intents", [TEXT])[0])}
        body = {"model": "intents", "edits": [edit], "options": OPTIONS | {"editor_rank": 8}}
        refused = service.client.post("/edits", json=body)
        (problem,) = refused.json()["errors"]
        assert refused.status_code == 422 and problem["pointer"] == "/options/editor_rank"
        assert problem["detail"].startswith(
            'direct has no option "editor_rank"; it has layer, saliency_samples, seed'
        )
        job = service.edit("intents", [edit], options=OPTIONS)
        assert job["state"] == "succeeded", job["error"]
        stored = service.get("/models/intents/versions/1")["options"]
        assert {name: stored[name] for name in OPTIONS} == OPTIONS and stored["margin"] == 6.0
        assert service.answers("intents:1", [TEXT]) == [edit["target"]]
